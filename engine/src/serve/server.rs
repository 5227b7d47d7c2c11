//! A worker between its first answer and its last.
//!
//! Stopping: `/health` answers 503 and new requests are refused, while running ones go on; the listener stays open,
//! so that whoever asks hears the 503 rather than nothing. When none runs any more, or the drain timeout has passed
//! and the rest were aborted, connections are closed.

use std::io;
use std::net::SocketAddr;
use std::thread::JoinHandle;
use std::time::Duration;

use axum::Router;
use axum::serve::ListenerExt;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::time::timeout;
use tracing::{error, info, warn};

use super::ServeError;
use crate::backend::BackendInfo;
use crate::export::metrics::{MetricsPage, UPKEEP_INTERVAL};
use crate::worker::EngineHandle;

/// How long requests that were aborted, and then connections, may take to end.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// A worker that is ready and whose port is open; nothing is answered until [`Server::run`].
#[derive(Debug)]
pub struct Server {
    pub(super) listener: TcpListener,
    pub(super) address: SocketAddr,
    pub(super) router: Router,
    pub(super) engine: EngineHandle,
    pub(super) metrics: MetricsPage,
    pub(super) thread: JoinHandle<()>,
    pub(super) drain_timeout: Duration,
    pub(super) summary: Summary,
}

/// What the start came to, for one line of the log: what serves, and how long each part of the start took.
#[derive(Debug)]
pub(super) struct Summary {
    pub(super) model: String,
    pub(super) backend: BackendInfo,
    pub(super) blocks: u32,
    pub(super) block_size: u32,
    pub(super) context_tokens: u32,
    pub(super) model_ms: u64,
    pub(super) tokenizer_ms: u64,
    pub(super) backend_ms: u64,
    /// KV memory, KV-event sockets and the first step.
    pub(super) kv_ms: u64,
    pub(super) total_ms: u64,
}

impl Server {
    /// The address that is listened on, with the real port.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The engine behind the server.
    pub fn engine(&self) -> &EngineHandle {
        &self.engine
    }

    /// The routes, for callers in this process that need no socket.
    pub fn router(&self) -> &Router {
        &self.router
    }

    /// Logs one line, serves until `shutdown`, then drains and returns. Whoever waits for the line before asking to
    /// shut down is sure to get a drain.
    ///
    /// # Errors
    /// [`ServeError::Http`] if the listener fails.
    pub async fn run(self, shutdown: impl Future<Output = ()>) -> Result<(), ServeError> {
        self.summary.log(self.address);
        let Self {
            listener,
            router,
            engine,
            metrics,
            thread,
            drain_timeout,
            ..
        } = self;
        let upkeep = tokio::spawn(keep_up(metrics));
        let (close, closed) = oneshot::channel::<()>();
        // Tokens are small writes; waiting to join them to larger ones would show as inter-token latency.
        let listener = listener.tap_io(|stream| {
            if let Err(error) = stream.set_nodelay(true) {
                warn!(%error, "cannot set TCP_NODELAY");
            }
        });
        let mut server = tokio::spawn(async move {
            let closed = async {
                // An error means that the sender is gone, which is a reason to close as well.
                let _ = closed.await;
            };
            axum::serve(listener, router)
                .with_graceful_shutdown(closed)
                .await
        });
        tokio::select! {
            ended = &mut server => return http_ended(ended),
            () = shutdown => {}
        }
        drain(&engine, drain_timeout).await;
        drop(close);
        if let Ok(ended) = timeout(CLOSE_TIMEOUT, &mut server).await {
            http_ended(ended)?;
        } else {
            warn!("connections are still open; closing them");
            server.abort();
        }
        upkeep.abort();
        drop(engine);
        let joined = tokio::task::spawn_blocking(move || thread.join());
        if !matches!(timeout(CLOSE_TIMEOUT, joined).await, Ok(Ok(Ok(())))) {
            error!("engine thread did not end");
        }
        info!("stopped");
        Ok(())
    }
}

impl Summary {
    fn log(&self, address: SocketAddr) {
        info!(
            %address,
            model = self.model,
            backend = self.backend.name,
            device = self.backend.device,
            blocks = self.blocks,
            block_size = self.block_size,
            context_tokens = self.context_tokens,
            model_ms = self.model_ms,
            tokenizer_ms = self.tokenizer_ms,
            backend_ms = self.backend_ms,
            kv_ms = self.kv_ms,
            total_ms = self.total_ms,
            "serving"
        );
    }
}

/// Refuses new requests and waits for the running ones, for `limit` at most; then aborts what is left.
async fn drain(engine: &EngineHandle, limit: Duration) {
    engine.drain();
    info!(requests = engine.live_requests(), "draining");
    if timeout(limit, engine.idle()).await.is_ok() {
        return;
    }
    warn!(
        requests = engine.live_requests(),
        "drain timeout passed; aborting"
    );
    engine.abort_all();
    if timeout(CLOSE_TIMEOUT, engine.idle()).await.is_err() {
        error!(requests = engine.live_requests(), "requests did not end");
    }
}

fn http_ended(ended: Result<io::Result<()>, tokio::task::JoinError>) -> Result<(), ServeError> {
    match ended {
        Ok(result) => result.map_err(ServeError::Http),
        Err(error) => Err(ServeError::Http(io::Error::other(error))),
    }
}

/// Folds histogram samples for as long as it is polled, whether or not anybody scrapes.
async fn keep_up(metrics: MetricsPage) {
    let mut ticks = tokio::time::interval(UPKEEP_INTERVAL);
    loop {
        ticks.tick().await;
        metrics.upkeep();
    }
}
