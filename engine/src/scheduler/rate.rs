//! How fast prompts are computed of late.

use std::time::Duration;

/// What is older than this counts for little.
const MEMORY_SECONDS: f64 = 30.0;

/// Tokens of prompts over the time of the steps that computed them, decodes beside them included: what a prompt in the
/// queue can count on while things stay as they are.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct PrefillRate {
    tokens: f64,
    seconds: f64,
}

impl PrefillRate {
    /// A step with `tokens` tokens of prompts, or a share of them, took `time`. Steps without any count only while a
    /// prompt waits for them.
    pub(super) fn observe(&mut self, tokens: f64, time: Duration) {
        let seconds = time.as_secs_f64();
        let kept = (-seconds / MEMORY_SECONDS).exp();
        self.tokens = self.tokens * kept + tokens;
        self.seconds = self.seconds * kept + seconds;
    }

    /// Tokens a second; 0 when nothing is known, 1 at least when something is.
    pub(super) fn tokens_per_second(&self) -> u64 {
        if self.seconds <= 0.0 {
            return 0;
        }
        ((self.tokens / self.seconds) as u64).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_that_of_the_latest_half_minute() {
        let mut rate = PrefillRate::default();
        assert_eq!(rate.tokens_per_second(), 0);
        for _ in 0..100 {
            rate.observe(500.0, Duration::from_millis(500));
        }
        assert_eq!(rate.tokens_per_second(), 1000);
        for _ in 0..300 {
            rate.observe(50.0, Duration::from_millis(500));
        }
        assert!((100..110).contains(&rate.tokens_per_second()));
    }
}
