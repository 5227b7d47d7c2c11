//! The two block hash recipes: request keys (XXH3 chain) and vLLM's `sha256_cbor` block hash.
//!
//! A *block* is a run of `block_size` consecutive token ids of one prompt. Both recipes chain: the
//! hash of a block covers the hash of the block before it, so one equal hash proves that the whole
//! prefix is equal.
//!
//! **Request keys** are ours. The picker's index is keyed by them, and recomputes them from the
//! token ids that a `BlockStored` event carries, so it needs no seed in common with any engine.
//! XXH3-64 is chosen for speed: a block of 16 tokens costs some tens of nanoseconds. It is not
//! collision resistant against an adversary; a collision costs a misrouted request and never mixes
//! two requests' data, because the engine keeps its own hashes.
//!
//! ```text
//! root  = XXH3-64 seeded with ROOT_SEED over  field(model) field(adapter) field(cache_salt)
//!         field(absent)  = 00
//!         field(string)  = 01, length as u32 LE, UTF-8 bytes
//! child = XXH3-64 over  parent key as u64 LE, token count as u32 LE,
//!         each token id as u32 LE, extras to the end
//! ```
//!
//! The token count frames the ids, so that no choice of ids can be mistaken for another choice of
//! extras; the seed keeps roots apart from children.
//!
//! **`sha256_cbor`** is the engine's own hash, bit for bit what vLLM computes with
//! `--prefix-caching-hash-algo sha256_cbor`: SHA-256 over the canonical CBOR (RFC 8949 §4.2,
//! shortest heads) of the tuple `(parent, (token, …), extra)`:
//!
//! ```text
//! 83                     array of 3
//!   58 20 <32 bytes>     parent digest, or the none hash for the first block
//!   90 <uint> × 16       the token ids
//!   f6                   null without extras, else an array of
//!                        ["lora", name, path] and ["cache_salt", salt]
//! ```
//!
//! The pickle-based recipes of vLLM are not reproduced: their bytes depend on the Python release
//! that wrote them.

use sha2::{Digest, Sha256};
use xxhash_rust::xxh3::{Xxh3Default, xxh3_64, xxh3_64_with_seed};

/// Seed of the root key's XXH3, so that a root never equals a child by construction of its input.
const ROOT_SEED: u64 = 0x706f_696e_7473_6d61;

/// Tokens of a block in most engines.
const COMMON_TOKENS: usize = 16;

/// Bytes of a block hashed from the stack in one call: room for 64 tokens and some extras. A longer
/// block takes the streaming form of the same hash.
const STACK_BYTES: usize = 288;

/// Bytes before the token ids of a child: the parent key and the token count.
const CHILD_HEAD_BYTES: usize = 12;

/// One block of one prompt under one [`KeyScope`], with everything before it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct RequestKey(pub u64);

/// What must be equal for two prompts to share KV blocks at all.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct KeyScope<'a> {
    /// Name of the base model.
    pub model: &'a str,
    /// Name of the LoRA adapter, if the request runs under one.
    pub adapter: Option<&'a str>,
    /// The client's salt, which keeps its blocks from being shared.
    pub cache_salt: Option<&'a str>,
}

impl RequestKey {
    /// The key that the first block of every prompt under `scope` has as its parent.
    pub fn root(scope: &KeyScope<'_>) -> Self {
        let fields = [Some(scope.model), scope.adapter, scope.cache_salt];
        let mut buffer = StackBuffer::new();
        let fits = fields.iter().all(|field| match field {
            None => buffer.push(&[0]),
            Some(text) => {
                buffer.push(&[1])
                    && buffer.push(&(text.len() as u32).to_le_bytes())
                    && buffer.push(text.as_bytes())
            }
        });
        if fits {
            return Self(xxh3_64_with_seed(buffer.bytes(), ROOT_SEED));
        }
        let mut hasher = xxhash_rust::xxh3::Xxh3::with_seed(ROOT_SEED);
        for field in fields {
            match field {
                None => hasher.update(&[0]),
                Some(text) => {
                    hasher.update(&[1]);
                    hasher.update(&(text.len() as u32).to_le_bytes());
                    hasher.update(text.as_bytes());
                }
            }
        }
        Self(hasher.digest())
    }

    /// The key of the block that holds `tokens` after the prefix that `self` stands for. `extras`
    /// is whatever else tells two blocks of equal tokens apart (the hash of an image, for example);
    /// empty for plain text.
    #[must_use]
    pub fn child(self, tokens: &[u32], extras: &[u8]) -> Self {
        if let (Ok(tokens), true) = (<&[u32; COMMON_TOKENS]>::try_from(tokens), extras.is_empty()) {
            return self.common_child(tokens);
        }
        let length = CHILD_HEAD_BYTES + tokens.len() * 4 + extras.len();
        if length > STACK_BYTES {
            return self.long_child(tokens, extras);
        }
        let mut buffer = [0_u8; STACK_BYTES];
        let (head, rest) = buffer.split_at_mut(CHILD_HEAD_BYTES);
        let (parent, count) = head.split_at_mut(8);
        parent.copy_from_slice(&self.0.to_le_bytes());
        count.copy_from_slice(&(tokens.len() as u32).to_le_bytes());
        let (ids, rest) = rest.split_at_mut(tokens.len() * 4);
        for (place, token) in ids.chunks_exact_mut(4).zip(tokens) {
            place.copy_from_slice(&token.to_le_bytes());
        }
        rest[..extras.len()].copy_from_slice(extras);
        Self(xxh3_64(&buffer[..length]))
    }

    /// The same for the engines' default block, whose length the compiler then knows: a pick of a
    /// long prompt computes hundreds of these.
    #[inline]
    fn common_child(self, tokens: &[u32; COMMON_TOKENS]) -> Self {
        let mut buffer = [0_u8; CHILD_HEAD_BYTES + COMMON_TOKENS * 4];
        let (head, ids) = buffer.split_at_mut(CHILD_HEAD_BYTES);
        head[..8].copy_from_slice(&self.0.to_le_bytes());
        head[8..].copy_from_slice(&(COMMON_TOKENS as u32).to_le_bytes());
        for (place, token) in ids.chunks_exact_mut(4).zip(tokens) {
            place.copy_from_slice(&token.to_le_bytes());
        }
        Self(xxh3_64(&buffer))
    }

    fn long_child(self, tokens: &[u32], extras: &[u8]) -> Self {
        let mut hasher = Xxh3Default::new();
        hasher.update(&self.0.to_le_bytes());
        hasher.update(&(tokens.len() as u32).to_le_bytes());
        for token in tokens {
            hasher.update(&token.to_le_bytes());
        }
        hasher.update(extras);
        Self(hasher.digest())
    }
}

/// Fills `out` with the key of each full block of `tokens`, in order. What `out` held before is
/// dropped, its allocation is reused. A last block that is not full has no key, and a `block_size`
/// of 0 yields none at all.
pub fn request_keys(
    root: RequestKey,
    tokens: &[u32],
    block_size: usize,
    out: &mut Vec<RequestKey>,
) {
    out.clear();
    if block_size == 0 {
        return;
    }
    out.reserve(tokens.len() / block_size);
    let mut parent = root;
    for block in tokens.chunks_exact(block_size) {
        parent = parent.child(block, &[]);
        out.push(parent);
    }
}

/// A SHA-256 block hash as the engine keeps it: 32 bytes.
pub type BlockDigest = [u8; 32];

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

/// vLLM's seed string when `PYTHONHASHSEED` is not set.
pub const DEFAULT_SEED: &str = "vllm-none-hash";

/// The parent of every first block: SHA-256 over the canonical CBOR of the text string `seed`.
pub fn none_hash(seed: &str) -> BlockDigest {
    let mut hasher = Sha256::new();
    cbor_text(&mut hasher, seed);
    hasher.finalize().into()
}

/// The hash of one full block: its `tokens` after the prefix that `parent` stands for. `extra` is
/// empty for a plain block.
pub fn sha256_cbor(parent: &BlockDigest, tokens: &[u32], extra: &[ExtraKey<'_>]) -> BlockDigest {
    let mut hasher = Sha256::new();
    cbor_head(&mut hasher, CBOR_ARRAY, 3);
    cbor_head(&mut hasher, CBOR_BYTES, parent.len() as u64);
    hasher.update(parent);
    cbor_head(&mut hasher, CBOR_ARRAY, tokens.len() as u64);
    for token in tokens {
        cbor_head(&mut hasher, CBOR_UNSIGNED, u64::from(*token));
    }
    if extra.is_empty() {
        hasher.update([CBOR_NULL]);
    } else {
        cbor_head(&mut hasher, CBOR_ARRAY, extra.len() as u64);
    }
    for key in extra {
        match key {
            ExtraKey::Lora { name, path } => {
                cbor_head(&mut hasher, CBOR_ARRAY, 3);
                cbor_text(&mut hasher, "lora");
                cbor_text(&mut hasher, name);
                cbor_text(&mut hasher, path);
            }
            ExtraKey::CacheSalt(salt) => {
                cbor_head(&mut hasher, CBOR_ARRAY, 2);
                cbor_text(&mut hasher, "cache_salt");
                cbor_text(&mut hasher, salt);
            }
        }
    }
    hasher.finalize().into()
}

/// CBOR major types, already shifted into the upper three bits of the head byte.
const CBOR_UNSIGNED: u8 = 0 << 5;
const CBOR_BYTES: u8 = 2 << 5;
const CBOR_TEXT: u8 = 3 << 5;
const CBOR_ARRAY: u8 = 4 << 5;
const CBOR_NULL: u8 = 0xf6;

fn cbor_text(hasher: &mut Sha256, text: &str) {
    cbor_head(hasher, CBOR_TEXT, text.len() as u64);
    hasher.update(text.as_bytes());
}

/// Writes a head in its shortest form, as canonical CBOR asks.
fn cbor_head(hasher: &mut Sha256, major: u8, value: u64) {
    if value < 24 {
        hasher.update([major | value as u8]);
    } else if let Ok(byte) = u8::try_from(value) {
        hasher.update([major | 0x18, byte]);
    } else if let Ok(short) = u16::try_from(value) {
        hasher.update([major | 0x19]);
        hasher.update(short.to_be_bytes());
    } else if let Ok(word) = u32::try_from(value) {
        hasher.update([major | 0x1a]);
        hasher.update(word.to_be_bytes());
    } else {
        hasher.update([major | 0x1b]);
        hasher.update(value.to_be_bytes());
    }
}

/// A byte buffer on the stack that refuses what does not fit.
struct StackBuffer {
    bytes: [u8; STACK_BYTES],
    length: usize,
}

impl StackBuffer {
    fn new() -> Self {
        Self {
            bytes: [0; STACK_BYTES],
            length: 0,
        }
    }

    fn push(&mut self, more: &[u8]) -> bool {
        match self.bytes.get_mut(self.length..self.length + more.len()) {
            Some(place) => {
                place.copy_from_slice(more);
                self.length += more.len();
                true
            }
            None => false,
        }
    }

    fn bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

#[cfg(test)]
mod tests;
