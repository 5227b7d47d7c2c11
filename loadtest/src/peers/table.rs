//! Rows and how they are shown. Pure.

use std::fmt::Write as _;

use serde::Serialize;

use super::PeersOptions;
use crate::console::{aligned, shown};
use crate::drive::RunReport;
use crate::workload::Workload;

/// What is printed last.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    kind: &'static str,
    workload: String,
    requests: usize,
    prompt_tokens_mean: f64,
    answer_tokens_mean: f64,
    /// Of the prompt tokens, what one cache without bounds could serve.
    shareable: f64,
    seed: u64,
    form: String,
    fleet: String,
    slo_ttft_s: f64,
    slo_itl_s: f64,
    pub(super) rows: Vec<Row>,
}

/// One subject's turn.
#[derive(Debug, Serialize)]
pub(super) struct Row {
    pub(super) peer: String,
    pub(super) version: String,
    pub(super) round: u32,
    #[serde(flatten)]
    pub(super) measured: Option<Measured>,
    /// Why there are no figures.
    pub(super) error: Option<String>,
}

/// The figures of a turn; `None` where a subject has no such thing.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(super) struct Measured {
    pub(super) requests: usize,
    pub(super) failed: usize,
    /// What failed and why, a line each.
    pub(super) failures: Vec<String>,
    pub(super) ttft_mean_ms: Option<f64>,
    pub(super) ttft_p50_ms: Option<f64>,
    pub(super) ttft_p90_ms: Option<f64>,
    pub(super) ttft_p99_ms: Option<f64>,
    pub(super) cached_share: Option<f64>,
    /// Requests a second that met the objective, and their share.
    pub(super) goodput_per_s: Option<f64>,
    pub(super) good_share: Option<f64>,
    pub(super) requests_by_worker: Vec<u64>,
    /// Of all processes between the client and the workers.
    pub(super) router_cpu_s: Option<f64>,
    pub(super) router_peak_mib: Option<f64>,
    pub(super) workers_cpu_s: Option<f64>,
    pub(super) client_cpu_s: Option<f64>,
    /// By how much the load generator itself was late: large values mean that this machine is the bottleneck.
    pub(super) send_lag_p99_ms: Option<f64>,
    pub(super) seconds: f64,
}

impl Measured {
    /// What the client saw.
    pub(super) fn of(report: &RunReport) -> Self {
        let ttft = report.ttft.as_ref();
        let failures = report.failed.iter().map(|(class, errors)| {
            let example = errors.examples.first().map_or("", String::as_str);
            format!("{} × {}: {example}", errors.count, class.name())
        });
        Self {
            requests: report.sent,
            failed: report.failed.values().map(|one| one.count).sum(),
            failures: failures.collect(),
            ttft_mean_ms: ttft.map(|ttft| ttft.mean_ms),
            ttft_p50_ms: ttft.map(|ttft| ttft.p50_ms),
            ttft_p90_ms: ttft.map(|ttft| ttft.p90_ms),
            ttft_p99_ms: ttft.map(|ttft| ttft.p99_ms),
            cached_share: report.cached.is_known.then_some(report.cached.share),
            goodput_per_s: Some(report.goodput),
            good_share: Some(report.good_share),
            send_lag_p99_ms: report.send_lag.as_ref().map(|lag| lag.p99_ms),
            seconds: report.seconds,
            ..Self::default()
        }
    }

    /// The most requests of a worker over the mean of all.
    fn max_to_mean(&self) -> Option<f64> {
        let sum: u64 = self.requests_by_worker.iter().sum();
        let max = self.requests_by_worker.iter().max().filter(|_| sum > 0)?;
        Some(*max as f64 * self.requests_by_worker.len() as f64 / sum as f64)
    }
}

impl Row {
    pub(super) fn new(
        peer: String,
        version: String,
        round: u32,
        outcome: anyhow::Result<Measured>,
    ) -> Self {
        let (measured, error) = match outcome {
            Ok(measured) => (Some(measured), None),
            Err(error) => (None, Some(format!("{error:#}"))),
        };
        Self {
            peer,
            version,
            round,
            measured,
            error,
        }
    }

    /// For who waits: what it came to.
    pub(super) fn line(&self) -> String {
        match (&self.measured, &self.error) {
            (Some(measured), _) => format!(
                "TTFT mean {} ms, cached {} %, {} failed",
                shown(measured.ttft_mean_ms, 0),
                shown(percent(measured.cached_share), 1),
                measured.failed
            ),
            (None, error) => format!("no figures: {}", error.as_deref().unwrap_or_default()),
        }
    }

    fn cells(&self) -> Vec<String> {
        let name = if self.version.is_empty() {
            self.peer.clone()
        } else {
            format!("{} ({})", self.peer, self.version)
        };
        let Some(measured) = &self.measured else {
            return vec![name, self.round.to_string()];
        };
        vec![
            name,
            self.round.to_string(),
            shown(measured.ttft_mean_ms, 0),
            shown(measured.ttft_p50_ms, 0),
            shown(measured.ttft_p90_ms, 0),
            shown(measured.ttft_p99_ms, 0),
            shown(percent(measured.cached_share), 1),
            shown(measured.goodput_per_s, 2),
            shown(percent(measured.good_share), 1),
            shown(measured.max_to_mean(), 2),
            measured.failed.to_string(),
            shown(measured.router_cpu_s, 2),
            shown(measured.router_peak_mib, 0),
        ]
    }
}

fn percent(share: Option<f64>) -> Option<f64> {
    share.map(|share| share * 100.0)
}

const COLUMNS: [&str; 13] = [
    "",
    "round",
    "TTFT mean ms",
    "p50",
    "p90",
    "p99",
    "cached %",
    "goodput/s",
    "good %",
    "max/mean",
    "failed",
    "CPU s",
    "peak MiB",
];

impl Report {
    pub(super) fn new(options: &PeersOptions, workload: &Workload, rows: Vec<Row>) -> Self {
        let totals = workload.totals();
        let mean = |tokens: u64| tokens as f64 / totals.requests.max(1) as f64;
        Self {
            kind: "pointsman-peers",
            workload: workload.name.clone(),
            requests: workload.requests.len(),
            prompt_tokens_mean: mean(totals.prompt_tokens),
            answer_tokens_mean: mean(totals.answer_tokens),
            shareable: workload.sharing().token_share(),
            seed: options.load.seed,
            form: options.form.name().to_owned(),
            fleet: options.fleet.text(),
            slo_ttft_s: options.slo_ttft.as_secs_f64(),
            slo_itl_s: options.slo_itl.as_secs_f64(),
            rows,
        }
    }

    /// For the terminal.
    pub(super) fn text(&self) -> String {
        let mut lines = vec![COLUMNS.map(str::to_owned).to_vec()];
        lines.extend(self.rows.iter().map(Row::cells));
        let mut text = format!(
            "\n{} requests of {} ({:.0} + {:.0} tokens, {:.1} % shareable), sent as {}; {}\n{}",
            self.requests,
            self.workload,
            self.prompt_tokens_mean,
            self.answer_tokens_mean,
            self.shareable * 100.0,
            self.form,
            self.fleet,
            aligned(&lines)
        );
        for row in &self.rows {
            if row.error.is_some() {
                let _written = writeln!(text, "{}: {}", row.peer, row.line());
            }
            for failure in row.measured.iter().flat_map(|one| &one.failures) {
                let _written = writeln!(text, "{}: {failure}", row.peer);
            }
        }
        if self.rows.iter().any(|row| row.peer.contains("replay")) {
            text.push_str(
                "dynamo-replay is a simulation with its own engine's seconds: compare its rows with one another only\n",
            );
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(by_worker: &[u64]) -> Measured {
        Measured {
            requests: 12,
            ttft_mean_ms: Some(1234.5),
            cached_share: Some(0.256),
            requests_by_worker: by_worker.to_vec(),
            ..Measured::default()
        }
    }

    #[test]
    fn what_was_not_measured_is_a_dash_or_nothing_at_all() {
        let row = Row::new("x".to_owned(), "1.2".to_owned(), 2, Ok(measured(&[3, 9])));
        let cells = row.cells();
        assert_eq!(cells.len(), COLUMNS.len());
        assert_eq!(cells[..4], ["x (1.2)", "2", "1234", "–"]);
        assert_eq!((cells[6].as_str(), cells[9].as_str()), ("25.6", "1.50"));
        assert_eq!(measured(&[]).max_to_mean(), None);
        let absent = Row::new(
            "y".to_owned(),
            String::new(),
            1,
            Err(anyhow::anyhow!("gone")),
        );
        assert_eq!(absent.cells(), ["y", "1"]);
        let json = serde_json::to_value(&absent).unwrap();
        assert_eq!(json["error"], "gone");
        assert!(json.get("ttft_mean_ms").is_none());
        assert_eq!(
            serde_json::to_value(&row).unwrap()["requests_by_worker"][1],
            9
        );
    }
}
