//! A simulation as a page: what each policy came to, at each rate.

use super::command::{Report, Row};
use super::outcome::Summary;
use crate::report::{Axis, Bar, Bars, Page, Part, Plot, Section, Series, Table};

/// Workers whose bars are shown.
const BARS_MAX: usize = 64;

/// The page of a report.
pub(super) fn of(report: &Report) -> Page {
    let about = &report.workload;
    let mut sections = vec![overview(report)];
    if rates(report).len() > 1 {
        sections.push(against_rate(report));
    }
    sections.extend(rates(report).into_iter().map(|rate| at_rate(report, rate)));
    Page {
        title: format!("{} on {} simulated workers", about.name, report.workers),
        subtitle: format!(
            "{} requests of {:.0} + {:.0} tokens, {:.1} % shareable; {} on {}, {} replicas, seed {}",
            about.requests,
            about.prompt_tokens_mean,
            about.output_tokens_mean,
            about.shareable_tokens * 100.0,
            report.model,
            report.gpu,
            report.replicas,
            report.seed
        ),
        sections,
    }
}

/// The rate scales, rising. Those of a search for capacities are all different and count as one.
fn rates(report: &Report) -> Vec<Option<f64>> {
    if report.is_search {
        return vec![None];
    }
    let mut scales: Vec<f64> = report.policies.iter().map(|row| row.rate_scale).collect();
    scales.sort_by(f64::total_cmp);
    scales.dedup();
    scales.into_iter().map(Some).collect()
}

fn overview(report: &Report) -> Section {
    let slo = &report.slo;
    let columns = [
        "",
        "requests/s",
        "TTFT mean",
        "p50",
        "p90",
        "p99",
        "ITL mean",
        "in SLO",
        "cached",
        "max/mean queue",
    ];
    let row = |row: &Row| {
        let summary = &row.summary;
        let seconds = |value: f64| format!("{value:.3} s");
        vec![
            summary.policy.clone(),
            format!("{:.2}", summary.rate_per_s),
            seconds(summary.ttft_mean_s),
            seconds(summary.ttft_p50_s),
            seconds(summary.ttft_p90_s),
            seconds(summary.ttft_p99_s),
            format!("{:.1} ms", summary.itl_mean_s * 1e3),
            format!("{:.1} %", summary.slo_share * 100.0),
            format!("{:.1} %", summary.cached_share * 100.0),
            format!("{:.2}", summary.queue_max_to_mean),
        ]
    };
    let how = if report.is_search {
        "each policy at the highest rate at which enough of its requests meet them"
    } else {
        "each policy at each rate"
    };
    let caption = format!(
        "Targets: TTFT {} s and ITL {} ms for {:.0} % of the requests; {how}",
        slo.ttft_s,
        slo.itl_s * 1e3,
        slo.share * 100.0
    );
    let table = Table {
        caption,
        columns: columns.map(str::to_owned).to_vec(),
        rows: report.policies.iter().map(row).collect(),
    };
    Section {
        heading: "Overview".to_owned(),
        parts: vec![Part::Table(table)],
    }
}

fn against_rate(report: &Report) -> Section {
    let mut names: Vec<&str> = Vec::new();
    for row in &report.policies {
        if !names.contains(&row.summary.policy.as_str()) {
            names.push(&row.summary.policy);
        }
    }
    let plot = |title: &str, y: Axis, of: fn(&Summary) -> f64| {
        let series = names.iter().map(|name| {
            let rows = report.policies.iter();
            let own = rows.filter(|row| row.summary.policy == *name);
            let mut points: Vec<(f64, f64)> = own
                .map(|row| (row.summary.rate_per_s, of(&row.summary)))
                .collect();
            points.sort_by(|one, other| one.0.total_cmp(&other.0));
            Series::new(*name, points)
        });
        Part::Plot(Plot {
            title: title.to_owned(),
            x: Axis::linear("requests a second"),
            y,
            series: series.collect(),
        })
    };
    Section {
        heading: "Against the rate".to_owned(),
        parts: vec![
            plot("Goodput", Axis::linear("requests a second"), |it| {
                it.goodput_per_s
            }),
            plot("TTFT, p90", Axis::log("seconds"), |it| it.ttft_p90_s),
            plot("TTFT, mean", Axis::log("seconds"), |it| it.ttft_mean_s),
            plot("Prompt tokens from caches", Axis::linear("share"), |it| {
                it.cached_share
            }),
        ],
    }
}

/// The runs at one rate scale, or all of them.
fn at_rate(report: &Report, scale: Option<f64>) -> Section {
    let rows = report.policies.iter();
    let rows: Vec<&Row> = rows
        .filter(|row| scale.is_none_or(|scale| row.rate_scale.total_cmp(&scale).is_eq()))
        .collect();
    let series = |points: fn(&Row) -> Vec<(f64, f64)>| {
        let one = |row: &&Row| Series::new(row.summary.policy.clone(), points(row));
        rows.iter().map(one).collect::<Vec<_>>()
    };
    let over_time = |row: &Row| {
        let bins = row.curves.ttft_over_time.iter();
        bins.map(|(at, _, p90)| (*at, *p90)).collect()
    };
    let mut parts = vec![
        Part::Plot(Plot {
            title: "Time to the first token, cumulative".to_owned(),
            x: Axis::log("seconds"),
            y: Axis::linear("share of the requests"),
            series: series(|row| row.curves.ttft_shares.clone()),
        }),
        Part::Plot(Plot {
            title: "TTFT over time, p90".to_owned(),
            x: Axis::linear("seconds since the start"),
            y: Axis::log("seconds"),
            series: series(over_time),
        }),
    ];
    parts.extend(rows.iter().map(|row| bars(row)));
    let heading = match (scale, rows.first()) {
        (Some(_), Some(row)) => format!("At {:.2} requests a second", row.summary.rate_per_s),
        _ => "At each policy's capacity".to_owned(),
    };
    Section { heading, parts }
}

/// Who had how much to do, the busiest first where not all can be shown.
fn bars(row: &Row) -> Part {
    let mut queues: Vec<(usize, f64)> = row.curves.queues.iter().copied().enumerate().collect();
    let mut title = format!("Mean queue by worker: {}", row.summary.policy);
    if queues.len() > BARS_MAX {
        queues.sort_by(|one, other| other.1.total_cmp(&one.1));
        queues.truncate(BARS_MAX);
        title = format!("{title} (the {BARS_MAX} busiest)");
    }
    let bar = |(worker, mean): (usize, f64)| Bar {
        name: format!("worker {worker}"),
        value: mean,
        shown: format!("{mean:.2}"),
    };
    Part::Bars(Bars {
        title,
        rows: queues.into_iter().map(bar).collect(),
    })
}
