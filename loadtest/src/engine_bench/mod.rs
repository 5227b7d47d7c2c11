//! `loadtest engine-bench`: the worker beside the engines that people run today, on this machine, in one run.
//!
//! One random-weight model of SmolLM-135M's shape in bf16; the worker serves it, and llama.cpp and transformers, installed
//! by name from PyPI, hold the same weights. All take turns in rounds, so that what else happens on the machine meanwhile
//! happens to all of them, and each ratio is the median of the rounds' ratios. The worker is measured where a client
//! is, over HTTP; the peers are measured inside their processes, around nothing but their own work.
//!
//! model → (peers, worker) → rounds of load → report.

mod bandwidth;
mod load;
mod measure;
mod model;
mod peers;
mod report;
mod stream_rate;
mod worker;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;

use crate::console::Console;
use crate::stack::{Profile, Progress, Silent};

/// Model, build, peers, worker, four loads, simulated backend.
const STEPS: usize = 9;

/// Flags of `loadtest engine-bench`.
#[derive(Clone, Debug, clap::Args)]
pub struct EngineBenchOptions {
    /// How often each engine has its turn.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub rounds: u32,

    /// Threads of each engine.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=256))]
    pub threads: u32,

    /// A Python that has the peers; without it they are installed into the target folder (5 GB, and llama.cpp is
    /// compiled).
    #[arg(long, value_name = "PATH")]
    pub python: Option<PathBuf>,

    /// Measure the worker alone.
    #[arg(long)]
    pub no_peers: bool,

    /// Print nothing but the JSON object, which is the last line in any case.
    #[arg(long)]
    pub json: bool,

    /// Which build of the worker to measure.
    #[arg(long, value_enum, hide = true, default_value_t = Profile::own())]
    pub profile: Profile,
}

/// Measures and prints. Fails when an engine does not start or a request is not answered whole.
pub async fn run(options: EngineBenchOptions) -> ExitCode {
    let console = Console::new(STEPS);
    let progress: &dyn Progress = if options.json { &Silent } else { &console };
    match measure::all(&options, progress).await {
        Ok(report) => {
            if !options.json {
                console.line(&report.to_string());
            }
            console.line(&report.to_json());
            ExitCode::SUCCESS
        }
        Err(error) => failed(&console, options.json, &error),
    }
}

fn failed(console: &Console, json: bool, error: &anyhow::Error) -> ExitCode {
    let error = format!("{error:#}");
    if !json {
        console.line(&format!("\nno result: {error}"));
    }
    console.line(&serde_json::json!({ "error": error }).to_string());
    ExitCode::FAILURE
}

/// The middle of some values; of an even number the mean of the two. Nothing has no middle.
fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    let upper = *sorted.get(middle)?;
    Some(if sorted.len() % 2 == 1 {
        upper
    } else {
        f64::midpoint(upper, sorted[middle - 1])
    })
}

/// The value that `share` of the values do not exceed.
fn percentile(values: &[f64], share: f64) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.clamp(1, sorted.len().max(1)) - 1).copied()
}

/// Where the benchmark keeps what it makes: beside cargo's own, so that `cargo clean` takes it away.
fn folder() -> Result<PathBuf> {
    let folder = crate::stack::target_folder().join("engine-bench");
    std::fs::create_dir_all(&folder)?;
    Ok(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
    }

    #[test]
    fn percentiles_are_values_that_occurred() {
        let values: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!(percentile(&values, 0.99), Some(99.0));
        assert_eq!(percentile(&values, 1.0), Some(100.0));
        assert_eq!(percentile(&[7.0], 0.5), Some(7.0));
        assert_eq!(percentile(&[], 0.5), None);
    }
}
