//! The keys besides tokens that went into each block's hash: adapter, salt, images, embeddings.
//!
//! Engines send them without tags, one list per block, in the order adapter, images, salt (first
//! block of a prompt only), prompt embeddings. The adapter is the first key if it equals the
//! event's adapter. The salt is the last bare string of a prompt's first block: images are pairs of
//! identifier and offset there, embeddings byte strings. Releases that sent an image as its bare
//! identifier and have one in a prompt's first block make us take it for a salt, which nobody asks
//! for: such blocks are found by nobody, and never by the wrong request.
//!
//! What remains is brought into one form of bytes, msgpack's shortest, because engines differ in
//! how they encode equal values and the bytes become part of a key.

use rmp::Marker;
use rmp::encode::{
    ValueWriteError, write_array_len, write_bin, write_bool, write_f64, write_nil, write_sint,
    write_str, write_uint,
};

use super::MAX_NESTING;
use super::reader::{Integer, ReadError, Reader};

/// Why an event's extra keys cannot be used. Without them its blocks cannot be told from others.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub(super) enum ExtraKeysError {
    #[error("extra_keys: {0}")]
    Read(#[from] ReadError),
    #[error("extra_keys: {entries} entries for {blocks} blocks")]
    Count { entries: usize, blocks: usize },
    #[error("extra_keys: a key that is a map or an extension")]
    Unsupported,
}

/// What the extra keys of an event come down to.
#[derive(Debug, Default)]
pub(super) struct ExtraKeys<'a> {
    /// The salt of the prompt.
    pub(super) salt: Option<&'a str>,
    /// As in [`BlockStored::extras`](super::BlockStored::extras).
    pub(super) extras: Vec<Box<[u8]>>,
}

impl<'a> ExtraKeys<'a> {
    /// Reads `[[key, …] | nil, …]`. `is_first` = the event begins a prompt. Fewer entries than
    /// `blocks` mean that the last blocks have no keys.
    pub(super) fn read(
        list: Option<Reader<'a>>,
        blocks: usize,
        adapter: Option<&str>,
        is_first: bool,
    ) -> Result<Self, ExtraKeysError> {
        let mut read = Self::default();
        let Some(mut list) = list else {
            return Ok(read);
        };
        let entries = list.array_len()?;
        for block in 0..entries {
            if list.nil()? {
                continue;
            }
            let keys = split(&mut list, adapter)?;
            let salt = (is_first && block == 0)
                .then(|| keys.iter().rposition(|key| { *key }.str().is_ok()))
                .flatten();
            let rest = keys.iter().enumerate().filter(|(at, _)| Some(*at) != salt);
            if let Some(salt) = salt {
                read.salt = keys.get(salt).and_then(|key| { *key }.str().ok());
            }
            let rest: Vec<Reader<'a>> = rest.map(|(_, key)| *key).collect();
            if rest.is_empty() {
                continue;
            }
            if entries > blocks {
                return Err(ExtraKeysError::Count { entries, blocks });
            }
            read.extras.resize(blocks, Box::default());
            if let Some(entry) = read.extras.get_mut(block) {
                *entry = canonical(&rest)?;
            }
        }
        Ok(read)
    }
}

/// The number of keys in an entry of `extras` and their bytes; none where the entry is not an array
/// of whole values.
pub(super) fn keys_of(entry: &[u8]) -> Option<(usize, &[u8])> {
    let mut reader = Reader::new(entry);
    let count = reader.array_len().ok()?;
    let keys = reader.rest();
    for _ in 0..count {
        reader.skip(MAX_NESTING).ok()?;
    }
    reader.rest().is_empty().then_some((count, keys))
}

/// The keys of one block without the adapter.
fn split<'a>(
    list: &mut Reader<'a>,
    adapter: Option<&str>,
) -> Result<Vec<Reader<'a>>, ExtraKeysError> {
    let count = list.array_len()?;
    let mut keys = Vec::new();
    for at in 0..count {
        let key = Reader::new(list.skip(MAX_NESTING)?);
        let is_adapter = at == 0 && adapter.is_some() && { key }.str().ok() == adapter;
        if !is_adapter {
            keys.push(key);
        }
    }
    Ok(keys)
}

fn canonical(keys: &[Reader<'_>]) -> Result<Box<[u8]>, ExtraKeysError> {
    let mut out = Vec::new();
    written(write_array_len(&mut out, keys.len() as u32));
    for key in keys {
        write_canonical(&mut { *key }, &mut out)?;
    }
    Ok(out.into())
}

/// Copies one value in its shortest form. Recursion ends with the nesting that the reader allowed.
fn write_canonical(value: &mut Reader<'_>, out: &mut Vec<u8>) -> Result<(), ExtraKeysError> {
    match value.peek()? {
        Marker::Null => {
            value.nil()?;
            written(write_nil(out).map_err(ValueWriteError::InvalidMarkerWrite));
        }
        Marker::False | Marker::True => {
            let flag = value.bool()?;
            written(write_bool(out, flag).map_err(ValueWriteError::InvalidMarkerWrite));
        }
        Marker::F32 | Marker::F64 => written(write_f64(out, value.f64()?)),
        Marker::FixStr(_) | Marker::Str8 | Marker::Str16 | Marker::Str32 => {
            written(write_str(out, value.str()?));
        }
        Marker::Bin8 | Marker::Bin16 | Marker::Bin32 => written(write_bin(out, value.bytes()?)),
        Marker::FixArray(_) | Marker::Array16 | Marker::Array32 => {
            let count = value.array_len()?;
            written(write_array_len(out, count as u32));
            for _ in 0..count {
                write_canonical(value, out)?;
            }
        }
        Marker::FixMap(_)
        | Marker::Map16
        | Marker::Map32
        | Marker::FixExt1
        | Marker::FixExt2
        | Marker::FixExt4
        | Marker::FixExt8
        | Marker::FixExt16
        | Marker::Ext8
        | Marker::Ext16
        | Marker::Ext32 => return Err(ExtraKeysError::Unsupported),
        _ => match value.integer()? {
            Integer::Unsigned(number) => written(write_uint(out, number)),
            Integer::Negative(number) => written(write_sint(out, number)),
        },
    }
    Ok(())
}

fn written<T>(result: Result<T, ValueWriteError>) {
    result.expect("a Vec<u8> accepts every write");
}
