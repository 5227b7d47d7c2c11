//! When a publisher's replay server may be asked. Pure: times in milliseconds in, answers out.
//!
//! A publisher whose numbers jump about asks for a replay with every batch. So replays keep a
//! distance, and one that was given up is not tried again for a while that doubles: until then a
//! gap counts as lost at once.

/// Least time between two replays.
const SPACING_MS: u64 = 200;
/// Rest after a replay that was given up; doubled by each further one, up to the last of these.
const REST_MS: (u64, u64) = (30_000, 600_000);

/// The pace of one publisher.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct ReplayPace {
    ready_at_ms: u64,
    failures: u32,
}

impl ReplayPace {
    /// How long to wait until asking, after a replay that went well; none while the server rests.
    pub(super) fn wait_ms(&self, now_ms: u64) -> Option<u64> {
        let wait_ms = self.ready_at_ms.saturating_sub(now_ms);
        (self.failures == 0 || wait_ms == 0).then_some(wait_ms)
    }

    /// A replay came to its end.
    pub(super) fn succeeded(&mut self, now_ms: u64) {
        self.failures = 0;
        self.ready_at_ms = now_ms + SPACING_MS;
    }

    /// A replay was given up.
    pub(super) fn failed(&mut self, now_ms: u64) {
        let doubled = REST_MS.0.saturating_mul(1 << self.failures.min(10));
        self.failures = self.failures.saturating_add(1);
        self.ready_at_ms = now_ms + doubled.min(REST_MS.1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replays_keep_a_distance_and_failures_a_growing_one() {
        let mut pace = ReplayPace::default();
        assert_eq!(pace.wait_ms(0), Some(0));
        pace.succeeded(1_000);
        assert_eq!(pace.wait_ms(1_050), Some(150));
        assert_eq!(pace.wait_ms(2_000), Some(0));
        let mut now_ms = 2_000;
        for rest_ms in [30_000, 60_000, 120_000, 240_000, 480_000, 600_000, 600_000] {
            pace.failed(now_ms);
            assert_eq!(pace.wait_ms(now_ms + rest_ms - 1), None);
            now_ms += rest_ms;
            assert_eq!(pace.wait_ms(now_ms), Some(0));
        }
        pace.succeeded(now_ms);
        assert_eq!(pace.wait_ms(now_ms + SPACING_MS), Some(0));
    }
}
