//! A straight line `y = intercept + slope · x`, learned online: recursive least squares with
//! forgetting.
//!
//! The update is the textbook one (Ljung, *System Identification*, section 11.2): with the regressor
//! `φ = (1, x)` and the covariance `P` of the two parameters in units of the noise,
//!
//! ```text
//! gain  = P φ / (1 + φᵀ P φ)
//! θ    += gain · (y - θᵀ φ)
//! P     = (P - gain φᵀ P) / forgetting
//! ```
//!
//! Three things keep it sane whatever comes in. `P` is divided by the forgetting factor only while it
//! stays below its start, so that a long time of equal inputs does not make the next different one
//! decide everything. An error far beyond those seen lately counts as if it were at that edge, so
//! that a request that met a restart does not turn the line over. And the parameters stay within
//! what a latency can be: nothing is negative and nothing takes more than ten minutes.

/// Weight of one observation in the next's eyes: about the last hundred count.
const FORGETTING: f64 = 0.99;
/// Start of the diagonal of `P` for a line whose start is worth nothing.
const WEAK: f64 = 1_000.0;
/// The same for a start that is worth about four observations.
const FIRM: f64 = 0.25;
/// An error may be this many times the mean error before it is cut.
const ERRORS_KEPT: f64 = 6.0;
/// Share of the newest error in the mean error.
const ERROR_SHARE: f64 = 0.1;
/// Observations after which the mean error is one.
const ERRORS_KNOWN: u32 = 8;
/// Bounds on `y` and on the parameters.
const Y_MAX: f64 = 600_000.0;
/// Bound on `x`.
const X_MAX: f64 = 4_096.0;
/// `P` is made anew when it degenerates below this.
const P_MIN: f64 = 1e-12;

/// The line.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Line {
    intercept: f64,
    slope: f64,
    /// `P`: symmetric, so three numbers.
    p00: f64,
    p01: f64,
    p11: f64,
    /// Start of the diagonal of `P`, and its bound.
    start: f64,
    mean_error: f64,
    observations: u32,
}

impl Line {
    /// A line that starts at a guess and lets go of it with the first observations.
    pub fn guessed(intercept: f64, slope: f64) -> Self {
        Self::started(intercept, slope, WEAK)
    }

    /// A line that starts where another one is, and holds on to it a little.
    #[must_use]
    pub fn continued(&self) -> Self {
        Self::started(self.intercept, self.slope, FIRM)
    }

    fn started(intercept: f64, slope: f64, start: f64) -> Self {
        Self {
            intercept,
            slope,
            p00: start,
            p01: 0.0,
            p11: start,
            start,
            mean_error: 0.0,
            observations: 0,
        }
    }

    /// The value at `x`.
    pub fn at(&self, x: f64) -> f64 {
        (self.intercept + self.slope * bounded(x, X_MAX)).clamp(0.0, Y_MAX)
    }

    /// The value at 0, and how much it grows with each unit of `x`.
    pub fn parameters(&self) -> (f64, f64) {
        (self.intercept, self.slope)
    }

    /// How many observations it has seen; stops at the largest number.
    pub fn observations(&self) -> u32 {
        self.observations
    }

    /// Learns that at `x` the value was `y`. What is not a number, or negative, is no observation;
    /// what is absurdly large counts as the bound.
    pub fn observe(&mut self, x: f64, y: f64) -> bool {
        let fits = |value: f64| !value.is_nan() && value >= 0.0;
        if !fits(x) || !fits(y) {
            return false;
        }
        let (x, y) = (x.min(X_MAX), y.min(Y_MAX));
        let error = self.tempered(y - (self.intercept + self.slope * x));
        let spread = (self.p00 + self.p01 * x, self.p01 + self.p11 * x);
        let scale = 1.0 + spread.0 + spread.1 * x;
        let gain = (spread.0 / scale, spread.1 / scale);
        self.intercept = (self.intercept + gain.0 * error).clamp(0.0, Y_MAX);
        self.slope = (self.slope + gain.1 * error).clamp(0.0, Y_MAX);
        self.p00 -= gain.0 * spread.0;
        self.p01 -= gain.0 * spread.1;
        self.p11 -= gain.1 * spread.1;
        self.forget();
        self.observations = self.observations.saturating_add(1);
        true
    }

    /// The error, cut at the edge of what is usual; keeps the mean.
    fn tempered(&mut self, error: f64) -> f64 {
        let edge = if self.observations < ERRORS_KNOWN {
            Y_MAX
        } else {
            // One millisecond, so that a line that was exact for a while can learn again.
            ERRORS_KEPT * self.mean_error + 1.0
        };
        let error = error.clamp(-edge, edge);
        let share = if self.observations == 0 {
            1.0
        } else {
            ERROR_SHARE
        };
        self.mean_error += share * (error.abs() - self.mean_error);
        error
    }

    fn forget(&mut self) {
        let (p00, p11) = (self.p00 / FORGETTING, self.p11 / FORGETTING);
        if p00 <= self.start && p11 <= self.start {
            self.p00 = p00;
            self.p01 /= FORGETTING;
            self.p11 = p11;
        }
        let determinant = self.p00 * self.p11 - self.p01 * self.p01;
        let is_sound = self.p00 > P_MIN && self.p11 > P_MIN && determinant > 0.0;
        if !is_sound {
            self.p00 = FIRM;
            self.p01 = 0.0;
            self.p11 = FIRM;
        }
    }
}

/// A number from 0 to `most`; 0 for what is none.
fn bounded(value: f64, most: f64) -> f64 {
    if value.is_nan() {
        0.0
    } else {
        value.clamp(0.0, most)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Numbers from -1 to 1, the same each time.
    fn noise() -> impl FnMut() -> f64 {
        let mut state = 0x1234_5678_u64;
        move || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 11) as f64 / (1_u64 << 52) as f64 - 1.0
        }
    }

    fn learn(line: &mut Line, intercept: f64, slope: f64, noise_share: f64, count: u32) {
        let mut noise = noise();
        for step in 0..count {
            let x = f64::from(step * 7 % 23) / 10.0;
            let exact = intercept + slope * x;
            line.observe(x, exact * (1.0 + noise_share * noise()));
        }
    }

    fn is_near(line: &Line, intercept: f64, slope: f64, share: f64) -> bool {
        let (found_intercept, found_slope) = line.parameters();
        (found_intercept - intercept).abs() <= share * intercept
            && (found_slope - slope).abs() <= share * slope
    }

    #[test]
    fn it_finds_the_line_and_follows_it_when_it_moves() {
        let mut line = Line::guessed(50.0, 257.0);
        learn(&mut line, 30.0, 800.0, 0.0, 40);
        assert!(is_near(&line, 30.0, 800.0, 0.01), "{line:?}");
        learn(&mut line, 60.0, 1_600.0, 0.01, 600);
        assert!(is_near(&line, 60.0, 1_600.0, 0.15), "{line:?}");
        assert!((line.at(2.0) - 3_260.0).abs() < 200.0);
    }

    #[test]
    fn a_firm_start_is_not_turned_over_by_one_observation() {
        let mut pooled = Line::guessed(50.0, 257.0);
        learn(&mut pooled, 30.0, 800.0, 0.0, 100);
        let mut own = pooled.continued();
        own.observe(0.0, 5_000.0);
        assert!(own.at(0.0) < 1_200.0, "{own:?}");
        learn(&mut own, 30.0, 1_600.0, 0.0, 400);
        assert!(is_near(&own, 30.0, 1_600.0, 0.25), "{own:?}");
    }

    #[test]
    fn one_absurd_value_moves_a_settled_line_little() {
        let mut line = Line::guessed(50.0, 257.0);
        learn(&mut line, 100.0, 500.0, 0.05, 300);
        let before = line.at(1.0);
        assert!(line.observe(1.0, 1e30));
        assert!((line.at(1.0) - before).abs() < 0.2 * before, "{line:?}");
    }

    #[test]
    fn what_is_no_observation_changes_nothing() {
        let mut line = Line::guessed(50.0, 257.0);
        let before = line;
        for (x, y) in [(f64::NAN, 1.0), (1.0, f64::NAN), (-1.0, 1.0), (1.0, -0.1)] {
            assert!(!line.observe(x, y));
        }
        assert_eq!(line, before);
    }

    #[test]
    fn equal_inputs_for_a_long_time_do_not_wind_it_up() {
        let mut line = Line::guessed(50.0, 257.0);
        for _ in 0..100_000 {
            line.observe(1.0, 300.0);
        }
        line.observe(2.0, 400.0);
        assert!((line.at(1.0) - 300.0).abs() < 60.0, "{line:?}");
    }

    fn hostile() -> impl Strategy<Value = f64> {
        prop_oneof![
            Just(0.0),
            Just(f64::NAN),
            Just(f64::INFINITY),
            Just(f64::NEG_INFINITY),
            Just(1e30),
            Just(1e-300),
            Just(-1.0),
            0.0..1e6_f64,
        ]
    }

    proptest! {
        #[test]
        fn nothing_drives_it_out_of_bounds(
            history in proptest::collection::vec((hostile(), hostile()), 1..200),
            asked in hostile(),
        ) {
            let mut line = Line::guessed(50.0, 257.0);
            for (x, y) in history {
                line.observe(x, y);
                let (intercept, slope) = line.parameters();
                prop_assert!((0.0..=Y_MAX).contains(&intercept));
                prop_assert!((0.0..=Y_MAX).contains(&slope));
                prop_assert!(line.p00 > 0.0 && line.p00 <= WEAK, "{:?}", line);
                prop_assert!(line.p11 > 0.0 && line.p11 <= WEAK, "{:?}", line);
                prop_assert!(line.p01.is_finite() && line.mean_error.is_finite());
                prop_assert!((0.0..=Y_MAX).contains(&line.at(asked)));
            }
        }
    }
}
