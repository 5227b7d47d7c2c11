//! From flags to a serving worker, and from a signal to a stopped one.
//!
//! Start-up runs in the order in which things can be wrong with the least time lost: configuration and weights,
//! tokenizer, KV memory, a first step, and only then the port. A worker that listens can serve.
//!
//! Stopping is [`Server::run`]'s other half.

mod plan;
mod ranks;
mod server;
mod simulation;
mod telling;
mod warm_up;

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use pointsman_proto::prompt::{PromptEncoder, PromptError};
use tokio::net::TcpListener;
use tracing::info;

use crate::api::{AnswerConfig, ApiConfig, router};
use crate::backend::{self, BackendError};
use crate::export::kv_events::{KvEventsError, Source};
use crate::export::metrics::{self, Identity};
use crate::export::requests::RequestRecords;
use crate::export::spans::TraceError;
use crate::flags::Flags;
use crate::model::{Model, ModelError, Verification};
use crate::worker::{SchedulerConfig, StartError};
pub use server::Server;
use server::Summary;
use simulation::Simulation;
use telling::Telling;

/// Why a worker does not start or does not go on.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The model folder's configuration or weights.
    #[error("model: {0}")]
    Model(#[from] ModelError),
    /// The model folder's tokenizer or chat template.
    #[error("tokenizer: {0}")]
    Tokenizer(#[from] PromptError),
    /// `--max-model-len` asks for more than the model has.
    #[error("--max-model-len {asked} is more than the {model} tokens of the model's context")]
    Context {
        /// The flag's value.
        asked: u32,
        /// The model's limit.
        model: u32,
    },
    /// No device, or not enough memory.
    #[error("backend: {0}")]
    Backend(#[from] BackendError),
    /// The engine thread, its limits or its memory.
    #[error("engine: {0}")]
    Engine(#[from] StartError),
    /// The KV-event sockets.
    #[error("--kv-events-config: {0}")]
    KvEvents(#[from] KvEventsError),
    /// The collector of spans, or what says which are sent.
    #[error("traces: {0}")]
    Traces(#[from] TraceError),
    /// A worker of no ranks.
    #[error("--data-parallel-size must be at least 1")]
    NoRank,
    /// The server stopped by itself.
    #[error("http server: {0}")]
    Http(io::Error),
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The address of the flags.
        address: SocketAddr,
        /// What the operating system says.
        source: io::Error,
    },
}

/// Loads, allocates, computes a first step and opens the port.
///
/// # Errors
/// See [`ServeError`]; nothing listens after an error.
pub async fn start(flags: &Flags) -> Result<Server, ServeError> {
    let mut clock = Stopwatch::start();
    let simulation = Simulation::of(flags)?;
    let mut model = match &simulation {
        Some(simulation) => simulation.model(&flags.model)?,
        None => open_model(flags)?,
    };
    let context_tokens = plan::context(flags.max_model_len, model.config.max_position_embeddings)?;
    model.config.max_model_len = context_tokens as usize;
    let loaded = clock.lap();
    let encoder = Arc::new(PromptEncoder::load(&flags.model)?);
    let tokenizer = clock.lap();
    let cpu = plan::cpu(flags);
    let choice = match &simulation {
        Some(simulation) => simulation.backend(&model, encoder.tokenizer()),
        None => plan::backend(flags),
    };
    let backend = backend::select(choice, &model, cpu)?;
    let info = backend.info().clone();
    let packed = clock.lap();
    let config = plan::scheduler(flags, &model, &info, context_tokens);
    let (page, observers) = metrics::build(&identity(flags, &config));
    let start = ranks::Start {
        flags,
        config: &config,
        page: &page,
        simulation: simulation.as_ref(),
    };
    let engines = start.all(backend, observers).await?;
    let kv = clock.lap();
    let telling = Telling::start(flags, &page)?;
    let api = api_config(flags, &model, engines.sources, telling.records.clone());
    let mut router = router(engines.ranks.clone(), encoder, page.clone(), api);
    if let Some(simulation) = &simulation {
        router = simulation.routes(router);
    }
    let asked = SocketAddr::new(flags.host, flags.port);
    let (listener, address) = listen(asked).await?;
    let summary = Summary {
        model: flags.model_names().swap_remove(0),
        backend: info,
        ranks: flags.fleet.data_parallel_size,
        blocks: config.blocks,
        block_size: config.block_size,
        context_tokens,
        parts: [
            ("model", loaded),
            ("tokenizer", tokenizer),
            ("backend", packed),
            ("kv", kv),
            ("total", clock.total()),
        ],
    };
    for (part, took) in summary.parts {
        page.start_took(part, took);
    }
    Ok(Server {
        listener,
        address,
        router,
        engine: engines.ranks,
        threads: engines.threads,
        telling,
        drain_timeout: flags.drain_timeout,
        summary,
    })
}

/// Opens the folder, and says so when its files were checked against a manifest.
fn open_model(flags: &Flags) -> Result<Model, ModelError> {
    let verification = if flags.require_verified_weights {
        Verification::Required
    } else {
        Verification::WherePossible
    };
    let model = Model::open_with(&flags.model, verification)?;
    if let Some(verified) = model.verified {
        info!(
            files = verified.files,
            bytes = verified.bytes,
            seconds = verified.took.as_secs_f64(),
            "weights verified"
        );
    }
    Ok(model)
}

fn identity(flags: &Flags, config: &SchedulerConfig) -> Identity {
    Identity {
        model: flags.model_names().swap_remove(0),
        ranks: flags.fleet.data_parallel_size,
        block_size: config.block_size,
        blocks: config.blocks,
        host_blocks: config.host_blocks,
        prefix_caching: config.prefix_cache.is_some(),
        hash_algorithm: flags.prefix_caching_hash_algo.name().to_owned(),
        context_tokens: config.max_model_len,
        legacy_names: flags.fleet.legacy_metric_names,
    }
}

fn api_config(
    flags: &Flags,
    model: &Model,
    sources: BTreeMap<String, Source>,
    requests: Option<RequestRecords>,
) -> ApiConfig {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    ApiConfig {
        model_names: flags.model_names(),
        model_root: flags.model.clone(),
        defaults: model.generation.clone(),
        body_bytes_max: usize::try_from(flags.max_request_body_bytes).unwrap_or(usize::MAX),
        dev_mode: flags.server_dev_mode,
        stall_timeout: flags.fleet.engine_stall_timeout,
        request_id_headers: flags.fleet.enable_request_id_headers,
        access_log: flags.fleet.access_log,
        requests,
        kv_event_sources: sources,
        created: now.unwrap_or_default().as_secs(),
        answers: AnswerConfig {
            vocab_size: u32::try_from(model.config.vocab_size).unwrap_or(u32::MAX),
            max_logprobs: flags.max_logprobs,
            trust_request_chat_template: flags.trust_request_chat_template,
            force_include_usage: flags.enable_force_include_usage,
            return_tokens_as_token_ids: flags.return_tokens_as_token_ids,
        },
        api_keys: flags.api_key.clone(),
        stream_interval: flags.stream_interval,
    }
}

async fn listen(asked: SocketAddr) -> Result<(TcpListener, SocketAddr), ServeError> {
    let failed = |source| ServeError::Listen {
        address: asked,
        source,
    };
    let listener = TcpListener::bind(asked).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    Ok((listener, address))
}

/// Times the parts of the start.
struct Stopwatch {
    started: Instant,
    lap: Instant,
}

impl Stopwatch {
    fn start() -> Self {
        let now = Instant::now();
        Self {
            started: now,
            lap: now,
        }
    }

    /// Since the last call.
    fn lap(&mut self) -> Duration {
        let now = Instant::now();
        now - std::mem::replace(&mut self.lap, now)
    }

    fn total(&self) -> Duration {
        self.started.elapsed()
    }
}
