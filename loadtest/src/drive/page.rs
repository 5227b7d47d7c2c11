//! Reports and comparisons as pages.

use super::Report;
use super::compare::Comparison;
use super::spread::Latency;
use super::summary::RunReport;
use super::table::{MEASURES, slo_text};
use crate::report::{Axis, Bar, Bars, Page, Part, Plot, Section, Series, Table};

/// Bars that a plot has at most.
const BARS_MAX: usize = 64;

/// The page of a report.
pub(super) fn of(report: &Report) -> Page {
    let mut sections = vec![overview(report)];
    if report.runs.len() > 1 {
        sections.push(over_rates(report));
    }
    sections.push(Section {
        heading: "Latencies".to_owned(),
        parts: latencies(
            &report
                .runs
                .iter()
                .map(|run| (run.load.clone(), run))
                .collect::<Vec<_>>(),
        ),
    });
    sections.extend(report.runs.iter().map(run_section));
    Page {
        title: format!("{} at {}", report.workload, report.url),
        subtitle: format!(
            "model {}, seed {}, {} requests a run, sent as {}",
            report.model, report.seed, report.totals.requests, report.form
        ),
        sections,
    }
}

/// The page of a comparison.
pub(super) fn of_comparison(comparison: &Comparison) -> Page {
    let mut sections: Vec<Section> = Vec::new();
    if !comparison.notes.is_empty() {
        let notes = comparison.notes.iter().cloned().map(Part::Text);
        sections.push(Section {
            heading: "To be kept in mind".to_owned(),
            parts: notes.collect(),
        });
    }
    for (run, (before, after)) in comparison.runs.iter().zip(&comparison.pairs) {
        let rows = run.changes.iter().map(|change| {
            let cells = change.cells();
            std::iter::once(change.measure.clone())
                .chain(cells)
                .collect()
        });
        let table = Table {
            caption: "Before and after".to_owned(),
            columns: ["", "before", "after", "change"]
                .map(str::to_owned)
                .to_vec(),
            rows: rows.collect(),
        };
        let named = [("before".to_owned(), before), ("after".to_owned(), after)];
        let mut parts = vec![Part::Table(table)];
        parts.extend(latencies(&named));
        parts.push(over_time_plot(&named));
        sections.push(Section {
            heading: run.load.clone(),
            parts,
        });
    }
    Page {
        title: "Comparison".to_owned(),
        subtitle: format!("before: {}, after: {}", comparison.before, comparison.after),
        sections,
    }
}

fn overview(report: &Report) -> Section {
    let columns =
        std::iter::once(String::new()).chain(report.runs.iter().map(|run| run.load.clone()));
    let row = |measure: &super::table::Measure| {
        let values = report.runs.iter().map(|run| measure.shown(run));
        std::iter::once(measure.name.to_owned())
            .chain(values)
            .collect()
    };
    let table = Table {
        caption: "Latencies count from when a request was due, rates are of the time in which requests were due".to_owned(),
        columns: columns.collect(),
        rows: MEASURES.iter().map(row).collect(),
    };
    let facts = vec![
        ("Objective".to_owned(), slo_text(report.slo)),
        (
            "Prompt tokens planned".to_owned(),
            report.totals.prompt_tokens.to_string(),
        ),
        (
            "Answer tokens planned".to_owned(),
            report.totals.answer_tokens.to_string(),
        ),
    ];
    Section {
        heading: "Overview".to_owned(),
        parts: vec![Part::Facts(facts), Part::Table(table)],
    }
}

/// What changes with the load.
fn over_rates(report: &Report) -> Section {
    let points = |of: fn(&RunReport) -> Option<f64>| {
        let mut points: Vec<(f64, f64)> = report
            .runs
            .iter()
            .filter_map(|run| Some((run.asked_rate, of(run)?)))
            .collect();
        points.sort_by(|one, other| one.0.total_cmp(&other.0));
        points
    };
    let asked = || Axis::linear("requests a second, asked for");
    let goodput = Plot {
        title: "Goodput against rate".to_owned(),
        x: asked(),
        y: Axis::linear("requests a second"),
        series: vec![
            Series::new("met the objective", points(|run| Some(run.goodput))),
            Series::new("succeeded", points(|run| Some(run.requests_per_second))),
            Series::new("asked for", points(|run| Some(run.asked_rate))).reference(),
        ],
    };
    let ttft = Plot {
        title: "TTFT against rate".to_owned(),
        x: asked(),
        y: Axis::log("milliseconds"),
        series: vec![
            Series::new(
                "p50",
                points(|run| run.ttft.as_ref().map(|ttft| ttft.p50_ms)),
            ),
            Series::new(
                "p99",
                points(|run| run.ttft.as_ref().map(|ttft| ttft.p99_ms)),
            ),
        ],
    };
    Section {
        heading: "Against the rate".to_owned(),
        parts: vec![Part::Plot(goodput), Part::Plot(ttft)],
    }
}

/// One plot a latency, one line a run.
fn latencies(runs: &[(String, &RunReport)]) -> Vec<Part> {
    type Of = fn(&RunReport) -> Option<&Latency>;
    let plots: [(&str, Of); 3] = [
        ("Time to the first token", |run| run.ttft.as_ref()),
        ("Between tokens", |run| run.itl.as_ref()),
        ("End to end", |run| run.whole.as_ref()),
    ];
    let plot = |(title, of): (&str, Of)| {
        let series = runs
            .iter()
            .filter_map(|(name, run)| Some(Series::new(name.clone(), of(run)?.cdf.clone())));
        Part::Plot(Plot {
            title: format!("{title}, cumulative"),
            x: Axis::log("milliseconds"),
            y: Axis::linear("share of values up to it"),
            series: series.collect(),
        })
    };
    plots.into_iter().map(plot).collect()
}

fn over_time_plot(runs: &[(String, &RunReport)]) -> Part {
    let series = runs.iter().flat_map(|(name, run)| {
        let bins = || run.over_time.iter();
        [
            Series::new(
                format!("{name} p50"),
                bins()
                    .filter_map(|bin| Some((bin.at, bin.ttft_p50_ms?)))
                    .collect(),
            ),
            Series::new(
                format!("{name} p99"),
                bins()
                    .filter_map(|bin| Some((bin.at, bin.ttft_p99_ms?)))
                    .collect(),
            ),
        ]
    });
    Part::Plot(Plot {
        title: "TTFT over time".to_owned(),
        x: Axis::linear("seconds"),
        y: Axis::log("milliseconds"),
        series: series.collect(),
    })
}

fn run_section(run: &RunReport) -> Section {
    let mut parts = vec![
        over_time_plot(&[("TTFT".to_owned(), run)]),
        rates_plot(run),
        cached_plot(run),
    ];
    parts.extend(worker_bars(run));
    if !run.failed.is_empty() {
        parts.push(failures(run));
    }
    Section {
        heading: run.load.clone(),
        parts,
    }
}

fn rates_plot(run: &RunReport) -> Part {
    let points = |of: fn(&super::summary::Bin) -> f64| {
        run.over_time.iter().map(|bin| (bin.at, of(bin))).collect()
    };
    Part::Plot(Plot {
        title: "Requests over time".to_owned(),
        x: Axis::linear("seconds"),
        y: Axis::linear("requests a second"),
        series: vec![
            Series::new("due", points(|bin| bin.requests_per_second)),
            Series::new("of those failed", points(|bin| bin.failed_per_second)),
        ],
    })
}

fn cached_plot(run: &RunReport) -> Part {
    let cached = run
        .over_time
        .iter()
        .filter_map(|bin| Some((bin.at, bin.cached_share? * 100.0)));
    let ends = run
        .over_time
        .first()
        .into_iter()
        .chain(run.over_time.last());
    let bound = ends.map(|bin| (bin.at, run.cached.bound_share * 100.0));
    Part::Plot(Plot {
        title: "Cached share of prompts".to_owned(),
        x: Axis::linear("seconds"),
        y: Axis::linear("percent of prompt tokens"),
        series: vec![
            Series::new("cached", cached.collect()),
            Series::new("one cache without bounds, whole run", bound.collect()).reference(),
        ],
    })
}

/// Load and cached share of each worker, where the gateway names them.
fn worker_bars(run: &RunReport) -> Vec<Part> {
    if run.workers.is_empty() {
        return Vec::new();
    }
    let load = run.workers.iter().take(BARS_MAX).map(|worker| Bar {
        name: worker.name.clone(),
        value: worker.prompt_tokens.saturating_sub(worker.cached_tokens) as f64,
        shown: format!(
            "{} computed, {} requests",
            worker.prompt_tokens.saturating_sub(worker.cached_tokens),
            worker.requests
        ),
    });
    let cached = run.workers.iter().take(BARS_MAX).map(|worker| {
        let share = worker.cached_tokens as f64 / worker.prompt_tokens.max(1) as f64;
        Bar {
            name: worker.name.clone(),
            value: share,
            shown: format!("{:.0}%", share * 100.0),
        }
    });
    vec![
        Part::Bars(Bars {
            title: "Load by worker: prompt tokens computed".to_owned(),
            rows: load.collect(),
        }),
        Part::Bars(Bars {
            title: "Cached share by worker".to_owned(),
            rows: cached.collect(),
        }),
    ]
}

fn failures(run: &RunReport) -> Part {
    let row = |(class, errors): (&super::ErrorClass, &super::ErrorReport)| {
        vec![
            class.name().to_owned(),
            errors.count.to_string(),
            errors.examples.join(" · "),
        ]
    };
    Part::Table(Table {
        caption: "Failed requests".to_owned(),
        columns: ["class", "requests", "examples"]
            .map(str::to_owned)
            .to_vec(),
        rows: run.failed.iter().map(row).collect(),
    })
}
