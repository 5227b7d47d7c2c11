//! KV events: what a worker publishes when blocks enter or leave its prefix cache, and their
//! msgpack codec.
//!
//! A worker sends one ZMQ message of three frames per scheduler step that changed its cache: the
//! topic, a sequence number as u64 big-endian, and a payload, which is what this module reads and
//! writes. The payload is vLLM's, in both of its shapes, so that vLLM, SGLang and our own worker
//! can be watched alike:
//!
//! ```text
//! payload = [timestamp f64 seconds, [event, …], data_parallel_rank uint | nil]
//!           the rank may be missing
//!         | {"ts": …, "events": …, "data_parallel_rank": …}
//!
//! map form (vLLM since 2026-06; our default): keys in any order, unknown keys ignored
//!   {"type": "BlockStored", "block_hashes": [hash, …], "parent_block_hash": hash | nil,
//!    "token_ids": [uint, …], "block_size": uint, "lora_id": nil,
//!    "medium": "GPU" | "CPU" | "STORAGE", "lora_name": str | nil,
//!    "extra_keys": [[key, …] | nil, …], "group_idx": uint, "kv_cache_spec_kind": str}
//!    key = [multimodal identifier str, offset in the block int] | adapter or salt str | bytes
//!   {"type": "BlockRemoved", "block_hashes": [hash, …], "medium": …, "group_idx": uint}
//!   {"type": "AllBlocksCleared"}
//!
//! array form (older vLLM, SGLang): the same fields by position, trailing ones may be missing
//!   ["BlockStored", block_hashes, parent_block_hash, token_ids, block_size,
//!    lora_id?, medium?, lora_name?, extra_keys?, group_idx?, kv_cache_spec_kind?, …]
//!   ["BlockRemoved", block_hashes, medium?, group_idx?, …]
//!   ["AllBlocksCleared"]
//!   SGLang has no lora_name: a map there is its metadata, of which the key "cache_salt" is read,
//!   and a list there is its extra_keys
//! ```
//!
//! A hash is an integer or a byte string; see [`EngineHash`]. One event that is unknown or
//! malformed is skipped and reported alone, because the events around it still are true. Only a
//! payload whose msgpack cannot be followed at all is refused as a whole. [`Batch`] reads event by
//! event, so that a large payload costs its reader no more memory than its largest event, and a
//! pause between any two events; [`decode`] collects them all.
//!
//! **Cache groups.** A model with several kinds of attention keeps several caches, and tells of
//! each block once per group, always under the same hash. Stored events name their group and its
//! kind, removed ones the group alone, so each event comes with its group: who mixed them would
//! take a block out because another group lost it.
//!
//! This module does not check that hashes, tokens and block size fit together: a worker may hash
//! larger or smaller blocks than it allocates, and only the index that consumes the event can say
//! what it makes of that. It knows neither topics nor sequence numbers.

mod batch;
mod decode;
mod encode;
mod extra_keys;
mod reader;
#[cfg(test)]
mod tests;

use crate::block_hash::BlockDigest;

pub use batch::{Batch, DecodeError, Decoded, decode};
pub use decode::{GroupEvent, Skip, Skipped};
pub use encode::{Form, HashForm, encode, encode_digests};

/// Payloads above this many bytes are refused unread. A step of 8,192 tokens takes some 40 KiB.
pub const MAX_PAYLOAD_BYTES: usize = 16 << 20;

/// Batches of more events are refused. A step tells of some thousand requests at most, each with a
/// handful of events.
pub const MAX_EVENTS: usize = 1 << 20;

/// Events of more tokens are skipped as malformed: an event is about one prompt, and no engine takes
/// one this long. It bounds how long reading one event can take.
pub const MAX_EVENT_TOKENS: usize = 1 << 20;

/// Events of more blocks are skipped as malformed, like those of too many tokens.
pub const MAX_EVENT_BLOCKS: usize = 1 << 20;

/// [`decode`] lists this many skipped events; further ones are left out of its list.
pub const MAX_SKIPPED_LISTED: usize = 64;

/// Deeper nesting of arrays and maps is refused. Real events nest five deep at most.
pub const MAX_NESTING: usize = 16;

/// An engine's name for one block. It means something only together with the endpoint and the model
/// it came from.
///
/// Integers are taken as they are (a negative one by its 64 bits); of a byte string, the last 8
/// bytes as a big-endian number, which is what vLLM itself publishes when it is asked for integers.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct EngineHash(pub u64);

impl From<&BlockDigest> for EngineHash {
    fn from(digest: &BlockDigest) -> Self {
        Self::of_bytes(digest)
    }
}

impl EngineHash {
    /// The last 8 bytes, big-endian: what came before them is shifted out.
    fn of_bytes(bytes: &[u8]) -> Self {
        Self(
            bytes
                .iter()
                .fold(0, |hash, byte| hash << 8 | u64::from(*byte)),
        )
    }
}

/// The kind of memory that holds a block.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Medium {
    /// The accelerator's own memory; also what an event without a medium means.
    #[default]
    Gpu,
    /// Host memory.
    Cpu,
    /// Anything slower: local disk or a remote store.
    Disk,
}

impl Medium {
    /// The name on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Gpu => "GPU",
            Self::Cpu => "CPU",
            Self::Disk => "STORAGE",
        }
    }

    /// Reads a name in any case: vLLM's, or SGLang's `CPU_PINNED`, `DISK` and `EXTERNAL`.
    pub fn parse(name: &str) -> Option<Self> {
        const NAMES: [(&str, Medium); 6] = [
            ("GPU", Medium::Gpu),
            ("CPU", Medium::Cpu),
            ("CPU_PINNED", Medium::Cpu),
            ("STORAGE", Medium::Disk),
            ("DISK", Medium::Disk),
            ("EXTERNAL", Medium::Disk),
        ];
        NAMES
            .iter()
            .find(|(known, _)| known.eq_ignore_ascii_case(name))
            .map(|(_, medium)| *medium)
    }
}

/// Consecutive blocks of one prompt entered the cache.
///
/// `H` is how a block is named: readers know it by an [`EngineHash`], the engine that made it by its
/// whole [`BlockDigest`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BlockStored<H = EngineHash> {
    /// The new blocks, in prompt order.
    pub block_hashes: Vec<H>,
    /// The block before the first of them; none at the start of a prompt.
    pub parent: Option<H>,
    /// Token ids of all the blocks together.
    pub token_ids: Vec<u32>,
    /// Tokens per block; never 0 in a decoded event.
    pub block_size: u32,
    /// The LoRA adapter the blocks were computed under.
    pub lora_name: Option<String>,
    /// Where the blocks lie.
    pub medium: Medium,
    /// The cache salt in the first block's hash. Only a prompt's very first block carries one, so it
    /// is neither read nor written for an event that has a parent.
    pub cache_salt: Option<String>,
    /// What besides tokens, adapter and salt tells each block from others: identifiers of images
    /// and their offsets, digests of prompt embeddings. One entry per block, or none at all where no
    /// block has any.
    ///
    /// An entry is a msgpack array of the block's remaining keys in their order on the wire, each
    /// in msgpack's shortest form (floats in 64 bits), so equal keys make equal bytes whoever sent
    /// them; a block without such keys has an empty entry. It goes into the request key as it is.
    pub extras: Vec<Box<[u8]>>,
}

/// Blocks left the cache.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BlockRemoved<H = EngineHash> {
    /// The blocks, in the order of their eviction.
    pub block_hashes: Vec<H>,
    /// Where they lay.
    pub medium: Medium,
}

/// One change of a worker's prefix cache.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event<H = EngineHash> {
    /// See [`BlockStored`].
    BlockStored(BlockStored<H>),
    /// See [`BlockRemoved`].
    BlockRemoved(BlockRemoved<H>),
    /// The cache is empty. A worker sends it when it starts, too.
    AllBlocksCleared,
}

impl<H> Event<H> {
    /// The same event with each block's name replaced.
    pub fn map_hashes<T>(self, name: impl Fn(H) -> T) -> Event<T> {
        match self {
            Self::BlockStored(stored) => Event::BlockStored(BlockStored {
                block_hashes: stored.block_hashes.into_iter().map(&name).collect(),
                parent: stored.parent.map(name),
                token_ids: stored.token_ids,
                block_size: stored.block_size,
                lora_name: stored.lora_name,
                medium: stored.medium,
                cache_salt: stored.cache_salt,
                extras: stored.extras,
            }),
            Self::BlockRemoved(removed) => Event::BlockRemoved(BlockRemoved {
                block_hashes: removed.block_hashes.into_iter().map(name).collect(),
                medium: removed.medium,
            }),
            Self::AllBlocksCleared => Event::AllBlocksCleared,
        }
    }
}

/// What one scheduler step changed.
#[derive(Clone, PartialEq, Debug)]
pub struct EventBatch<H = EngineHash> {
    /// Unix time of the step in seconds.
    pub timestamp_s: f64,
    /// The changes, in the order in which they happened.
    pub events: Vec<Event<H>>,
    /// The data-parallel rank that made them.
    pub data_parallel_rank: Option<u32>,
}
