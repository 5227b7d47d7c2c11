//! Follows the KV events of every endpoint and hands them to an index.
//!
//! One task per endpoint: [`sources`] finds out where its events come from, `subscriber` listens
//! there and asks for what it missed, [`sequence`] decides what a message means in the stream,
//! [`frames`] takes messages apart. What the events mean is the index's affair, which is handed in
//! as a [`BlockSink`].

pub mod frames;
pub mod sequence;
pub mod sources;
mod subscriber;

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use pointsman_proto::kv_events::Event;
use tokio_util::task::AbortOnDropHandle;

use super::NowMs;
use super::endpoint::{Endpoint, EndpointId, Generation};
use super::http::WorkerClient;
use super::shell::Fleet;
use super::tasks::{PerEndpoint, follow};

/// How long a worker may take to say where its events come from.
const ASK_TIMEOUT: Duration = Duration::from_secs(2);

/// What takes the events in. Both calls are quick: they run on the task that reads the socket.
pub trait BlockSink: Send + Sync + 'static {
    /// One event of an endpoint. `model` is the base model that the event's topic names, or the
    /// configured one.
    fn apply(&self, source: (EndpointId, Generation), model: &str, event: &Event);
    /// Everything known of an endpoint is void: it left, or its engine started over.
    fn clear(&self, id: EndpointId, generation: Generation);
}

/// Counts of all endpoints since the start.
#[derive(Debug, Default)]
pub struct KvEventCounters {
    /// Connections made.
    pub connects: AtomicU64,
    /// Batches taken over, live and replayed.
    pub batches: AtomicU64,
    /// Events handed to the index.
    pub events: AtomicU64,
    /// Events skipped because they are unknown or malformed; the rest of their batch was taken.
    pub skipped_events: AtomicU64,
    /// Messages or payloads that could not be read at all.
    pub malformed_batches: AtomicU64,
    /// Jumps in the sequence numbers.
    pub gaps: AtomicU64,
    /// Batches that no replay brought back.
    pub lost_batches: AtomicU64,
    /// Replays asked for.
    pub replays: AtomicU64,
    /// Replays that did not come to their end.
    pub replay_failures: AtomicU64,
    /// Engines that started over.
    pub resets: AtomicU64,
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
        })
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
        let subscriber = subscriber::Subscriber {
            endpoint,
            sink: Arc::clone(&self.sink),
            model: Arc::clone(&self.model),
            client: self.client.clone(),
            now: Arc::clone(&self.now),
            counters: Arc::clone(&self.counters),
        };
        AbortOnDropHandle::new(tokio::spawn(subscriber.run()))
    }

    fn serves(&self, old: &Endpoint, new: &Endpoint) -> bool {
        old.generation == new.generation
    }

    fn ended(&self, endpoint: &Endpoint) {
        self.sink.clear(endpoint.id, endpoint.generation);
    }
}

#[cfg(test)]
mod tests;
