//! Event batches to msgpack, in the map form of current vLLM or the array form of older releases.
//!
//! The map form is vLLM's of a model with one cache group byte for byte, the needlessly wide header of
//! a stored block's map included: fields in its order, `group_idx` and `kv_cache_spec_kind` because
//! readers filter on them, and `extra_keys` with one entry for each block, which is nil, or the
//! adapter, the extras and the salt. The array form ends before `extra_keys` where no block has any.

use rmp::encode::{
    ValueWriteError, write_array_len, write_bin, write_f64, write_map_len, write_nil, write_str,
    write_uint,
};

use super::extra_keys::keys_of;
use super::{BlockRemoved, BlockStored, EngineHash, Event, EventBatch};
use crate::block_hash::BlockDigest;

/// The two shapes an event has had on the wire.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Form {
    /// A map with a `type` key: vLLM since 2026-06.
    #[default]
    Map,
    /// An array with the tag first: older vLLM and its consumers.
    Array,
}

/// How a block is named on the wire.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum HashForm {
    /// By the low 64 bits of its digest: vLLM's default.
    #[default]
    Integer,
    /// By its whole digest, 16 or 32 bytes.
    Bytes,
}

/// Appends the payload of `batch` to `out`. A salt is carried by a prompt's first block, so an event
/// that has a salt and no block, or a parent, loses the salt. An entry of `extras` that is no
/// msgpack array goes out as one byte string.
pub fn encode(batch: &EventBatch, form: Form, out: &mut Vec<u8>) {
    write_batch(batch, form, out, |writer, hash| writer.uint(hash.0));
}

/// [`encode`] for blocks known by their digests.
pub fn encode_digests(
    batch: &EventBatch<BlockDigest>,
    form: Form,
    hashes: HashForm,
    out: &mut Vec<u8>,
) {
    match hashes {
        HashForm::Integer => write_batch(batch, form, out, |writer, digest| {
            writer.uint(EngineHash::from(digest).0);
        }),
        HashForm::Bytes => write_batch(batch, form, out, |writer, digest| {
            written(write_bin(writer.out, significant(digest)));
        }),
    }
}

/// A digest of 16 bytes lies behind 16 zeros.
fn significant(digest: &BlockDigest) -> &[u8] {
    let (padding, short) = digest.split_at(16);
    if padding == [0; 16] { short } else { digest }
}

fn write_batch<H>(
    batch: &EventBatch<H>,
    form: Form,
    out: &mut Vec<u8>,
    name: impl Fn(&mut Writer<'_>, &H),
) {
    let mut writer = Writer { out };
    writer.array(3);
    writer.float(batch.timestamp_s);
    writer.array(batch.events.len());
    for event in &batch.events {
        match form {
            Form::Map => writer.event_map(event, &name),
            Form::Array => writer.event_array(event, &name),
        }
    }
    writer.optional_uint(batch.data_parallel_rank.map(u64::from));
}

/// The header of the map of a stored block: 11 entries, counted in 16 bits.
const STORED_MAP: [u8; 3] = [0xde, 0, 11];

struct Writer<'a> {
    out: &'a mut Vec<u8>,
}

impl Writer<'_> {
    fn event_map<H>(&mut self, event: &Event<H>, name: &impl Fn(&mut Self, &H)) {
        match event {
            Event::BlockStored(stored) => self.stored_map(stored, name),
            Event::BlockRemoved(removed) => self.removed_map(removed, name),
            Event::AllBlocksCleared => {
                self.map(1);
                self.entry("type").str("AllBlocksCleared");
            }
        }
    }

    fn stored_map<H>(&mut self, stored: &BlockStored<H>, name: &impl Fn(&mut Self, &H)) {
        self.out.extend_from_slice(&STORED_MAP);
        self.entry("type").str("BlockStored");
        self.entry("block_hashes")
            .hashes(&stored.block_hashes, name);
        self.entry("parent_block_hash")
            .optional_hash(stored.parent.as_ref(), name);
        self.entry("token_ids").tokens(&stored.token_ids);
        self.entry("block_size").uint(u64::from(stored.block_size));
        self.entry("lora_id").optional_uint(None);
        self.entry("medium").str(stored.medium.as_str());
        self.entry("lora_name")
            .optional_str(stored.lora_name.as_deref());
        self.entry("extra_keys").extra_keys(stored);
        self.entry("group_idx").uint(0);
        self.entry("kv_cache_spec_kind").str("full_attention");
    }

    fn removed_map<H>(&mut self, removed: &BlockRemoved<H>, name: &impl Fn(&mut Self, &H)) {
        self.map(4);
        self.entry("type").str("BlockRemoved");
        self.entry("block_hashes")
            .hashes(&removed.block_hashes, name);
        self.entry("medium").str(removed.medium.as_str());
        self.entry("group_idx").uint(0);
    }

    fn event_array<H>(&mut self, event: &Event<H>, name: &impl Fn(&mut Self, &H)) {
        match event {
            Event::BlockStored(stored) => {
                self.array(if has_extra_keys(stored) { 9 } else { 8 });
                self.str("BlockStored");
                self.hashes(&stored.block_hashes, name);
                self.optional_hash(stored.parent.as_ref(), name);
                self.tokens(&stored.token_ids);
                self.uint(u64::from(stored.block_size));
                self.optional_uint(None);
                self.str(stored.medium.as_str());
                self.optional_str(stored.lora_name.as_deref());
                if has_extra_keys(stored) {
                    self.extra_keys(stored);
                }
            }
            Event::BlockRemoved(removed) => {
                self.array(3);
                self.str("BlockRemoved");
                self.hashes(&removed.block_hashes, name);
                self.str(removed.medium.as_str());
            }
            Event::AllBlocksCleared => {
                self.array(1);
                self.str("AllBlocksCleared");
            }
        }
    }

    fn entry(&mut self, key: &str) -> &mut Self {
        self.str(key);
        self
    }

    fn hashes<H>(&mut self, hashes: &[H], name: &impl Fn(&mut Self, &H)) {
        self.array(hashes.len());
        for hash in hashes {
            name(self, hash);
        }
    }

    fn optional_hash<H>(&mut self, hash: Option<&H>, name: &impl Fn(&mut Self, &H)) {
        match hash {
            Some(hash) => name(self, hash),
            None => self.optional_uint(None),
        }
    }

    fn tokens(&mut self, tokens: &[u32]) {
        self.array(tokens.len());
        for token in tokens {
            self.uint(u64::from(*token));
        }
    }

    fn extra_keys<H>(&mut self, stored: &BlockStored<H>) {
        self.array(stored.block_hashes.len());
        for block in 0..stored.block_hashes.len() {
            let salt = salt_of(stored).filter(|_| block == 0);
            let extras = stored
                .extras
                .get(block)
                .filter(|entry| !entry.is_empty())
                .map(|entry| &**entry);
            if salt.is_none() && extras.is_none() {
                self.optional_uint(None);
                continue;
            }
            let adapter = stored.lora_name.as_deref();
            let keys = extras.and_then(keys_of);
            let opaque = extras.filter(|_| keys.is_none());
            let count = keys.map_or(0, |(count, _)| count) + usize::from(opaque.is_some());
            self.array(count + usize::from(adapter.is_some()) + usize::from(salt.is_some()));
            if let Some(adapter) = adapter {
                self.str(adapter);
            }
            if let Some((_, keys)) = keys {
                self.out.extend_from_slice(keys);
            }
            if let Some(opaque) = opaque {
                written(write_bin(self.out, opaque));
            }
            if let Some(salt) = salt {
                self.str(salt);
            }
        }
    }

    fn optional_uint(&mut self, value: Option<u64>) {
        match value {
            Some(value) => self.uint(value),
            None => written(write_nil(self.out).map_err(ValueWriteError::InvalidMarkerWrite)),
        }
    }

    fn optional_str(&mut self, value: Option<&str>) {
        match value {
            Some(value) => self.str(value),
            None => self.optional_uint(None),
        }
    }

    fn uint(&mut self, value: u64) {
        written(write_uint(self.out, value));
    }

    fn float(&mut self, value: f64) {
        written(write_f64(self.out, value));
    }

    fn str(&mut self, value: &str) {
        written(write_str(self.out, value));
    }

    fn array(&mut self, count: usize) {
        written(write_array_len(self.out, count as u32));
    }

    fn map(&mut self, count: u32) {
        written(write_map_len(self.out, count));
    }
}

fn has_extra_keys<H>(stored: &BlockStored<H>) -> bool {
    salt_of(stored).is_some() || stored.extras.iter().any(|entry| !entry.is_empty())
}

fn salt_of<H>(stored: &BlockStored<H>) -> Option<&str> {
    stored
        .cache_salt
        .as_deref()
        .filter(|_| stored.parent.is_none())
}

fn written<T>(result: Result<T, ValueWriteError>) {
    result.expect("a Vec<u8> accepts every write");
}
