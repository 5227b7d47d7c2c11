//! Pieces of texts and their token ids, bounded by bytes.
//!
//! A piece is what lies between two cuts that cannot change the tokenisation
//! ([`pointsman_proto::prompt::Cuts`]), so its ids depend on nothing but its own text and its
//! encoder. It is therefore found by its text, not by what stood before it: a chat finds all of its
//! earlier turns, and a document is found behind whatever other prompt it follows.
//!
//! Exact only: whoever gets a piece compares its text with the asked one byte for byte
//! ([`Piece::is_for`]), so the hash it is found by needs no more strength than a hash table's; a
//! collision costs an encoding. The comparison needs no lock, because pieces are shared.
//!
//! What goes at the bound is chosen by the clock algorithm (second chance): a hit sets a mark
//! without moving anything, and the hand spares a marked entry once. That keeps a hit at a fraction
//! of an exact LRU's bookkeeping. The hand spares only so many in one step, so that a cache full of
//! marks does not hold its lock for a walk through all of them.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use rustc_hash::FxBuildHasher;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Bytes an entry costs beside its text and its ids: map slot, queue slot, two reference counts and
/// allocation headers, rounded up.
const ENTRY_OVERHEAD_BYTES: usize = 160;

/// Marked entries that the hand spares before it takes one all the same.
const SPARED_MAX: usize = 32;

/// A text and its ids. Shared between the cache and whoever puts a prompt together.
#[derive(Debug)]
pub struct Piece {
    /// Which way of encoding, as its owner numbers them.
    encoder: usize,
    text: Box<str>,
    ids: Arc<[u32]>,
}

impl Piece {
    pub fn new(encoder: usize, text: &str, ids: Arc<[u32]>) -> Self {
        Self {
            encoder,
            text: Box::from(text),
            ids,
        }
    }

    /// What a piece of this text is found by.
    pub fn hash(encoder: usize, text: &str) -> u64 {
        xxh3_64_with_seed(text.as_bytes(), encoder as u64)
    }

    /// Whether this is the piece that was asked for, and not one whose hash is the same.
    pub fn is_for(&self, encoder: usize, text: &str) -> bool {
        self.encoder == encoder && *self.text == *text
    }

    pub fn ids(&self) -> &Arc<[u32]> {
        &self.ids
    }

    fn bytes(&self) -> usize {
        self.text.len() + self.ids.len() * size_of::<u32>() + ENTRY_OVERHEAD_BYTES
    }
}

/// See the module.
#[derive(Debug)]
pub struct PieceCache {
    bytes_max: usize,
    bytes: usize,
    evicted: u64,
    entries: HashMap<u64, Entry, FxBuildHasher>,
    /// Hashes in the order of the clock's hand: exactly the keys of `entries`.
    clock: VecDeque<u64>,
}

#[derive(Debug)]
struct Entry {
    piece: Arc<Piece>,
    marked: bool,
}

impl PieceCache {
    /// An empty cache that holds up to `bytes_max` bytes of texts and ids; 0 = it holds nothing.
    pub fn new(bytes_max: usize) -> Self {
        Self {
            bytes_max,
            bytes: 0,
            evicted: 0,
            entries: HashMap::default(),
            clock: VecDeque::new(),
        }
    }

    /// The piece under a hash, for the caller to compare.
    pub fn get(&mut self, hash: u64) -> Option<Arc<Piece>> {
        let entry = self.entries.get_mut(&hash)?;
        entry.marked = true;
        Some(Arc::clone(&entry.piece))
    }

    /// Remembers a piece; one with the same hash gives way. A piece that alone is larger than a
    /// quarter of the cache is not kept, because it would push out everything else.
    pub fn put(&mut self, hash: u64, piece: Arc<Piece>) {
        let bytes = piece.bytes();
        if bytes > self.bytes_max / 4 {
            return;
        }
        self.bytes += bytes;
        let entry = Entry {
            piece,
            marked: false,
        };
        match self.entries.insert(hash, entry) {
            Some(replaced) => self.bytes -= replaced.piece.bytes(),
            None => self.clock.push_back(hash),
        }
        while self.bytes > self.bytes_max && self.evict_one() {}
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Pieces that had to go since the start.
    pub fn evicted(&self) -> u64 {
        self.evicted
    }

    fn evict_one(&mut self) -> bool {
        for spared in 0.. {
            let Some(hash) = self.clock.pop_front() else {
                return false;
            };
            let marked = self
                .entries
                .get_mut(&hash)
                .is_some_and(|entry| std::mem::take(&mut entry.marked));
            if marked && spared < SPARED_MAX {
                self.clock.push_back(hash);
            } else if let Some(entry) = self.entries.remove(&hash) {
                self.bytes -= entry.piece.bytes();
                self.evicted += 1;
                return true;
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn put(cache: &mut PieceCache, text: &str, count: usize) {
        let ids = (0..count as u32).collect();
        cache.put(Piece::hash(0, text), Arc::new(Piece::new(0, text, ids)));
    }

    /// How many ids the cache has for a text.
    fn found(cache: &mut PieceCache, text: &str) -> Option<usize> {
        let piece = cache.get(Piece::hash(0, text))?;
        piece.is_for(0, text).then(|| piece.ids().len())
    }

    #[test]
    fn a_piece_is_for_its_own_text_and_encoder_only() {
        let piece = Piece::new(1, "a text", Arc::from([1, 2]));
        assert!(piece.is_for(1, "a text"));
        assert!(!piece.is_for(0, "a text"));
        assert!(!piece.is_for(1, "a tex"));
        assert_ne!(Piece::hash(0, "a text"), Piece::hash(1, "a text"));
    }

    #[test]
    fn the_later_of_two_pieces_with_one_hash_stays() {
        let mut cache = PieceCache::new(10_000);
        cache.put(7, Arc::new(Piece::new(0, "first", Arc::from([1]))));
        cache.put(7, Arc::new(Piece::new(0, "second", Arc::from([2]))));
        let piece = cache.get(7).unwrap();
        assert!(piece.is_for(0, "second") && !piece.is_for(0, "first"));
        assert_eq!(cache.bytes(), piece.bytes());
    }

    #[test]
    fn what_was_used_is_spared_once() {
        // Room for exactly four of these entries.
        let mut cache = PieceCache::new(4 * (ENTRY_OVERHEAD_BYTES + 1 + 4));
        for text in ["a", "b", "c", "d"] {
            put(&mut cache, text, 1);
        }
        assert_eq!(found(&mut cache, "a"), Some(1));
        put(&mut cache, "e", 1);
        assert_eq!(found(&mut cache, "a"), Some(1));
        assert_eq!(found(&mut cache, "b"), None);
        assert_eq!(found(&mut cache, "e"), Some(1));
        assert_eq!(cache.evicted(), 1);
    }

    #[test]
    fn the_hand_does_not_walk_through_all_marks() {
        let count = 10 * SPARED_MAX;
        let mut cache = PieceCache::new(count * (ENTRY_OVERHEAD_BYTES + 6 + 4));
        let text = |number: usize| format!("{number:06}");
        for number in 0..count {
            put(&mut cache, &text(number), 1);
            found(&mut cache, &text(number));
        }
        put(&mut cache, &text(count), 1);
        let marked = cache.entries.values().filter(|entry| entry.marked).count();
        assert_eq!(marked, count - SPARED_MAX - 1);
    }

    #[test]
    fn a_piece_too_large_is_not_kept_and_zero_keeps_nothing() {
        let mut cache = PieceCache::new(4_000);
        put(&mut cache, &"x".repeat(1_000), 1);
        assert_eq!(cache.bytes(), 0);
        let mut none = PieceCache::new(0);
        put(&mut none, "a", 1);
        assert_eq!(found(&mut none, "a"), None);
    }

    proptest! {
        #[test]
        fn the_bound_holds_and_nothing_wrong_is_found(
            steps in proptest::collection::vec((0_usize..30, any::<bool>()), 1..200)
        ) {
            let mut cache = PieceCache::new(2_000);
            for (number, write) in steps {
                let text = format!("text {number}");
                if write {
                    put(&mut cache, &text, number);
                } else if let Some(count) = found(&mut cache, &text) {
                    prop_assert_eq!(count, number);
                }
                prop_assert!(cache.bytes() <= 2_000);
                let held: usize = cache.entries.values().map(|entry| entry.piece.bytes()).sum();
                prop_assert_eq!(cache.bytes(), held);
                prop_assert_eq!(cache.clock.len(), cache.entries.len());
            }
        }
    }
}
