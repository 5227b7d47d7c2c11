//! The step after the one under way, formed before anybody knows what that one brings.
//!
//! A device that waits for the host between two steps does nothing while the host takes in the outcome, tells clients,
//! forms the next step and hands it over. While requests only generate, none of that has to be waited for. Who goes on
//! is known, but for those that a stop token ends; where keys and values go is known; and the one thing that is not, the
//! token itself, never has to come by the host: the device finds it among the samples of the step before
//! ([`Step::sources`]).
//!
//! ```text
//! device  │ step 1 ──────────────│ step 2 ──────────────│ step 3 ──────────────│
//! host    │ form 2 │             │ take in 1 │ form 3   │ take in 2 │ form 4   │
//! ```
//!
//! Only the plain case is formed ahead, all of it or nothing: everybody that runs samples one token and wants nothing
//! else, nobody could be admitted, and there are blocks without anybody losing theirs. A request that reaches its length
//! with the step under way is left out. Whatever else there is waits until nothing is under way, and then all is
//! decided as ever, so going ahead changes nobody's tokens. Its price is a step: that much later begins a request that
//! comes while two steps are under way, or that gets the place of one which a stop token ended.
//!
//! # Tokens that nobody wants
//!
//! A request may end or lose its blocks while a step that was formed ahead still computes a token of it. Nobody takes
//! that token ([`Planned::is_of`]), but its keys and values are written, perhaps into a block that is free by then, and
//! blocks are read that may be free as well. That harms nobody, because steps run in the order in which they are formed:
//!
//! - The slot written is the one behind all tokens that were known when the step before was taken in. Blocks enter the
//!   cache when they are full of tokens that were computed *and* taken in, and this one is not: what is written is never
//!   part of a block that somebody could find in the cache.
//! - Whoever gets the block next computes in a step that is formed, and so runs, later. It writes every slot of the
//!   block before it reads it, over what was left there.
//! - Nor does anybody overwrite what the unwanted token looks at before it has looked, for the same reason.
//!
//! Blocks that have to be saved to the second tier before they are overwritten are not taken ahead: the copy would
//! make the device wait after all, and readers of the KV events hear of it with the outcome of the step before.

use std::time::Duration;

use super::Scheduler;
use super::schedule::{Planned, StepNotes};
use super::sequence::Sequence;
use crate::backend::Step;

/// The step after the one under way.
#[derive(Debug)]
pub(super) struct NextStep {
    /// Empty while it is not formed.
    planned: Vec<Planned>,
    notes: StepNotes,
}

impl NextStep {
    /// Not formed, with room for so many requests.
    pub(super) fn new(max_num_seqs: u32) -> Self {
        Self {
            planned: Vec::with_capacity(max_num_seqs as usize),
            notes: StepNotes::default(),
        }
    }

    pub(super) fn clear(&mut self) {
        self.planned.clear();
    }
}

impl Planned {
    /// Whether the outcome is for `sequence`, which has its number.
    pub(super) fn is_of(&self, sequence: &Sequence) -> bool {
        self.preemptions == sequence.preemptions
    }
}

impl Scheduler {
    /// Forms the step after the one under way in `step`; false, and nothing changes, where it is better formed by
    /// [`Scheduler::schedule`] later, once nothing is under way. Each of the two steps is completed in its turn.
    pub fn schedule_ahead(&mut self, now: Duration, step: &mut Step) -> bool {
        step.clear();
        if !self.may_go_ahead() {
            return false;
        }
        let block_size = self.config.block_size as usize;
        let eos = &self.config.eos_token_ids;
        let mut notes = StepNotes {
            started_at: now,
            ..StepNotes::default()
        };
        for part in &self.planned {
            let sequence = self.sequences.get_mut(&part.number);
            let Some(sequence) = sequence.filter(|sequence| part.is_of(sequence)) else {
                continue;
            };
            let Some(source) = part.filled.sample.filter(|_| sequence.left() > 1) else {
                continue;
            };
            // There are as many: see below.
            let blocks = sequence.blocks_ahead(block_size) as u32;
            self.pool.allocate(blocks, &mut sequence.table);
            notes.load.add_decode(sequence.tokens.len() + 1);
            self.next.planned.push(Planned {
                number: part.number,
                preemptions: part.preemptions,
                tokens: 1,
                filled: sequence.fill_ahead(source, block_size, eos, step),
            });
        }
        self.next.notes = notes;
        true
    }

    /// Whether the step after the one under way can be formed now, and is what it would be later.
    fn may_go_ahead(&mut self) -> bool {
        let formed = !self.next.planned.is_empty();
        if formed || self.step.slice.is_some() || self.paused.is_some() {
            return false;
        }
        let block_size = self.config.block_size as usize;
        let (mut running, mut ending, mut blocks) = (0, 0, 0);
        for part in &self.planned {
            let sequence = self.sequences.get(&part.number);
            let Some(sequence) = sequence.filter(|sequence| part.is_of(sequence)) else {
                continue;
            };
            if !sequence.generates_ahead(part.tokens) {
                return false;
            }
            running += 1;
            if sequence.left() > 1 {
                blocks += sequence.blocks_ahead(block_size);
            } else {
                ending += 1;
            }
        }
        // Who runs and is no part of the step has tokens of its own that are to be computed next.
        running == self.running.len()
            && running > ending
            && self.pool.can_overwrite(blocks as u32)
            && (self.waiting.is_empty() || ending == 0 && !self.could_admit())
    }

    /// The step that was formed ahead is the one under way, now that the one before it is done.
    pub(super) fn take_up_next(&mut self, now: Duration) {
        if self.next.planned.is_empty() {
            return;
        }
        std::mem::swap(&mut self.planned, &mut self.next.planned);
        self.step = std::mem::take(&mut self.next.notes);
        self.step.started_at = self.step.started_at.max(now);
    }
}
