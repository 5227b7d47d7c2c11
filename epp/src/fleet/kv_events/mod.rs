//! Follows the KV events of every endpoint and hands them to an index.
//!
//! One task per endpoint. Its `subscriber` asks which data-parallel ranks publish where
//! ([`sources`]) and runs a `stream` for each: over a `connection` ([`zmtp`] is its protocol) come
//! messages that [`frames`] takes apart, [`sequence`] decides what their numbers mean, `replay`
//! brings back what is missing, [`groups`] picks one cache group. What the events mean is the
//! index's affair, which is handed in as a [`BlockSink`].
//!
//! **Ranks.** One publisher speaks for one rank: that is how vLLM and SGLang publish. So a batch
//! belongs to the rank whose publisher sent it; one that names another is taken all the same, and
//! counted. No publisher can make ranks up.
//!
//! **Who misbehaves pays.** A publisher costs its own endpoint's task only, which makes way for
//! others after every event; it can take a bounded amount of memory (one message), of log (one line
//! a minute and kind) and of the places that replays share.

mod connection;
mod counters;
pub mod frames;
pub mod groups;
mod notices;
mod replay;
mod replay_pace;
pub mod sequence;
pub mod sources;
mod stream;
mod subscriber;
pub mod zmtp;

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use pointsman_proto::kv_events::Event;
use tokio::sync::{Notify, Semaphore};
use tokio_util::task::AbortOnDropHandle;

use super::NowMs;
use super::endpoint::{Endpoint, EndpointId, Generation};
use super::http::WorkerClient;
use super::shell::Fleet;
use super::tasks::{PerEndpoint, follow};

pub use counters::{Count, KvEventCounters};

/// How long a worker may take to say where its events come from.
const ASK_TIMEOUT: Duration = Duration::from_secs(2);

/// One publisher of events: a data-parallel rank of an endpoint.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct EventSource {
    pub endpoint: EndpointId,
    pub generation: Generation,
    /// As the worker numbers it; 0 where it has no ranks.
    pub rank: u32,
}

/// What takes the events in. All calls are quick: they run on the task that reads the socket. Those
/// about one endpoint come one after the other.
pub trait BlockSink: Send + Sync + 'static {
    /// One event of a rank. `model` is the base model that the event's topic names, or the
    /// configured one.
    fn apply(&self, source: EventSource, model: &str, event: &Event);
    /// Subscribed, and replayed as far as replay goes: what the sink holds of the rank is complete
    /// from here on, until it is cleared. Never called for a rank without a replay server that was
    /// not heard from its first batch or from an emptied cache on.
    fn followed(&self, source: EventSource);
    /// Everything of this rank is void: its engine started over, or events are lost.
    fn clear(&self, source: EventSource);
    /// The endpoint left, with all its ranks.
    fn forget(&self, endpoint: EndpointId, generation: Generation);
}

/// Follows the events of a fleet.
pub struct KvEvents {
    fleet: Arc<Fleet>,
    sink: Arc<dyn BlockSink>,
    /// The model of events whose topic names none.
    model: Arc<str>,
    client: WorkerClient,
    now: NowMs,
    counters: Arc<KvEventCounters>,
    replays: Arc<Semaphore>,
}

impl std::fmt::Debug for KvEvents {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("KvEvents")
            .field("model", &self.model)
            .finish_non_exhaustive()
    }
}

impl KvEvents {
    /// Follows `fleet` into `sink`. `model` stands for the model of events whose topic names none;
    /// `""` where the pool serves several.
    pub fn new(
        fleet: Arc<Fleet>,
        sink: Arc<dyn BlockSink>,
        model: &str,
        now: NowMs,
    ) -> Result<Self, reqwest::Error> {
        Ok(Self {
            fleet,
            sink,
            model: Arc::from(model),
            client: WorkerClient::new(ASK_TIMEOUT)?,
            now,
            counters: Arc::default(),
            replays: Arc::new(Semaphore::new(replay::REPLAYS_AT_ONCE)),
        })
    }

    /// Counts where others count, too.
    #[must_use]
    pub fn with_counters(mut self, counters: Arc<KvEventCounters>) -> Self {
        self.counters = counters;
        self
    }

    /// The counts, to be exported.
    pub fn counters(&self) -> Arc<KvEventCounters> {
        Arc::clone(&self.counters)
    }

    /// Follows until the future is dropped.
    pub async fn run(self) {
        follow(&self.fleet, &self).await;
    }
}

impl PerEndpoint for KvEvents {
    fn start(&self, endpoint: Arc<Endpoint>) -> AbortOnDropHandle<()> {
        let shared = subscriber::Shared {
            endpoint,
            sink: Arc::clone(&self.sink),
            model: Arc::clone(&self.model),
            client: self.client.clone(),
            now: Arc::clone(&self.now),
            counters: Arc::clone(&self.counters),
            replays: Arc::clone(&self.replays),
            notices: Mutex::default(),
            ask: Notify::new(),
        };
        AbortOnDropHandle::new(tokio::spawn(subscriber::run(shared)))
    }

    fn serves(&self, old: &Endpoint, new: &Endpoint) -> bool {
        old.generation == new.generation
    }

    fn ended(&self, endpoint: &Endpoint) {
        self.sink.forget(endpoint.id, endpoint.generation);
    }
}

#[cfg(test)]
mod tests;
