//! `loadtest peers`: other routers and ours, over the wire, in front of the same simulated workers.
//!
//! subjects → for each: cold workers → what routes → one load → what came of it, and what it used. Every subject gets
//! workers that have just started, the same requests at the same times, and text prompts, because the others match text.
//! They are installed by name, each in an environment of its own. One that cannot be had keeps its row, empty but for
//! the reason: no figure here is an estimate.
//!
//! Dynamo's router is measured by the simulation that comes with it, since it routes to workers of its own kind only. Those rows are of
//! another engine's time model and are to be compared with one another.

mod dynamo;
mod routers;
mod subject;
mod table;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::console::Console;
use crate::drive::{Form, Live, LoadOptions, PlannedRun, Runs, Slo, Target, measure, time};
use crate::fleet::{Fleet, FleetOptions, Front};
use crate::stack::{
    Binaries, Envoy, EnvoyChoice, MODEL_NAME, Profile, Progress, Silent, target_folder,
};
use crate::usage::Usage;
use crate::workload::tokens::Vocabulary;
use dynamo::Replay;
use routers::Router;
use subject::Subject;
use table::{Measured, Report, Row};

/// What a reader of `loadtest peers --help` wants to type.
pub const EXAMPLES: &str = "\
Examples:
  Five minutes of a recorded trace, at its own times:
    loadtest peers --trace conversation_trace.jsonl --requests 1000

  One router against ours, twice in turn, on generated chats:
    loadtest peers --peers sglang-router,expected-ttft --rounds 2 --workload multi-turn --rate 4 --requests 400
";

/// Flags of `loadtest peers`.
#[derive(Clone, Debug, clap::Args)]
pub struct PeersOptions {
    /// Who is measured, in this order. Ours: round-robin (Envoy alone), field-default, expected-ttft, file:PATH (an
    /// EndpointPickerConfig). Of PyPI: sglang-router, smg, vllm-router, dynamo-replay, each also as NAME==VERSION.
    #[arg(
        long,
        value_name = "NAMES",
        value_delimiter = ',',
        default_value = "round-robin,field-default,expected-ttft,sglang-router,smg,vllm-router,dynamo-replay"
    )]
    pub peers: Vec<String>,

    /// How often each has its turn.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub rounds: u32,

    /// Text as chats, or token ids. Routers that match text see no prefix in ids.
    #[arg(long, value_enum, default_value_t = Form::Chat)]
    pub form: Form,

    #[command(flatten)]
    pub fleet: FleetOptions,

    #[command(flatten)]
    pub load: LoadOptions,

    /// Objective: time to the first token.
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = time, help_heading = "Results")]
    pub slo_ttft: Duration,

    /// Objective: mean time between two tokens of a request.
    #[arg(long, value_name = "TIME", default_value = "100ms", value_parser = time, help_heading = "Results")]
    pub slo_itl: Duration,

    /// Print nothing but the JSON object, which is the last line in any case.
    #[arg(long, help_heading = "Results")]
    pub json: bool,

    /// Which build of epp and the workers to run.
    #[arg(long, value_enum, hide = true, default_value_t = Profile::own())]
    pub profile: Profile,
}

/// Measures and prints. Fails when our own parts cannot be had; a peer that cannot is a row without figures.
pub async fn run(options: PeersOptions) -> ExitCode {
    let turns = options.peers.len() * options.rounds as usize;
    let console = Console::new(turns + 1);
    match compare(&options, &console).await {
        Ok(report) => {
            if !options.json {
                console.line(&report.text());
            }
            console.line(&serde_json::to_string(&report).unwrap_or_default());
            ExitCode::SUCCESS
        }
        Err(error) => console.no_result(&error, options.json),
    }
}

async fn compare(options: &PeersOptions, console: &Console) -> Result<Report> {
    let subjects: Result<Vec<Subject>> = options.peers.iter().map(|name| name.parse()).collect();
    let subjects = subjects?;
    options.fleet.time()?;
    let runs = Runs::of(&options.load)?;
    ensure!(runs.len() == 1, "{} loads; one is compared", runs.len());
    let run = runs.make(0)?;
    let progress: &dyn Progress = if options.json { &Silent } else { console };
    progress.begin("building epp and engine, looking for Envoy");
    let binaries = Binaries::build(options.profile).await?;
    let envoy = Envoy::find(&EnvoyChoice::Any).await?;
    progress.ready();
    let bench = Bench {
        options,
        slo: Slo::new(Some(options.slo_ttft), Some(options.slo_itl)),
        run,
        binaries,
        envoy,
    };
    let mut rows = Vec::new();
    for round in 1..=options.rounds {
        for subject in &subjects {
            if !options.json {
                console.begin_block(&subject.name());
            }
            for row in bench.rows(subject, round).await {
                if !options.json {
                    console.line(&format!("      {}", row.line()));
                }
                rows.push(row);
            }
        }
    }
    Ok(Report::new(options, &bench.run.plan.workload, rows))
}

/// What all subjects have in common.
struct Bench<'a> {
    options: &'a PeersOptions,
    slo: Slo,
    run: PlannedRun,
    binaries: &'a Binaries,
    envoy: Envoy,
}

impl Bench<'_> {
    async fn rows(&self, subject: &Subject, round: u32) -> Vec<Row> {
        if let Subject::DynamoReplay { version } = subject {
            return self.replay(version, round).await;
        }
        let (version, outcome) = match self.measure(subject).await {
            Ok((version, measured)) => (version, Ok(measured)),
            Err(error) => (String::new(), Err(error)),
        };
        vec![Row::new(subject.name(), version, round, outcome)]
    }

    /// The subject's version, and what came of the load.
    async fn measure(&self, subject: &Subject) -> Result<(String, Measured)> {
        // What has to be installed is, before anything is started.
        let router = match subject {
            Subject::Router { kind, version } => {
                Some(Router::install(*kind, version, &target_folder()).await?)
            }
            Subject::Ours(_) | Subject::DynamoReplay { .. } => None,
        };
        let fleet = Fleet::start(&self.options.fleet, self.binaries, &Silent).await?;
        let (version, front) = match (subject, router) {
            (_, Some(router)) => (router.version.clone(), router.start(&fleet).await?),
            (Subject::Ours(policy), None) => {
                let front = Front::start(policy, &fleet, &self.envoy, self.binaries).await?;
                (self.version(), front)
            }
            _ => bail!("{} is no router", subject.name()),
        };
        let measured = self.drive(&fleet, &front).await?;
        Ok((version, measured))
    }

    fn version(&self) -> String {
        let own = env!("CARGO_PKG_VERSION");
        format!("{own}, Envoy {}", self.envoy.version)
    }

    async fn drive(&self, fleet: &Fleet, front: &Front) -> Result<Measured> {
        let target = Arc::new(Target {
            http: fleet.http.clone(),
            url: front.url(),
            model: MODEL_NAME.to_owned(),
            api_key: None,
            form: self.options.form,
            vocabulary: VOCABULARY,
            // The simulated workers' answers have the length that is asked for, whatever else is said.
            exact: true,
            timeout: self.options.load.timeout,
        });
        let own = i32::try_from(std::process::id())?;
        let (front_before, workers_before) = (front.usage(), fleet.usage());
        let client_before = crate::usage::cpu_time(own)?;
        let mut live = Live::new(!self.options.json);
        let (report, _) = measure(&target, &self.run, self.slo, &mut live).await?;
        front.check_alive()?;
        let client = crate::usage::cpu_time(own)?.saturating_sub(client_before);
        let used = |now: Usage, before: Usage| now.cpu.saturating_sub(before.cpu);
        let (front_now, workers_now) = (front.usage(), fleet.usage());
        Ok(Measured {
            router_cpu_s: Some(used(front_now, front_before).as_secs_f64()),
            router_peak_mib: Some(front_now.peak_bytes as f64 / f64::from(1 << 20)),
            workers_cpu_s: Some(used(workers_now, workers_before).as_secs_f64()),
            client_cpu_s: Some(client.as_secs_f64()),
            requests_by_worker: fleet.answered().await?,
            ..Measured::of(&report)
        })
    }

    async fn replay(&self, version: &str, round: u32) -> Vec<Row> {
        let replay = Replay::install(version, &target_folder()).await;
        let replay = match replay {
            Ok(replay) => replay,
            Err(error) => {
                let name = "dynamo-replay".to_owned();
                return vec![Row::new(name, String::new(), round, Err(error))];
            }
        };
        let mut rows = Vec::new();
        for mode in dynamo::MODES {
            let outcome = replay
                .run(mode, &self.run.plan.workload, self.options, self.slo)
                .await
                .with_context(|| format!("Dynamo's replay with {mode}"));
            let name = format!("dynamo-replay {mode}");
            rows.push(Row::new(name, replay.version.clone(), round, outcome));
        }
        rows
    }
}

/// Ids that every model has; of use for `--form tokens` only.
const VOCABULARY: Vocabulary = Vocabulary {
    first: 100,
    count: 900,
};
