//! From a stream of small writes to a digest.
//!
//! A serialised block is some 150 bytes in pieces of one to five. They are gathered on the stack and
//! hashed in one call; only a block that does not fit takes the streaming form of the same hash.

use sha2::{Digest, Sha256};
use xxhash_rust::xxh3::{Xxh3Default, xxh3_128};

use super::BlockDigest;

/// Bytes gathered before the first are hashed: room for 64 tokens in either serialisation.
const BUFFER_BYTES: usize = 448;

/// Takes serialised bytes.
pub(super) trait Put {
    fn put(&mut self, bytes: &[u8]);
}

/// A hash function behind a recipe.
pub(super) trait BlockHasher: Default {
    /// Bytes of its digest.
    const BYTES: usize;

    fn update(&mut self, bytes: &[u8]);

    fn finish(self) -> BlockDigest;

    /// All of it in one call.
    fn once(bytes: &[u8]) -> BlockDigest;

    /// The part of a digest of its own that is not padding.
    fn significant(digest: &BlockDigest) -> &[u8] {
        &digest[digest.len() - Self::BYTES..]
    }
}

impl BlockHasher for Sha256 {
    const BYTES: usize = 32;

    fn update(&mut self, bytes: &[u8]) {
        Digest::update(self, bytes);
    }

    fn finish(self) -> BlockDigest {
        self.finalize().into()
    }

    fn once(bytes: &[u8]) -> BlockDigest {
        Sha256::digest(bytes).into()
    }
}

/// XXH3-128 with its 16 bytes in Python's order, which is big-endian.
#[derive(Default)]
pub(super) struct Xxh3Digest(Xxh3Default);

impl BlockHasher for Xxh3Digest {
    const BYTES: usize = 16;

    fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    fn finish(self) -> BlockDigest {
        padded(self.0.digest128().to_be_bytes())
    }

    fn once(bytes: &[u8]) -> BlockDigest {
        padded(xxh3_128(bytes).to_be_bytes())
    }
}

/// A digest of 16 bytes in the place of one of 32.
pub(super) fn padded(short: [u8; 16]) -> BlockDigest {
    let mut digest = BlockDigest::default();
    digest[16..].copy_from_slice(&short);
    digest
}

/// Gathers, then hashes.
pub(super) struct Buffered<H> {
    buffer: [u8; BUFFER_BYTES],
    length: usize,
    /// Holds what came before the buffer; none as long as everything fits.
    spilled: Option<H>,
}

impl<H> Default for Buffered<H> {
    fn default() -> Self {
        Self {
            buffer: [0; BUFFER_BYTES],
            length: 0,
            spilled: None,
        }
    }
}

impl<H: BlockHasher> Put for Buffered<H> {
    #[inline]
    fn put(&mut self, bytes: &[u8]) {
        if let Some(place) = self.buffer.get_mut(self.length..self.length + bytes.len()) {
            place.copy_from_slice(bytes);
            self.length += bytes.len();
        } else {
            self.spill(bytes);
        }
    }
}

impl<H: BlockHasher> Buffered<H> {
    #[cold]
    fn spill(&mut self, bytes: &[u8]) {
        let spilled = self.spilled.get_or_insert_default();
        spilled.update(&self.buffer[..self.length]);
        spilled.update(bytes);
        self.length = 0;
    }

    pub(super) fn finish(self) -> BlockDigest {
        let rest = &self.buffer[..self.length];
        match self.spilled {
            None => H::once(rest),
            Some(mut spilled) => {
                spilled.update(rest);
                spilled.finish()
            }
        }
    }
}
