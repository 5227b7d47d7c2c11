//! The work that lies before an endpoint: prompts sent there whose first token has not been seen.
//!
//! A prompt counts in full until its first token comes: workers compute prompts side by side and let short ones overtake, so
//! nobody knows how far each one is. What is known is how long an endpoint took for all that it did without a break, and that is
//! what rates are learned from: [`Stretch`].
//!
//! Where first tokens are not seen as they come (the gateway reports requests at their end, or from time to time),
//! the expectation stands in: a prompt counts as computed when its time is over.

use std::collections::VecDeque;

use super::rates::PromptWork;

/// Prompts that are remembered of one endpoint. Of more, the oldest are forgotten: no worker's queue is so long.
const PROMPTS_MAX: usize = 4_096;
/// A prompt that takes this many times what was expected, and [`LOST_US`] more, is not waited for.
const LOST_TIMES: f64 = 20.0;
const LOST_US: f64 = 30e6;
/// Prompts after which a stretch ends even if there are more: what is half done at both its ends hardly counts then.
const STRETCH_PROMPTS: f64 = 16.0;

/// One prompt.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) struct Prompt {
    /// Growing in the order of the picks.
    pub(super) ticket: u64,
    pub(super) work: PromptWork,
    /// What the fleet takes for it, in seconds.
    pub(super) seconds: f64,
    pub(super) sent_us: u64,
}

/// The prompts of one endpoint.
#[derive(Clone, Default, Debug)]
pub(super) struct Ahead {
    prompts: VecDeque<Prompt>,
    /// Sum of their seconds.
    seconds: f64,
    /// When the front one began, as far as is known.
    front_since_us: u64,
    /// What was done since there was something to do, and since when that is.
    done: PromptWork,
    busy_since_us: u64,
}

/// What an endpoint did from when it had something to do until it was through, or until enough of it was done to learn from.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) struct Stretch {
    pub(super) work: PromptWork,
    pub(super) seconds: f64,
}

impl Ahead {
    pub(super) fn send(&mut self, prompt: Prompt) {
        if self.prompts.is_empty() {
            self.front_since_us = prompt.sent_us;
            self.seconds = 0.0;
            self.done = PromptWork::default();
            self.busy_since_us = prompt.sent_us;
        } else if self.prompts.len() >= PROMPTS_MAX {
            self.pop(prompt.sent_us);
        }
        self.seconds += prompt.seconds;
        self.prompts.push_back(prompt);
    }

    /// The prompts whose first token has not been seen.
    pub(super) fn len(&self) -> usize {
        self.prompts.len()
    }

    /// Seconds until the endpoint is through with them, where it takes `factor` times what the fleet takes.
    ///
    /// `is_seen`: first tokens are seen as they come.
    pub(super) fn seconds(&mut self, factor: f64, is_seen: bool, now_us: u64) -> f64 {
        self.give_up(factor, is_seen, now_us);
        let Some(front) = self.prompts.front() else {
            return 0.0;
        };
        if is_seen {
            return self.seconds.max(0.0) * factor;
        }
        let elapsed = now_us.saturating_sub(self.front_since_us) as f64 / 1e6;
        let rest = (self.seconds - front.seconds).max(0.0) * factor;
        rest + (front.seconds * factor - elapsed).max(0.0)
    }

    /// The first token of a prompt came. Returns a stretch of work where one ends with it.
    pub(super) fn first_token(&mut self, ticket: u64, at_us: u64) -> Option<Stretch> {
        let served = self.remove(ticket, at_us)?;
        self.done = self.done.and(served.work);
        let is_over = self.prompts.is_empty() || self.done.prompts >= STRETCH_PROMPTS;
        let took_us = at_us.checked_sub(self.busy_since_us)?;
        is_over.then(|| {
            self.busy_since_us = at_us;
            Stretch {
                work: std::mem::take(&mut self.done),
                seconds: took_us as f64 / 1e6,
            }
        })
    }

    /// A prompt that will have no first token, or whose time nobody learns.
    pub(super) fn forget(&mut self, ticket: u64, at_us: u64) {
        if self.remove(ticket, at_us).is_some() {
            // Nobody knows how much of it was done.
            self.done = PromptWork::default();
            self.busy_since_us = at_us;
        }
    }

    fn remove(&mut self, ticket: u64, at_us: u64) -> Option<Prompt> {
        let by_ticket = |prompt: &Prompt| prompt.ticket;
        let place = self.prompts.binary_search_by_key(&ticket, by_ticket).ok()?;
        let removed = self.prompts.remove(place)?;
        self.seconds -= removed.seconds;
        if place == 0 {
            self.front_since_us = self.front_since_us.max(at_us);
        }
        Some(removed)
    }

    /// The front one is done, and the next one begins.
    fn pop(&mut self, at_us: u64) {
        if let Some(front) = self.prompts.pop_front() {
            self.seconds -= front.seconds;
            self.front_since_us = self.front_since_us.max(at_us);
        }
    }

    /// Drops what must be done by now: everything whose time is over where first tokens are not seen, and
    /// only what is lost where they are.
    fn give_up(&mut self, factor: f64, is_seen: bool, now_us: u64) {
        while let Some(front) = self.prompts.front() {
            let expected_us = front.seconds * factor * 1e6;
            let limit_us = if is_seen {
                expected_us * LOST_TIMES + LOST_US
            } else {
                expected_us
            };
            let end_us = self.front_since_us as f64 + limit_us;
            if (now_us as f64) < end_us {
                return;
            }
            self.pop(end_us as u64);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prompt(ticket: u64, seconds: f64, sent_us: u64) -> Prompt {
        Prompt {
            ticket,
            work: PromptWork::of(100, 0),
            seconds,
            sent_us,
        }
    }

    fn ahead() -> Ahead {
        let mut ahead = Ahead::default();
        ahead.send(prompt(1, 1.0, 0));
        ahead.send(prompt(2, 2.0, 100_000));
        ahead
    }

    fn close(left: f64, right: f64) -> bool {
        (left - right).abs() < 1e-9
    }

    #[test]
    fn a_prompt_counts_until_its_first_token_in_whatever_order() {
        let mut ahead = ahead();
        assert!(close(ahead.seconds(1.0, true, 500_000), 3.0));
        assert!(close(ahead.seconds(3.0, true, 500_000), 9.0));
        assert_eq!(ahead.first_token(2, 1_000_000), None);
        assert!(close(ahead.seconds(1.0, true, 1_000_000), 1.0));
        let stretch = ahead.first_token(1, 2_500_000).unwrap();
        assert!(close(stretch.seconds, 2.5) && close(stretch.work.prompts, 2.0));
        assert!(close(ahead.seconds(1.0, true, 2_500_000), 0.0));
        assert_eq!(ahead.first_token(1, 3_000_000), None);
    }

    #[test]
    fn stretches_end_with_the_work_or_after_some_prompts_and_not_with_a_lost_one() {
        let mut ahead = Ahead::default();
        for ticket in 0..20 {
            ahead.send(prompt(ticket, 0.1, 0));
        }
        let mut stretches = Vec::new();
        for ticket in 0..20 {
            stretches.extend(ahead.first_token(ticket, (ticket + 1) * 100_000));
        }
        let found: Vec<_> = stretches
            .iter()
            .map(|stretch| (stretch.work.prompts, stretch.seconds))
            .collect();
        assert_eq!(found, [(16.0, 1.6), (4.0, 0.4)]);
        let mut lost = self::ahead();
        lost.forget(1, 1_000_000);
        let stretch = lost.first_token(2, 1_500_000).unwrap();
        assert!(close(stretch.seconds, 0.5) && close(stretch.work.prompts, 1.0));
    }

    #[test]
    fn unseen_first_tokens_are_taken_from_the_expectation() {
        let mut ahead = ahead();
        assert!(close(ahead.seconds(1.0, false, 1_500_000), 1.5));
        assert!(close(ahead.seconds(1.0, false, 4_000_000), 0.0));
        assert_eq!(ahead.len(), 0);
    }

    #[test]
    fn what_is_lost_is_not_waited_for_and_the_queue_is_bounded() {
        let mut lost = ahead();
        assert!(close(lost.seconds(1.0, true, 200_000_000), 0.0));
        let mut long = Ahead::default();
        for ticket in 0..10_000 {
            long.send(prompt(ticket, 0.1, ticket));
        }
        assert_eq!(long.len(), PROMPTS_MAX);
        assert!((long.seconds(1.0, true, 10_000) - 409.6).abs() < 0.2);
    }
}
