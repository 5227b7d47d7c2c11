//! The sockets: a task that numbers, encodes, keeps and publishes batches, and one that answers replays.
//!
//! [`KvEventPublisher`] is the engine thread's end. It stamps time and sequence number and hands the batch over
//! without waiting; encoding happens on the publisher task. The tasks end when the publisher is dropped.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use futures_util::StreamExt;
use parking_lot::Mutex;
use pointsman_proto::block_hash::BlockDigest;
use pointsman_proto::kv_events::{Event, EventBatch, Form, HashForm, encode_digests};
use serde::Serialize;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tracing::{debug, info, warn};
use zeromq::{
    Endpoint, PubSocket, RouterRecvHalf, RouterSendHalf, RouterSocket, Socket, SocketEvent,
    SocketRecv, SocketSend, ZmqError, ZmqMessage,
};

use super::config::{Address, KvEventsConfig, KvEventsConfigError};
use super::replay::{ReplayBuffer, ReplayRequest};
use crate::export::metrics::Counter;
use crate::worker::EventSink;

/// Time one replay may take; a client that does not read its answer loses the rest of it, so that the next
/// client is served.
const REPLAY_TIMEOUT: Duration = Duration::from_secs(10);

/// Wait between attempts to reach a collector.
const CONNECT_RETRY: Duration = Duration::from_secs(1);

/// Why events cannot be published.
#[derive(Debug, thiserror::Error)]
pub enum KvEventsError {
    /// The address cannot be read.
    #[error(transparent)]
    Config(#[from] KvEventsConfigError),
    /// The address cannot be bound.
    #[error("{field} {endpoint}: {source}")]
    Bind {
        field: &'static str,
        endpoint: String,
        source: ZmqError,
    },
    /// Replays are answered on an address of this machine only.
    #[error("replay_endpoint {0} is not an address of this machine")]
    ReplayElsewhere(String),
}

/// What `GET /kv_event_sources` says of one rank: vLLM's configuration, with the ports that were really bound.
#[derive(Debug, Clone, Serialize)]
pub struct Source {
    /// Always true; a worker without events has no source.
    pub enable_kv_cache_events: bool,
    /// Always `zmq`.
    pub publisher: &'static str,
    /// Where to subscribe.
    pub endpoint: String,
    /// Where to ask for replays.
    pub replay_endpoint: Option<String>,
    /// Batches kept for replay.
    pub buffer_steps: usize,
    /// Batches queued per subscriber.
    pub hwm: usize,
    /// Batches queued before the socket.
    pub max_queue_size: usize,
    /// First frame of each message.
    pub topic: String,
}

/// The engine thread's end. The engine's first batch, number 0, is `AllBlocksCleared`.
#[derive(Debug)]
pub struct KvEventPublisher {
    sender: mpsc::Sender<Numbered>,
    next_sequence: u64,
    /// The data-parallel rank that stands in each batch.
    rank: u32,
    lost: Counter,
}

#[derive(Debug)]
struct Numbered {
    sequence: u64,
    batch: EventBatch<BlockDigest>,
}

impl EventSink for KvEventPublisher {
    /// Never waits. A batch that finds the queue full takes its number with it, so subscribers see the gap; it
    /// is counted in `lost`.
    fn publish(&mut self, events: Vec<Event<BlockDigest>>) {
        let timestamp_s = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .as_secs_f64();
        let batch = EventBatch {
            timestamp_s,
            events,
            data_parallel_rank: Some(self.rank),
        };
        let numbered = Numbered {
            sequence: self.next_sequence,
            batch,
        };
        self.next_sequence += 1;
        if self.sender.try_send(numbered).is_err() {
            self.lost.increment(1);
        }
    }

    fn lose(&mut self, _events: Vec<Event<BlockDigest>>) {
        self.next_sequence += 1;
        self.lost.increment(1);
    }
}

/// Binds (or connects) the sockets of data-parallel rank `rank` and starts the tasks. `config` is that rank's own, see
/// [`KvEventsConfig::for_rank`]; `lost` counts batches that were dropped unsent.
pub async fn start(
    config: &KvEventsConfig,
    rank: u32,
    form: Form,
    lost: Counter,
) -> Result<(KvEventPublisher, Source), KvEventsError> {
    let mut tasks = JoinSet::new();
    let buffer = Arc::new(Mutex::new(ReplayBuffer::new(config.buffer_steps)));
    let topic = Bytes::from(config.topic.clone());
    let (endpoint, sockets) = open_publisher(&config.endpoint, &mut tasks).await?;
    let replay_endpoint = match &config.replay_endpoint {
        None => None,
        Some(endpoint) => {
            let (endpoint, sender, receiver) = open_replay(endpoint).await?;
            tasks.spawn(answer_replays(
                receiver,
                sender,
                Arc::clone(&buffer),
                topic.clone(),
            ));
            Some(endpoint)
        }
    };
    let (sender, receiver) = mpsc::channel(config.max_queue_size);
    tokio::spawn(publish(
        receiver,
        sockets,
        PublishState {
            buffer,
            topic,
            form,
            hashes: config.hashes,
            _tasks: tasks,
        },
    ));
    let publisher = KvEventPublisher {
        sender,
        next_sequence: 0,
        rank,
        lost,
    };
    let source = Source {
        enable_kv_cache_events: true,
        publisher: "zmq",
        endpoint,
        replay_endpoint,
        buffer_steps: config.buffer_steps,
        hwm: config.hwm,
        max_queue_size: config.max_queue_size,
        topic: config.topic.clone(),
    };
    Ok((publisher, source))
}

/// Opens the PUB socket. A bound socket is in the channel on return; a connecting one comes once its collector
/// answers, and again after each loss of it.
async fn open_publisher(
    endpoint: &str,
    tasks: &mut JoinSet<()>,
) -> Result<(String, mpsc::Receiver<PubSocket>), KvEventsError> {
    let address = Address::parse("endpoint", endpoint)?;
    let (sender, receiver) = mpsc::channel(1);
    let Some(to_bind) = address.to_bind() else {
        tasks.spawn(keep_connected(address.to_connect(), sender));
        return Ok((endpoint.to_owned(), receiver));
    };
    let mut socket = PubSocket::new();
    let bound = bind("endpoint", &mut socket, &to_bind).await?;
    if sender.try_send(socket).is_err() {
        warn!(endpoint, "publisher socket has no reader");
    }
    Ok((address.with_port(bound), receiver))
}

async fn open_replay(
    endpoint: &str,
) -> Result<(String, RouterSendHalf, RouterRecvHalf), KvEventsError> {
    let address = Address::parse("replay_endpoint", endpoint)?;
    let to_bind = address
        .to_bind()
        .ok_or_else(|| KvEventsError::ReplayElsewhere(endpoint.to_owned()))?;
    let mut socket = RouterSocket::new();
    let bound = bind("replay_endpoint", &mut socket, &to_bind).await?;
    let (sender, receiver) = socket.split();
    Ok((address.with_port(bound), sender, receiver))
}

/// Binds and returns the port, which the caller may have left to the system by port 0.
async fn bind(
    field: &'static str,
    socket: &mut impl Socket,
    endpoint: &str,
) -> Result<u16, KvEventsError> {
    match socket.bind(endpoint).await {
        Ok(Endpoint::Tcp(_, port)) => Ok(port),
        Ok(_) => Err(KvEventsError::Bind {
            field,
            endpoint: endpoint.to_owned(),
            source: ZmqError::Other("not a TCP endpoint"),
        }),
        Err(source) => Err(KvEventsError::Bind {
            field,
            endpoint: endpoint.to_owned(),
            source,
        }),
    }
}

/// Connects to a collector, hands the socket over, and starts again when the connection is lost.
async fn keep_connected(endpoint: String, sockets: mpsc::Sender<PubSocket>) {
    loop {
        let mut socket = PubSocket::new();
        let mut monitor = socket.monitor();
        if let Err(error) = socket.connect(&endpoint).await {
            debug!(endpoint, %error, "kv event collector not reached");
            tokio::time::sleep(CONNECT_RETRY).await;
            continue;
        }
        info!(endpoint, "connected to kv event collector");
        if sockets.send(socket).await.is_err() {
            return;
        }
        while let Some(event) = monitor.next().await {
            if matches!(event, SocketEvent::Disconnected(_)) {
                warn!(endpoint, "lost kv event collector");
                break;
            }
        }
    }
}

/// What the publisher task owns; dropping it ends the tasks beside it.
struct PublishState {
    buffer: Arc<Mutex<ReplayBuffer>>,
    topic: Bytes,
    form: Form,
    hashes: HashForm,
    _tasks: JoinSet<()>,
}

/// Encodes, keeps and publishes until the engine's end is dropped.
async fn publish(
    mut batches: mpsc::Receiver<Numbered>,
    mut sockets: mpsc::Receiver<PubSocket>,
    state: PublishState,
) {
    let mut socket: Option<PubSocket> = None;
    loop {
        tokio::select! {
            biased;
            Some(opened) = sockets.recv() => socket = Some(opened),
            batch = batches.recv() => {
                let Some(Numbered { sequence, batch }) = batch else { return };
                let mut payload = Vec::new();
                encode_digests(&batch, state.form, state.hashes, &mut payload);
                let payload = Bytes::from(payload);
                state.buffer.lock().push(sequence, payload.clone());
                let Some(socket) = &mut socket else { continue };
                let sequence_frame = Bytes::copy_from_slice(&sequence.to_be_bytes());
                let frames = vec![state.topic.clone(), sequence_frame, payload];
                if let Err(error) = send(socket, frames).await {
                    warn!(sequence, %error, "kv event batch not published");
                }
            }
        }
    }
}

/// Answers one client after the other. Requests that cannot be read are ignored, as vLLM does.
async fn answer_replays(
    mut receiver: RouterRecvHalf,
    mut sender: RouterSendHalf,
    buffer: Arc<Mutex<ReplayBuffer>>,
    topic: Bytes,
) {
    loop {
        let frames = match receiver.recv().await {
            Ok(message) => message.into_vec(),
            Err(error) => {
                warn!(%error, "kv event replay socket failed");
                return;
            }
        };
        let Some(request) = ReplayRequest::parse(&frames) else {
            warn!(
                frames = frames.len(),
                "kv event replay request not understood"
            );
            continue;
        };
        let batches = buffer.lock().since(request.first);
        debug!(
            first = request.first,
            batches = batches.len(),
            "kv event replay"
        );
        let answer = async {
            for (sequence, payload) in batches {
                send(&mut sender, request.answer(&topic, sequence, payload)).await?;
            }
            send(&mut sender, request.end()).await
        };
        match tokio::time::timeout(REPLAY_TIMEOUT, answer).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => debug!(%error, "kv event replay client is gone"),
            Err(_) => warn!("kv event replay client does not read its answer"),
        }
    }
}

async fn send(socket: &mut impl SocketSend, frames: Vec<Bytes>) -> Result<(), ZmqError> {
    let message = ZmqMessage::try_from(frames)
        .map_err(|_| ZmqError::Other("a message has at least one frame"))?;
    socket.send(message).await
}

#[cfg(test)]
mod tests;
