//! What became of the requests, and what that says about a policy.

use std::time::Duration;

use serde::Serialize;

/// One request's life, in times since the start.
#[derive(Clone, Debug, Default)]
pub struct Record {
    /// When it was due.
    pub arrived: Duration,
    /// When it was sent to a worker, for the last time; later than it was due where it waited at a gate.
    pub sent: Duration,
    /// When its client saw the first token.
    pub first_token: Option<Duration>,
    /// When its client saw the last one.
    pub ended: Option<Duration>,
    pub prompt_tokens: u32,
    pub cached_tokens: u32,
    pub generated_tokens: u32,
    /// The worker that served it, or was to.
    pub worker: Option<u32>,
    /// What the policy expected its time to first token to be, in seconds.
    pub expected_s: Option<f64>,
    /// How often it was sent again because its worker died before the first token.
    pub retries: u32,
}

impl Record {
    /// Time to first token in seconds.
    pub fn ttft_s(&self) -> Option<f64> {
        Some((self.first_token?.saturating_sub(self.arrived)).as_secs_f64())
    }

    /// Mean time from one token to the next in seconds; 0 where there is one token.
    pub fn itl_s(&self) -> Option<f64> {
        let gaps = self.generated_tokens.saturating_sub(1);
        let took = self.ended?.saturating_sub(self.first_token?).as_secs_f64();
        Some(if gaps == 0 {
            0.0
        } else {
            took / f64::from(gaps)
        })
    }

    /// Whether it met both targets; one that did not end has not.
    pub fn meets(&self, slo: &Slo) -> bool {
        self.ttft_s()
            .is_some_and(|ttft| ttft <= slo.ttft.as_secs_f64())
            && self.itl_s().is_some_and(|itl| itl <= slo.itl.as_secs_f64())
    }
}

/// What a request has to meet.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Slo {
    pub ttft: Duration,
    /// Mean of a request.
    pub itl: Duration,
    /// The share of requests that has to; a rate counts as carried when it does.
    pub share: f64,
}

impl Default for Slo {
    fn default() -> Self {
        Self {
            ttft: Duration::from_secs(2),
            itl: Duration::from_millis(100),
            share: 0.9,
        }
    }
}

/// How much stood at each worker, as sums over time.
#[derive(Clone, Debug, Default)]
pub struct QueueTimes {
    /// Requests times seconds, by worker: waiting and running.
    pub request_seconds: Vec<f64>,
}

impl QueueTimes {
    /// The longest mean queue over the mean of all; 1 where nobody had any.
    pub fn max_to_mean(&self) -> f64 {
        let sum: f64 = self.request_seconds.iter().sum();
        let max = self.request_seconds.iter().copied().fold(0.0, f64::max);
        if sum == 0.0 {
            return 1.0;
        }
        max * self.request_seconds.len() as f64 / sum
    }
}

/// A policy's figures.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    pub policy: String,
    pub requests: usize,
    pub failed: usize,
    pub retried: usize,
    pub rate_per_s: f64,
    pub ttft_mean_s: f64,
    pub ttft_p50_s: f64,
    pub ttft_p90_s: f64,
    pub ttft_p99_s: f64,
    /// Mean of what the policy expected, and of how far off it was, of the requests of which it expected something.
    pub expected_ttft_mean_s: Option<f64>,
    pub expectation_error_mean_s: Option<f64>,
    pub itl_mean_s: f64,
    pub itl_p90_s: f64,
    pub itl_p99_s: f64,
    /// Share of the requests that met the targets.
    pub slo_share: f64,
    /// Requests a second that met them.
    pub goodput_per_s: f64,
    /// Prompt tokens found in caches, of all.
    pub cached_share: f64,
    pub queue_max_to_mean: f64,
    /// CPU seconds that the simulation took.
    pub cpu_s: f64,
}

/// Sums up. `duration` is that of the arrivals.
pub fn summarize(
    policy: &str,
    records: &[Record],
    queues: &QueueTimes,
    slo: &Slo,
    duration: Duration,
) -> Summary {
    let sorted = |of: fn(&Record) -> Option<f64>| {
        let mut all: Vec<f64> = records.iter().filter_map(of).collect();
        all.sort_by(f64::total_cmp);
        all
    };
    let (ttft, itl) = (sorted(Record::ttft_s), sorted(Record::itl_s));
    let seconds = duration.as_secs_f64().max(1e-9);
    let expected = records
        .iter()
        .filter_map(|record| record.expected_s.zip(record.ttft_s()));
    let expected: Vec<(f64, f64)> = expected.collect();
    let of_expected = |value: fn(&(f64, f64)) -> f64| {
        let values: Vec<f64> = expected.iter().map(value).collect();
        (!values.is_empty()).then(|| mean(&values))
    };
    let good = records.iter().filter(|record| record.meets(slo)).count();
    let served = || records.iter().filter(|record| record.first_token.is_some());
    let prompt: u64 = served().map(|record| u64::from(record.prompt_tokens)).sum();
    let cached: u64 = served().map(|record| u64::from(record.cached_tokens)).sum();
    Summary {
        policy: policy.to_owned(),
        requests: records.len(),
        failed: records
            .iter()
            .filter(|record| record.ended.is_none())
            .count(),
        retried: records.iter().filter(|record| record.retries > 0).count(),
        rate_per_s: records.len() as f64 / seconds,
        ttft_mean_s: mean(&ttft),
        ttft_p50_s: quantile(&ttft, 0.5).unwrap_or(0.0),
        ttft_p90_s: quantile(&ttft, 0.9).unwrap_or(0.0),
        ttft_p99_s: quantile(&ttft, 0.99).unwrap_or(0.0),
        expected_ttft_mean_s: of_expected(|(expected, _)| *expected),
        expectation_error_mean_s: of_expected(|(expected, seen)| (expected - seen).abs()),
        itl_mean_s: mean(&itl),
        itl_p90_s: quantile(&itl, 0.9).unwrap_or(0.0),
        itl_p99_s: quantile(&itl, 0.99).unwrap_or(0.0),
        slo_share: good as f64 / records.len().max(1) as f64,
        goodput_per_s: good as f64 / seconds,
        cached_share: cached as f64 / prompt.max(1) as f64,
        queue_max_to_mean: queues.max_to_mean(),
        cpu_s: 0.0,
    }
}

fn mean(sorted: &[f64]) -> f64 {
    sorted.iter().sum::<f64>() / sorted.len().max(1) as f64
}

/// The smallest value that a share `q` of all is not above; none of none.
pub(super) fn quantile(sorted: &[f64], q: f64) -> Option<f64> {
    let place = (q * sorted.len() as f64).ceil() as usize;
    sorted.get(place.max(1) - 1).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(arrived_ms: u64, ttft_ms: u64, tokens: u32, itl_ms: u64) -> Record {
        let ms = Duration::from_millis;
        let first = ms(arrived_ms + ttft_ms);
        Record {
            arrived: ms(arrived_ms),
            first_token: Some(first),
            ended: Some(first + ms(itl_ms) * (tokens - 1)),
            prompt_tokens: 100,
            cached_tokens: 40,
            generated_tokens: tokens,
            ..Record::default()
        }
    }

    #[test]
    fn figures_are_those_of_the_records() {
        let mut records: Vec<_> = (1..=10).map(|n| record(n * 100, n * 300, 11, 20)).collect();
        records.push(Record::default());
        let queues = QueueTimes {
            request_seconds: vec![1.0, 3.0],
        };
        let slo = Slo::default();
        let summary = summarize("p", &records, &queues, &slo, Duration::from_secs(2));
        let close = |left: f64, right: f64| (left - right).abs() < 1e-9;
        assert!(close(summary.ttft_p50_s, 1.5) && close(summary.ttft_p90_s, 2.7));
        assert!(close(summary.ttft_mean_s, 1.65) && close(summary.itl_p99_s, 0.02));
        assert!(close(summary.slo_share, 6.0 / 11.0) && close(summary.goodput_per_s, 3.0));
        assert!(close(summary.cached_share, 0.4) && close(summary.queue_max_to_mean, 1.5));
        assert_eq!((summary.requests, summary.failed), (11, 1));
    }

    #[test]
    fn nothing_is_zero() {
        let empty = summarize(
            "p",
            &[],
            &QueueTimes::default(),
            &Slo::default(),
            Duration::ZERO,
        );
        assert_eq!(
            (empty.requests, empty.ttft_p99_s, empty.slo_share),
            (0, 0.0, 0.0)
        );
    }
}
