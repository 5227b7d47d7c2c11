//! From samples to figures: a table for people, one JSON object for scripts.

use std::fmt;
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::drive::{Outcome, Sample};
use super::variant::VARIANTS;

/// All rounds of one variant.
#[derive(Debug, Default)]
pub(super) struct Measured {
    pub(super) samples: Vec<Sample>,
    pub(super) epp_cpu: Duration,
    pub(super) envoy_cpu: Duration,
}

impl Measured {
    /// Adds a round, with the CPU time that it took of each process.
    pub(super) fn add(&mut self, outcome: Outcome, epp_cpu: Duration, envoy_cpu: Duration) {
        self.samples.extend(outcome.samples);
        self.epp_cpu += epp_cpu;
        self.envoy_cpu += envoy_cpu;
    }

    fn cpu_per_request(&self, cpu: Duration) -> f64 {
        ms(cpu) / self.samples.len().max(1) as f64
    }

    /// Milliseconds below which so many of a hundred requests have `of` them; 0 without any.
    fn percentile(&self, percent: usize, of: impl Fn(&Sample) -> Duration) -> f64 {
        let mut sorted: Vec<Duration> = self.samples.iter().map(of).collect();
        sorted.sort_unstable();
        let rank = (sorted.len() * percent).div_ceil(100).max(1);
        sorted.get(rank - 1).copied().map_or(0.0, ms)
    }
}

/// The result of a whole run.
#[derive(Debug)]
pub(super) struct Report {
    /// In the order of [`VARIANTS`].
    pub(super) measured: Vec<Measured>,
    /// Requests a second.
    pub(super) rate: f64,
    /// CPUs that epp keeps busy with nothing but reading the metrics of this many endpoints.
    pub(super) idle_cores: f64,
    pub(super) idle_endpoints: usize,
}

impl Report {
    /// `{"access_log":{…},"stream":{…},"large_prompt":{…},"idle_cores_100_endpoints":…}`: milliseconds, and what is
    /// added by epp to the time to the first piece of an answer.
    pub(super) fn to_json(&self) -> String {
        let mut object = Map::new();
        for (variant, measured) in VARIANTS.iter().zip(&self.measured) {
            if variant.is_baseline() {
                continue;
            }
            let figures = json!({
                "epp_cpu_ms_per_request": rounded(measured.cpu_per_request(measured.epp_cpu)),
                "envoy_cpu_ms_per_request": rounded(measured.cpu_per_request(measured.envoy_cpu)),
                "added_p50_ms": rounded(self.added(variant.baseline, measured, 50)),
                "added_p99_ms": rounded(self.added(variant.baseline, measured, 99)),
            });
            object.insert(variant.name.to_owned(), figures);
        }
        let idle = format!("idle_cores_{}_endpoints", self.idle_endpoints);
        object.insert(idle, json!(rounded(self.idle_cores)));
        Value::Object(object).to_string()
    }

    fn added(&self, baseline: usize, measured: &Measured, percent: usize) -> f64 {
        let plain = self.measured.get(baseline);
        let plain = plain.map_or(0.0, |plain| plain.percentile(percent, |one| one.first));
        measured.percentile(percent, |one| one.first) - plain
    }
}

impl fmt::Display for Report {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            out,
            "\n{:<20}{:>9}{:>12}{:>14}{:>11}{:>11}{:>11}{:>11}",
            "",
            "requests",
            "epp CPU ms",
            "Envoy CPU ms",
            "first p50",
            "added p50",
            "added p99",
            "whole p50"
        )?;
        for (variant, measured) in VARIANTS.iter().zip(&self.measured) {
            writeln!(
                out,
                "{:<20}{:>9}{:>12.3}{:>14.3}{:>11.2}{:>11.2}{:>11.2}{:>11.1}",
                variant.name,
                measured.samples.len(),
                measured.cpu_per_request(measured.epp_cpu),
                measured.cpu_per_request(measured.envoy_cpu),
                measured.percentile(50, |one| one.first),
                self.added(variant.baseline, measured, 50),
                self.added(variant.baseline, measured, 99),
                measured.percentile(50, |one| one.whole),
            )?;
        }
        writeln!(
            out,
            "\n{:.1} requests a second. CPU of one request; times in ms from its intended start; added to plain Envoy.",
            self.rate
        )?;
        writeln!(
            out,
            "idle epp with {} endpoints: {:.3} cores",
            self.idle_endpoints, self.idle_cores
        )
    }
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// To a tenth of a microsecond; more digits would pretend.
fn rounded(value: f64) -> f64 {
    (value * 1e4).round() / 1e4
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(first_ms: impl Iterator<Item = u64>, epp_ms: u64) -> Measured {
        let sample = |ms| Sample {
            first: Duration::from_millis(ms),
            whole: Duration::from_millis(ms + 500),
        };
        Measured {
            samples: first_ms.map(sample).collect(),
            epp_cpu: Duration::from_millis(epp_ms),
            envoy_cpu: Duration::from_millis(400),
        }
    }

    #[test]
    fn percentiles_are_of_the_sorted_samples() {
        let measured = measured((1..=200).rev(), 0);
        let first = |one: &Sample| one.first;
        assert!((measured.percentile(50, first) - 100.0).abs() < 1e-9);
        assert!((measured.percentile(99, first) - 198.0).abs() < 1e-9);
        assert!((measured.percentile(100, first) - 200.0).abs() < 1e-9);
        assert!(Measured::default().percentile(50, first).abs() < 1e-9);
    }

    #[test]
    fn the_json_object_has_its_form() {
        let report = Report {
            measured: vec![
                measured(1..=100, 0),
                measured(2..=101, 40),
                measured(4..=103, 200),
                measured(5..=104, 0),
                measured(11..=110, 300),
            ],
            rate: 10.0,
            idle_cores: 0.012_345,
            idle_endpoints: 100,
        };
        let expected = concat!(
            r#"{"access_log":{"epp_cpu_ms_per_request":0.4,"envoy_cpu_ms_per_request":4.0,"added_p50_ms":1.0,"added_p99_ms":1.0},"#,
            r#""stream":{"epp_cpu_ms_per_request":2.0,"envoy_cpu_ms_per_request":4.0,"added_p50_ms":3.0,"added_p99_ms":3.0},"#,
            r#""large_prompt":{"epp_cpu_ms_per_request":3.0,"envoy_cpu_ms_per_request":4.0,"added_p50_ms":6.0,"added_p99_ms":6.0},"#,
            r#""idle_cores_100_endpoints":0.0123}"#,
        );
        assert_eq!(report.to_json(), expected);
        assert!(report.to_string().contains("0.012 cores"));
    }
}
