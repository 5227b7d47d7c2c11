//! The client's half of ZMTP 3.0, as far as listening to events takes it. Pure: bytes in, messages
//! out.
//!
//! ```text
//! greeting   ff 00×8 7f, version 03 00, "NULL" 00×16, as-server 00, 00×31    (64 bytes, both ways)
//! frame      flags, length (u8, or u64 BE where bit 1 is set), body
//!            flags: bit 0 = more frames follow, bit 1 = long, bit 2 = command
//! READY      command 05 "READY", then properties: name length u8, name, value length u32 BE, value
//! subscribe  message 01 <topic prefix>
//! ```
//!
//! Source: ZeroMQ RFC 23. It is written out here because a library that sets memory aside for
//! whatever length a peer announces lets one broken publisher end the picker. Nothing is reserved
//! here for bytes that have not come, and every length has a bound.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use pointsman_proto::kv_events::MAX_PAYLOAD_BYTES;

/// A message of more bytes ends its connection: the largest payload, and room for its other frames.
pub const MESSAGE_BYTES_MAX: usize = MAX_PAYLOAD_BYTES + (64 << 10);

/// A message of more frames ends its connection. Events have three, replays up to four.
pub const FRAMES_MAX: usize = 8;

/// A command of more bytes ends its connection. READY takes some 50.
pub const COMMAND_BYTES_MAX: usize = 4 << 10;

const GREETING_BYTES: usize = 64;
const MORE: u8 = 1;
const LONG: u8 = 2;
const COMMAND: u8 = 4;

/// What this side of a connection is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// Hears what a publisher sends.
    Subscriber,
    /// Asks a replay server.
    Dealer,
}

impl Role {
    fn name(self) -> &'static [u8] {
        match self {
            Self::Subscriber => b"SUB",
            Self::Dealer => b"DEALER",
        }
    }

    fn may_meet(self, peer: &[u8]) -> bool {
        match self {
            Self::Subscriber => [&b"PUB"[..], b"XPUB"].contains(&peer),
            Self::Dealer => [&b"ROUTER"[..], b"DEALER", b"REP"].contains(&peer),
        }
    }
}

/// What came in.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Incoming {
    /// The peer speaks our version.
    Greeting,
    /// The peer is of this socket type.
    Ready { socket_type: Bytes },
    /// The peer asks for a sign of life, to be answered with this context.
    Ping { context: Bytes },
    /// The peer refuses us.
    Refused { reason: String },
    /// A command that asks nothing of us.
    Other,
    /// The frames of one message.
    Message(Vec<Bytes>),
}

/// Why a connection cannot go on.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ZmtpError {
    #[error("the peer does not speak ZMTP 3")]
    Greeting,
    #[error("the peer asks for a security mechanism other than NULL")]
    Mechanism,
    #[error("frame flags {0:#04x} are reserved")]
    Flags(u8),
    #[error("a message of {bytes} bytes, at most {MESSAGE_BYTES_MAX} are read")]
    MessageTooLong { bytes: u64 },
    #[error("a message of more than {FRAMES_MAX} frames")]
    TooManyFrames,
    #[error("a command of {bytes} bytes, at most {COMMAND_BYTES_MAX} are read")]
    CommandTooLong { bytes: u64 },
    #[error("a malformed command")]
    Command,
    #[error("the peer is a {0} socket")]
    SocketType(String),
}

/// Reads one connection's bytes.
#[derive(Debug, Default)]
pub struct Decoder {
    greeted: bool,
    frames: Vec<Bytes>,
    message_bytes: usize,
}

/// The head of a frame: what its bytes are, and how many.
struct Head {
    flags: u8,
    own_bytes: usize,
    body_bytes: u64,
}

impl Decoder {
    /// Takes the next whole thing off `buffer`; none when more bytes are needed.
    pub fn decode(&mut self, buffer: &mut BytesMut) -> Result<Option<Incoming>, ZmtpError> {
        if !self.greeted {
            return self.greeting(buffer);
        }
        loop {
            let Some(head) = head_of(buffer)? else {
                return Ok(None);
            };
            let body_bytes = self.check(&head)?;
            if buffer.len() < head.own_bytes + body_bytes {
                return Ok(None);
            }
            buffer.advance(head.own_bytes);
            let body = buffer.split_to(body_bytes).freeze();
            if head.flags & COMMAND != 0 {
                return command(body).map(Some);
            }
            self.message_bytes += body_bytes;
            self.frames.push(body);
            if head.flags & MORE == 0 {
                self.message_bytes = 0;
                return Ok(Some(Incoming::Message(std::mem::take(&mut self.frames))));
            }
        }
    }

    fn greeting(&mut self, buffer: &mut BytesMut) -> Result<Option<Incoming>, ZmtpError> {
        // The first byte already tells a peer that speaks something else.
        if buffer.first().is_some_and(|first| *first != 0xff) {
            return Err(ZmtpError::Greeting);
        }
        if buffer.len() < GREETING_BYTES {
            return Ok(None);
        }
        let greeting = buffer.split_to(GREETING_BYTES);
        if greeting[9] & 1 == 0 || greeting[10] < 3 {
            return Err(ZmtpError::Greeting);
        }
        if greeting[12..32] != *b"NULL\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0" {
            return Err(ZmtpError::Mechanism);
        }
        self.greeted = true;
        Ok(Some(Incoming::Greeting))
    }

    /// The length of a frame's body, if it is within the bounds.
    fn check(&self, head: &Head) -> Result<usize, ZmtpError> {
        let bytes = head.body_bytes;
        if head.flags & COMMAND != 0 {
            return match usize::try_from(bytes) {
                Ok(length) if length <= COMMAND_BYTES_MAX => Ok(length),
                _ => Err(ZmtpError::CommandTooLong { bytes }),
            };
        }
        if self.frames.len() >= FRAMES_MAX {
            return Err(ZmtpError::TooManyFrames);
        }
        match usize::try_from(bytes) {
            Ok(length) if length <= MESSAGE_BYTES_MAX - self.message_bytes => Ok(length),
            _ => Err(ZmtpError::MessageTooLong {
                bytes: bytes.saturating_add(self.message_bytes as u64),
            }),
        }
    }
}

/// The greeting of a client without security.
pub fn greeting() -> [u8; GREETING_BYTES] {
    let mut greeting = [0; GREETING_BYTES];
    greeting[0] = 0xff;
    greeting[9] = 0x7f;
    greeting[10] = 3;
    greeting[12..16].copy_from_slice(b"NULL");
    greeting
}

/// The READY command.
pub fn ready(role: Role) -> Bytes {
    let mut body = BytesMut::new();
    body.put_slice(b"\x05READY");
    let mut property = |name: &[u8], value: &[u8]| {
        body.put_u8(name.len() as u8);
        body.put_slice(name);
        body.put_u32(value.len() as u32);
        body.put_slice(value);
    };
    property(b"Socket-Type", role.name());
    if role == Role::Dealer {
        property(b"Identity", b"");
    }
    frame(COMMAND, &body)
}

/// The message that subscribes to every topic.
pub fn subscribe_all() -> Bytes {
    frame(0, &[1])
}

/// The answer to a ping.
pub fn pong(context: &[u8]) -> Bytes {
    frame(COMMAND, &[b"\x04PONG", context].concat())
}

/// A message of these frames.
pub fn message(frames: &[Bytes]) -> Bytes {
    let mut out = BytesMut::new();
    for (place, body) in frames.iter().enumerate() {
        let more = if place + 1 < frames.len() { MORE } else { 0 };
        out.put_slice(&frame(more, body));
    }
    out.freeze()
}

/// Checks that the peer is one that this side can talk to.
pub fn check_peer(role: Role, socket_type: &[u8]) -> Result<(), ZmtpError> {
    if role.may_meet(socket_type) {
        return Ok(());
    }
    let named = String::from_utf8_lossy(&socket_type[..socket_type.len().min(16)]).into_owned();
    Err(ZmtpError::SocketType(named))
}

fn frame(flags: u8, body: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(9 + body.len());
    if let Ok(length) = u8::try_from(body.len()) {
        out.put_u8(flags);
        out.put_u8(length);
    } else {
        out.put_u8(flags | LONG);
        out.put_u64(body.len() as u64);
    }
    out.put_slice(body);
    out.freeze()
}

fn head_of(buffer: &[u8]) -> Result<Option<Head>, ZmtpError> {
    let Some((&flags, rest)) = buffer.split_first() else {
        return Ok(None);
    };
    // A command stands alone.
    let is_reserved = flags & !(MORE | LONG | COMMAND) != 0;
    if is_reserved || flags & (MORE | COMMAND) == MORE | COMMAND {
        return Err(ZmtpError::Flags(flags));
    }
    let length = if flags & LONG != 0 {
        rest.first_chunk()
            .map(|bytes| (u64::from_be_bytes(*bytes), 9))
    } else {
        rest.first().map(|byte| (u64::from(*byte), 2))
    };
    Ok(length.map(|(body_bytes, own_bytes)| Head {
        flags,
        own_bytes,
        body_bytes,
    }))
}

fn command(mut body: Bytes) -> Result<Incoming, ZmtpError> {
    let name = short(&mut body)?;
    match &name[..] {
        b"READY" => Ok(Incoming::Ready {
            socket_type: socket_type(body)?,
        }),
        b"PING" if body.len() >= 2 => Ok(Incoming::Ping {
            context: body.slice(2..),
        }),
        b"ERROR" => Ok(Incoming::Refused {
            reason: String::from_utf8_lossy(&short(&mut body)?).into_owned(),
        }),
        _ => Ok(Incoming::Other),
    }
}

fn socket_type(mut properties: Bytes) -> Result<Bytes, ZmtpError> {
    while !properties.is_empty() {
        let name = short(&mut properties)?;
        let length = properties.try_get_u32().map_err(|_| ZmtpError::Command)?;
        let value = take(&mut properties, length as usize)?;
        if name.eq_ignore_ascii_case(b"Socket-Type") {
            return Ok(value);
        }
    }
    Err(ZmtpError::Command)
}

/// A byte string behind its length in one byte.
fn short(bytes: &mut Bytes) -> Result<Bytes, ZmtpError> {
    let length = bytes.try_get_u8().map_err(|_| ZmtpError::Command)?;
    take(bytes, usize::from(length))
}

fn take(bytes: &mut Bytes, length: usize) -> Result<Bytes, ZmtpError> {
    if length > bytes.len() {
        return Err(ZmtpError::Command);
    }
    Ok(bytes.split_to(length))
}

#[cfg(test)]
mod tests;
