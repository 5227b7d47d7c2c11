//! Event batches to msgpack, in the map form of current vLLM or the array form of older releases.
//!
//! Fields come in vLLM's order. The map form carries `group_idx` and `kv_cache_spec_kind` as vLLM
//! does for a model with one cache group, because readers filter on them. `extra_keys` is written
//! only where a block has a salt or extras, and then holds one entry for each block: nil, or the
//! adapter, the extras and the salt. Hashes go out as integers.

use rmp::encode::{
    ValueWriteError, write_array_len, write_bin, write_f64, write_map_len, write_nil, write_str,
    write_uint,
};

use super::extra_keys::keys_of;
use super::{BlockRemoved, BlockStored, EngineHash, Event, EventBatch};

/// The two shapes an event has had on the wire.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Form {
    /// A map with a `type` key: vLLM since 2026-06.
    #[default]
    Map,
    /// An array with the tag first: older vLLM and its consumers.
    Array,
}

/// Appends the payload of `batch` to `out`. A salt is carried by a prompt's first block, so an event
/// that has a salt and no block, or a parent, loses the salt. An entry of `extras` that is no
/// msgpack array goes out as one byte string.
pub fn encode(batch: &EventBatch, form: Form, out: &mut Vec<u8>) {
    let mut writer = Writer { out };
    writer.array(3);
    writer.float(batch.timestamp_s);
    writer.array(batch.events.len());
    for event in &batch.events {
        match form {
            Form::Map => writer.event_map(event),
            Form::Array => writer.event_array(event),
        }
    }
    writer.optional_uint(batch.data_parallel_rank.map(u64::from));
}

struct Writer<'a> {
    out: &'a mut Vec<u8>,
}

impl Writer<'_> {
    fn event_map(&mut self, event: &Event) {
        match event {
            Event::BlockStored(stored) => self.stored_map(stored),
            Event::BlockRemoved(removed) => self.removed_map(removed),
            Event::AllBlocksCleared => {
                self.map(1);
                self.entry("type").str("AllBlocksCleared");
            }
        }
    }

    fn stored_map(&mut self, stored: &BlockStored) {
        self.map(if has_extra_keys(stored) { 11 } else { 10 });
        self.entry("type").str("BlockStored");
        self.entry("block_hashes").hashes(&stored.block_hashes);
        self.entry("parent_block_hash")
            .optional_uint(stored.parent.map(|hash| hash.0));
        self.entry("token_ids").tokens(&stored.token_ids);
        self.entry("block_size").uint(u64::from(stored.block_size));
        self.entry("lora_id").optional_uint(None);
        self.entry("medium").str(stored.medium.as_str());
        self.entry("lora_name")
            .optional_str(stored.lora_name.as_deref());
        if has_extra_keys(stored) {
            self.entry("extra_keys").extra_keys(stored);
        }
        self.entry("group_idx").uint(0);
        self.entry("kv_cache_spec_kind").str("full_attention");
    }

    fn removed_map(&mut self, removed: &BlockRemoved) {
        self.map(4);
        self.entry("type").str("BlockRemoved");
        self.entry("block_hashes").hashes(&removed.block_hashes);
        self.entry("medium").str(removed.medium.as_str());
        self.entry("group_idx").uint(0);
    }

    fn event_array(&mut self, event: &Event) {
        match event {
            Event::BlockStored(stored) => {
                self.array(if has_extra_keys(stored) { 9 } else { 8 });
                self.str("BlockStored");
                self.hashes(&stored.block_hashes);
                self.optional_uint(stored.parent.map(|hash| hash.0));
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
                self.hashes(&removed.block_hashes);
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

    fn hashes(&mut self, hashes: &[EngineHash]) {
        self.array(hashes.len());
        for hash in hashes {
            self.uint(hash.0);
        }
    }

    fn tokens(&mut self, tokens: &[u32]) {
        self.array(tokens.len());
        for token in tokens {
            self.uint(u64::from(*token));
        }
    }

    fn extra_keys(&mut self, stored: &BlockStored) {
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

fn has_extra_keys(stored: &BlockStored) -> bool {
    salt_of(stored).is_some() || stored.extras.iter().any(|entry| !entry.is_empty())
}

fn salt_of(stored: &BlockStored) -> Option<&str> {
    stored
        .cache_salt
        .as_deref()
        .filter(|_| stored.parent.is_none())
}

fn written<T>(result: Result<T, ValueWriteError>) {
    result.expect("a Vec<u8> accepts every write");
}
