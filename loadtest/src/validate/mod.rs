//! `loadtest validate`: the same load over the real stack and in virtual time, and how far they differ.
//!
//! ```text
//!             ┌─▶ Envoy, epp, workers with simulated GPUs, HTTP, gRPC, ZMQ, the wall clock ─▶ figures ─┐
//! workload ───┤                                                                                        ├─▶ differences
//!             └─▶ simulate::world ─────────────────────────────────────────────────────────▶ figures ─┘
//! ```
//!
//! Workers run with the same seconds on both sides, so what is held here is all that stands between: what is picked, from news of
//! which age, what caches hold, who waits for whom. Real seconds are slower than simulated ones by what HTTP costs on
//! this machine; a load that keeps its cores busy shows that and not an error of the simulator.

mod figures;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use crate::console::{Console, aligned};
use crate::drive::{Form, Live, LoadOptions, Plan, PlannedRun, Record, Runs, Slo, Target, measure};
use crate::fleet::{Fleet, FleetOptions, Front, Policy};
use crate::simulate::outcome;
use crate::simulate::worker::WorkerOptions;
use crate::simulate::world::{self, Delays, VOCABULARY, WorldOptions};
use crate::stack::{Binaries, Envoy, EnvoyChoice, MODEL_NAME, Profile, Progress, Silent};
use crate::workload::Workload;
use crate::workload::tokens::Vocabulary;
use figures::{Figures, percent_off};

/// Cached shares that are so close count as equal, however small both are.
const CACHED_ALIKE: f64 = 0.01;
/// Token ids that the workers' vocabulary has.
const SENT_VOCABULARY: Vocabulary = Vocabulary {
    first: 100,
    count: 900,
};

/// What a reader of `loadtest validate --help` wants to type.
pub const EXAMPLES: &str = "\
Example:
  Four minutes of a recorded trace, at its own times, with two policies:
    loadtest validate --trace conversation_trace.jsonl --requests 800 --policies round-robin,expected-ttft
";

/// Flags of `loadtest validate`.
#[derive(Clone, Debug, clap::Args)]
pub struct ValidateOptions {
    /// The policies, each run on both sides: round-robin, field-default, expected-ttft, file:PATH.
    #[arg(
        long,
        value_name = "NAMES",
        value_delimiter = ',',
        default_value = "round-robin,field-default,expected-ttft"
    )]
    pub policies: Vec<String>,

    /// Percent that mean TTFT, p90 TTFT and cached share may differ. Beyond it the command fails.
    #[arg(long, value_name = "PERCENT", default_value_t = 10.0)]
    pub within: f64,

    /// Percent that the times may differ, where it is another bound.
    #[arg(long, value_name = "PERCENT")]
    pub ttft_within: Option<f64>,

    /// Milliseconds of the wall clock between two requests, at least, on both sides. A trace may have many at the same instant, and a
    /// machine needs some milliseconds to send a long prompt.
    #[arg(long, value_name = "MS", default_value_t = 0)]
    pub apart_ms: u64,

    #[command(flatten)]
    pub fleet: FleetOptions,

    #[command(flatten)]
    pub load: LoadOptions,

    /// Print nothing but the JSON object, which is the last line in any case.
    #[arg(long)]
    pub json: bool,

    /// Which build of epp and the workers to run.
    #[arg(long, value_enum, hide = true, default_value_t = Profile::own())]
    pub profile: Profile,
}

/// What is printed last.
#[derive(Debug, Serialize)]
struct Report {
    kind: &'static str,
    workload: String,
    requests: usize,
    fleet: String,
    within_percent: f64,
    ttft_within_percent: f64,
    policies: Vec<Pair>,
}

/// Both sides of a policy.
#[derive(Debug, Serialize)]
struct Pair {
    policy: String,
    real: Figures,
    simulated: Figures,
    /// From the simulated to the real figures.
    ttft_mean_percent: f64,
    ttft_p90_percent: f64,
    cached_percent: f64,
    agrees: bool,
    /// How late the load generator was, in milliseconds of the wall clock.
    send_lag_p99_ms: f64,
}

/// Runs both sides of each policy and prints. Fails when they differ by more than was asked for.
pub async fn run(options: ValidateOptions) -> ExitCode {
    let console = Console::new(options.policies.len() + 1);
    match validate(&options, &console).await {
        Ok(report) => {
            if !options.json {
                console.line(&report.text());
            }
            console.line(&serde_json::to_string(&report).unwrap_or_default());
            if report.policies.iter().all(|pair| pair.agrees) {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            }
        }
        Err(error) => console.no_result(&error, options.json),
    }
}

async fn validate(options: &ValidateOptions, console: &Console) -> Result<Report> {
    let named = |name: &String| {
        Policy::named(name)
            .map(|policy| (name.clone(), policy))
            .with_context(|| format!("no policy {name:?} that both sides have"))
    };
    let policies: Result<Vec<(String, Policy)>> = options.policies.iter().map(named).collect();
    let policies = policies?;
    options.fleet.time()?;
    let runs = Runs::of(&options.load)?;
    ensure!(runs.len() == 1, "{} loads; one is validated", runs.len());
    let mut run = runs.make(0)?;
    let apart = Duration::from_millis(options.apart_ms).mul_f64(options.fleet.speedup);
    run.plan.workload = run.plan.workload.apart(apart);
    ensure!(
        options.load.concurrency.is_empty(),
        "--concurrency: the simulator has open loops only"
    );
    let progress: &dyn Progress = if options.json { &Silent } else { console };
    progress.begin("building epp and engine, looking for Envoy");
    let binaries = Binaries::build(options.profile).await?;
    let envoy = Envoy::find(&EnvoyChoice::Any).await?;
    progress.ready();
    let mut pairs = Vec::new();
    for (name, policy) in &policies {
        if !options.json {
            console.begin_block(name);
        }
        let (real, lag) = real(options, policy, &run, &envoy, binaries).await?;
        let simulated = simulated(options, name, &run.plan.workload)?;
        pairs.push(Pair::of(options, name, real, simulated, lag));
    }
    Ok(Report {
        kind: "pointsman-validate",
        workload: run.plan.workload.name.clone(),
        requests: run.plan.workload.requests.len(),
        fleet: options.fleet.text(),
        within_percent: options.within,
        ttft_within_percent: options.ttft_within.unwrap_or(options.within),
        policies: pairs,
    })
}

/// Over the wire. Times are multiplied back to simulated ones.
async fn real(
    options: &ValidateOptions,
    policy: &Policy,
    run: &PlannedRun,
    envoy: &Envoy,
    binaries: &Binaries,
) -> Result<(Figures, f64)> {
    let fleet = Fleet::start(&options.fleet, binaries, &Silent).await?;
    let front = Front::start(policy, &fleet, envoy, binaries).await?;
    let target = Arc::new(Target {
        http: fleet.http.clone(),
        url: front.url(),
        model: MODEL_NAME.to_owned(),
        api_key: None,
        // Ids, so that both sides have the same lengths and prefixes to the token.
        form: Form::Tokens,
        vocabulary: SENT_VOCABULARY,
        exact: true,
        timeout: options.load.timeout,
    });
    let faster = PlannedRun {
        load: run.load.clone(),
        rate: run.rate,
        plan: Plan {
            workload: on_the_wall(&run.plan.workload, &options.fleet)?,
            pace: run.plan.pace,
            end: run.plan.end,
        },
    };
    let mut live = Live::new(!options.json);
    let (report, records) = measure(&target, &faster, Slo::default(), &mut live).await?;
    front.check_alive()?;
    if let Some((class, errors)) = report.failed.iter().next() {
        let example = errors.examples.first().map_or("", String::as_str);
        anyhow::bail!(
            "{} requests failed ({}): {example}",
            errors.count,
            class.name()
        );
    }
    ensure!(!report.interrupted, "interrupted");
    let ttft = records.iter().filter_map(Record::ttft);
    let seconds = ttft.map(|ttft| ttft * options.fleet.speedup).collect();
    let cached = records.iter().map(|one| one.cached_tokens.unwrap_or(0));
    let prompt = records.iter().map(|one| one.prompt_tokens);
    let figures = Figures::of(
        seconds,
        cached.sum(),
        prompt.sum(),
        &fleet.answered().await?,
    );
    Ok((figures, report.send_lag.map_or(0.0, |lag| lag.p99_ms)))
}

/// In virtual time. News travel as long as they do on the wall, which in simulated seconds is longer where those pass faster.
fn simulated(options: &ValidateOptions, policy: &str, workload: &Workload) -> Result<Figures> {
    let speedup = options.fleet.speedup;
    let wall = Delays::default();
    let world = WorldOptions {
        workers: usize::from(options.fleet.workers),
        replicas: 1,
        worker: WorkerOptions::new(options.fleet.time()?, VOCABULARY, options.fleet.block_size),
        delays: Delays {
            network: wall.network.mul_f64(speedup),
            scrape_interval: wall.scrape_interval.mul_f64(speedup),
            scrape: wall.scrape.mul_f64(speedup),
            kv_events: wall.kv_events.mul_f64(speedup),
            // The templates' default way to watch responses.
            first_tokens_at_end: true,
        },
        happenings: Vec::new(),
        seed: options.load.seed,
    };
    let run = world::run(workload, policy, &world).with_context(|| format!("policy {policy}"))?;
    let records = &run.records;
    let mut by_worker = vec![0; world.workers];
    for worker in records.iter().filter_map(|record| record.worker) {
        if let Some(count) = by_worker.get_mut(worker as usize) {
            *count += 1;
        }
    }
    let ended = records.iter().filter(|record| record.ended.is_some());
    ensure!(
        ended.count() == records.len(),
        "requests were lost in virtual time"
    );
    let seconds = records.iter().filter_map(outcome::Record::ttft_s).collect();
    let cached = records.iter().map(|one| u64::from(one.cached_tokens));
    let prompt = records.iter().map(|one| u64::from(one.prompt_tokens));
    Ok(Figures::of(seconds, cached.sum(), prompt.sum(), &by_worker))
}

/// The workload as it is sent: all times, those of people and tools too, pass as fast as the workers' do.
fn on_the_wall(workload: &Workload, fleet: &FleetOptions) -> Result<Workload> {
    let mut workload = workload.clone();
    let shorten = |time: &mut Duration| -> Result<()> {
        *time = fleet.on_the_wall(*time)?;
        Ok(())
    };
    for request in &mut workload.requests {
        shorten(&mut request.at)?;
        if let Some(after) = &mut request.after {
            shorten(&mut after.pause)?;
        }
    }
    Ok(workload)
}

impl Pair {
    fn of(
        options: &ValidateOptions,
        policy: &str,
        real: Figures,
        simulated: Figures,
        send_lag_p99_ms: f64,
    ) -> Self {
        let ttft_mean_percent = percent_off(simulated.ttft_mean_s, real.ttft_mean_s);
        let ttft_p90_percent = percent_off(simulated.ttft_p90_s, real.ttft_p90_s);
        let cached_percent = percent_off(simulated.cached_share, real.cached_share);
        let ttft_within = options.ttft_within.unwrap_or(options.within);
        let cached_agrees = (real.cached_share - simulated.cached_share).abs() <= CACHED_ALIKE
            || cached_percent.abs() <= options.within;
        let agrees = cached_agrees
            && [ttft_mean_percent, ttft_p90_percent]
                .iter()
                .all(|percent| percent.abs() <= ttft_within);
        Self {
            policy: policy.to_owned(),
            real,
            simulated,
            ttft_mean_percent,
            ttft_p90_percent,
            cached_percent,
            agrees,
            send_lag_p99_ms,
        }
    }

    fn cells(&self) -> Vec<String> {
        let triple = |real: f64, simulated: f64, percent: f64, digits: usize| {
            [
                format!("{real:.digits$}"),
                format!("{simulated:.digits$}"),
                format!("{percent:+.1}%"),
            ]
        };
        let (real, simulated) = (&self.real, &self.simulated);
        let mut cells = vec![self.policy.clone()];
        cells.extend(triple(
            real.ttft_mean_s,
            simulated.ttft_mean_s,
            self.ttft_mean_percent,
            3,
        ));
        cells.extend(triple(
            real.ttft_p90_s,
            simulated.ttft_p90_s,
            self.ttft_p90_percent,
            3,
        ));
        cells.extend(triple(
            real.cached_share * 100.0,
            simulated.cached_share * 100.0,
            self.cached_percent,
            2,
        ));
        cells.push(format!("{:.1}", self.send_lag_p99_ms));
        cells.push(if self.agrees { "yes" } else { "NO" }.to_owned());
        cells
    }
}

impl Report {
    fn text(&self) -> String {
        let columns = [
            "",
            "TTFT mean s",
            "simulated",
            "off",
            "p90 s",
            "simulated",
            "off",
            "cached %",
            "simulated",
            "off",
            "lag ms",
            "agrees",
        ];
        let mut rows = vec![columns.map(str::to_owned).to_vec()];
        rows.extend(self.policies.iter().map(Pair::cells));
        format!(
            "\n{} requests of {}; {}\n{}",
            self.requests,
            self.workload,
            self.fleet,
            aligned(&rows)
        )
    }
}
