//! Listens to a worker's KV events over ZMQ, as a picker of other people would.
//!
//! Live: a SUB socket; three frames a message: topic, sequence number as u64 big-endian, MessagePack payload.
//! Replay: one request with the first wanted sequence number to a ROUTER, which answers with an empty delimiter and the
//! three frames of each batch it still has, and at the end a sequence number of -1.

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use pointsman_proto::kv_events::{self, Decoded};
use zeromq::{DealerSocket, Socket, SocketRecv, SocketSend, SubSocket, ZmqMessage};

use crate::eventually::within_deadline;

/// Stands in place of a sequence number after the last replayed batch: -1 in 64 bits.
const END_OF_REPLAY: [u8; 8] = [0xff; 8];

/// One message, live or replayed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Published {
    pub topic: String,
    pub sequence: u64,
    pub payload: Bytes,
}

impl Published {
    pub fn decode(&self) -> Result<Decoded> {
        Ok(kv_events::decode(&self.payload)?)
    }

    fn from_frames(frames: &[Bytes]) -> Result<Self> {
        ensure!(
            frames.len() == 3,
            "{} frames in place of three",
            frames.len()
        );
        let sequence = frames[1]
            .as_ref()
            .try_into()
            .context("a sequence number has 8 bytes")?;
        Ok(Self {
            topic: String::from_utf8(frames[0].to_vec())?,
            sequence: u64::from_be_bytes(sequence),
            payload: frames[2].clone(),
        })
    }
}

/// A subscription to everything that one worker publishes.
pub struct Subscription {
    socket: SubSocket,
}

impl std::fmt::Debug for Subscription {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Subscription")
            .finish_non_exhaustive()
    }
}

impl Subscription {
    /// Connects. What is published before the worker has noticed the subscription is not received.
    pub async fn open(endpoint: &str) -> Result<Self> {
        let mut socket = SubSocket::new();
        within_deadline("connecting for KV events", socket.connect(endpoint)).await?;
        socket.subscribe("").await?;
        Ok(Self { socket })
    }

    pub async fn next(&mut self) -> Result<Published> {
        let message = within_deadline("the next KV event", self.socket.recv()).await?;
        Published::from_frames(&message.into_vec())
    }
}

/// Asks for all batches from `first` on that the worker still has.
pub async fn replay(endpoint: &str, first: u64) -> Result<Vec<Published>> {
    let mut socket = DealerSocket::new();
    within_deadline("connecting for a replay", socket.connect(endpoint)).await?;
    let mut request = ZmqMessage::from(Bytes::new());
    request.push_back(Bytes::copy_from_slice(&first.to_be_bytes()));
    socket.send(request).await?;
    let mut batches = Vec::new();
    loop {
        let message = within_deadline("the next replayed batch", socket.recv()).await?;
        let frames = message.into_vec();
        let (delimiter, frames) = frames.split_first().context("an empty message")?;
        ensure!(
            delimiter.is_empty(),
            "a replay answer begins with an empty frame"
        );
        if frames
            .get(1)
            .is_some_and(|sequence| sequence[..] == END_OF_REPLAY)
        {
            return Ok(batches);
        }
        batches.push(Published::from_frames(frames)?);
    }
}
