//! The task that follows one endpoint's events.
//!
//! ```text
//! find sources ─▶ per source: connect + subscribe ─▶ replay from where we stand ─▶ live ─┐
//!                     ▲                                   ▲        gap │              │ lost
//!                     └── back off, up to 5 s             └────────────┘              │
//!                     ▲───────────────────────────────────────────────────────────────┘
//! ```
//!
//! The subscription comes before the replay, so a batch that is published meanwhile is in one of
//! the two; should the publisher learn of the subscription only after it answered the replay, the
//! next live batch shows the gap. Live messages are not read during a replay: they wait in the
//! socket, whose publisher drops past its high-water mark, which again shows as a gap. Nothing
//! queues up here.
//!
//! An endpoint whose gap cannot be replayed keeps its blocks. Some of them may be gone from the
//! engine, so that a few requests find less cached than expected; dropping all of them would lose
//! every hit there, and an engine does not tell again what it holds.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::join_all;
use pointsman_proto::kv_events::decode;
use tracing::{debug, info, warn};
use xxhash_rust::xxh3::xxh3_64;
use zeromq::prelude::*;
use zeromq::{DealerSocket, SocketEvent, SocketOptions, SubSocket, ZmqError, ZmqMessage};

use super::super::NowMs;
use super::super::endpoint::Endpoint;
use super::super::http::WorkerClient;
use super::super::pace::jittered;
use super::frames::{self, Answer, Message};
use super::sequence::{Sequence, Verdict};
use super::sources::{self, Source};
use super::{BlockSink, KvEventCounters};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Waits between tries to connect double from the first to the last of these.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// The same for asking a worker for its sources.
const ASK_BACK_OFF: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(5));
/// How long a worker that publishes no events is left alone before it is asked again.
const NO_EVENTS_WAIT: Duration = Duration::from_secs(30);
/// Failed tries to connect after which a worker is asked again where its events come from.
const TRIES_BEFORE_ASKING: u32 = 8;
/// Silence that ends a replay unfinished.
const REPLAY_IDLE: Duration = Duration::from_secs(2);
/// A replay as a whole ends unfinished after this time. The gap that is left shows with the next
/// live batch.
const REPLAY_DEADLINE: Duration = Duration::from_secs(30);
/// Least time between two warnings about malformed messages of one source.
const WARN_INTERVAL_MS: u64 = 60_000;

/// What the task of one endpoint works with.
pub(super) struct Subscriber {
    pub(super) endpoint: Arc<Endpoint>,
    pub(super) sink: Arc<dyn BlockSink>,
    /// The model of events whose topic names none.
    pub(super) model: Arc<str>,
    pub(super) client: WorkerClient,
    pub(super) now: NowMs,
    pub(super) counters: Arc<KvEventCounters>,
}

impl Subscriber {
    /// Follows the endpoint until the task is aborted.
    pub(super) async fn run(self) {
        let mut wait = ASK_BACK_OFF.0;
        loop {
            let rest = match sources::find(&self.endpoint.spec, &self.client).await {
                Ok(sources) if sources.is_empty() => {
                    // It may start over with events switched on, so it is asked again.
                    debug!(endpoint = self.endpoint.spec.name, "no kv events");
                    NO_EVENTS_WAIT
                }
                Ok(sources) => return self.follow(sources).await,
                Err(error) => {
                    let endpoint = &self.endpoint.spec.name;
                    debug!(endpoint, %error, "kv event sources not known");
                    let rest = wait;
                    wait = (wait * 2).min(ASK_BACK_OFF.1);
                    rest
                }
            };
            tokio::time::sleep(jittered(rest, rand::random())).await;
        }
    }

    /// Follows every rank, for good.
    async fn follow(&self, sources: Vec<Source>) {
        let streams = sources.into_iter().enumerate().map(|(rank, source)| {
            let stream = Stream {
                subscriber: self,
                rank,
                source,
                sequence: Sequence::new(),
                warned_at_ms: None,
            };
            stream.run()
        });
        join_all(streams).await;
    }
}

/// One publisher of the endpoint.
struct Stream<'a> {
    subscriber: &'a Subscriber,
    rank: usize,
    source: Source,
    sequence: Sequence,
    warned_at_ms: Option<u64>,
}

impl Stream<'_> {
    async fn run(mut self) {
        let mut wait = BACK_OFF.0;
        let mut failed_tries = 0;
        loop {
            match self.connect().await {
                Ok((socket, monitor)) => {
                    wait = BACK_OFF.0;
                    failed_tries = 0;
                    self.subscriber.counters.connects.fetch_add(1, Relaxed);
                    info!(
                        endpoint = self.name(),
                        rank = self.rank,
                        address = self.source.events,
                        "kv events connected"
                    );
                    self.follow(socket, monitor).await;
                    info!(
                        endpoint = self.name(),
                        rank = self.rank,
                        "kv events disconnected"
                    );
                }
                Err(error) => {
                    failed_tries += 1;
                    let endpoint = self.name();
                    debug!(endpoint, rank = self.rank, %error, "kv events not reachable");
                }
            }
            if failed_tries >= TRIES_BEFORE_ASKING {
                failed_tries = 0;
                self.ask_again().await;
            }
            tokio::time::sleep(jittered(wait, rand::random())).await;
            wait = (wait * 2).min(BACK_OFF.1);
        }
    }

    fn name(&self) -> &str {
        &self.subscriber.endpoint.spec.name
    }

    /// A worker that came back may have its publisher elsewhere. Where it stood in the sequence is
    /// kept: the first replay or message tells whether that still holds.
    async fn ask_again(&mut self) {
        let subscriber = self.subscriber;
        if let Ok(sources) = sources::find(&subscriber.endpoint.spec, &subscriber.client).await
            && let Some(source) = sources.into_iter().nth(self.rank)
        {
            self.source = source;
        }
    }

    async fn connect(&self) -> Result<(SubSocket, Monitor), ZmqError> {
        let mut socket = SubSocket::with_options(options());
        let monitor = socket.monitor().boxed();
        socket.subscribe("").await?;
        socket.connect(&self.source.events).await?;
        Ok((socket, monitor))
    }

    /// Follows a connection to its end.
    async fn follow(&mut self, mut socket: SubSocket, mut monitor: Monitor) {
        self.sequence.connected();
        self.catch_up().await;
        loop {
            tokio::select! {
                message = socket.recv() => match message {
                    Ok(message) => self.take_live(&message).await,
                    Err(error) => {
                        debug!(endpoint = self.name(), %error, "kv event stream broken");
                        return;
                    }
                },
                // The socket would reconnect by itself, but then nobody would replay what was
                // missed. So the first sign of a lost connection ends it, and the next one begins
                // with a replay.
                event = monitor.next() => {
                    if matches!(event, None | Some(SocketEvent::Disconnected(_))) {
                        return;
                    }
                }
            }
        }
    }

    async fn take_live(&mut self, message: &ZmqMessage) {
        let frames: Vec<_> = message.iter().cloned().collect();
        let message = match frames::live(&frames) {
            Ok(message) => message,
            Err(error) => return self.malformed(&error),
        };
        let fingerprint = xxh3_64(&message.payload);
        match self.sequence.live(message.sequence, fingerprint) {
            Verdict::Apply { lost } => return self.take(&message, lost),
            Verdict::Duplicate => return,
            // Whoever joins late, without a replay, has a beginning and no gap.
            Verdict::Gap { from: 0, .. } => {}
            Verdict::Gap { from, to } => {
                self.subscriber.counters.gaps.fetch_add(1, Relaxed);
                let gap = to - from;
                warn!(
                    endpoint = self.name(),
                    rank = self.rank,
                    from,
                    gap,
                    "kv event gap"
                );
            }
            Verdict::Reset => self.reset(),
        }
        self.catch_up().await;
        if let Verdict::Apply { lost } = self.sequence.accept(message.sequence, fingerprint) {
            self.take(&message, lost);
        }
    }

    /// Replays what was missed, where there is somebody to ask.
    async fn catch_up(&mut self) {
        let Some(address) = self.source.replay.clone() else {
            return;
        };
        let replay = async {
            // The second round is that of an engine which started over: from its first batch.
            for _ in 0..2 {
                if self.replay(&address).await? {
                    return Ok(());
                }
                self.reset();
            }
            Ok::<(), ReplayError>(())
        };
        let outcome = tokio::time::timeout(REPLAY_DEADLINE, replay).await;
        let failure = match outcome {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error,
            Err(_) => ReplayError::Deadline,
        };
        self.subscriber
            .counters
            .replay_failures
            .fetch_add(1, Relaxed);
        let endpoint = self.name();
        debug!(endpoint, rank = self.rank, error = %failure, "kv event replay failed");
    }

    /// One replay to its end; false when it shows that the engine started over.
    async fn replay(&mut self, address: &str) -> Result<bool, ReplayError> {
        self.subscriber.counters.replays.fetch_add(1, Relaxed);
        let mut socket = DealerSocket::with_options(options());
        socket.connect(address).await?;
        let request = frames::request(self.sequence.begin_replay());
        socket.send(message_of(request)).await?;
        loop {
            let answer = tokio::time::timeout(REPLAY_IDLE, socket.recv())
                .await
                .map_err(|_| ReplayError::Idle)??;
            let frames: Vec<_> = answer.iter().cloned().collect();
            let message = match frames::answer(&frames)? {
                Answer::Batch(message) => message,
                Answer::End => return Ok(self.sequence.end_replay()),
            };
            let fingerprint = xxh3_64(&message.payload);
            match self.sequence.replayed(message.sequence, fingerprint) {
                Verdict::Apply { lost } => self.take(&message, lost),
                Verdict::Reset => return Ok(false),
                Verdict::Duplicate | Verdict::Gap { .. } => {}
            }
        }
    }

    /// The engine started over: what it held is gone.
    fn reset(&mut self) {
        let endpoint = &self.subscriber.endpoint;
        self.subscriber.counters.resets.fetch_add(1, Relaxed);
        warn!(
            endpoint = self.name(),
            rank = self.rank,
            "kv event stream started over"
        );
        self.subscriber.sink.clear(endpoint.id, endpoint.generation);
        self.sequence.restart();
    }

    fn take(&mut self, message: &Message, lost: u64) {
        let counters = &self.subscriber.counters;
        counters.lost_batches.fetch_add(lost, Relaxed);
        let decoded = match decode(&message.payload) {
            Ok(decoded) => decoded,
            Err(error) => return self.malformed(&error),
        };
        let endpoint = &self.subscriber.endpoint;
        let source = (endpoint.id, endpoint.generation);
        let model = frames::model_of(&message.topic).unwrap_or(&self.subscriber.model);
        for event in &decoded.batch.events {
            self.subscriber.sink.apply(source, model, event);
        }
        counters.batches.fetch_add(1, Relaxed);
        counters
            .events
            .fetch_add(decoded.batch.events.len() as u64, Relaxed);
        counters
            .skipped_events
            .fetch_add(decoded.skipped.len() as u64, Relaxed);
        if let Some(skipped) = decoded.skipped.first()
            && self.may_warn()
        {
            warn!(
                endpoint = self.name(),
                tag = skipped.tag,
                reason = skipped.reason,
                "kv event skipped"
            );
        }
    }

    fn malformed(&mut self, error: &dyn std::error::Error) {
        self.subscriber
            .counters
            .malformed_batches
            .fetch_add(1, Relaxed);
        if self.may_warn() {
            warn!(endpoint = self.name(), rank = self.rank, %error, "kv event batch malformed");
        }
    }

    fn may_warn(&mut self) -> bool {
        let now_ms = (self.subscriber.now)();
        let due = self
            .warned_at_ms
            .is_none_or(|warned| now_ms.saturating_sub(warned) >= WARN_INTERVAL_MS);
        if due {
            self.warned_at_ms = Some(now_ms);
        }
        due
    }
}

type Monitor = futures_util::stream::BoxStream<'static, SocketEvent>;

/// Why a replay did not come to its end.
#[derive(Debug, thiserror::Error)]
enum ReplayError {
    #[error(transparent)]
    Socket(#[from] ZmqError),
    #[error("malformed answer: {0}")]
    Frames(#[from] frames::FrameError),
    #[error("no answer for {REPLAY_IDLE:?}")]
    Idle,
    #[error("not finished within {REPLAY_DEADLINE:?}")]
    Deadline,
}

fn options() -> SocketOptions {
    let mut options = SocketOptions::default();
    options.connect_timeout(CONNECT_TIMEOUT);
    options
}

fn message_of(frames: [bytes::Bytes; 2]) -> ZmqMessage {
    let [first, second] = frames;
    let mut message = ZmqMessage::from(first);
    message.push_back(second);
    message
}
