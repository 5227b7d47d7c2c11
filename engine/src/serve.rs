//! From flags to a serving worker, and from a signal to a stopped one.
//!
//! Start-up runs in the order in which things can be wrong with the least time lost: configuration and weights,
//! tokenizer, KV memory, a first step, and only then the port. A worker that listens can serve.
//!
//! Stopping is [`Server::run`]'s other half.

mod plan;
mod server;
mod warm_up;

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use metrics_exporter_prometheus::BuildError;
use pointsman_proto::kv_events::{Event, Form};
use pointsman_proto::prompt::{PromptEncoder, PromptError};
use tokio::net::TcpListener;
use tracing::{info, warn};

use crate::api::{ApiConfig, router};
use crate::backend::{self, BackendError};
use crate::export::kv_events::{self, KvEventsError, Source};
use crate::export::metrics::{self, Identity, MetricsPage};
use crate::flags::{EventForm, Flags};
use crate::model::{Model, ModelError};
use crate::worker::{self, EventSink, StartError};
pub use server::Server;
use server::Summary;
use warm_up::WarmedUp;

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
    /// The metrics recorder.
    #[error("metrics: {0}")]
    Metrics(#[from] BuildError),
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
    let model = Model::open(&flags.model)?;
    let context_tokens = plan::context(flags.max_model_len, model.config.max_position_embeddings)?;
    let model_ms = clock.lap_ms();
    let encoder = Arc::new(PromptEncoder::load(&flags.model)?);
    let tokenizer_ms = clock.lap_ms();
    let backend = backend::select(plan::backend(flags.backend), &model, plan::cpu(&flags))?;
    let info = backend.info().clone();
    let backend_ms = clock.lap_ms();
    let config = plan::scheduler(flags, &model, &info, context_tokens);
    let (page, observer) = metrics::build(&Identity {
        model: flags.model_names().swap_remove(0),
        block_size: config.block_size,
        blocks: config.blocks,
        prefix_caching: config.prefix_cache.is_some(),
        context_tokens,
    })?;
    let (sink, sources) = event_sink(flags, &page).await?;
    let (blocks, block_size) = (config.blocks, config.block_size);
    let (engine, thread) = worker::start(
        config,
        Box::new(WarmedUp(backend)),
        sink,
        Box::new(observer),
    )?;
    let kv_ms = clock.lap_ms();
    let api = api_config(flags, &model, sources);
    let router = router(engine.clone(), encoder, page.clone(), api);
    let asked = SocketAddr::new(flags.host, flags.port);
    let (listener, address) = listen(asked).await?;
    let summary = Summary {
        model: flags.model_names().swap_remove(0),
        backend: info,
        blocks,
        block_size,
        context_tokens,
        model_ms,
        tokenizer_ms,
        backend_ms,
        kv_ms,
        total_ms: clock.total_ms(),
    };
    let drain_timeout = flags.drain_timeout;
    Ok(Server {
        listener,
        address,
        router,
        engine,
        metrics: page,
        thread,
        drain_timeout,
        summary,
    })
}

fn api_config(flags: &Flags, model: &Model, sources: BTreeMap<String, Source>) -> ApiConfig {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    ApiConfig {
        model_names: flags.model_names(),
        model_root: flags.model.clone(),
        defaults: model.generation.clone(),
        body_bytes_max: usize::try_from(flags.max_request_body_bytes).unwrap_or(usize::MAX),
        dev_mode: flags.server_dev_mode,
        kv_event_sources: sources,
        created: now.unwrap_or_default().as_secs(),
    }
}

/// Where KV events go, and what `/kv_event_sources` says of it.
async fn event_sink(
    flags: &Flags,
    page: &MetricsPage,
) -> Result<(Box<dyn EventSink>, BTreeMap<String, Source>), ServeError> {
    let config = flags
        .kv_events_config
        .as_ref()
        .filter(|config| config.publishes());
    let Some(config) = config else {
        return Ok((Box::new(NoEvents), BTreeMap::new()));
    };
    if !flags.prefix_caching() {
        warn!("prefix caching is off, so there will be no kv events");
    }
    let form = match flags.kv_events_form {
        EventForm::Map => Form::Map,
        EventForm::Array => Form::Array,
    };
    let (sink, source) = kv_events::start(config, form, page.kv_event_batches_lost()).await?;
    info!(
        endpoint = source.endpoint,
        replay_endpoint = source.replay_endpoint,
        "kv events"
    );
    Ok((Box::new(sink), BTreeMap::from([("0".to_owned(), source)])))
}

/// The sink of a worker without KV events.
struct NoEvents;

impl EventSink for NoEvents {
    fn publish(&mut self, _events: Vec<Event>) {}
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

    /// Milliseconds since the last call.
    fn lap_ms(&mut self) -> u64 {
        let now = Instant::now();
        let lap = now - std::mem::replace(&mut self.lap, now);
        lap.as_millis() as u64
    }

    fn total_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }
}
