//! How a time is spread: an HDR histogram, and the numbers that a report takes from it.

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

/// The longest time that is told apart: longer ones count as an hour.
const LONGEST_US: u64 = 3_600_000_000;
/// Relative precision of 1 in 1000 at every magnitude.
const DIGITS: u8 = 3;

/// Times, counted.
#[derive(Clone, Debug)]
pub(super) struct Spread(Option<Histogram<u64>>);

impl Spread {
    pub(super) fn new() -> Self {
        // These bounds are valid; a report without a histogram says that it has no values.
        Self(Histogram::new_with_bounds(1, LONGEST_US, DIGITS).ok())
    }

    pub(super) fn of(seconds: impl Iterator<Item = f64>) -> Self {
        let mut spread = Self::new();
        for value in seconds {
            spread.add_us((value.max(0.0) * 1e6).round() as u64);
        }
        spread
    }

    pub(super) fn add_us(&mut self, microseconds: u64) {
        if let Some(histogram) = &mut self.0 {
            histogram.saturating_record(microseconds);
        }
    }

    /// `None` without values.
    pub(super) fn summary(&self) -> Option<Latency> {
        let histogram = self.0.as_ref().filter(|one| !one.is_empty())?;
        let at = |quantile: f64| histogram.value_at_quantile(quantile) as f64 / 1e3;
        Some(Latency {
            count: histogram.len(),
            mean_ms: histogram.mean() / 1e3,
            p50_ms: at(0.5),
            p90_ms: at(0.9),
            p95_ms: at(0.95),
            p99_ms: at(0.99),
            p999_ms: at(0.999),
            max_ms: histogram.max() as f64 / 1e3,
            cdf: quantiles()
                .map(|quantile| (at(quantile), quantile))
                .collect(),
        })
    }
}

/// Each percent, and the last one finer.
fn quantiles() -> impl Iterator<Item = f64> {
    let percents = (0..99).map(|percent| f64::from(percent) / 100.0);
    let last = (0..=10).map(|tenth| 0.99 + f64::from(tenth) / 1000.0);
    percents.chain(last)
}

/// A time in numbers.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    pub count: u64,
    pub mean_ms: f64,
    pub p50_ms: f64,
    pub p90_ms: f64,
    pub p95_ms: f64,
    pub p99_ms: f64,
    pub p999_ms: f64,
    pub max_ms: f64,
    /// Points (milliseconds, share of values up to it).
    pub cdf: Vec<(f64, f64)>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_within_the_precision() {
        let latency = Spread::of((1..=1000).map(|ms| f64::from(ms) / 1e3))
            .summary()
            .unwrap();
        assert_eq!(latency.count, 1000);
        for (value, expected) in [
            (latency.p50_ms, 500.0),
            (latency.p99_ms, 990.0),
            (latency.p999_ms, 999.0),
            (latency.max_ms, 1000.0),
            (latency.mean_ms, 500.5),
        ] {
            assert!(
                (value / expected - 1.0).abs() < 0.002,
                "{value} for {expected}"
            );
        }
        assert!(latency.cdf.is_sorted() && latency.cdf.len() == 110);
    }

    #[test]
    fn nothing_has_no_spread_and_an_endless_wait_is_an_hour() {
        assert_eq!(Spread::new().summary(), None);
        let latency = Spread::of([1e9].into_iter()).summary().unwrap();
        assert!((latency.max_ms / 3.6e6 - 1.0).abs() < 0.01);
    }
}
