//! Msgpack payloads to event batches.
//!
//! Each event is first delimited by a generic skip and then read within its own bytes. So a
//! malformed event costs nothing but itself, and no count inside it can ask for more memory than
//! its own bytes allow.

use rmp::Marker;

use super::reader::{Integer, ReadError, Reader};
use super::{
    BlockRemoved, BlockStored, EngineHash, Event, EventBatch, MAX_EVENTS, MAX_NESTING,
    MAX_PAYLOAD_BYTES, Medium,
};

/// Characters of an unknown tag that a [`Skipped`] keeps.
const MAX_TAG_CHARS: usize = 64;

/// The cache kinds whose blocks are good for every prompt that continues them. Blocks of other
/// kinds (a sliding window, a recurrent state) may be gone in the middle of a prefix that is still
/// usable, or the other way round.
const PREFIX_KINDS: [&str; 3] = ["full_attention", "mla", "sink_full"];

/// A payload, read.
#[derive(Clone, PartialEq, Debug)]
pub struct Decoded {
    /// The events that could be read, in order.
    pub batch: EventBatch,
    /// Those that could not, in order; at most [`MAX_EVENTS`].
    pub skipped: Vec<Skipped>,
}

/// One event that was left out of the batch.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Skipped {
    /// The event's tag, cut to 64 characters; empty where none could be read.
    pub tag: String,
    /// What is wrong with it.
    pub reason: String,
}

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
    /// The outer array or its timestamp, event list or rank cannot be followed.
    #[error("malformed batch: {part}: {reason}")]
    Malformed {
        /// The part of the batch.
        part: &'static str,
        /// What is wrong with it.
        reason: String,
    },
}

/// Reads one payload, in either form. Bytes after the batch are ignored.
///
/// # Errors
///
/// [`DecodeError`] when the payload is too large or its outer structure cannot be followed. A
/// single bad event is no error: it is listed in [`Decoded::skipped`].
pub fn decode(payload: &[u8]) -> Result<Decoded, DecodeError> {
    if payload.len() > MAX_PAYLOAD_BYTES {
        return Err(DecodeError::TooLarge {
            bytes: payload.len(),
        });
    }
    let mut reader = Reader::new(payload);
    let fields = reader.array_len().map_err(malformed("batch"))?;
    if fields < 2 {
        return Err(DecodeError::Malformed {
            part: "batch",
            reason: format!("expected at least 2 fields, found {fields}"),
        });
    }
    let timestamp_s = reader.f64().map_err(malformed("timestamp"))?;
    let count = reader.array_len().map_err(malformed("events"))?;
    if count > MAX_EVENTS {
        return Err(DecodeError::TooManyEvents { events: count });
    }
    let mut decoded = Decoded {
        batch: EventBatch {
            timestamp_s,
            events: Vec::new(),
            data_parallel_rank: None,
        },
        skipped: Vec::new(),
    };
    for _ in 0..count {
        // The batch and its list of events are two levels already.
        let bytes = reader.skip(MAX_NESTING - 2).map_err(malformed("events"))?;
        match event(bytes) {
            Ok(event) => decoded.batch.events.push(event),
            Err(skipped) => decoded.skipped.push(skipped),
        }
    }
    if fields > 2 && !reader.nil().map_err(malformed("data_parallel_rank"))? {
        let rank = reader.u32().map_err(malformed("data_parallel_rank"))?;
        decoded.batch.data_parallel_rank = Some(rank);
    }
    Ok(decoded)
}

fn malformed(part: &'static str) -> impl Fn(ReadError) -> DecodeError {
    move |error| DecodeError::Malformed {
        part,
        reason: error.to_string(),
    }
}

/// What is wrong with one event: the field and why, or a sentence about the whole.
#[derive(Debug, thiserror::Error)]
enum EventError {
    #[error("{field}: {source}")]
    Field {
        field: &'static str,
        source: ReadError,
    },
    #[error("{0} is missing")]
    Missing(&'static str),
    #[error("block_size is 0")]
    NoBlockSize,
    #[error("a hash of no bytes")]
    EmptyHash,
    #[error("unknown medium")]
    UnknownMedium,
    #[error("blocks of this cache kind do not make a prefix")]
    NotAPrefix,
    #[error("unknown event")]
    UnknownTag,
    #[error("{0}")]
    Shape(#[from] ReadError),
}

/// Reads the one event that `bytes` hold.
fn event(bytes: &[u8]) -> Result<Event, Skipped> {
    let fields = Fields::split(bytes).map_err(|error| Skipped {
        tag: String::new(),
        reason: error.to_string(),
    })?;
    let tag = fields.tag;
    let event = match tag {
        "BlockStored" => stored(&fields).map(Event::BlockStored),
        "BlockRemoved" => removed(&fields).map(Event::BlockRemoved),
        "AllBlocksCleared" => Ok(Event::AllBlocksCleared),
        _ => Err(EventError::UnknownTag),
    };
    event.map_err(|error| Skipped {
        tag: tag.chars().take(MAX_TAG_CHARS).collect(),
        reason: error.to_string(),
    })
}

/// The fields of an event that mean something to us, each still encoded. Both forms come down to
/// this.
#[derive(Default)]
struct Fields<'a> {
    tag: &'a str,
    block_hashes: Option<Reader<'a>>,
    parent: Option<Reader<'a>>,
    token_ids: Option<Reader<'a>>,
    block_size: Option<Reader<'a>>,
    medium: Option<Reader<'a>>,
    lora_name: Option<Reader<'a>>,
    extra_keys: Option<Reader<'a>>,
    kind: Option<Reader<'a>>,
}

impl<'a> Fields<'a> {
    fn split(bytes: &'a [u8]) -> Result<Self, EventError> {
        let reader = Reader::new(bytes);
        match reader.peek()? {
            Marker::FixArray(_) | Marker::Array16 | Marker::Array32 => Self::split_array(reader),
            Marker::FixMap(_) | Marker::Map16 | Marker::Map32 => Self::split_map(reader),
            _ => Err(ReadError::Unexpected("a map or an array").into()),
        }
    }

    fn split_map(mut reader: Reader<'a>) -> Result<Self, EventError> {
        let mut fields = Self::default();
        let mut tag = None;
        for _ in 0..reader.map_len()? {
            let key = reader.skip(MAX_NESTING)?;
            let value = reader.skip(MAX_NESTING)?;
            // A key that is no string is none of ours.
            let Ok(key) = Reader::new(key).str() else {
                continue;
            };
            if key == "type" {
                tag = Some(in_field("type", Reader::new(value).str())?);
            } else {
                fields.set(key, value);
            }
        }
        fields.tag = tag.ok_or(EventError::Missing("type"))?;
        Ok(fields)
    }

    fn split_array(mut reader: Reader<'a>) -> Result<Self, EventError> {
        /// The names of the positions after the tag. SGLang ends earlier; what follows the last one
        /// is ignored.
        const STORED: [&str; 10] = [
            "block_hashes",
            "parent_block_hash",
            "token_ids",
            "block_size",
            "lora_id",
            "medium",
            "lora_name",
            "extra_keys",
            "group_idx",
            "kv_cache_spec_kind",
        ];
        const REMOVED: [&str; 2] = ["block_hashes", "medium"];
        let count = reader.array_len()?;
        if count == 0 {
            return Err(EventError::Missing("type"));
        }
        let mut fields = Self {
            tag: in_field("type", reader.str())?,
            ..Self::default()
        };
        let names: &[&str] = match fields.tag {
            "BlockStored" => &STORED,
            "BlockRemoved" => &REMOVED,
            _ => &[],
        };
        for name in names.iter().take(count - 1) {
            let value = reader.skip(MAX_NESTING)?;
            fields.set(name, value);
        }
        Ok(fields)
    }

    fn set(&mut self, name: &str, value: &'a [u8]) {
        let place = match name {
            "block_hashes" => &mut self.block_hashes,
            "parent_block_hash" => &mut self.parent,
            "token_ids" => &mut self.token_ids,
            "block_size" => &mut self.block_size,
            "medium" => &mut self.medium,
            "lora_name" => &mut self.lora_name,
            "extra_keys" => &mut self.extra_keys,
            "kv_cache_spec_kind" => &mut self.kind,
            _ => return,
        };
        *place = Some(Reader::new(value));
    }
}

fn stored(fields: &Fields<'_>) -> Result<BlockStored, EventError> {
    if let Some(kind) = optional_str(fields.kind)
        && !PREFIX_KINDS.contains(&kind)
    {
        return Err(EventError::NotAPrefix);
    }
    let block_hashes = hashes(fields)?;
    let parent = match present(fields.parent) {
        None => None,
        Some(mut reader) => Some(hash("parent_block_hash", &mut reader)?),
    };
    let mut tokens = fields.token_ids.ok_or(EventError::Missing("token_ids"))?;
    let count = in_field("token_ids", tokens.array_len())?;
    let mut token_ids = Vec::with_capacity(count);
    for _ in 0..count {
        token_ids.push(in_field("token_ids", tokens.u32())?);
    }
    let mut size = fields.block_size.ok_or(EventError::Missing("block_size"))?;
    let block_size = in_field("block_size", size.u32())?;
    if block_size == 0 {
        return Err(EventError::NoBlockSize);
    }
    let lora_name = optional_str(fields.lora_name);
    Ok(BlockStored {
        block_hashes,
        parent,
        token_ids,
        block_size,
        medium: medium(fields)?,
        cache_salt: cache_salt(fields.extra_keys, lora_name).map(str::to_owned),
        lora_name: lora_name.map(str::to_owned),
    })
}

fn removed(fields: &Fields<'_>) -> Result<BlockRemoved, EventError> {
    Ok(BlockRemoved {
        block_hashes: hashes(fields)?,
        medium: medium(fields)?,
    })
}

fn hashes(fields: &Fields<'_>) -> Result<Vec<EngineHash>, EventError> {
    let mut reader = fields
        .block_hashes
        .ok_or(EventError::Missing("block_hashes"))?;
    let count = in_field("block_hashes", reader.array_len())?;
    let mut hashes = Vec::with_capacity(count);
    for _ in 0..count {
        hashes.push(hash("block_hashes", &mut reader)?);
    }
    Ok(hashes)
}

fn hash(field: &'static str, reader: &mut Reader<'_>) -> Result<EngineHash, EventError> {
    match in_field(field, reader.peek())? {
        Marker::Bin8 | Marker::Bin16 | Marker::Bin32 => {
            let bytes = in_field(field, reader.bytes())?;
            if bytes.is_empty() {
                return Err(EventError::EmptyHash);
            }
            Ok(EngineHash::of_bytes(bytes))
        }
        _ => Ok(EngineHash(match in_field(field, reader.integer())? {
            Integer::Unsigned(value) => value,
            Integer::Negative(value) => value as u64,
        })),
    }
}

fn medium(fields: &Fields<'_>) -> Result<Medium, EventError> {
    match present(fields.medium) {
        None => Ok(Medium::default()),
        Some(mut reader) => {
            Medium::parse(in_field("medium", reader.str())?).ok_or(EventError::UnknownMedium)
        }
    }
}

/// A field that is there and not nil.
fn present(field: Option<Reader<'_>>) -> Option<Reader<'_>> {
    field.filter(|reader| reader.peek() != Ok(Marker::Null))
}

/// The string a trailing field holds. Engines disagree on what stands at the later positions of the
/// array form, so anything but a string counts as absent there.
fn optional_str(field: Option<Reader<'_>>) -> Option<&str> {
    field.and_then(|mut reader| reader.str().ok())
}

/// The salt in `[[key, …] | nil, …]`: the last string in the first block's keys that is not the
/// adapter's name. Keys are untagged on the wire; images show as nested arrays or in the entries of
/// later blocks, and vLLM puts the salt behind the adapter. Whatever has another shape holds no
/// salt.
fn cache_salt<'a>(extra_keys: Option<Reader<'a>>, lora_name: Option<&str>) -> Option<&'a str> {
    let mut reader = extra_keys?;
    if reader.array_len().ok()? == 0 {
        return None;
    }
    let mut salt = None;
    for _ in 0..reader.array_len().ok()? {
        let mut key = Reader::new(reader.skip(MAX_NESTING).ok()?);
        if let Ok(text) = key.str()
            && Some(text) != lora_name
        {
            salt = Some(text);
        }
    }
    salt
}

fn in_field<T>(field: &'static str, result: Result<T, ReadError>) -> Result<T, EventError> {
    result.map_err(|source| EventError::Field { field, source })
}
