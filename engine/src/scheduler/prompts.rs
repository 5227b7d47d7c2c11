//! Which parts of prompts go into a step, beside its decodes.
//!
//! The first in order that is in the middle of its prompt takes what there is room for. But whoever lacks less than
//! half of what it lacks (a short question behind a book) shares the step with it, half to half: the short one has its
//! first token many steps earlier, the long one a few steps later. Prompts of like length gain nothing by sharing, so
//! they go one after the other. The first in order always gets its half, so it ends however many short ones come.
//!
//! A shorter prompt shares only with one of its own priority or a lower one.

use std::time::Duration;

use super::room::Room;
use super::schedule::Planned;
use super::sequence::{Key, Sequence};
use super::{Scheduler, SequenceNumber};

/// The first in order, while it lacks more than it gets.
#[derive(Clone, Copy, Debug)]
pub(super) struct First {
    key: Key,
    lag: usize,
    /// Its place among the planned.
    place: usize,
}

impl First {
    /// One that gets nothing of this step.
    pub(super) fn elsewhere(key: Key, lag: usize) -> Self {
        let place = usize::MAX;
        Self { key, lag, place }
    }

    /// Whether a request that lacks `lag` tokens shares the step.
    pub(super) fn shares(&self, key: Key, lag: usize) -> bool {
        key.priority <= self.key.priority && lag * 2 <= self.lag
    }
}

impl Scheduler {
    /// Plans a chunk for each running request in the middle of its prompt, whose blocks were taken at admission, and
    /// admits waiting ones.
    pub(super) fn plan_prompts(&mut self, now: Duration, mut room: Room) {
        let under_way = self.slices.request();
        let mut first = under_way.and_then(|number| self.first_of_part(number));
        let admits = self.step.preempted == 0 && self.paused.is_none();
        for index in 0..self.running.len() {
            let key = self.running[index];
            let lag = self.sequences.get(&key.number).map_or(0, Sequence::lag);
            if lag < 2 || under_way == Some(key.number) {
                continue;
            }
            match first {
                None => first = self.plan_first(key, lag, admits, &mut room),
                Some(first) if !first.shares(key, lag) => {}
                Some(_) => self.plan_prompt(key.number, &mut room),
            }
        }
        while admits && self.may_admit(first) && self.admit_first_waiting(now, &mut room) {}
        if let Some(first) = first {
            self.top_up(first, &mut room);
        }
    }

    /// Plans the first in order. It is handed back if it lacks more than it gets.
    fn plan_first(&mut self, key: Key, lag: usize, admits: bool, room: &mut Room) -> Option<First> {
        let place = self.planned.len();
        let first = First { key, lag, place };
        let mut others = self.running.iter().filter(|other| **other > key);
        let shared = others.any(|other| {
            let lag = self.sequences.get(&other.number).map_or(0, Sequence::lag);
            lag > 1 && first.shares(*other, lag)
        });
        let shared =
            shared || admits && self.first_waiting().is_some() && self.may_admit(Some(first));
        let start = self.sequences.get(&key.number)?.computed;
        let limit = self.chunk_limit(lag);
        if let Some(tokens) = room.part(start, limit, self.config.layers) {
            self.slices.begin(key.number, tokens);
            return Some(First::elsewhere(key, lag));
        }
        let count = if shared {
            room.half().fit(start, limit)
        } else {
            room.fit(start, limit)
        };
        if count > 0 {
            room.take(start, count);
            self.planned.push(Planned::new(key.number, count));
        }
        (count < limit && count > 0).then_some(first)
    }

    /// Gives the first in order what the others have left.
    fn top_up(&mut self, first: First, room: &mut Room) {
        let limit = self.chunk_limit(first.lag);
        let Some(planned) = self.planned.get_mut(first.place) else {
            return;
        };
        let Some(sequence) = self.sequences.get(&planned.number) else {
            return;
        };
        let start = sequence.computed + planned.tokens;
        let count = room.fit(start, limit.saturating_sub(planned.tokens));
        room.take(start, count);
        planned.tokens += count;
    }

    /// Plans what there is room for of a request that runs.
    pub(super) fn plan_prompt(&mut self, number: SequenceNumber, room: &mut Room) {
        let Some(sequence) = self.sequences.get(&number) else {
            return;
        };
        let start = sequence.computed;
        let count = room.fit(start, self.chunk_limit(sequence.lag()));
        if count > 0 {
            room.take(start, count);
            self.planned.push(Planned::new(number, count));
        }
    }

    /// Whether the first that waits may come into a step whose room `first` would like for itself.
    pub(super) fn may_admit(&self, first: Option<First>) -> bool {
        let Some(first) = first else { return true };
        // What the prefix cache holds of it is not known yet; it may be shorter than this.
        self.first_waiting()
            .is_some_and(|waiting| first.shares(waiting.key, waiting.lag()))
    }

    /// How many of the `lag` tokens that a request lacks one step may compute.
    fn chunk_limit(&self, lag: usize) -> usize {
        match self.config.long_prefill_token_threshold {
            Some(threshold) if self.sequences.len() > 1 => lag.min(threshold as usize),
            _ => lag,
        }
    }
}
