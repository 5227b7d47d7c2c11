//! The only reader of the wall clock.
//!
//! Every core takes the time as a value. The shells get that value here: milliseconds or
//! microseconds on a monotonic line that starts when the clock is made, so that numbers stay small,
//! never jump with NTP and mean the same in every room. Tests hold a [`ManualClock`] and move the
//! time themselves.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// A cheap handle on one time line; clones read the same line.
#[derive(Clone, Debug)]
pub struct Clock(Source);

#[derive(Clone, Debug)]
enum Source {
    Monotonic { origin: Instant },
    Manual { now_us: Arc<AtomicU64> },
}

/// The hand that moves a clock made by [`Clock::manual`].
#[derive(Clone, Debug)]
pub struct ManualClock {
    now_us: Arc<AtomicU64>,
}

impl Clock {
    /// A clock that starts at 1 ms, so that 0 can mean "never" wherever a time is stored.
    pub fn monotonic() -> Self {
        Self(Source::Monotonic {
            origin: Instant::now(),
        })
    }

    /// A clock that stands still until its hand moves it. It too starts at 1 ms.
    pub fn manual() -> (Self, ManualClock) {
        let now_us = Arc::new(AtomicU64::new(FIRST_INSTANT_US));
        (
            Self(Source::Manual {
                now_us: Arc::clone(&now_us),
            }),
            ManualClock { now_us },
        )
    }

    /// Microseconds since the clock was made.
    pub fn now_us(&self) -> u64 {
        match &self.0 {
            Source::Monotonic { origin } => origin.elapsed().as_micros() as u64 + FIRST_INSTANT_US,
            Source::Manual { now_us } => now_us.load(Ordering::Relaxed),
        }
    }

    /// Milliseconds since the clock was made.
    pub fn now_ms(&self) -> u64 {
        self.now_us() / 1_000
    }
}

impl ManualClock {
    /// Moves the clock forward.
    pub fn advance_us(&self, by_us: u64) {
        self.now_us.fetch_add(by_us, Ordering::Relaxed);
    }

    /// Moves the clock forward.
    pub fn advance_ms(&self, by_ms: u64) {
        self.advance_us(by_ms * 1_000);
    }
}

/// Nanoseconds since 1970, for seeding random choices and for naming a boot. Never for measuring.
pub fn unix_nanos() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_nanos() as u64)
}

const FIRST_INSTANT_US: u64 = 1_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn manual_clock_moves_only_by_hand() {
        let (clock, hand) = Clock::manual();
        let other = clock.clone();
        assert_eq!(clock.now_ms(), 1);
        hand.advance_ms(41);
        hand.advance_us(999);
        assert_eq!(other.now_ms(), 42);
        assert_eq!(other.now_us(), 42_999);
    }

    #[test]
    fn monotonic_clock_never_reads_zero_nor_goes_back() {
        let clock = Clock::monotonic();
        let first = clock.now_us();
        assert!(first >= FIRST_INSTANT_US);
        assert!(clock.now_us() >= first);
    }
}
