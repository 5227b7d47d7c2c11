//! From flags to runs: one for each rate, speed or number of clients.
//!
//! Runs of one call go to the same servers, whose caches remember. So each run has segments of its own, with the same
//! structure: the next rate finds nothing that the last one has left.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::options::{Arrivals, LoadOptions};
use super::run::Plan;
use super::schedule::Pace;
use crate::workload::generate::{GenerateOptions, RATE_MAX, generate};
use crate::workload::tokens::mix;
use crate::workload::trace::{self, Extent, TraceOptions};
use crate::workload::{Segment, Workload};

/// Runs of one call.
const RUNS_MAX: usize = 100;
/// What an open loop of generated traffic lasts where nothing says so.
const DURATION: Duration = Duration::from_mins(1);
/// Requests of a closed loop of generated traffic where nothing says so, and where only a duration does.
const CLOSED_REQUESTS: usize = 200;
const CLOSED_REQUESTS_MAX: usize = 100_000;

/// A run to be made.
#[derive(Debug)]
pub(crate) struct PlannedRun {
    pub(crate) load: String,
    /// Requests a second that are asked for.
    pub(crate) rate: Option<f64>,
    pub(crate) plan: Plan,
}

/// What one run differs in.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Load {
    Rate(f64),
    Scale(f64),
    Clients(usize),
}

impl Load {
    fn name(self) -> String {
        match self {
            Self::Rate(rate) => format!("{rate} requests/s"),
            Self::Scale(factor) => format!("times × {factor}"),
            Self::Clients(clients) => format!("{clients} at once"),
        }
    }
}

/// The runs that the flags ask for, each made when its turn comes.
#[derive(Debug)]
pub(crate) struct Runs<'a> {
    options: &'a LoadOptions,
    loads: Vec<Load>,
}

impl<'a> Runs<'a> {
    pub(crate) fn of(options: &'a LoadOptions) -> Result<Self> {
        let loads = loads(options);
        ensure!(
            loads.len() <= RUNS_MAX,
            "{} runs, more than {RUNS_MAX}",
            loads.len()
        );
        for load in &loads {
            match load {
                Load::Rate(value) | Load::Scale(value) => ensure!(
                    *value > 0.0 && *value <= RATE_MAX,
                    "a rate or factor of {value}; it has to be above 0 and at most {RATE_MAX}"
                ),
                Load::Clients(clients) => ensure!(*clients > 0, "--concurrency 0 sends nothing"),
            }
        }
        Ok(Self { options, loads })
    }

    /// How many runs there are.
    pub(crate) fn len(&self) -> usize {
        self.loads.len()
    }

    /// Number `index`, from 0.
    pub(crate) fn make(&self, index: usize) -> Result<PlannedRun> {
        let load = *self.loads.get(index).context("no such run")?;
        let workload = match &self.options.trace {
            Some(_) => recorded(self.options, load)?,
            None => generated(self.options, load)?,
        };
        let options = self.options;
        let workload = of_its_own(workload, mix(options.seed) ^ index as u64);
        let (pace, rate) = match load {
            Load::Clients(concurrency) => (Pace::Closed { concurrency }, None),
            Load::Rate(rate) => (open(options), Some(rate)),
            Load::Scale(_) => (open(options), own_rate(&workload)),
        };
        Ok(PlannedRun {
            load: load.name(),
            rate,
            plan: Plan {
                workload,
                pace,
                end: options.duration,
            },
        })
    }
}

/// How many runs the flags ask for, good or not.
pub(super) fn wanted(options: &LoadOptions) -> usize {
    loads(options).len()
}

fn open(options: &LoadOptions) -> Pace {
    Pace::Open {
        in_flight_max: options.in_flight_max,
    }
}

fn loads(options: &LoadOptions) -> Vec<Load> {
    let clients = options.concurrency.iter().map(|one| Load::Clients(*one));
    let rates = options.rate.iter().map(|one| Load::Rate(*one));
    let scales = options.rate_scale.iter().map(|one| Load::Scale(*one));
    let asked: Vec<Load> = clients.chain(rates).chain(scales).collect();
    match (asked.is_empty(), &options.trace) {
        (false, _) => asked,
        (true, Some(_)) => vec![Load::Scale(1.0)],
        (true, None) => vec![Load::Rate(1.0)],
    }
}

fn recorded(options: &LoadOptions, load: Load) -> Result<Workload> {
    let path = options.trace.as_deref().context("no trace")?;
    let limit = options.requests.map(Extent::Requests);
    let trace_options = TraceOptions {
        skip: options.skip,
        limit,
        block_tokens: options.block_tokens,
    };
    let workload = trace::read(path, trace_options)?;
    Ok(match (load, options.arrivals) {
        (Load::Clients(_), _) => workload,
        (Load::Rate(rate), None | Some(Arrivals::Poisson)) => {
            workload.with_poisson_arrivals(rate, options.seed)
        }
        (Load::Rate(rate), Some(Arrivals::Fixed)) => workload.with_fixed_arrivals(rate),
        (Load::Rate(rate), Some(Arrivals::Trace)) => {
            let own = own_rate(&workload).context("the trace has no rate of its own to change")?;
            workload.faster(rate / own)
        }
        (Load::Scale(_), Some(Arrivals::Poisson | Arrivals::Fixed)) => {
            bail!("--arrivals poisson and fixed need a --rate")
        }
        (Load::Scale(factor), None | Some(Arrivals::Trace)) => workload.faster(factor),
    })
}

fn generated(options: &LoadOptions, load: Load) -> Result<Workload> {
    let shape = options.workload.shape(options.parameters.as_deref())?;
    let made = match load {
        Load::Rate(rate) | Load::Scale(rate) => GenerateOptions {
            seed: options.seed,
            rate,
            requests: options.requests,
            duration: match (options.requests, options.duration) {
                (None, None) => Some(DURATION),
                (_, duration) => duration,
            },
        },
        Load::Clients(_) => GenerateOptions {
            seed: options.seed,
            rate: 1.0,
            requests: Some(options.requests.unwrap_or(match options.duration {
                Some(_) => CLOSED_REQUESTS_MAX,
                None => CLOSED_REQUESTS,
            })),
            duration: None,
        },
    };
    let workload = generate(&shape, made)?;
    ensure!(
        !workload.requests.is_empty(),
        "no request falls into the run; a higher rate or a longer duration has some"
    );
    Ok(match (load, options.arrivals) {
        (Load::Rate(rate), Some(Arrivals::Fixed)) => workload.with_fixed_arrivals(rate),
        _ => workload,
    })
}

/// Requests a second by the workload's own times.
fn own_rate(workload: &Workload) -> Option<f64> {
    let totals = workload.totals();
    (totals.seconds > 0.0).then(|| totals.requests as f64 / totals.seconds)
}

/// The same structure with other segments.
fn of_its_own(mut workload: Workload, salt: u64) -> Workload {
    let change = |segment: &mut Segment| segment.id = mix(segment.id ^ salt);
    for request in &mut workload.requests {
        request.prompt.iter_mut().for_each(change);
        change(&mut request.answer);
    }
    workload
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        options: LoadOptions,
    }

    fn options(flags: &str) -> LoadOptions {
        let line = ["drive"].into_iter().chain(flags.split_whitespace());
        Line::parse_from(line).options
    }

    fn plans(flags: &str) -> Vec<PlannedRun> {
        let options = options(flags);
        let runs = Runs::of(&options).unwrap();
        (0..runs.len())
            .map(|index| runs.make(index).unwrap())
            .collect()
    }

    #[test]
    fn each_rate_is_a_run_with_the_same_lengths_and_nothing_in_common() {
        let runs = plans("--rates 5,10 --requests 30 --workload unique");
        let lengths = |run: &PlannedRun| {
            let requests = run.plan.workload.requests.iter();
            requests
                .map(|one| (one.prompt_tokens(), one.answer.tokens))
                .collect::<Vec<_>>()
        };
        assert_eq!(lengths(&runs[0]), lengths(&runs[1]));
        assert_ne!(
            runs[0].plan.workload.requests[0].prompt,
            runs[1].plan.workload.requests[0].prompt
        );
        assert_eq!(
            runs.iter().map(|run| run.rate).collect::<Vec<_>>(),
            [Some(5.0), Some(10.0)]
        );
        assert_eq!(runs[1].load, "10 requests/s");
    }

    #[test]
    fn clients_make_a_closed_loop() {
        let runs = plans("--concurrency 4");
        assert_eq!(runs[0].plan.pace, Pace::Closed { concurrency: 4 });
        assert_eq!(runs[0].plan.workload.requests.len(), CLOSED_REQUESTS);
    }

    #[test]
    fn a_trace_keeps_its_times_unless_a_rate_is_asked_for() {
        let trace = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/traces/mooncake_conversation.jsonl.zst"
        );
        let last = |flags: &str| {
            let runs = plans(&format!("--trace {trace} --requests 100 {flags}"));
            runs[0]
                .plan
                .workload
                .requests
                .last()
                .unwrap()
                .at
                .as_secs_f64()
        };
        let own = last("");
        assert!((own / last("--rate-scale 2") - 2.0).abs() < 1e-6);
        assert!((last("--rate 10 --arrivals trace") - 10.0).abs() < 1e-3);
        assert!((last("--rate 10 --arrivals fixed") - 9.9).abs() < 1e-3);
        let options = options(&format!("--trace {trace} --arrivals fixed"));
        assert!(Runs::of(&options).unwrap().make(0).is_err());
    }

    #[test]
    fn what_sends_nothing_is_refused() {
        assert!(Runs::of(&options("--rate 0")).is_err());
        assert!(Runs::of(&options("--concurrency 0")).is_err());
        assert!(Runs::of(&options("--rate nan")).is_err());
    }
}
