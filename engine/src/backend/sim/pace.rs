//! Waiting: simulated time to wall-clock time.
//!
//! A sleep ends late, by the timer's slack and by whatever else runs on the machine, and fifty workers on two cores
//! cannot spin. So the pace keeps a deadline and not a duration: a step that begins right after the last one begins
//! at that one's deadline, and what one sleep was late the next is shorter. Waits too short for a sleep are not
//! waited for but carried over. A long lag (the machine was busy or stopped) is forgotten rather than caught up with,
//! because a GPU does not hurry either.

use std::time::{Duration, Instant};

/// A step that begins this soon after the last one ended follows on it: the time between was the engine's own work,
/// which the time model counts within a step.
const FOLLOWS_WITHIN: Duration = Duration::from_millis(1);

/// A lag beyond this is forgotten.
const LAG_MAX: Duration = Duration::from_millis(50);

/// Sleeps shorter than this are carried over to the next step.
const SLEEP_MIN: Duration = Duration::from_micros(100);

/// Where steps stand on the wall clock. Pure: told the time, says how long to wait.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    speedup: f64,
    /// When the last step was to end, and when it did.
    last: Option<(Duration, Duration)>,
}

impl Pace {
    /// Simulated time passes `speedup` times as fast as the wall clock; infinity waits for nothing.
    pub fn new(speedup: f64) -> Self {
        Self {
            speedup,
            last: None,
        }
    }

    /// A step of `step` simulated time begins at `now`: until when to wait, or none to go on at once.
    pub fn begin(&mut self, now: Duration, step: Duration) -> Option<Duration> {
        let follows = |(deadline, ended): &(Duration, Duration)| {
            now.saturating_sub(*ended) < FOLLOWS_WITHIN && now.saturating_sub(*deadline) < LAG_MAX
        };
        let begins = self
            .last
            .filter(follows)
            .map_or(now, |(deadline, _)| deadline);
        let wall = Duration::try_from_secs_f64(step.as_secs_f64() / self.speedup);
        let deadline = begins + wall.unwrap_or(Duration::ZERO);
        self.last = Some((deadline, now));
        (deadline >= now + SLEEP_MIN).then_some(deadline)
    }

    /// The step that began last ended at `now`.
    pub fn end(&mut self, now: Duration) {
        if let Some((_, ended)) = &mut self.last {
            *ended = now;
        }
    }
}

/// The wall clock, since it was made.
#[derive(Debug)]
pub(super) struct WallClock(Instant);

impl WallClock {
    pub(super) fn start() -> Self {
        Self(Instant::now())
    }

    pub(super) fn now(&self) -> Duration {
        self.0.elapsed()
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "taking time is what a simulated device does"
    )]
    pub(super) fn wait_until(&self, deadline: Duration) {
        let left = deadline.saturating_sub(self.now());
        if !left.is_zero() {
            std::thread::sleep(left);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn us(us: u64) -> Duration {
        Duration::from_micros(us)
    }

    /// Runs steps whose sleeps end `late`, with `work` between them; returns when the last one ended.
    fn run(
        pace: &mut Pace,
        steps: u32,
        step: Duration,
        late: Duration,
        work: Duration,
    ) -> Duration {
        let mut now = Duration::ZERO;
        for _ in 0..steps {
            if let Some(deadline) = pace.begin(now, step) {
                now = deadline + late;
            }
            pace.end(now);
            now += work;
        }
        now
    }

    #[test]
    fn late_sleeps_and_work_between_steps_do_not_add_up() {
        let ended = run(&mut Pace::new(1.0), 100, 8 * MS, us(300), us(200));
        assert!(ended >= 800 * MS && ended < 801 * MS, "{ended:?}");
    }

    #[test]
    fn a_speedup_divides_the_time() {
        let ended = run(&mut Pace::new(4.0), 100, 8 * MS, us(0), us(0));
        assert_eq!(ended, 200 * MS);
        assert_eq!(
            run(&mut Pace::new(f64::INFINITY), 9, MS, us(0), us(1)),
            us(9)
        );
    }

    #[test]
    fn waits_too_short_to_sleep_add_up_to_one_that_is_not() {
        let mut pace = Pace::new(1.0);
        let waits: Vec<bool> = (0..9)
            .map(|_| pace.begin(us(0), us(40)).is_some())
            .collect();
        assert_eq!(&waits[..4], [false, false, true, true]);
        let ended = run(&mut Pace::new(1000.0), 10_000, 8 * MS, us(60), us(1));
        assert!(ended >= 79 * MS && ended < 81 * MS, "{ended:?}");
    }

    #[test]
    fn an_idle_time_is_not_caught_up_with() {
        let mut pace = Pace::new(1.0);
        pace.begin(Duration::ZERO, 8 * MS);
        pace.end(8 * MS);
        assert_eq!(pace.begin(20 * MS, 8 * MS), Some(28 * MS));
    }

    #[test]
    fn a_long_lag_is_forgotten() {
        let mut pace = Pace::new(1.0);
        pace.begin(Duration::ZERO, 8 * MS);
        pace.end(200 * MS);
        assert_eq!(pace.begin(200 * MS, 8 * MS), Some(208 * MS));
        pace.end(218 * MS);
        assert_eq!(
            pace.begin(218 * MS, 8 * MS),
            None,
            "a short one is caught up with"
        );
    }
}
