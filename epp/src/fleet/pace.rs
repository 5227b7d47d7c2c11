//! When to read a worker's page next. Pure: outcomes in, delays out.
//!
//! A page costs the worker's own event loop about as much as a short request, and many pickers may
//! read it. So the rate follows the need:
//!
//! - while requests of ours are there: the base interval;
//! - idle: each further page doubles the delay, up to the idle interval. A request that arrives at
//!   an idle endpoint wakes the reader, so a slow pace never delays the first fresh page;
//! - slow pages: never more than a fifth of the time is spent being asked;
//! - failures: the delay doubles from the base up to the failure interval.

use std::time::Duration;

/// A page that took `t` is not asked for again within `4 t`, so a slow worker spends at most a
/// fifth of its time on it.
const REST_PER_PAGE: u32 = 4;
/// Delays are spread by this share up and down, so that workers started together are not read
/// together forever.
const JITTER: f64 = 0.1;
/// Failures in a row after which a worker that accepts connections counts as not answering. One
/// lost page is not enough: a worker may skip one while it loads or compiles.
const FAILURES_TO_UNHEALTHY: u32 = 2;

/// The intervals.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Intervals {
    /// Between pages of a busy endpoint; also the floor of every delay.
    pub base: Duration,
    /// Between pages of an endpoint that has been idle for a while.
    pub idle: Duration,
    /// Between tries of an endpoint that fails.
    pub failing: Duration,
}

impl Default for Intervals {
    fn default() -> Self {
        Self {
            base: Duration::from_millis(50),
            idle: Duration::from_secs(1),
            failing: Duration::from_secs(5),
        }
    }
}

/// The pace of one endpoint.
#[derive(Clone, Debug)]
pub struct Pace {
    intervals: Intervals,
    failures: u32,
    idle_pages: u32,
}

impl Pace {
    /// A pace that starts as fast as it may.
    pub fn new(intervals: Intervals) -> Self {
        Self {
            intervals,
            failures: 0,
            idle_pages: 0,
        }
    }

    /// The delay after a page that took `took`. `busy` = requests of ours are there or were since
    /// the last page.
    pub fn after_page(&mut self, busy: bool, took: Duration) -> Duration {
        self.failures = 0;
        self.idle_pages = if busy {
            0
        } else {
            self.idle_pages.saturating_add(1)
        };
        let wanted = doubled(self.intervals.base, self.idle_pages, self.intervals.idle);
        wanted.max(took * REST_PER_PAGE)
    }

    /// The delay after a failed try that took `took`, and whether the endpoint now counts as not
    /// answering. `refused` = nobody listens there, which leaves no doubt.
    pub fn after_failure(&mut self, refused: bool, took: Duration) -> (Duration, bool) {
        self.failures = self.failures.saturating_add(1);
        let wanted = doubled(self.intervals.base, self.failures, self.intervals.failing);
        let unhealthy = refused || self.failures >= FAILURES_TO_UNHEALTHY;
        (wanted.max(took * REST_PER_PAGE), unhealthy)
    }
}

/// `delay` moved by up to a tenth either way; `unit` is uniform in 0 to 1.
pub fn jittered(delay: Duration, unit: f64) -> Duration {
    delay.mul_f64(1.0 - JITTER + 2.0 * JITTER * unit.clamp(0.0, 1.0))
}

fn doubled(base: Duration, times: u32, most: Duration) -> Duration {
    let factor = 1_u32 << times.min(20);
    base.saturating_mul(factor).min(most).max(base)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const FAST: Duration = Duration::from_millis(1);

    fn ms(count: u64) -> Duration {
        Duration::from_millis(count)
    }

    #[test]
    fn idle_endpoints_are_read_ever_more_seldom_and_busy_ones_at_the_base() {
        let mut pace = Pace::new(Intervals::default());
        assert_eq!(pace.after_page(true, FAST), ms(50));
        assert_eq!(pace.after_page(false, FAST), ms(100));
        assert_eq!(pace.after_page(false, FAST), ms(200));
        for _ in 0..40 {
            pace.after_page(false, FAST);
        }
        assert_eq!(pace.after_page(false, FAST), ms(1_000));
        assert_eq!(pace.after_page(true, FAST), ms(50));
    }

    #[test]
    fn slow_pages_are_rested_from() {
        let mut pace = Pace::new(Intervals::default());
        assert_eq!(pace.after_page(true, ms(100)), ms(400));
    }

    #[test]
    fn failures_back_off_and_one_lost_page_is_forgiven() {
        let mut pace = Pace::new(Intervals::default());
        assert_eq!(pace.after_failure(false, FAST), (ms(100), false));
        assert_eq!(pace.after_failure(false, FAST), (ms(200), true));
        for _ in 0..40 {
            pace.after_failure(false, FAST);
        }
        assert_eq!(pace.after_failure(false, FAST).0, ms(5_000));
        assert_eq!(pace.after_page(true, FAST), ms(50));
        assert_eq!(pace.after_failure(true, FAST), (ms(100), true));
    }

    proptest! {
        #[test]
        fn no_delay_is_below_the_base(
            outcomes in proptest::collection::vec((0_u8..4, 0_u64..2_000), 1..60)
        ) {
            let intervals = Intervals::default();
            let mut pace = Pace::new(intervals);
            for (outcome, took) in outcomes {
                let delay = match outcome {
                    0 => pace.after_page(true, ms(took)),
                    1 => pace.after_page(false, ms(took)),
                    _ => pace.after_failure(outcome == 2, ms(took)).0,
                };
                prop_assert!(delay >= intervals.base);
                prop_assert!(delay <= intervals.failing.max(ms(took) * REST_PER_PAGE));
            }
        }

        #[test]
        fn jitter_stays_within_a_tenth(unit in 0.0_f64..1.0) {
            let delay = jittered(ms(1_000), unit);
            prop_assert!((ms(900)..=ms(1_100)).contains(&delay));
        }
    }
}
