//! Request keys: an XXH3 chain over token ids, ours alone.
//!
//! The picker's index is keyed by them, and recomputes them from the token ids that a `BlockStored`
//! event carries, so it needs no seed in common with any engine. XXH3-64 is chosen for speed: a
//! block of 16 tokens costs some tens of nanoseconds. It is not collision resistant against an
//! adversary; a collision costs a misrouted request and never mixes two requests' data, because
//! the engine keeps its own hashes.
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

    pub(super) fn long_child(self, tokens: &[u32], extras: &[u8]) -> Self {
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
