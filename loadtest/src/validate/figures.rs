//! What is compared, counted in one way for both sides. Pure.

use serde::Serialize;

/// One side's figures, in simulated seconds.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Figures {
    pub(super) requests: usize,
    pub(super) ttft_mean_s: f64,
    pub(super) ttft_p50_s: f64,
    pub(super) ttft_p90_s: f64,
    pub(super) ttft_p99_s: f64,
    pub(super) cached_share: f64,
    /// The most requests of a worker over the mean of all.
    pub(super) max_to_mean: f64,
}

impl Figures {
    pub(super) fn of(
        mut ttft_s: Vec<f64>,
        cached_tokens: u64,
        prompt_tokens: u64,
        requests_by_worker: &[u64],
    ) -> Self {
        ttft_s.sort_by(f64::total_cmp);
        let quantile = |share: f64| {
            let place = (share * ttft_s.len() as f64).ceil() as usize;
            ttft_s.get(place.max(1) - 1).copied().unwrap_or(0.0)
        };
        let sum: u64 = requests_by_worker.iter().sum();
        let most = requests_by_worker.iter().copied().max().unwrap_or(0);
        Self {
            requests: ttft_s.len(),
            ttft_mean_s: ttft_s.iter().sum::<f64>() / ttft_s.len().max(1) as f64,
            ttft_p50_s: quantile(0.5),
            ttft_p90_s: quantile(0.9),
            ttft_p99_s: quantile(0.99),
            cached_share: cached_tokens as f64 / prompt_tokens.max(1) as f64,
            max_to_mean: most as f64 * requests_by_worker.len() as f64 / sum.max(1) as f64,
        }
    }
}

/// How far `real` is from `expected`, in percent of that; 0 where both are nothing.
pub(super) fn percent_off(expected: f64, real: f64) -> f64 {
    if expected.abs() < f64::EPSILON && real.abs() < f64::EPSILON {
        return 0.0;
    }
    (real / expected - 1.0) * 100.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_those_of_the_values() {
        let times = (1..=10).rev().map(f64::from).collect();
        let figures = Figures::of(times, 25, 100, &[3, 7]);
        assert_eq!(
            (figures.requests, figures.ttft_p50_s, figures.ttft_p90_s),
            (10, 5.0, 9.0)
        );
        assert!((figures.ttft_mean_s - 5.5).abs() < 1e-9);
        assert!((figures.cached_share - 0.25).abs() < 1e-9);
        assert!((figures.max_to_mean - 1.4).abs() < 1e-9);
        assert_eq!(Figures::of(vec![], 0, 0, &[]).requests, 0);
    }

    #[test]
    fn differences_are_of_what_was_expected() {
        assert!((percent_off(2.0, 2.2) - 10.0).abs() < 1e-9);
        assert!((percent_off(2.0, 1.8) + 10.0).abs() < 1e-9);
        assert!(percent_off(0.0, 0.0).abs() < f64::EPSILON);
        assert!(percent_off(0.0, 1.0).is_infinite());
    }
}
