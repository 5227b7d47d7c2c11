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
use super::telling::Telling;
use crate::backend::BackendInfo;
use crate::worker::{EngineHandle, Ranks};

/// How long requests that were aborted, and then connections, may take to end.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// A worker that is ready and whose port is open; nothing is answered until [`Server::run`].
#[derive(Debug)]
pub struct Server {
    pub(super) listener: TcpListener,
    pub(super) address: SocketAddr,
    pub(super) router: Router,
    pub(super) engine: Ranks,
    pub(super) threads: Vec<JoinHandle<()>>,
    pub(super) telling: Telling,
    pub(super) drain_timeout: Duration,
    pub(super) summary: Summary,
}

/// What the start came to, for one line of the log: what serves, and how long each part of the start took.
#[derive(Debug)]
pub(super) struct Summary {
    pub(super) model: String,
    pub(super) backend: BackendInfo,
    pub(super) ranks: u32,
    /// Of each rank, as the limits are.
    pub(super) blocks: u32,
    pub(super) block_size: u32,
    pub(super) context_tokens: u32,
    /// How long each part of the start took: the configuration and the weights' files, the tokenizer, the weights in
    /// the backend's form, then KV memory, KV-event sockets and a first step, and all together.
    pub(super) parts: [(&'static str, Duration); 5],
}

impl Server {
    /// The address that is listened on, with the real port.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The engine behind the server; of several ranks the first.
    pub fn engine(&self) -> &EngineHandle {
        self.engine.first()
    }

    /// All engines behind the server.
    pub fn ranks(&self) -> &Ranks {
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
            threads,
            telling,
            drain_timeout,
            ..
        } = self;
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
        drop(engine);
        let join = move || threads.into_iter().all(|thread| thread.join().is_ok());
        let joined = tokio::task::spawn_blocking(join);
        if !matches!(timeout(CLOSE_TIMEOUT, joined).await, Ok(Ok(true))) {
            error!("an engine thread did not end");
        }
        telling.finish(CLOSE_TIMEOUT).await;
        info!("stopped");
        Ok(())
    }
}

impl Summary {
    fn log(&self, address: SocketAddr) {
        let milliseconds = self.parts.map(|(_, took)| took.as_millis() as u64);
        let [model_ms, tokenizer_ms, backend_ms, kv_ms, total_ms] = milliseconds;
        info!(
            %address,
            model = self.model,
            backend = self.backend.name,
            device = self.backend.device,
            ranks = self.ranks,
            blocks = self.blocks,
            block_size = self.block_size,
            context_tokens = self.context_tokens,
            model_ms,
            tokenizer_ms,
            backend_ms,
            kv_ms,
            total_ms,
            "serving"
        );
    }
}

/// Refuses new requests and waits for the running ones, for `limit` at most; then aborts what is left.
async fn drain(engine: &Ranks, limit: Duration) {
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
