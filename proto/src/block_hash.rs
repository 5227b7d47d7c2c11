//! Hashes of blocks: the picker's request keys, and the recipes by which engines name blocks.
//!
//! A *block* is a run of `block_size` consecutive token ids of one prompt. All recipes chain: the
//! hash of a block covers the hash of the block before it, so one equal hash proves that the whole
//! prefix is equal.
//!
//! - [`RequestKey`] is the picker's own, recomputed from the tokens in KV events.
//! - [`sha256_cbor`], [`sha256_pickle`], [`xxh3_cbor`] and [`xxh3_pickle`] are vLLM's, bit for bit:
//!   a digest over the serialised tuple `(parent, (token, …), extra)`.
//! - [`siphash`] is our engine's fast one, keyed by a secret.
//!
//! Which of them an engine may use where strangers share its cache: SHA-256 in any case; SipHash as
//! long as its key is secret; XXH3 only among friends, because it is no cryptographic hash and a
//! seed does not make it one.

mod cbor;
mod digest;
mod pickle;
mod request_key;
mod sip;
#[cfg(test)]
mod tests;

use sha2::Sha256;

use self::digest::{BlockHasher, Buffered, Xxh3Digest};

pub use request_key::{KeyScope, RequestKey, request_keys};
pub use sip::{SipKey, siphash};

/// A block's hash as an engine keeps it. A recipe of 16 bytes fills the last 16 and leaves zeros
/// before them, so that the last 8 bytes are what events carry as an integer, whichever recipe made
/// it.
pub type BlockDigest = [u8; 32];

/// vLLM's seed string when `PYTHONHASHSEED` is not set.
pub const DEFAULT_SEED: &str = "vllm-none-hash";

/// What besides its tokens goes into a block's hash. vLLM's order is the adapter first, then the
/// salt.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ExtraKey<'a> {
    /// The LoRA adapter, in every block of the prompt. Its path is part of the hash, so that two
    /// adapters loaded under one name after another share nothing.
    Lora {
        /// Name under which requests ask for the adapter.
        name: &'a str,
        /// Where its weights were read from.
        path: &'a str,
    },
    /// The request's cache salt, in the first block only: the chain carries it on.
    CacheSalt(&'a str),
}

/// The parent of every first block under [`sha256_cbor`]: SHA-256 over the canonical CBOR of the
/// text string `seed`.
pub fn none_hash(seed: &str) -> BlockDigest {
    cbor_root::<Sha256>(seed)
}

/// vLLM's `sha256_cbor`: SHA-256 over canonical CBOR. The hash of one full block: its `tokens` after
/// the prefix that `parent` stands for. `extra` is empty for a plain block.
pub fn sha256_cbor(parent: &BlockDigest, tokens: &[u32], extra: &[ExtraKey<'_>]) -> BlockDigest {
    cbor_block::<Sha256>(parent, tokens, extra)
}

/// [`none_hash`] for [`sha256_pickle`].
pub fn sha256_pickle_root(seed: &str) -> BlockDigest {
    pickle_root::<Sha256>(seed)
}

/// vLLM's `sha256`, its default: SHA-256 over Python's pickle, protocol 5.
pub fn sha256_pickle(parent: &BlockDigest, tokens: &[u32], extra: &[ExtraKey<'_>]) -> BlockDigest {
    pickle_block::<Sha256>(parent, tokens, extra)
}

/// [`none_hash`] for [`xxh3_cbor`].
pub fn xxh3_cbor_root(seed: &str) -> BlockDigest {
    cbor_root::<Xxh3Digest>(seed)
}

/// vLLM's `xxhash_cbor`: XXH3-128 over canonical CBOR.
pub fn xxh3_cbor(parent: &BlockDigest, tokens: &[u32], extra: &[ExtraKey<'_>]) -> BlockDigest {
    cbor_block::<Xxh3Digest>(parent, tokens, extra)
}

/// [`none_hash`] for [`xxh3_pickle`].
pub fn xxh3_pickle_root(seed: &str) -> BlockDigest {
    pickle_root::<Xxh3Digest>(seed)
}

/// vLLM's `xxhash`: XXH3-128 over Python's pickle, protocol 5.
pub fn xxh3_pickle(parent: &BlockDigest, tokens: &[u32], extra: &[ExtraKey<'_>]) -> BlockDigest {
    pickle_block::<Xxh3Digest>(parent, tokens, extra)
}

fn cbor_root<H: BlockHasher>(seed: &str) -> BlockDigest {
    let mut out = Buffered::<H>::default();
    cbor::text(&mut out, seed);
    out.finish()
}

fn cbor_block<H: BlockHasher>(
    parent: &BlockDigest,
    tokens: &[u32],
    extra: &[ExtraKey<'_>],
) -> BlockDigest {
    let mut out = Buffered::<H>::default();
    cbor::block(&mut out, H::significant(parent), tokens, extra);
    out.finish()
}

fn pickle_root<H: BlockHasher>(seed: &str) -> BlockDigest {
    let mut out = Buffered::<H>::default();
    pickle::text_document(&mut out, seed);
    out.finish()
}

fn pickle_block<H: BlockHasher>(
    parent: &BlockDigest,
    tokens: &[u32],
    extra: &[ExtraKey<'_>],
) -> BlockDigest {
    let mut out = Buffered::<H>::default();
    pickle::block_document(&mut out, H::significant(parent), tokens, extra);
    out.finish()
}
