//! `loadtest overhead`: what epp costs, in CPU and in time, through the real Envoy.
//!
//! The same requests go at the same rate through the same Envoy without epp, with epp and the access log, and with epp
//! in the stream of the response. The variants take turns in rounds, so that what changes on the machine meanwhile
//! changes for all of them. Upstreams, Envoy, epp and the load share the machine's cores; the rate is a third of what
//! the costliest variant can carry, so that nobody waits for a core and what is left is the work itself.
//!
//! prompts → drive → upstream is the load, usage what it costs, report what is said of it.

mod drive;
mod prompts;
mod report;
mod upstream;
mod variant;

use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::client::HttpClient;
use crate::console::Console;
use crate::stack::{
    Binaries, Envoy, EnvoyChoice, Gateway, Profile, Progress, Silent, Stack, StackOptions,
};
use crate::usage::cpu_time;
use drive::{Outcome, open_loop};
use prompts::{CONVERSATIONS, Prompts};
use report::{Measured, Report};
use upstream::{ReplyShape, Upstreams};
use variant::{COSTLIEST, VARIANTS, Variant};

/// Upstreams behind the gateways that are compared.
const UPSTREAMS: usize = 4;
/// Endpoints that the idle epp watches.
const IDLE_ENDPOINTS: usize = 100;
const IDLE_SETTLE: Duration = Duration::from_secs(3);
const IDLE_WINDOW: Duration = Duration::from_secs(8);
/// Sent before each measurement, so that connections are open; not counted.
const LEAD_IN: Duration = Duration::from_millis(500);
/// One step of the search for the highest rate.
const RAMP_STEP: Duration = Duration::from_millis(1500);
const RAMP_FIRST: f64 = 30.0;
const RAMP_FACTOR: f64 = 1.5;
const RAMP_LAST: f64 = 3000.0;
/// A rate is carried while nine of ten answers begin within this time.
const CARRIED: Duration = Duration::from_millis(50);
/// Of what the costliest variant carries.
const RATE_SHARE: f64 = 1.0 / 3.0;
/// The build, Envoy, epp with its gateway, two gateways, the search, the rounds, the idle epp and its Envoy.
const STEPS: usize = 10;

/// Flags of `loadtest overhead`.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct OverheadOptions {
    /// How often each variant has its turn.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub rounds: u32,

    /// How long a turn is, in seconds.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=600))]
    pub seconds: u64,

    /// Requests a second; by default a third of what the costliest variant can carry here.
    #[arg(long, value_parser = rate)]
    pub rate: Option<f64>,

    /// Events in an answer.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub chunks: u32,

    /// Milliseconds between two events of an answer; 0 sends all at once.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(0..=1000))]
    pub pause_ms: u64,

    /// Print nothing but the JSON object, which is the last line in any case.
    #[arg(long)]
    pub json: bool,

    /// Which build of epp to measure.
    #[arg(long, value_enum, hide = true, default_value_t = Profile::own())]
    pub profile: Profile,
}

fn rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if (0.1..=100_000.0).contains(&rate) => Ok(rate),
        _ => Err("a number from 0.1 to 100000".to_owned()),
    }
}

/// Measures and prints. Fails when a part does not start or a request is not answered whole: figures of a load that
/// failed in part would say nothing.
pub async fn run(options: OverheadOptions) -> ExitCode {
    let console = Console::new(STEPS);
    let progress: &dyn Progress = if options.json { &Silent } else { &console };
    match measure(options, progress).await {
        Ok(report) => {
            if !options.json {
                console.line(&report.to_string());
            }
            console.line(&report.to_json());
            ExitCode::SUCCESS
        }
        Err(error) => console.no_result(&error, options.json),
    }
}

async fn measure(options: OverheadOptions, progress: &dyn Progress) -> Result<Report> {
    progress.begin("building epp");
    let binaries = Binaries::build(options.profile).await?;
    progress.ready();
    progress.begin("looking for Envoy");
    let envoy = Envoy::find(&EnvoyChoice::Any).await?;
    progress.ready();
    let shape = ReplyShape {
        chunks: options.chunks,
        pause: Duration::from_millis(options.pause_ms),
    };
    let (rate, measured) = {
        let upstreams = Upstreams::start(UPSTREAMS, shape).await?;
        let bench = Bench::start(&upstreams, &envoy, binaries, options, progress).await?;
        let rate = bench.rate(options, progress).await?;
        let measured = bench.rounds(options, rate, progress).await?;
        bench.stack.stop().await?;
        (rate, measured)
    };
    let idle_cores = idle_cores(envoy, binaries, options, shape, progress).await?;
    Ok(Report {
        measured,
        rate,
        idle_cores,
        idle_endpoints: IDLE_ENDPOINTS,
    })
}

fn stack_options(upstreams: &Upstreams, options: OverheadOptions) -> StackOptions {
    let stack = StackOptions::new().workers(0).profile(options.profile);
    let addresses = upstreams.addresses().iter();
    addresses.fold(stack, |stack, address| stack.endpoint(*address))
}

/// One epp and a gateway for each kind of variant.
struct Bench {
    stack: Stack,
    http: HttpClient,
    /// Rows of prompts so far, so that no two are the same.
    rows: AtomicUsize,
}

impl Bench {
    async fn start(
        upstreams: &Upstreams,
        envoy: &Envoy,
        binaries: &Binaries,
        options: OverheadOptions,
        progress: &dyn Progress,
    ) -> Result<Bench> {
        let stack_options = stack_options(upstreams, options);
        let mut stack = Stack::start_with(stack_options, envoy.clone(), binaries, progress).await?;
        stack.epp().until_ready(UPSTREAMS).await?;
        for variant in &VARIANTS {
            let (template, watch) = variant.gateway();
            if gateway_of(&stack, variant).is_none() {
                stack.add_gateway(template, watch, progress).await?;
            }
        }
        let http = HttpClient::new();
        let rows = AtomicUsize::new(0);
        let bench = Bench { stack, http, rows };
        for variant in &VARIANTS {
            bench.warm_up(variant).await?;
        }
        Ok(bench)
    }

    /// Sends every conversation once: the first time that a text is seen is not what most requests cost.
    async fn warm_up(&self, variant: &Variant) -> Result<()> {
        const RATE: f64 = 20.0;
        let duration = Duration::from_secs_f64(CONVERSATIONS as f64 / RATE);
        self.drive(variant, RATE, duration).await?;
        Ok(())
    }

    /// Requests a second, by the flag or by a search that ends at the first rate which is too high.
    async fn rate(&self, options: OverheadOptions, progress: &dyn Progress) -> Result<f64> {
        progress.begin("looking for the highest rate");
        let mut carried = RAMP_FIRST;
        let mut tried = RAMP_FIRST;
        while options.rate.is_none() && tried < RAMP_LAST {
            let outcome = self.send(&VARIANTS[COSTLIEST], tried, RAMP_STEP).await?;
            let on_time = outcome.samples.iter().filter(|one| one.first < CARRIED);
            if outcome.failed > 0 || on_time.count() * 10 < outcome.samples.len() * 9 {
                break;
            }
            carried = tried;
            tried *= RAMP_FACTOR;
        }
        progress.ready();
        Ok(options.rate.unwrap_or(carried * RATE_SHARE))
    }

    async fn rounds(
        &self,
        options: OverheadOptions,
        rate: f64,
        progress: &dyn Progress,
    ) -> Result<Vec<Measured>> {
        progress.begin("measuring");
        let turn = Duration::from_secs(options.seconds);
        let mut all: Vec<Measured> = VARIANTS.iter().map(|_| Measured::default()).collect();
        for _ in 0..options.rounds {
            for (variant, measured) in VARIANTS.iter().zip(&mut all) {
                let rate = rate * variant.share;
                self.drive(variant, rate, LEAD_IN).await?;
                let (epp, envoy) = self.cpu(variant)?;
                let outcome = self.drive(variant, rate, turn).await?;
                let (epp_after, envoy_after) = self.cpu(variant)?;
                measured.add(
                    outcome,
                    epp_after.saturating_sub(epp),
                    envoy_after.saturating_sub(envoy),
                );
            }
        }
        progress.ready();
        Ok(all)
    }

    /// [`Bench::send`], where every request has to be answered.
    async fn drive(&self, variant: &Variant, rate: f64, duration: Duration) -> Result<Outcome> {
        let outcome = self.send(variant, rate, duration).await?;
        ensure!(
            outcome.failed == 0,
            "{}: {} of {} requests failed, the first with: {}",
            variant.name,
            outcome.failed,
            outcome.failed + outcome.samples.len(),
            outcome.error.unwrap_or_default()
        );
        Ok(outcome)
    }

    async fn send(&self, variant: &Variant, rate: f64, duration: Duration) -> Result<Outcome> {
        let gateway = gateway_of(&self.stack, variant).context("a variant without a gateway")?;
        let url = format!("{}/v1/chat/completions", gateway.url());
        let row = self.rows.fetch_add(1, Ordering::Relaxed);
        let mut prompts = Prompts::new(variant.prompt_bytes, row);
        Ok(open_loop(&self.http, &url, &mut prompts, rate, duration).await)
    }

    /// What epp and the variant's Envoy have used so far.
    fn cpu(&self, variant: &Variant) -> Result<(Duration, Duration)> {
        let gateway = gateway_of(&self.stack, variant).context("a variant without a gateway")?;
        let epp = cpu_time(self.stack.epp().process().id())?;
        Ok((epp, cpu_time(gateway.process().id())?))
    }
}

fn gateway_of<'a>(stack: &'a Stack, variant: &Variant) -> Option<&'a Gateway> {
    let mut gateways = stack.gateways().iter();
    gateways.find(|gateway| (gateway.template(), gateway.watch()) == variant.gateway())
}

/// CPUs that epp uses without any request, while it reads the metrics of many endpoints.
async fn idle_cores(
    envoy: Envoy,
    binaries: &Binaries,
    options: OverheadOptions,
    shape: ReplyShape,
    progress: &dyn Progress,
) -> Result<f64> {
    let upstreams = Upstreams::start(IDLE_ENDPOINTS, shape).await?;
    let stack_options = stack_options(&upstreams, options);
    let stack = Stack::start_with(stack_options, envoy, binaries, progress).await?;
    stack.epp().until_ready(IDLE_ENDPOINTS).await?;
    // The scrape slows down where nothing happens.
    tokio::time::sleep(IDLE_SETTLE).await;
    let epp = stack.epp().process().id();
    let (began, before) = (Instant::now(), cpu_time(epp)?);
    tokio::time::sleep(IDLE_WINDOW).await;
    let used = cpu_time(epp)?.saturating_sub(before);
    let cores = used.as_secs_f64() / began.elapsed().as_secs_f64();
    stack.stop().await?;
    Ok(cores)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_a_number_in_its_range() {
        assert_eq!(rate("12.5"), Ok(12.5));
        for wrong in ["", "0", "-3", "x", "inf", "NaN", "1e9"] {
            assert!(rate(wrong).is_err(), "{wrong}");
        }
    }
}
