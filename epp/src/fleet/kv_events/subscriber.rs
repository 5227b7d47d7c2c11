//! Follows one endpoint: finds out which ranks publish where, and follows each of them.
//!
//! All ranks run inside the endpoint's one task, so that when it has ended nothing of it happens
//! any more. The worker is asked again whenever one of its connections breaks, because a worker
//! that comes back may have other ranks, or none.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::{AbortHandle, Abortable, BoxFuture, FutureExt};
use futures_util::stream::FuturesUnordered;
use parking_lot::Mutex;
use tokio::sync::{Notify, Semaphore};
use tracing::{info, warn};

use super::super::NowMs;
use super::super::endpoint::Endpoint;
use super::super::http::WorkerClient;
use super::super::pace::jittered;
use super::notices::{Notice, Notices};
use super::sources::{self, Addresses, RANKS_MAX, Sources, SourcesError};
use super::stream::Stream;
use super::{BlockSink, EventSource, KvEventCounters};

/// Waits between questions that a worker does not answer double from the first to the last of
/// these. The first is also the least time between any two questions.
const ASK_BACK_OFF: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(10));
/// The same for a worker that publishes no events.
const NO_EVENTS_BACK_OFF: (Duration, Duration) = (Duration::from_secs(30), Duration::from_mins(10));

/// What the ranks of one endpoint work with.
pub(super) struct Shared {
    pub(super) endpoint: Arc<Endpoint>,
    pub(super) sink: Arc<dyn BlockSink>,
    /// The model of events whose topic names none.
    pub(super) model: Arc<str>,
    pub(super) client: WorkerClient,
    pub(super) now: NowMs,
    pub(super) counters: Arc<KvEventCounters>,
    /// Places for replays, of the whole process.
    pub(super) replays: Arc<Semaphore>,
    pub(super) notices: Mutex<Notices>,
    /// A rank lost its publisher: time to ask the worker again.
    pub(super) ask: Notify,
}

impl Shared {
    pub(super) fn name(&self) -> &str {
        &self.endpoint.spec.name
    }

    /// Whether to write about this now; see [`Notices::due`].
    pub(super) fn notice(&self, notice: Notice) -> Option<u64> {
        self.notices.lock().due(notice, (self.now)())
    }

    fn source(&self, rank: u32) -> EventSource {
        EventSource {
            endpoint: self.endpoint.id,
            generation: self.endpoint.generation,
            rank,
        }
    }
}

/// Follows the endpoint until the future is dropped.
pub(super) async fn run(shared: Shared) {
    let mut ranks = Ranks::new(&shared);
    let configured = match sources::configured(&shared.endpoint.spec) {
        Ok(configured) => configured,
        Err(error) => {
            let endpoint = shared.name();
            warn!(endpoint, %error, "kv events of this endpoint cannot be followed");
            return;
        }
    };
    if configured.is_some() {
        // Listening need not wait for a worker that may still be loading its model.
        ranks.follow(sources::combined(configured.as_ref(), Sources::default()));
    }
    let mut waits = Waits::default();
    loop {
        let answer = {
            let asking = sources::ask(&shared.endpoint.spec, &shared.client);
            ranks.run_beside(asking).await
        };
        let wait = match answer {
            Ok(found) => {
                let publishes = !found.ranks.is_empty();
                ranks.follow(sources::combined(configured.as_ref(), found));
                waits.after_answer(&shared, publishes || configured.is_some())
            }
            Err(error) => waits.after_error(&shared, &error),
        };
        ranks.run_beside(rest(&shared, wait)).await;
    }
}

/// Waits until the worker is to be asked again.
async fn rest(shared: &Shared, wait: Wait) {
    match wait {
        Wait::For(time) => tokio::time::sleep(jittered(time, rand::random())).await,
        Wait::UntilARankIsLost => {
            tokio::time::sleep(ASK_BACK_OFF.0).await;
            shared.ask.notified().await;
        }
    }
}

enum Wait {
    For(Duration),
    UntilARankIsLost,
}

/// How long to leave a worker alone.
struct Waits {
    failing: Duration,
    without_events: Duration,
}

impl Default for Waits {
    fn default() -> Self {
        Self {
            failing: ASK_BACK_OFF.0,
            without_events: NO_EVENTS_BACK_OFF.0,
        }
    }
}

impl Waits {
    fn after_answer(&mut self, shared: &Shared, publishes: bool) -> Wait {
        self.failing = ASK_BACK_OFF.0;
        if publishes {
            self.without_events = NO_EVENTS_BACK_OFF.0;
            return Wait::UntilARankIsLost;
        }
        if self.without_events == NO_EVENTS_BACK_OFF.0 {
            info!(endpoint = shared.name(), "publishes no kv events");
        }
        let wait = self.without_events;
        self.without_events = (wait * 2).min(NO_EVENTS_BACK_OFF.1);
        Wait::For(wait)
    }

    fn after_error(&mut self, shared: &Shared, error: &SourcesError) -> Wait {
        if let Some(times) = shared.notice(Notice::NoSources) {
            let endpoint = shared.name();
            info!(endpoint, %error, times, "kv event sources not known");
        }
        let wait = self.failing;
        self.failing = (wait * 2).min(ASK_BACK_OFF.1);
        Wait::For(wait)
    }
}

/// The ranks that are followed.
struct Ranks<'a> {
    shared: &'a Shared,
    followed: BTreeMap<u32, (Addresses, AbortHandle)>,
    streams: FuturesUnordered<Abortable<BoxFuture<'a, ()>>>,
}

impl<'a> Ranks<'a> {
    fn new(shared: &'a Shared) -> Self {
        Self {
            shared,
            followed: BTreeMap::new(),
            streams: FuturesUnordered::new(),
        }
    }

    /// Follows exactly these. A rank that is gone, or has moved, leaves nothing behind.
    fn follow(&mut self, wanted: Sources) {
        if wanted.refused > 0 {
            self.shared
                .counters
                .refused_ranks
                .add(wanted.refused as u64);
            if let Some(times) = self.shared.notice(Notice::Rank) {
                let (endpoint, refused) = (self.shared.name(), wanted.refused);
                warn!(
                    endpoint,
                    refused, times, "kv events of at most {RANKS_MAX} ranks are followed"
                );
            }
        }
        let shared = self.shared;
        self.followed.retain(|rank, (addresses, handle)| {
            let stays = wanted.ranks.get(rank) == Some(addresses);
            if !stays {
                // An aborted stream is not polled again, so nothing comes after the clear.
                handle.abort();
                shared.sink.clear(shared.source(*rank));
            }
            stays
        });
        for (rank, addresses) in wanted.ranks {
            if self.followed.contains_key(&rank) {
                continue;
            }
            let stream = Stream::new(shared, shared.source(rank), addresses.clone());
            let (handle, registration) = AbortHandle::new_pair();
            self.streams
                .push(Abortable::new(stream.run().boxed(), registration));
            self.followed.insert(rank, (addresses, handle));
        }
    }

    /// Runs the streams until `other` is done.
    async fn run_beside<T>(&mut self, other: impl Future<Output = T>) -> T {
        let mut other = std::pin::pin!(other);
        loop {
            tokio::select! {
                done = &mut other => return done,
                // Streams end only when they are aborted.
                Some(_) = self.streams.next(), if !self.streams.is_empty() => {}
            }
        }
    }
}
