//! Msgpack payloads to their events, one by one.
//!
//! The outer structure is walked to its end before the first event is read: a payload that breaks
//! off is refused as a whole, and never half applied. Each event is then delimited and read within
//! its own bytes, so a malformed one costs nothing but itself, and no count inside it can ask for
//! more memory than its own bytes allow.

use rmp::Marker;

use super::decode::{GroupEvent, Skipped, event};
use super::reader::{ReadError, Reader};
use super::{EventBatch, MAX_EVENTS, MAX_NESTING, MAX_PAYLOAD_BYTES, MAX_SKIPPED_LISTED};

/// Why a whole payload is refused.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum DecodeError {
    /// The payload passes [`MAX_PAYLOAD_BYTES`].
    #[error("payload of {bytes} bytes, at most {MAX_PAYLOAD_BYTES} are read")]
    TooLarge {
        /// Size of the payload.
        bytes: usize,
    },
    /// The batch passes [`MAX_EVENTS`].
    #[error("batch of {events} events, at most {MAX_EVENTS} are read")]
    TooManyEvents {
        /// Number of events it announces.
        events: usize,
    },
    /// The outer structure or its timestamp, event list or rank cannot be followed.
    #[error("malformed batch: {part}: {reason}")]
    Malformed {
        /// The part of the batch.
        part: &'static str,
        /// What is wrong with it.
        reason: String,
    },
}

/// A payload whose events are read as they are asked for.
///
/// Iterating yields each event in order, or what was skipped in its place.
#[derive(Clone, Debug)]
pub struct Batch<'a> {
    /// Unix time of the step in seconds.
    pub timestamp_s: f64,
    /// The data-parallel rank that made the events.
    pub data_parallel_rank: Option<u32>,
    events: Reader<'a>,
    left: usize,
}

impl<'a> Batch<'a> {
    /// Walks the payload, in either form. Bytes after the batch are ignored.
    ///
    /// # Errors
    ///
    /// [`DecodeError`] when the payload is too large or its structure cannot be followed to its
    /// end. A single bad event is no error.
    pub fn open(payload: &'a [u8]) -> Result<Self, DecodeError> {
        if payload.len() > MAX_PAYLOAD_BYTES {
            return Err(DecodeError::TooLarge {
                bytes: payload.len(),
            });
        }
        let mut reader = Reader::new(payload);
        let parts = match reader.peek().map_err(malformed("batch"))? {
            Marker::FixMap(_) | Marker::Map16 | Marker::Map32 => Parts::of_map(&mut reader)?,
            _ => Parts::of_array(&mut reader)?,
        };
        let missing = |part| DecodeError::Malformed {
            part,
            reason: "missing".to_owned(),
        };
        let mut timestamp = parts.timestamp.ok_or_else(|| missing("timestamp"))?;
        let timestamp_s = timestamp.f64().map_err(malformed("timestamp"))?;
        let mut events = parts.events.ok_or_else(|| missing("events"))?;
        let left = events.array_len().map_err(malformed("events"))?;
        if left > MAX_EVENTS {
            return Err(DecodeError::TooManyEvents { events: left });
        }
        let rank = |mut reader: Reader<'_>| match reader.nil() {
            Ok(true) => Ok(None),
            _ => reader.u32().map(Some),
        };
        let data_parallel_rank = parts
            .rank
            .map_or(Ok(None), rank)
            .map_err(malformed("data_parallel_rank"))?;
        Ok(Self {
            timestamp_s,
            data_parallel_rank,
            events,
            left,
        })
    }
}

impl Iterator for Batch<'_> {
    type Item = Result<GroupEvent, Skipped>;

    fn next(&mut self) -> Option<Self::Item> {
        self.left = self.left.checked_sub(1)?;
        // The walk in `open` has been past here, so this cannot fail.
        let bytes = self.events.skip(MAX_NESTING).ok()?;
        Some(event(bytes))
    }
}

/// A payload, read.
#[derive(Clone, PartialEq, Debug)]
pub struct Decoded {
    /// The events that could be read, in order, whatever their cache group.
    pub batch: EventBatch,
    /// Those that could not, in order; at most [`MAX_SKIPPED_LISTED`].
    pub skipped: Vec<Skipped>,
}

/// Reads one payload as a whole.
///
/// # Errors
///
/// Those of [`Batch::open`].
pub fn decode(payload: &[u8]) -> Result<Decoded, DecodeError> {
    let batch = Batch::open(payload)?;
    let mut decoded = Decoded {
        batch: EventBatch {
            timestamp_s: batch.timestamp_s,
            events: Vec::new(),
            data_parallel_rank: batch.data_parallel_rank,
        },
        skipped: Vec::new(),
    };
    for event in batch {
        match event {
            Ok(event) => decoded.batch.events.push(event.event),
            Err(skipped) if decoded.skipped.len() < MAX_SKIPPED_LISTED => {
                decoded.skipped.push(skipped);
            }
            Err(_) => {}
        }
    }
    Ok(decoded)
}

/// The parts of a batch, each still encoded.
#[derive(Default)]
struct Parts<'a> {
    timestamp: Option<Reader<'a>>,
    events: Option<Reader<'a>>,
    rank: Option<Reader<'a>>,
}

impl<'a> Parts<'a> {
    fn of_array(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        let fields = reader.array_len().map_err(malformed("batch"))?;
        if fields < 2 {
            return Err(DecodeError::Malformed {
                part: "batch",
                reason: format!("expected at least 2 fields, found {fields}"),
            });
        }
        let mut parts = Self::default();
        parts.set("ts", reader)?;
        parts.set("events", reader)?;
        if fields > 2 {
            parts.set("data_parallel_rank", reader)?;
        }
        Ok(parts)
    }

    fn of_map(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        let mut parts = Self::default();
        for _ in 0..reader.map_len().map_err(malformed("batch"))? {
            let key = reader.skip(MAX_NESTING - 1).map_err(malformed("batch"))?;
            parts.set(Reader::new(key).str().unwrap_or_default(), reader)?;
        }
        Ok(parts)
    }

    /// Moves past the next value and keeps it if it is one of ours.
    fn set(&mut self, name: &str, reader: &mut Reader<'a>) -> Result<(), DecodeError> {
        let mut other = None;
        let (part, place) = match name {
            "ts" => ("timestamp", &mut self.timestamp),
            "events" => ("events", &mut self.events),
            "data_parallel_rank" => ("data_parallel_rank", &mut self.rank),
            _ => ("batch", &mut other),
        };
        // The batch itself is one level already.
        let value = reader.skip(MAX_NESTING - 1).map_err(malformed(part))?;
        *place = Some(Reader::new(value));
        Ok(())
    }
}

fn malformed(part: &'static str) -> impl Fn(ReadError) -> DecodeError {
    move |error| DecodeError::Malformed {
        part,
        reason: error.to_string(),
    }
}
