//! `loadtest simulate`: runs each policy over the same workload, and prints what came of it.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde::Serialize;

use super::curves::{Curves, curves};
pub use super::options::SimulateOptions;
use super::outcome::{Slo, Summary, summarize};
use super::page;
use super::world::{self, WorldOptions};
use crate::console::Console;
use crate::workload::Workload;

/// Rate scales of a search lie within these, and it ends when they are this close.
const SCALES: std::ops::RangeInclusive<f64> = 1.0 / 64.0..=4_096.0;
const PRECISION: f64 = 1.02;

/// What is printed last.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub workload: About,
    pub workers: usize,
    pub replicas: usize,
    pub model: String,
    pub gpu: String,
    pub seed: u64,
    pub slo: Targets,
    /// The rows are at each policy's capacity rather than at rates that were given.
    #[serde(skip)]
    pub is_search: bool,
    pub policies: Vec<Row>,
}

#[derive(Debug, Serialize)]
pub(super) struct About {
    pub name: String,
    pub requests: usize,
    pub prompt_tokens_mean: f64,
    pub output_tokens_mean: f64,
    /// Of the prompt tokens, what an infinite cache shared by all could serve.
    pub shareable_tokens: f64,
}

#[derive(Debug, Serialize)]
pub(super) struct Targets {
    pub ttft_s: f64,
    pub itl_s: f64,
    pub share: f64,
}

/// One policy at one rate.
#[derive(Debug, Serialize)]
pub(super) struct Row {
    pub rate_scale: f64,
    #[serde(flatten)]
    pub summary: Summary,
    #[serde(skip)]
    pub curves: Curves,
}

/// Runs, prints, and says whether there was a result.
pub async fn run(options: SimulateOptions) -> ExitCode {
    let console = Console::new(options.policies.len());
    let (json, html) = (options.json, options.html.clone());
    let done = tokio::task::spawn_blocking(move || simulate(&options)).await;
    match done.context("the simulation failed").and_then(|done| done) {
        Ok(report) => {
            if !json {
                console.line(&report.table());
            }
            if let Err(error) = write_page(html.as_deref(), &report) {
                return console.no_result(&error, json);
            }
            console.line(&serde_json::to_string(&report).unwrap_or_default());
            ExitCode::SUCCESS
        }
        Err(error) => console.no_result(&error, json),
    }
}

fn write_page(path: Option<&Path>, report: &Report) -> Result<()> {
    let Some(path) = path else { return Ok(()) };
    let page = page::of(report).to_html();
    std::fs::write(path, page).with_context(|| format!("cannot write {}", path.display()))
}

fn simulate(options: &SimulateOptions) -> Result<Report> {
    let workload = options.workload()?;
    let (world, slo) = (options.world()?, options.slo()?);
    let jobs = jobs(options);
    let next = Mutex::new(0..jobs.len());
    let rows: Mutex<Vec<(usize, Result<Row>)>> = Mutex::default();
    std::thread::scope(|scope| {
        for _ in 0..options.threads {
            scope.spawn(|| {
                let take = || next.lock().ok()?.next();
                while let Some(place) = take() {
                    let Some((policy, scale)) = jobs.get(place) else {
                        return;
                    };
                    let at = |scale: f64| at_scale(&workload, policy, &world, &slo, scale);
                    let row = if options.capacity {
                        at(*scale).and_then(|first| search(first, slo.share, at))
                    } else {
                        at(*scale)
                    };
                    if let Ok(mut rows) = rows.lock() {
                        rows.push((place, row));
                    }
                }
            });
        }
    });
    let mut rows = rows.into_inner().unwrap_or_default();
    rows.sort_by_key(|(place, _)| *place);
    let policies: Result<Vec<Row>> = rows.into_iter().map(|(_, row)| row).collect();
    let totals = workload.totals();
    let requests = workload.requests.len();
    let mean = |tokens: u64| tokens as f64 / requests.max(1) as f64;
    Ok(Report {
        workload: About {
            prompt_tokens_mean: mean(totals.prompt_tokens),
            output_tokens_mean: mean(totals.answer_tokens),
            shareable_tokens: workload.sharing().token_share(),
            name: workload.name,
            requests,
        },
        workers: options.workers,
        replicas: options.replicas,
        model: options.model.clone(),
        gpu: options.gpu.clone(),
        seed: options.seed,
        slo: Targets {
            ttft_s: slo.ttft.as_secs_f64(),
            itl_s: slo.itl.as_secs_f64(),
            share: slo.share,
        },
        is_search: options.capacity,
        policies: policies?,
    })
}

/// Every policy at every rate; a search needs one rate to begin with.
fn jobs(options: &SimulateOptions) -> Vec<(&str, f64)> {
    let rates = if options.capacity { 1 } else { usize::MAX };
    let scales = options.rate_scale.iter().copied().take(rates);
    scales
        .flat_map(|scale| {
            let policies = options.policies.iter();
            policies.map(move |policy| (policy.as_str(), scale))
        })
        .collect()
}

/// The row of the highest rate scale that is carried, or of the lowest that was tried. Doubles, or halves, until one is carried
/// and one is not, and then goes on between them.
fn search(first: Row, share: f64, at: impl Fn(f64) -> Result<Row>) -> Result<Row> {
    let carries = |row: &Row| row.summary.slo_share >= share;
    let (mut carried, mut failed) = (None, None);
    let mut row = first;
    loop {
        let scale = row.rate_scale;
        if carries(&row) {
            carried = Some(row);
        } else {
            failed = Some(row);
        }
        let next = match (&carried, &failed) {
            (Some(carried), Some(failed)) => {
                if failed.rate_scale / carried.rate_scale < PRECISION {
                    break;
                }
                (carried.rate_scale * failed.rate_scale).sqrt()
            }
            (Some(_), None) => scale * 2.0,
            _ => scale / 2.0,
        };
        if !SCALES.contains(&next) {
            break;
        }
        row = at(next)?;
    }
    carried.or(failed).context("no rate was tried")
}

fn at_scale(
    workload: &Workload,
    policy: &str,
    world: &WorldOptions,
    slo: &Slo,
    scale: f64,
) -> Result<Row> {
    let faster = workload.clone().faster(scale);
    let duration = faster
        .requests
        .last()
        .map_or(Duration::ZERO, |last| last.at);
    let began = cpu_seconds();
    let run = world::run(&faster, policy, world).with_context(|| format!("policy {policy}"))?;
    let mut summary = summarize(policy, &run.records, &run.queues, slo, duration);
    summary.cpu_s = cpu_seconds() - began;
    Ok(Row {
        rate_scale: scale,
        summary,
        curves: curves(&run.records, &run.queues),
    })
}

/// CPU seconds of this thread.
fn cpu_seconds() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

impl Report {
    fn table(&self) -> String {
        let mut lines = vec![
            format!(
                "{} requests of {} ({:.0} + {:.0} tokens, {:.1} % shareable), {} workers of {} on {}",
                self.workload.requests,
                self.workload.name,
                self.workload.prompt_tokens_mean,
                self.workload.output_tokens_mean,
                self.workload.shareable_tokens * 100.0,
                self.workers,
                self.model,
                self.gpu
            ),
            format!(
                "{:<28}{:>8}{:>9}{:>9}{:>9}{:>9}{:>9}{:>8}{:>8}{:>8}{:>8}{:>7}{:>7}",
                "policy",
                "scale",
                "req/s",
                "mean s",
                "p50 s",
                "p90 s",
                "p99 s",
                "ITL ms",
                "p99 ms",
                "in SLO",
                "cached",
                "max/µ",
                "CPU s"
            ),
        ];
        for Row {
            rate_scale,
            summary,
            ..
        } in &self.policies
        {
            lines.push(format!(
                "{:<28}{:>8.2}{:>9.2}{:>9.3}{:>9.3}{:>9.3}{:>9.3}{:>8.1}{:>8.1}{:>7.1}%{:>7.1}%{:>7.2}{:>7.1}",
                summary.policy,
                rate_scale,
                summary.rate_per_s,
                summary.ttft_mean_s,
                summary.ttft_p50_s,
                summary.ttft_p90_s,
                summary.ttft_p99_s,
                summary.itl_mean_s * 1e3,
                summary.itl_p99_s * 1e3,
                summary.slo_share * 100.0,
                summary.cached_share * 100.0,
                summary.queue_max_to_mean,
                summary.cpu_s
            ));
        }
        lines.join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::super::outcome::QueueTimes;
    use super::*;

    fn row(scale: f64, limit: f64) -> Row {
        let mut summary = summarize(
            "p",
            &[],
            &QueueTimes::default(),
            &Slo::default(),
            Duration::ZERO,
        );
        summary.slo_share = if scale <= limit { 1.0 } else { 0.0 };
        Row {
            rate_scale: scale,
            summary,
            curves: Curves::default(),
        }
    }

    #[test]
    fn the_search_ends_just_below_the_limit() {
        for limit in [0.3, 1.0, 7.7, 100.0] {
            let found = search(row(1.0, limit), 0.9, |scale| Ok(row(scale, limit))).unwrap();
            let below = limit / found.rate_scale;
            assert!(
                (1.0..PRECISION).contains(&below),
                "{limit}: {}",
                found.rate_scale
            );
        }
    }

    #[test]
    fn a_page_shows_every_policy_at_every_rate() {
        let mut report = Report {
            workload: About {
                name: "w".to_owned(),
                requests: 1,
                prompt_tokens_mean: 1.0,
                output_tokens_mean: 1.0,
                shareable_tokens: 0.5,
            },
            workers: 2,
            replicas: 1,
            model: "m".to_owned(),
            gpu: "g".to_owned(),
            seed: 1,
            slo: Targets {
                ttft_s: 2.0,
                itl_s: 0.1,
                share: 0.9,
            },
            is_search: false,
            policies: vec![row(1.0, 1.0), row(2.0, 1.0)],
        };
        report.policies.iter_mut().for_each(|row| {
            row.curves.ttft_shares = vec![(0.1, 0.5), (0.2, 1.0)];
            row.curves.queues = vec![1.0; 100];
        });
        let page = page::of(&report).to_html();
        assert_eq!(page.matches("the 64 busiest").count(), 2);
        assert!(page.contains("Against the rate") && page.contains("<svg"));
        report.is_search = true;
        let page = page::of(&report).to_html();
        assert!(!page.contains("Against the rate"));
        assert_eq!(
            page.matches("each policy&#39;s capacity")
                .count()
                .max(page.matches("each policy's capacity").count()),
            1
        );
    }

    #[test]
    fn a_policy_that_carries_nothing_or_everything_ends_the_search() {
        assert!(
            search(row(1.0, 0.0), 0.9, |scale| Ok(row(scale, 0.0)))
                .unwrap()
                .rate_scale
                < 0.1
        );
        assert!(
            search(row(1.0, 1e9), 0.9, |scale| Ok(row(scale, 1e9)))
                .unwrap()
                .rate_scale
                > 1e3
        );
    }
}
