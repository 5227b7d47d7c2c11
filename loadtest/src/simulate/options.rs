//! The flags of `loadtest simulate`.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use pointsman_engine::backend::sim::{Gpu, ModelShape, TimeModel};

use super::outcome::Slo;
use super::worker::WorkerOptions;
use super::world::{Delays, Fate, Happening, VOCABULARY, WorldOptions};
use crate::workload::Workload;
use crate::workload::generate::{self, GenerateOptions, Kind};
use crate::workload::trace::{self, Extent, TraceOptions};

/// What is simulated.
#[derive(Clone, Debug, clap::Args)]
pub struct SimulateOptions {
    /// A trace in the Mooncake line format (or Azure's CSV).
    #[arg(long, value_name = "PATH", conflicts_with = "workload")]
    pub trace: Option<PathBuf>,

    /// A generated workload: shared-prompts, multi-turn, agents, rag, long-documents, skewed-tenants or unique.
    #[arg(long, value_name = "KIND", default_value = "agents")]
    pub workload: String,

    /// Parameters of the generated workload, as a JSON object.
    #[arg(long, value_name = "JSON", requires = "workload")]
    pub parameters: Option<String>,

    /// Requests a second of a generated workload, before --rate-scale.
    #[arg(long, default_value_t = 1.0)]
    pub rate: f64,

    /// Requests of a generated workload.
    #[arg(long, default_value_t = 5_000)]
    pub requests: usize,

    /// Take this much of the trace: so many requests (5000) or seconds (600s).
    #[arg(long, value_name = "EXTENT")]
    pub limit: Option<Extent>,

    /// Leave this much out at the trace's beginning.
    #[arg(long, value_name = "EXTENT")]
    pub skip: Option<Extent>,

    /// Send everything so many times as fast. Several, separated by commas, are run one after another.
    #[arg(long, value_delimiter = ',', default_value = "1", value_parser = scale)]
    pub rate_scale: Vec<f64>,

    /// Workers of the fleet.
    #[arg(long, default_value_t = 8)]
    pub workers: usize,

    /// Replicas of epp, each with its own view.
    #[arg(long, default_value_t = 1)]
    pub replicas: usize,

    /// The policies, comma-separated: a name, a name with parameters (expected-ttft:delayOfOthers=0), or file:PATH. `bound` is
    /// the oracle over a cache that all workers share and that never fills. (Parameters after the first are separated by `;`.)
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "round-robin,field-default,precise-prefix,expected-ttft,oracle"
    )]
    pub policies: Vec<String>,

    /// The model that the workers run, as `engine --sim-model` names it.
    #[arg(long, default_value = "llama-3.1-8b")]
    pub model: String,

    /// The GPU that they run it on, as `engine --sim-gpu` names it.
    #[arg(long, default_value = "h100")]
    pub gpu: String,

    /// GPUs of a worker.
    #[arg(long, default_value_t = 1)]
    pub gpus: u32,

    /// Tokens of a KV block.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub block_size: u32,

    /// KV blocks of a worker; by default as many as its memory holds.
    #[arg(long)]
    pub kv_blocks: Option<u32>,

    /// The target for the time to first token, in seconds.
    #[arg(long, default_value_t = 2.0)]
    pub slo_ttft: f64,

    /// The target for the mean time between tokens, in seconds.
    #[arg(long, default_value_t = 0.1)]
    pub slo_itl: f64,

    /// The share of requests that has to meet both for a rate to count as carried.
    #[arg(long, default_value_t = 0.9)]
    pub slo_share: f64,

    /// Look for the highest rate scale that each policy carries, and report there.
    #[arg(long)]
    pub capacity: bool,

    /// A worker that dies (3@60s), comes cold (3+90s) or becomes slower (3x10@60s). Repeat for each.
    #[arg(long = "happening", value_name = "EVENT")]
    pub happenings: Vec<Happening>,

    /// Milliseconds between two readings of a busy worker's page.
    #[arg(long, default_value_t = 50)]
    pub scrape_interval_ms: u64,

    /// Milliseconds that KV events take to the index.
    #[arg(long, default_value_t = 5)]
    pub kv_event_delay_ms: u64,

    /// How pickers hear of a first token: as it goes by (stream), or with the end of its response, as epp does from Envoy's access
    /// log (access-log).
    #[arg(long, value_enum, default_value_t = Watch::Stream)]
    pub response_watch: Watch,

    /// Root of everything random.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,

    /// Policies that are run at a time, each on a core of its own.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=256))]
    pub threads: u32,

    /// Print nothing but the JSON object, which is the last line in any case.
    #[arg(long)]
    pub json: bool,

    /// Write a report that a browser shows.
    #[arg(long, value_name = "PATH")]
    pub html: Option<PathBuf>,
}

/// The values of `--response-watch`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Watch {
    Stream,
    AccessLog,
}

impl SimulateOptions {
    /// The requests, at rate scale 1.
    ///
    /// # Errors
    /// When the trace or the parameters cannot be read.
    pub fn workload(&self) -> Result<Workload> {
        if let Some(path) = &self.trace {
            let options = TraceOptions {
                skip: self.skip,
                limit: self.limit,
                block_tokens: None,
            };
            return Ok(trace::read(path, options)?);
        }
        let kind = Kind::ALL.iter().find(|kind| kind.name() == self.workload);
        let names = || Kind::ALL.map(Kind::name).join(", ");
        let kind = kind
            .with_context(|| format!("no workload {:?}; there are {}", self.workload, names()))?;
        let shape = kind.shape(self.parameters.as_deref())?;
        let options = GenerateOptions {
            seed: self.seed,
            rate: self.rate,
            requests: Some(self.requests),
            duration: None,
        };
        Ok(generate::generate(&shape, options)?)
    }

    /// The fleet.
    ///
    /// # Errors
    /// When there is no such model or GPU, or the one does not fit on the other.
    pub fn world(&self) -> Result<WorldOptions> {
        let model =
            ModelShape::named(&self.model).with_context(|| format!("no model {:?}", self.model))?;
        let gpu = Gpu::named(&self.gpu).with_context(|| format!("no GPU {:?}", self.gpu))?;
        let time = TimeModel::new(model, gpu, self.gpus)?;
        let mut worker = WorkerOptions::new(time, VOCABULARY, self.block_size);
        if let Some(blocks) = self.kv_blocks {
            worker.scheduler.blocks = blocks;
        }
        Ok(WorldOptions {
            workers: self.workers,
            replicas: self.replicas,
            worker,
            delays: Delays {
                scrape_interval: Duration::from_millis(self.scrape_interval_ms),
                kv_events: Duration::from_millis(self.kv_event_delay_ms),
                first_tokens_at_end: self.response_watch == Watch::AccessLog,
                ..Delays::default()
            },
            happenings: self.happenings.clone(),
            seed: self.seed,
        })
    }

    /// The targets.
    ///
    /// # Errors
    /// When one is no time, or the share no share.
    pub fn slo(&self) -> Result<Slo> {
        let time = |name: &str, seconds: f64| {
            Duration::try_from_secs_f64(seconds).with_context(|| format!("--{name} {seconds}"))
        };
        if !(0.0..=1.0).contains(&self.slo_share) {
            bail!("--slo-share {} is not between 0 and 1", self.slo_share);
        }
        Ok(Slo {
            ttft: time("slo-ttft", self.slo_ttft)?,
            itl: time("slo-itl", self.slo_itl)?,
            share: self.slo_share,
        })
    }
}

/// Reads a factor that times can be divided by.
fn scale(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(scale) if scale.is_finite() && scale > 0.0 => Ok(scale),
        _ => Err(format!("`{text}` is not a number above 0")),
    }
}

impl FromStr for Happening {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is none of 3@60s (dies), 3+90s (joins), 3x10@60s (slows)");
        let (who, at) = text.split_once(['@', '+']).ok_or_else(wrong)?;
        let seconds = at.strip_suffix('s').unwrap_or(at);
        let seconds: f64 = seconds.parse().map_err(|_| wrong())?;
        let at = Duration::try_from_secs_f64(seconds).map_err(|_| wrong())?;
        let number = |text: &str| text.parse::<usize>().map_err(|_| wrong());
        let (worker, what) = match who.split_once('x') {
            Some((worker, times)) => {
                let times: f64 = times.parse().map_err(|_| wrong())?;
                if !times.is_finite() || times <= 0.0 {
                    return Err(wrong());
                }
                (number(worker)?, Fate::Slows(times))
            }
            None if text.contains('+') => (number(who)?, Fate::Joins),
            None => (number(who)?, Fate::Dies),
        };
        Ok(Self { at, worker, what })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn happenings_are_read_and_refused() {
        let read = |text: &str| {
            text.parse::<Happening>()
                .map(|it| (it.worker, it.at.as_secs(), it.what))
        };
        assert_eq!(read("3@60s").unwrap(), (3, 60, Fate::Dies));
        assert_eq!(read("3+90").unwrap(), (3, 90, Fate::Joins));
        assert_eq!(read("0x10@5s").unwrap(), (0, 5, Fate::Slows(10.0)));
        for text in ["", "3", "x@1s", "3x@1s", "3x-1@1s", "3@-1s", "3@x"] {
            assert!(read(text).unwrap_err().contains(text), "{text}");
        }
    }
}
