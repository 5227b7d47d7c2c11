//! One TCP connection to a publisher or a replay server: the protocol of [`zmtp`](super::zmtp) over
//! a socket.
//!
//! A connection that breaks is over. Nothing reconnects behind the back of who reads it, because
//! every new connection begins with a replay.

use std::collections::VecDeque;
use std::io;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::zmtp::{self, Decoder, Incoming, Role, ZmtpError};

/// Time for the TCP connection and both handshakes together.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// A peer that is silent this long is probed, and given up after three probes without an answer: a
/// machine that vanished sends no end of stream.
const KEEPALIVE: (Duration, Duration, u32) = (Duration::from_secs(15), Duration::from_secs(5), 3);
/// Bytes read at once.
const READ_BYTES: usize = 16 << 10;
/// Messages that may arrive while a peer finishes its handshake; one more ends the connection.
const EARLY_MESSAGES_MAX: usize = 8;

/// Why there is no connection any more.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectionError {
    #[error("not connected within {CONNECT_TIMEOUT:?}")]
    Timeout,
    #[error("{0:?} is not an address of the form tcp://host:port")]
    Address(String),
    #[error(transparent)]
    Socket(#[from] io::Error),
    #[error(transparent)]
    Protocol(#[from] ZmtpError),
    #[error("refused by the peer: {0}")]
    Refused(String),
    #[error("the handshake ends in messages")]
    Handshake,
    #[error("closed by the peer")]
    Closed,
}

/// An open connection.
#[derive(Debug)]
pub(super) struct Connection {
    stream: TcpStream,
    decoder: Decoder,
    buffer: BytesMut,
    early: VecDeque<Vec<Bytes>>,
}

impl Connection {
    /// Connects to `tcp://host:port` and shakes hands; a subscriber is then subscribed to
    /// everything.
    pub(super) async fn open(address: &str, role: Role) -> Result<Self, ConnectionError> {
        let opening = Self::connect(address, role);
        tokio::time::timeout(CONNECT_TIMEOUT, opening)
            .await
            .map_err(|_| ConnectionError::Timeout)?
    }

    /// The next message. A call that is dropped halfway loses nothing.
    pub(super) async fn receive(&mut self) -> Result<Vec<Bytes>, ConnectionError> {
        if let Some(message) = self.early.pop_front() {
            return Ok(message);
        }
        loop {
            match self.next().await? {
                Incoming::Message(frames) => return Ok(frames),
                Incoming::Ping { context } => self.answer(&zmtp::pong(&context))?,
                Incoming::Refused { reason } => return Err(ConnectionError::Refused(reason)),
                Incoming::Greeting | Incoming::Ready { .. } | Incoming::Other => {}
            }
        }
    }

    /// Sends one message.
    pub(super) async fn send(&mut self, frames: &[Bytes]) -> Result<(), ConnectionError> {
        Ok(self.stream.write_all(&zmtp::message(frames)).await?)
    }

    async fn connect(address: &str, role: Role) -> Result<Self, ConnectionError> {
        let host_and_port = address
            .strip_prefix("tcp://")
            .ok_or_else(|| ConnectionError::Address(address.to_owned()))?;
        let stream = TcpStream::connect(host_and_port).await?;
        stream.set_nodelay(true)?;
        let (time, interval, retries) = KEEPALIVE;
        let keepalive = TcpKeepalive::new()
            .with_time(time)
            .with_interval(interval)
            .with_retries(retries);
        SockRef::from(&stream).set_tcp_keepalive(&keepalive)?;
        let mut connection = Self {
            stream,
            decoder: Decoder::default(),
            buffer: BytesMut::new(),
            early: VecDeque::new(),
        };
        connection.shake_hands(role).await?;
        Ok(connection)
    }

    async fn shake_hands(&mut self, role: Role) -> Result<(), ConnectionError> {
        self.stream.write_all(&zmtp::greeting()).await?;
        self.stream.write_all(&zmtp::ready(role)).await?;
        loop {
            match self.next().await? {
                Incoming::Ready { socket_type } => {
                    zmtp::check_peer(role, &socket_type)?;
                    break;
                }
                Incoming::Refused { reason } => return Err(ConnectionError::Refused(reason)),
                Incoming::Message(frames) if self.early.len() < EARLY_MESSAGES_MAX => {
                    self.early.push_back(frames);
                }
                Incoming::Message(_) => return Err(ConnectionError::Handshake),
                Incoming::Greeting | Incoming::Ping { .. } | Incoming::Other => {}
            }
        }
        if role == Role::Subscriber {
            self.stream.write_all(&zmtp::subscribe_all()).await?;
        }
        Ok(())
    }

    async fn next(&mut self) -> Result<Incoming, ConnectionError> {
        loop {
            if let Some(incoming) = self.decoder.decode(&mut self.buffer)? {
                return Ok(incoming);
            }
            self.buffer.reserve(READ_BYTES);
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                return Err(ConnectionError::Closed);
            }
        }
    }

    /// Sends a few bytes without waiting. A peer that does not even take those is not read on.
    fn answer(&mut self, bytes: &[u8]) -> Result<(), ConnectionError> {
        if self.stream.try_write(bytes)? == bytes.len() {
            Ok(())
        } else {
            Err(ConnectionError::Closed)
        }
    }
}
