//! Waits for a condition with a deadline: what these tests have in place of sleeps.
//!
//! A condition that lives in another process (a gauge, a log line, a port) can only be polled. The interval is short
//! against what is waited for, and the deadline is long against a busy machine: it is reached only by a real fault, so
//! its length costs nothing when all is well.

use std::fmt::Debug;
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior};

/// How long a condition may take to come true, and any single network step to end.
pub const DEADLINE: Duration = Duration::from_secs(30);

const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Polls `probe` until it returns `Ok` and hands out its value.
///
/// # Panics
/// When [`DEADLINE`] passes first: the message holds `what` and the last error, which is to say what was seen instead.
pub async fn eventually<T, E: Debug>(
    what: &str,
    mut probe: impl AsyncFnMut() -> Result<T, E>,
) -> T {
    let started = Instant::now();
    let mut ticks = tokio::time::interval(POLL_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        match within_deadline(what, probe()).await {
            Ok(value) => return value,
            Err(error) if started.elapsed() < DEADLINE => drop(error),
            Err(error) => panic!("{what}: not within {DEADLINE:?}; last seen: {error:?}"),
        }
    }
}

/// Waits for one step of a test.
///
/// # Panics
/// When [`DEADLINE`] passes first. A test that hangs says nothing; one that names the step which hung does.
pub async fn within_deadline<T>(what: &str, step: impl Future<Output = T>) -> T {
    let ended = tokio::time::timeout(DEADLINE, step).await;
    ended.unwrap_or_else(|_elapsed| panic!("{what}: not within {DEADLINE:?}"))
}
