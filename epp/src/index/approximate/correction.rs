//! What a response's `cached_tokens` says about the cache of the endpoint that sent it.
//!
//! An engine evicts the least recently used block first. So if a block is missing that was last
//! used at some moment, then everything last used no later is gone as well, and the cache has room
//! for less than what was used since. That is much to conclude from one number, and the number can
//! be odd without any eviction: an engine does not look into its cache for a request that asks for
//! the log probabilities of its prompt, a preempted request starts over, behind one address there
//! may be several caches, and how a share of a text maps to a share of its tokens is an estimate.
//! Therefore:
//!
//! - Only what was *settled* is expected to be cached: blocks put there by requests whose responses
//!   had started by the time of the pick. Of those in flight at the same time nothing is known.
//! - A shortfall must be clear: by more than an engine's block where nothing at all was cached, and
//!   by a quarter of what was expected besides where the place of the break is estimated.
//! - The first shortfall raises a doubt and does nothing. The second one, of a request that was
//!   picked after the first was known, drops what both say is gone; requests that ran side by side
//!   may have met one and the same mishap. A hit on a block that the doubt says is gone ends the
//!   doubt.
//!
//! So a single odd report never drops a block, and an engine without a prefix cache is believed to
//! have none after its second answer.

use super::keys::BLOCK_TOKENS;

/// Share of the expected blocks by which the place of a break may be wrong.
const ESTIMATE_SLACK: u32 = 4;

/// What was expected of one request, and what came.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Report {
    /// Leading blocks believed to be cached at the pick.
    pub(super) believed: u32,
    /// Those of them that were settled.
    pub(super) settled: u32,
    /// All whole blocks of the prompt.
    pub(super) prompt_blocks: u32,
    /// Tokens of the prompt, as the engine counted.
    pub(super) prompt_tokens: u64,
    /// Tokens of it that the engine had cached.
    pub(super) cached_tokens: u64,
    /// Tokens of the engine's blocks; 0 where it does not say.
    pub(super) engine_block_tokens: u32,
}

/// What a report means, in blocks of the prompt.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(super) struct Finding {
    /// The last expected block that was there.
    pub(super) hit: Option<u32>,
    /// An expected block that was clearly not there.
    pub(super) missing: Option<u32>,
    /// Blocks that were there and not believed to be, as far as that is clear.
    pub(super) surplus: u32,
}

/// Reads a report.
pub(super) fn read(report: &Report) -> Finding {
    if report.prompt_tokens == 0 || report.prompt_blocks == 0 {
        return Finding::default();
    }
    let cached_tokens = report.cached_tokens.min(report.prompt_tokens);
    let share = u128::from(cached_tokens) * u128::from(report.prompt_blocks);
    let cached = (share / u128::from(report.prompt_tokens)) as u32;
    // An engine caches whole blocks of its own, and never the last token of a prompt.
    let block = report.engine_block_tokens.div_ceil(BLOCK_TOKENS).max(1) + 1;
    let missing = if cached_tokens == 0 {
        (report.settled > block).then_some(0)
    } else {
        let place = cached
            .saturating_add(block)
            .saturating_add(report.settled / ESTIMATE_SLACK);
        (place < report.settled).then_some(place)
    };
    Finding {
        hit: cached.min(report.settled).checked_sub(1),
        missing,
        surplus: cached.saturating_sub(report.believed.saturating_add(block)),
    }
}

/// What the reports of one endpoint add up to.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(super) struct Correction {
    doubt: Option<Doubt>,
    /// The blocks that the endpoint was seen to have room for; `None` = all that it says it has.
    capacity: Option<u32>,
}

/// One shortfall that no other report has confirmed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Doubt {
    /// The pick that used the missing block last, before the one that missed it.
    touched: u64,
    /// The newest pick of all when the doubt was raised.
    raised_at: u64,
}

impl Correction {
    /// A block that `touched` used last before this request was there.
    pub(super) fn hit(&mut self, touched: u64) {
        self.doubt = self.doubt.filter(|doubt| touched > doubt.touched);
        if let Some(capacity) = &mut self.capacity {
            // The way up without surprises: a cache that had less room for a while, because of a
            // neighbour's load for example, is tried again bit by bit.
            *capacity = capacity.saturating_add(*capacity / 64 + 1);
        }
    }

    /// A block that `touched` used last was missed by `picked`, while `newest` is the newest pick
    /// of all. `Some` when everything that this or an earlier pick used last is to be dropped.
    pub(super) fn missing(&mut self, touched: u64, picked: u64, newest: u64) -> Option<u64> {
        let independent = self.doubt.filter(|doubt| picked > doubt.raised_at);
        let verdict = independent.map(|doubt| doubt.touched.min(touched));
        if self.doubt.is_none() || verdict.is_some() {
            self.doubt = Some(Doubt {
                touched,
                raised_at: newest,
            });
        }
        verdict
    }

    /// The endpoint turned out to have room for this many blocks and no more.
    pub(super) fn lower(&mut self, capacity: u32) {
        self.capacity = Some(self.capacity.map_or(capacity, |known| known.min(capacity)));
    }

    /// So many more blocks were there than it was believed to have room for.
    pub(super) fn raise(&mut self, surplus: u32) {
        if let Some(capacity) = &mut self.capacity {
            *capacity = capacity.saturating_add(surplus);
        }
    }

    /// The room to count on, where the endpoint says it has `exported`. Having seen that much
    /// again ends the estimate.
    pub(super) fn capacity(&mut self, exported: u32) -> u32 {
        self.capacity = self.capacity.filter(|known| *known < exported);
        self.capacity.unwrap_or(exported)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const REPORT: Report = Report {
        believed: 40,
        settled: 40,
        prompt_blocks: 50,
        prompt_tokens: 800,
        cached_tokens: 640,
        engine_block_tokens: 16,
    };

    #[test]
    fn as_expected_is_a_hit_and_nothing_else() {
        let finding = Finding {
            hit: Some(39),
            ..Finding::default()
        };
        assert_eq!(read(&REPORT), finding);
        // A fifth less may be the estimate.
        let less = Report {
            cached_tokens: 512,
            ..REPORT
        };
        assert_eq!(read(&less).missing, None);
    }

    #[test]
    fn nothing_cached_is_exact_and_a_break_is_placed_late() {
        let nothing = Report {
            cached_tokens: 0,
            ..REPORT
        };
        assert_eq!(
            (read(&nothing).hit, read(&nothing).missing),
            (None, Some(0))
        );
        let half = Report {
            cached_tokens: 320,
            ..REPORT
        };
        assert_eq!(read(&half).missing, Some(20 + 2 + 10));
        let large_blocks = Report {
            settled: 5,
            engine_block_tokens: 64,
            ..nothing
        };
        assert_eq!(read(&large_blocks).missing, None, "less than one block");
    }

    #[test]
    fn what_is_not_settled_is_not_missed() {
        let report = Report {
            settled: 0,
            cached_tokens: 0,
            ..REPORT
        };
        assert_eq!(read(&report), Finding::default());
    }

    #[test]
    fn more_than_believed_is_a_surplus() {
        let report = Report {
            believed: 10,
            settled: 10,
            ..REPORT
        };
        assert_eq!(read(&report).surplus, 40 - 12);
    }

    #[test]
    fn one_odd_report_does_nothing_and_two_drop_what_both_say() {
        let mut correction = Correction::default();
        assert_eq!(correction.missing(10, 12, 15), None);
        assert_eq!(
            correction.missing(11, 14, 15),
            None,
            "it ran beside the first"
        );
        assert_eq!(correction.missing(13, 16, 17), Some(10));
        assert_eq!(correction.missing(12, 18, 18), Some(12));
    }

    #[test]
    fn a_hit_on_what_was_doubted_ends_the_doubt() {
        let mut correction = Correction::default();
        correction.missing(10, 12, 12);
        correction.hit(11);
        assert_eq!(correction.missing(9, 13, 13), Some(9), "11 was no evidence");
        correction.missing(10, 14, 14);
        correction.hit(8);
        assert_eq!(correction.missing(7, 16, 16), None);
    }

    #[test]
    fn capacity_moves_between_what_was_seen_and_what_is_said() {
        let mut correction = Correction::default();
        assert_eq!(correction.capacity(100), 100);
        correction.lower(64);
        correction.lower(90);
        assert_eq!(correction.capacity(100), 64);
        correction.hit(1);
        assert_eq!(correction.capacity(100), 66);
        correction.raise(40);
        assert_eq!(correction.capacity(100), 100);
        assert_eq!(correction, Correction::default());
    }

    proptest! {
        #[test]
        fn findings_are_within_what_was_expected(
            believed in 0_u32..100, unsettled in 0_u32..100, prompt_blocks in 0_u32..120,
            prompt_tokens in 0_u64..3000, cached_tokens in 0_u64..4000, engine_block_tokens in 0_u32..300,
        ) {
            let settled = believed.saturating_sub(unsettled);
            let finding = read(&Report {
                believed, settled, prompt_blocks, prompt_tokens, cached_tokens, engine_block_tokens,
            });
            prop_assert!(finding.hit.is_none_or(|hit| hit < settled));
            prop_assert!(finding.missing.is_none_or(|missing| missing < settled));
            prop_assert!(finding.hit.is_none() || finding.missing.is_none() || finding.hit < finding.missing);
            prop_assert!(finding.surplus == 0 || finding.missing.is_none());
        }

        /// Whatever comes, a doubt of one report never drops what a hit of another one speaks for.
        #[test]
        fn no_verdict_without_two_reports_in_a_row(
            reports in prop::collection::vec((any::<bool>(), 0_u64..20), 1..40)
        ) {
            let mut correction = Correction::default();
            let mut doubted: Option<u64> = None;
            for (number, (is_hit, touched)) in (100_u64..).zip(reports) {
                if is_hit {
                    correction.hit(touched);
                    doubted = doubted.filter(|doubted| touched > *doubted);
                    continue;
                }
                let verdict = correction.missing(touched, number, number);
                prop_assert_eq!(verdict, doubted.map(|doubted| doubted.min(touched)));
                doubted = Some(touched);
            }
        }
    }
}
