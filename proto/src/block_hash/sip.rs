//! Our engine's fast recipe: SipHash-2-4 with 128 bits of output, keyed.
//!
//! SipHash (Aumasson and Bernstein, 2012) is a pseudo-random function: without the key nobody can find two
//! prompts of equal hash faster than by trying some 2^64 of them, which is what a cache shared by strangers
//! asks for. XXH3 is faster and offers no such thing, keyed or not; SHA-256 offers more and costs many times as
//! much where the CPU has no instructions for it.
//!
//! ```text
//! digest = SipHash-2-4-128 under the key over
//!          parent digest (16 bytes, zeros for the first block)
//!          token count as u64 LE
//!          each token id as u32 LE
//!          extras as canonical CBOR, and nothing where there are none
//! ```

use sha2::{Digest, Sha256};

use super::cbor;
use super::digest::{Put, padded};
use super::{BlockDigest, ExtraKey};

/// The secret. Its `Debug` does not show it, so that no log can hold it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct SipKey {
    low: u64,
    high: u64,
}

impl SipKey {
    /// The key with these bytes.
    pub fn new(bytes: [u8; 16]) -> Self {
        let both = u128::from_le_bytes(bytes);
        Self {
            low: both as u64,
            high: (both >> 64) as u64,
        }
    }

    /// The key that stands for `seed`, as secret as the seed is: SHA-256 over a text of ours and the seed.
    pub fn from_seed(seed: &str) -> Self {
        let hash = Sha256::new()
            .chain_update(b"pointsman siphash key\0")
            .chain_update(seed)
            .finalize();
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&hash[..16]);
        Self::new(bytes)
    }
}

impl std::fmt::Debug for SipKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SipKey")
    }
}

/// The hash of one full block: its `tokens` after the prefix that `parent` stands for. The first block of a
/// prompt has a parent of zeros.
pub fn siphash(
    key: SipKey,
    parent: &BlockDigest,
    tokens: &[u32],
    extra: &[ExtraKey<'_>],
) -> BlockDigest {
    let mut state = State::new(key);
    for word in parent[16..].chunks_exact(8) {
        state.word(little_endian(word));
    }
    state.word(tokens.len() as u64);
    let mut pairs = tokens.chunks_exact(2);
    for pair in &mut pairs {
        state.word(u64::from(pair[0]) | u64::from(pair[1]) << 32);
    }
    if let [odd] = pairs.remainder() {
        state.put(&odd.to_le_bytes());
    }
    if !extra.is_empty() {
        cbor::extras(&mut state, extra);
    }
    padded(state.finish())
}

fn little_endian(bytes: &[u8]) -> u64 {
    let place = bytes.iter().rev();
    place.fold(0, |word, byte| word << 8 | u64::from(*byte))
}

/// The state after a number of bytes.
pub(super) struct State {
    v: [u64; 4],
    /// Bytes that do not make a word yet, the first one lowest.
    tail: u64,
    /// All bytes so far.
    length: u64,
}

impl State {
    pub(super) fn new(key: SipKey) -> Self {
        Self {
            v: [
                key.low ^ 0x736f_6d65_7073_6575,
                key.high ^ 0x646f_7261_6e64_6f6d ^ 0xee,
                key.low ^ 0x6c79_6765_6e65_7261,
                key.high ^ 0x7465_6462_7974_6573,
            ],
            tail: 0,
            length: 0,
        }
    }

    /// Eight bytes at once; only whole words may have come before.
    #[inline]
    fn word(&mut self, word: u64) {
        self.length += 8;
        self.absorb(word);
    }

    #[inline]
    fn absorb(&mut self, word: u64) {
        self.v[3] ^= word;
        self.rounds::<2>();
        self.v[0] ^= word;
    }

    #[inline]
    fn rounds<const COUNT: usize>(&mut self) {
        let [mut a, mut b, mut c, mut d] = self.v;
        for _ in 0..COUNT {
            a = a.wrapping_add(b);
            b = b.rotate_left(13) ^ a;
            a = a.rotate_left(32);
            c = c.wrapping_add(d);
            d = d.rotate_left(16) ^ c;
            a = a.wrapping_add(d);
            d = d.rotate_left(21) ^ a;
            c = c.wrapping_add(b);
            b = b.rotate_left(17) ^ c;
            c = c.rotate_left(32);
        }
        self.v = [a, b, c, d];
    }

    pub(super) fn finish(mut self) -> [u8; 16] {
        self.absorb(self.tail | self.length << 56);
        self.v[2] ^= 0xee;
        self.rounds::<4>();
        let low = self.v.iter().fold(0, |all, v| all ^ v);
        self.v[1] ^= 0xdd;
        self.rounds::<4>();
        let high = self.v.iter().fold(0, |all, v| all ^ v);
        (u128::from(high) << 64 | u128::from(low)).to_le_bytes()
    }
}

impl Put for State {
    fn put(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.tail |= u64::from(*byte) << (self.length % 8 * 8);
            self.length += 1;
            if self.length.is_multiple_of(8) {
                let word = std::mem::take(&mut self.tail);
                self.absorb(word);
            }
        }
    }
}
