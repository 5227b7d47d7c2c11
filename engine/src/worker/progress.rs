//! When the engine thread was last heard of, so that one that hangs can be told from one that has nothing to do.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Written by the engine thread at every turn of its loop, read by anyone.
#[derive(Debug)]
pub(super) struct Progress {
    started: Instant,
    last: Last,
}

impl Progress {
    pub(super) fn new() -> Self {
        Self {
            started: Instant::now(),
            last: Last::default(),
        }
    }

    /// The engine goes on, or begins to.
    pub(super) fn note(&self) {
        self.last.note(self.started.elapsed());
    }

    /// Since the last note.
    pub(super) fn silence(&self) -> Duration {
        self.last.silence(self.started.elapsed())
    }
}

/// The time of the last note, on whichever clock.
#[derive(Debug, Default)]
struct Last(AtomicU64);

impl Last {
    fn note(&self, now: Duration) {
        self.0.fetch_max(microseconds(now), Ordering::Relaxed);
    }

    /// Nothing where a note came between the reading of the clock and this call.
    fn silence(&self, now: Duration) -> Duration {
        let last = self.0.load(Ordering::Relaxed);
        Duration::from_micros(microseconds(now).saturating_sub(last))
    }
}

fn microseconds(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_counts_from_the_latest_note() {
        let last = Last::default();
        let at = Duration::from_secs;
        assert_eq!(last.silence(at(3)), at(3));
        last.note(at(5));
        last.note(at(4));
        assert_eq!(last.silence(at(7)), at(2));
        assert_eq!(last.silence(at(5)), at(0));
        assert_eq!(last.silence(at(1)), at(0), "a clock that was read before");
    }
}
