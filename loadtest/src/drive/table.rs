//! Results as lines of text, and the measures that every table shows in the same words.

use std::fmt::Write as _;

use super::compare::Comparison;
use super::spread::Latency;
use super::summary::RunReport;
use super::{Report, Slo};
use crate::console::{aligned, shown};

/// A measure of a run.
#[derive(Clone, Copy, Debug)]
pub(super) struct Measure {
    pub(super) name: &'static str,
    pub(super) digits: usize,
    /// Whether more of it is better; `None` where it is neither.
    pub(super) more_is_better: Option<bool>,
    pub(super) of: fn(&RunReport) -> Option<f64>,
}

const fn measure(
    name: &'static str,
    digits: usize,
    more_is_better: Option<bool>,
    of: fn(&RunReport) -> Option<f64>,
) -> Measure {
    Measure {
        name,
        digits,
        more_is_better,
        of,
    }
}

fn p50(latency: Option<&Latency>) -> Option<f64> {
    latency.map(|latency| latency.p50_ms)
}

fn p99(latency: Option<&Latency>) -> Option<f64> {
    latency.map(|latency| latency.p99_ms)
}

/// In the order in which they are read.
pub(super) const MEASURES: [Measure; 14] = [
    measure("requests/s", 2, Some(true), |run| {
        Some(run.requests_per_second)
    }),
    measure("goodput/s", 2, Some(true), |run| Some(run.goodput)),
    measure("failed", 0, Some(false), |run| {
        Some(run.failed.values().map(|one| one.count).sum::<usize>() as f64)
    }),
    measure("TTFT p50 ms", 1, Some(false), |run| p50(run.ttft.as_ref())),
    measure("TTFT p99 ms", 1, Some(false), |run| p99(run.ttft.as_ref())),
    measure("ITL p50 ms", 2, Some(false), |run| p50(run.itl.as_ref())),
    measure("ITL p99 ms", 2, Some(false), |run| p99(run.itl.as_ref())),
    measure("mean ITL p99 ms", 2, Some(false), |run| {
        p99(run.mean_itl.as_ref())
    }),
    measure("end to end p50 ms", 1, Some(false), |run| {
        p50(run.whole.as_ref())
    }),
    measure("end to end p99 ms", 1, Some(false), |run| {
        p99(run.whole.as_ref())
    }),
    measure("prompt tokens/s", 0, Some(true), |run| {
        Some(run.prompt_tokens_per_second)
    }),
    measure("answer tokens/s", 0, Some(true), |run| {
        Some(run.answer_tokens_per_second)
    }),
    measure("cached %", 1, Some(true), |run| {
        run.cached.is_known.then_some(run.cached.share * 100.0)
    }),
    measure("cached at best %", 1, None, |run| {
        Some(run.cached.bound_share * 100.0)
    }),
];

impl Measure {
    /// The value as text, or a dash.
    pub(super) fn shown(&self, run: &RunReport) -> String {
        shown((self.of)(run), self.digits)
    }
}

/// What the objective is, in words.
pub(super) fn slo_text(slo: Slo) -> String {
    let ttft = slo
        .ttft
        .map(|seconds| format!("TTFT within {:.0} ms", seconds * 1e3));
    let itl = slo
        .itl
        .map(|seconds| format!("mean ITL within {:.1} ms", seconds * 1e3));
    let parts: Vec<String> = ttft.into_iter().chain(itl).collect();
    if parts.is_empty() {
        "none: every whole answer counts as good".to_owned()
    } else {
        parts.join(" and ")
    }
}

/// A report for the terminal: a line a measure, a column a run, then what failed and why.
pub(super) fn text(report: &Report) -> String {
    let header = report.runs.iter().map(|run| run.load.clone());
    let mut rows = vec![row("", header)];
    for measure in MEASURES {
        rows.push(row(
            measure.name,
            report.runs.iter().map(|run| measure.shown(run)),
        ));
    }
    let mut text = format!("\n{}", aligned(&rows));
    text.push_str(
        "latencies: from when a request was due; rates: of the time in which requests were due\n",
    );
    let _ = writeln!(text, "objective: {}", slo_text(report.slo));
    for run in &report.runs {
        for (class, errors) in &run.failed {
            let example = errors.examples.first().map_or("", String::as_str);
            let _ = writeln!(
                text,
                "{}: {} × {}: {example}",
                run.load,
                errors.count,
                class.name()
            );
        }
        let lag = run.send_lag.as_ref().filter(|lag| lag.p99_ms > 20.0);
        if let Some(lag) = lag {
            let _ = writeln!(
                text,
                "{}: the load generator itself was late by {:.0} ms at p99",
                run.load, lag.p99_ms
            );
        }
    }
    text
}

/// A comparison for the terminal.
pub(super) fn comparison_text(comparison: &Comparison) -> String {
    let mut text = String::new();
    for run in &comparison.runs {
        let mut rows = vec![row(
            &run.load,
            ["before", "after", "change"].map(str::to_owned).into_iter(),
        )];
        for change in &run.changes {
            rows.push(row(&change.measure, change.cells().into_iter()));
        }
        let _ = write!(text, "\n{}", aligned(&rows));
    }
    for note in &comparison.notes {
        let _ = writeln!(text, "note: {note}");
    }
    text
}

fn row(name: &str, cells: impl Iterator<Item = String>) -> Vec<String> {
    std::iter::once(name.to_owned()).chain(cells).collect()
}
