//! From token ids to the digests that name blocks.
//!
//! `digest(i) = H(digest(i-1), tokens of block i, extra keys of block i)`; the cache salt is an extra key of block 0
//! and reaches the others through the chain. The wire recipes live in `pointsman_proto::block_hash`; this enum is the
//! one place where a further one is added (`sha256` over pickle, xxhash).

use pointsman_proto::block_hash::{BlockDigest, ExtraKey, none_hash, sha256_cbor};

/// How blocks are hashed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HashRecipe {
    /// vLLM's `sha256_cbor`.
    Sha256Cbor {
        /// Parent of every first block.
        none_hash: BlockDigest,
    },
}

impl HashRecipe {
    /// vLLM's `sha256_cbor` whose root is made from `seed` (vLLM: `PYTHONHASHSEED`, or a fixed default).
    pub fn sha256_cbor(seed: &str) -> Self {
        Self::Sha256Cbor {
            none_hash: none_hash(seed),
        }
    }

    /// The recipe's name in vLLM's `--prefix-caching-hash-algo`.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Sha256Cbor { .. } => "sha256_cbor",
        }
    }

    /// Appends the digests of those full blocks of `tokens` that `digests` does not hold yet.
    pub fn extend(
        &self,
        digests: &mut Vec<BlockDigest>,
        tokens: &[u32],
        block_size: u32,
        cache_salt: Option<&str>,
    ) {
        let blocks = tokens.chunks_exact(block_size as usize);
        for block in blocks.skip(digests.len()) {
            let digest = self.digest(digests.last(), block, cache_salt);
            digests.push(digest);
        }
    }

    fn digest(
        &self,
        parent: Option<&BlockDigest>,
        tokens: &[u32],
        cache_salt: Option<&str>,
    ) -> BlockDigest {
        let Self::Sha256Cbor { none_hash } = self;
        match (parent, cache_salt) {
            (Some(parent), _) => sha256_cbor(parent, tokens, &[]),
            (None, None) => sha256_cbor(none_hash, tokens, &[]),
            (None, Some(salt)) => sha256_cbor(none_hash, tokens, &[ExtraKey::CacheSalt(salt)]),
        }
    }
}
