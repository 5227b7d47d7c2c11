//! One event's bytes to an event.
//!
//! Both forms come down to the same fields, each still encoded; what a field means is read only
//! then. Every count is checked against the bytes that are there and against a bound of its own
//! before anything is reserved for it.

use rmp::Marker;

use super::extra_keys::{ExtraKeys, ExtraKeysError};
use super::reader::{Integer, ReadError, Reader};
use super::{
    BlockRemoved, BlockStored, EngineHash, Event, MAX_EVENT_BLOCKS, MAX_EVENT_TOKENS, MAX_NESTING,
    Medium,
};

/// Characters of an unknown tag that a [`Skipped`] keeps.
const MAX_TAG_CHARS: usize = 64;

/// The cache kinds whose blocks are good for every prompt that continues them. Blocks of other
/// kinds (a sliding window, a recurrent state) may be gone in the middle of a prefix that is still
/// usable, or the other way round.
const PREFIX_KINDS: [&str; 3] = ["full_attention", "mla", "sink_full"];

/// An event and the cache group that it is about; 0 where it names none.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GroupEvent {
    /// The event.
    pub event: Event,
    /// Its cache group. AllBlocksCleared is about all of them and carries 0.
    pub group: u32,
}

/// Why one event was left out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Skip {
    /// Its tag is none that we know: the engine is newer than we are.
    UnknownTag,
    /// It is well-formed and about blocks that make no prefix that anybody could ask for: another
    /// kind of cache, an unknown medium, an adapter without its name.
    NotIndexed,
    /// It cannot be read.
    Malformed,
}

/// One event that was left out of the batch.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Skipped {
    /// Why, in short.
    pub skip: Skip,
    /// The event's tag, cut to 64 characters; empty where none could be read.
    pub tag: String,
    /// What is wrong with it.
    pub reason: String,
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
    #[error("an adapter without its name")]
    NamelessAdapter,
    #[error("{field}: {count} entries, at most {most} are read")]
    TooMany {
        field: &'static str,
        count: usize,
        most: usize,
    },
    #[error(transparent)]
    ExtraKeys(#[from] ExtraKeysError),
    #[error("unknown event")]
    UnknownTag,
    #[error("{0}")]
    Shape(#[from] ReadError),
}

impl EventError {
    fn skip(&self) -> Skip {
        match self {
            Self::UnknownTag => Skip::UnknownTag,
            Self::UnknownMedium | Self::NotAPrefix | Self::NamelessAdapter => Skip::NotIndexed,
            _ => Skip::Malformed,
        }
    }
}

/// Reads the one event that `bytes` hold.
pub(super) fn event(bytes: &[u8]) -> Result<GroupEvent, Skipped> {
    let skipped = |tag: &str, error: &EventError| Skipped {
        skip: error.skip(),
        tag: tag.chars().take(MAX_TAG_CHARS).collect(),
        reason: error.to_string(),
    };
    let fields = Fields::split(bytes).map_err(|error| skipped("", &error))?;
    let event = match fields.tag {
        "BlockStored" => stored(&fields).map(Event::BlockStored),
        "BlockRemoved" => removed(&fields).map(Event::BlockRemoved),
        "AllBlocksCleared" => Ok(Event::AllBlocksCleared),
        _ => Err(EventError::UnknownTag),
    };
    match event {
        Ok(event) => Ok(GroupEvent {
            event,
            group: fields.group(),
        }),
        Err(error) => Err(skipped(fields.tag, &error)),
    }
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
    lora_id: Option<Reader<'a>>,
    lora_name: Option<Reader<'a>>,
    extra_keys: Option<Reader<'a>>,
    group: Option<Reader<'a>>,
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
        const REMOVED: [&str; 3] = ["block_hashes", "medium", "group_idx"];
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
            "lora_id" => &mut self.lora_id,
            "group_idx" => &mut self.group,
            "lora_name" => &mut self.lora_name,
            "extra_keys" => &mut self.extra_keys,
            "kv_cache_spec_kind" => &mut self.kind,
            _ => return,
        };
        *place = Some(Reader::new(value));
    }

    fn group(&self) -> u32 {
        self.group
            .and_then(|mut group| group.u32().ok())
            .unwrap_or(0)
    }

    /// Whether the blocks belong to an adapter of which only the number is known. Numbers start at
    /// 1 and differ from engine to engine, so nobody could ask for it.
    fn has_nameless_adapter(&self) -> bool {
        let number = self.lora_id.and_then(|mut id| id.integer().ok());
        let numbered = number.is_some_and(|id| id != Integer::Unsigned(0));
        numbered && optional_str(self.lora_name).is_none()
    }
}

fn stored(fields: &Fields<'_>) -> Result<BlockStored, EventError> {
    if let Some(kind) = optional_str(fields.kind)
        && !PREFIX_KINDS.contains(&kind)
    {
        return Err(EventError::NotAPrefix);
    }
    if fields.has_nameless_adapter() {
        return Err(EventError::NamelessAdapter);
    }
    let medium = medium(fields)?;
    let block_hashes = hashes(fields)?;
    let parent = match present(fields.parent) {
        None => None,
        Some(mut reader) => Some(hash("parent_block_hash", &mut reader)?),
    };
    let token_ids = token_ids(fields)?;
    let mut size = fields.block_size.ok_or(EventError::Missing("block_size"))?;
    let block_size = in_field("block_size", size.u32())?;
    if block_size == 0 {
        return Err(EventError::NoBlockSize);
    }
    let lora_name = optional_str(fields.lora_name);
    let keys = ExtraKeys::read(
        extra_keys(fields),
        block_hashes.len(),
        lora_name,
        parent.is_none(),
    )?;
    let metadata_salt = parent.is_none().then(|| metadata_salt(fields)).flatten();
    Ok(BlockStored {
        block_hashes,
        parent,
        token_ids,
        block_size,
        medium,
        cache_salt: keys.salt.or(metadata_salt).map(str::to_owned),
        lora_name: lora_name.map(str::to_owned),
        extras: keys.extras,
    })
}

fn token_ids(fields: &Fields<'_>) -> Result<Vec<u32>, EventError> {
    const FIELD: &str = "token_ids";
    let mut reader = fields.token_ids.ok_or(EventError::Missing(FIELD))?;
    let count = in_field(FIELD, reader.array_len())?;
    within(FIELD, count, MAX_EVENT_TOKENS)?;
    let mut token_ids = Vec::with_capacity(count);
    for _ in 0..count {
        token_ids.push(in_field(FIELD, reader.u32())?);
    }
    Ok(token_ids)
}

/// The extra keys, in their own place or in that of the adapter's name, which SGLang lacks.
fn extra_keys<'a>(fields: &Fields<'a>) -> Option<Reader<'a>> {
    let list = |field: Option<Reader<'a>>| field.filter(|reader| { *reader }.array_len().is_ok());
    list(fields.extra_keys).or_else(|| list(fields.lora_name))
}

/// The salt in SGLang's metadata, a map in the place of the adapter's name.
fn metadata_salt<'a>(fields: &Fields<'a>) -> Option<&'a str> {
    let mut metadata = fields.lora_name?;
    for _ in 0..metadata.map_len().ok()? {
        let key = Reader::new(metadata.skip(MAX_NESTING).ok()?).str();
        let mut value = Reader::new(metadata.skip(MAX_NESTING).ok()?);
        if key == Ok("cache_salt") {
            return value.str().ok();
        }
    }
    None
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
    within("block_hashes", count, MAX_EVENT_BLOCKS)?;
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

fn within(field: &'static str, count: usize, most: usize) -> Result<(), EventError> {
    if count > most {
        return Err(EventError::TooMany { field, count, most });
    }
    Ok(())
}

fn in_field<T>(field: &'static str, result: Result<T, ReadError>) -> Result<T, EventError> {
    result.map_err(|source| EventError::Field { field, source })
}
