//! Picks whose effect on a cache is certain but not seen yet.
//!
//! A request that was sent to an endpoint makes it compute, and therefore cache, the request's whole
//! prompt. Until KV events say so, or in the absence of events a response starts, the pick itself is
//! the only evidence. It matters most when several requests of one new prefix come at once: without
//! it each would be spread by load and compute the prefix again.
//!
//! A pick is *pending* for as long as it can be ahead of the events:
//!
//! - until its response starts, however long the endpoint lets it queue. Nothing of it was stored
//!   yet, and once it runs, the engine keeps its blocks until it is done. The bound of
//!   [`UNSTARTED_MS_MAX`] is for a request whose end is never seen.
//! - for [`CONFIRM_MS`] from then on: the prompt has been computed by the first token, and the
//!   events about it are on their way. What they have not said by then they will not say, and the
//!   pick is no evidence any more.
//!
//! No block is stored and none has to expire. The beliefs that picks leave behind
//! ([`approximate`](super::approximate)) note the pick that used each stretch last, so whether a
//! stretch is promised is whether that pick is pending at the time of asking.

use std::collections::VecDeque;

/// How long a pick counts after its response started: the field's time to live, from there on.
pub const CONFIRM_MS: u64 = 2_000;

/// How long a pick counts whose response does not start.
pub const UNSTARTED_MS_MAX: u64 = 300_000;

/// Pending picks of one endpoint. One more takes the place of the oldest, whose promise ends early.
pub const PENDING_MAX: usize = 4_096;

/// The pending picks of one endpoint.
#[derive(Debug, Default)]
pub(super) struct Pending {
    /// Ordered by number, which grows from pick to pick.
    picks: VecDeque<Pick>,
}

#[derive(Clone, Copy, Debug)]
struct Pick {
    number: u64,
    due_ms: u64,
    is_started: bool,
}

impl Pending {
    /// A request was sent. `number` is larger than any before.
    pub(super) fn sent(&mut self, number: u64, now_ms: u64) {
        while self.picks.front().is_some_and(|pick| pick.due_ms <= now_ms) {
            self.picks.pop_front();
        }
        if self.picks.len() == PENDING_MAX {
            self.picks.retain(|pick| pick.due_ms > now_ms);
        }
        if self.picks.len() == PENDING_MAX {
            self.picks.pop_front();
        }
        self.picks.push_back(Pick {
            number,
            due_ms: now_ms.saturating_add(UNSTARTED_MS_MAX),
            is_started: false,
        });
    }

    /// Its response started.
    pub(super) fn started(&mut self, number: u64, now_ms: u64) {
        if let Some(at) = self.position(number)
            && let Some(pick) = self.picks.get_mut(at)
            && !pick.is_started
            && pick.due_ms > now_ms
        {
            pick.is_started = true;
            pick.due_ms = now_ms.saturating_add(CONFIRM_MS);
        }
    }

    /// It came to nothing.
    pub(super) fn failed(&mut self, number: u64) {
        if let Some(at) = self.position(number) {
            self.picks.remove(at);
        }
    }

    /// Whether the endpoint is sure to hold what this pick used last, whatever events say.
    pub(super) fn is_promised(&self, number: u64, now_ms: u64) -> bool {
        self.pick(number).is_some_and(|pick| pick.due_ms > now_ms)
    }

    /// Whether nothing is known yet of what became of this pick.
    pub(super) fn is_unstarted(&self, number: u64) -> bool {
        self.pick(number).is_some_and(|pick| !pick.is_started)
    }

    fn pick(&self, number: u64) -> Option<&Pick> {
        self.picks.get(self.position(number)?)
    }

    fn position(&self, number: u64) -> Option<usize> {
        self.picks
            .binary_search_by_key(&number, |pick| pick.number)
            .ok()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_pick_is_promised_until_its_events_must_have_come() {
        let mut pending = Pending::default();
        pending.sent(1, 0);
        assert!(pending.is_promised(1, 100_000) && pending.is_unstarted(1));
        pending.started(1, 100_000);
        pending.started(1, 101_000);
        assert!(pending.is_promised(1, 100_000 + CONFIRM_MS - 1));
        assert!(!pending.is_promised(1, 100_000 + CONFIRM_MS));
        assert!(!pending.is_unstarted(1));
    }

    #[test]
    fn what_came_to_nothing_promises_nothing() {
        let mut pending = Pending::default();
        pending.sent(1, 0);
        pending.failed(1);
        assert!(!pending.is_promised(1, 0) && !pending.is_unstarted(1));
    }

    #[test]
    fn the_oldest_makes_room() {
        let mut pending = Pending::default();
        for number in 0..=PENDING_MAX as u64 {
            pending.sent(number, 0);
        }
        assert_eq!(pending.picks.len(), PENDING_MAX);
        assert!(!pending.is_promised(0, 0) && pending.is_promised(1, 0));
    }

    proptest! {
        #[test]
        fn it_is_a_table_of_due_times(
            steps in prop::collection::vec((0_u8..4, 0_u64..12, 0_u64..200_000), 1..80)
        ) {
            let mut pending = Pending::default();
            let mut plain: BTreeMap<u64, (u64, bool)> = BTreeMap::new();
            let (mut now_ms, mut number) = (1, 0);
            for (action, back, wait_ms) in steps {
                now_ms += wait_ms;
                let earlier = u64::saturating_sub(number, back);
                match action {
                    0 | 1 => {
                        number += 1;
                        pending.sent(number, now_ms);
                        plain.insert(number, (now_ms + UNSTARTED_MS_MAX, false));
                    }
                    2 => {
                        pending.started(earlier, now_ms);
                        if let Some(pick) = plain.get_mut(&earlier).filter(|pick| !pick.1 && pick.0 > now_ms) {
                            *pick = (now_ms + CONFIRM_MS, true);
                        }
                    }
                    _ => {
                        pending.failed(earlier);
                        plain.remove(&earlier);
                    }
                }
                for number in 0..=number {
                    let due = plain.get(&number).is_some_and(|pick| pick.0 > now_ms);
                    prop_assert_eq!(pending.is_promised(number, now_ms), due);
                }
            }
        }
    }
}
