//! From token ids to the digests that name blocks.
//!
//! `digest(i) = H(digest(i-1), tokens of block i, extra keys of block i)`; the cache salt is an extra key of block 0
//! and reaches the others through the chain. The functions themselves live in `pointsman_proto::block_hash`.
//!
//! Whether a hit is the right prefix rests on the digest alone, as tokens are not compared again. Where strangers share
//! a cache this must hold against someone who looks for two prompts of one digest: SHA-256 withstands that, SipHash
//! does while its key is secret, XXH3 does not. The default is SipHash under a key that lives and dies with the
//! process: the price is that two workers name equal blocks differently, which only matters to whoever compares
//! engine hashes across workers.

use pointsman_proto::block_hash::{
    BlockDigest, ExtraKey, SipKey, none_hash, sha256_cbor, sha256_pickle, sha256_pickle_root,
    siphash, xxh3_cbor, xxh3_cbor_root, xxh3_pickle, xxh3_pickle_root,
};

/// The values of `--prefix-caching-hash-algo`: vLLM's four, and one of our own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HashAlgorithm {
    /// SipHash-2-4 with 128 bits of output: fast, and safe as long as its seed is secret.
    #[default]
    Siphash,
    /// SHA-256 over canonical CBOR.
    Sha256Cbor,
    /// SHA-256 over Python's pickle; vLLM's default.
    Sha256,
    /// XXH3-128 over canonical CBOR: for callers who trust one another.
    XxhashCbor,
    /// XXH3-128 over Python's pickle: for callers who trust one another.
    Xxhash,
}

impl HashAlgorithm {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Siphash,
        Self::Sha256Cbor,
        Self::Sha256,
        Self::XxhashCbor,
        Self::Xxhash,
    ];

    /// The name on the command line and in `cache_config_info`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Siphash => "siphash",
            Self::Sha256Cbor => "sha256_cbor",
            Self::Sha256 => "sha256",
            Self::XxhashCbor => "xxhash_cbor",
            Self::Xxhash => "xxhash",
        }
    }

    /// Whether a seed that nobody chose has to be a random one; vLLM's rule for XXH3, and what makes SipHash safe.
    pub fn wants_random_seed(self) -> bool {
        !matches!(self, Self::Sha256Cbor | Self::Sha256)
    }
}

/// How blocks are hashed: an algorithm and where its chains begin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HashRecipe {
    algorithm: HashAlgorithm,
    /// Parent of every first block.
    root: BlockDigest,
    /// Of SipHash; the others do not look at it.
    key: SipKey,
}

impl HashRecipe {
    /// The recipe that `seed` selects among those of an algorithm (vLLM: `PYTHONHASHSEED`, or a fixed default). Two
    /// recipes of equal algorithm and seed are the same.
    pub fn new(algorithm: HashAlgorithm, seed: &str) -> Self {
        let root = match algorithm {
            HashAlgorithm::Siphash => BlockDigest::default(),
            HashAlgorithm::Sha256Cbor => none_hash(seed),
            HashAlgorithm::Sha256 => sha256_pickle_root(seed),
            HashAlgorithm::XxhashCbor => xxh3_cbor_root(seed),
            HashAlgorithm::Xxhash => xxh3_pickle_root(seed),
        };
        let key = match algorithm {
            HashAlgorithm::Siphash => SipKey::from_seed(seed),
            _ => SipKey::new([0; 16]),
        };
        Self {
            algorithm,
            root,
            key,
        }
    }

    /// vLLM's `sha256_cbor`.
    pub fn sha256_cbor(seed: &str) -> Self {
        Self::new(HashAlgorithm::Sha256Cbor, seed)
    }

    /// The recipe's name in `--prefix-caching-hash-algo`.
    pub fn name(&self) -> &'static str {
        self.algorithm.name()
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
            let digest = match (digests.last(), cache_salt) {
                (Some(parent), _) => self.digest(parent, block, &[]),
                (None, None) => self.digest(&self.root, block, &[]),
                (None, Some(salt)) => self.digest(&self.root, block, &[ExtraKey::CacheSalt(salt)]),
            };
            digests.push(digest);
        }
    }

    fn digest(&self, parent: &BlockDigest, tokens: &[u32], extra: &[ExtraKey<'_>]) -> BlockDigest {
        match self.algorithm {
            HashAlgorithm::Siphash => siphash(self.key, parent, tokens, extra),
            HashAlgorithm::Sha256Cbor => sha256_cbor(parent, tokens, extra),
            HashAlgorithm::Sha256 => sha256_pickle(parent, tokens, extra),
            HashAlgorithm::XxhashCbor => xxh3_cbor(parent, tokens, extra),
            HashAlgorithm::Xxhash => xxh3_pickle(parent, tokens, extra),
        }
    }
}
