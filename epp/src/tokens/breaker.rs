//! Whether a remote tokenizer is worth asking: a circuit breaker as a pure state machine.
//!
//! A remote tokenizer that is down or saturated must cost the requests nothing: the pick can go on
//! without token ids. After [`FAILURES_MAX`] failures in a row nobody asks for a while, then one
//! request probes it; its failure doubles the pause up to [`PAUSE_MS_MAX`], its success closes the
//! breaker.

/// Failures in a row after which nobody asks.
const FAILURES_MAX: u32 = 3;
/// The first pause.
const PAUSE_MS: u64 = 1_000;
/// The longest pause.
const PAUSE_MS_MAX: u64 = 30_000;

/// See the module.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Breaker {
    failures: u32,
    pause_ms: u64,
    /// Nobody asks before.
    open_until_ms: u64,
    is_probing: bool,
}

impl Default for Breaker {
    fn default() -> Self {
        Self {
            failures: 0,
            pause_ms: PAUSE_MS,
            open_until_ms: 0,
            is_probing: false,
        }
    }
}

impl Breaker {
    /// Whether to ask now. A yes while the breaker is open is the one probe, and must be followed by
    /// [`succeeded`](Self::succeeded) or [`failed`](Self::failed).
    pub fn allows(&mut self, now_ms: u64) -> bool {
        if self.failures < FAILURES_MAX {
            return true;
        }
        if self.is_probing || now_ms < self.open_until_ms {
            return false;
        }
        self.is_probing = true;
        true
    }

    /// An answer came.
    pub fn succeeded(&mut self) {
        *self = Self::default();
    }

    /// No answer came, or none of use.
    pub fn failed(&mut self, now_ms: u64) {
        self.failures = self.failures.saturating_add(1);
        if self.is_probing {
            self.pause_ms = (self.pause_ms * 2).min(PAUSE_MS_MAX);
        }
        self.is_probing = false;
        self.open_until_ms = now_ms + self.pause_ms;
    }

    /// Whether requests go by without asking.
    pub fn is_open(&self) -> bool {
        self.failures >= FAILURES_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_opens_after_three_failures_in_a_row_and_probes_once_after_a_pause() {
        let mut breaker = Breaker::default();
        for _ in 0..2 {
            breaker.failed(10);
        }
        breaker.succeeded();
        for _ in 0..3 {
            assert!(breaker.allows(10));
            breaker.failed(10);
        }
        assert!(breaker.is_open() && !breaker.allows(1_009));
        assert!(breaker.allows(1_010), "the probe");
        assert!(!breaker.allows(1_010), "only one");
        breaker.failed(1_010);
        assert!(!breaker.allows(3_009));
        assert!(breaker.allows(3_010), "the pause doubled");
        breaker.succeeded();
        assert!(breaker.allows(3_010) && !breaker.is_open());
    }

    #[test]
    fn the_pause_is_bounded() {
        let mut breaker = Breaker::default();
        let mut now_ms = 0;
        for _ in 0..50 {
            now_ms += PAUSE_MS_MAX;
            assert!(breaker.allows(now_ms), "after the longest pause");
            breaker.failed(now_ms);
        }
    }
}
