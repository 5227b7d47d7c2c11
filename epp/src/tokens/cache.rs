//! Whole texts and their token ids, bounded by bytes.
//!
//! Exact only: an entry is used when the stored text equals the asked one byte for byte, so the
//! hash it is found by needs no more strength than a hash table's. What goes at the bound is chosen
//! by the clock algorithm (second chance): a hit sets a mark without moving anything, and the hand
//! spares a marked entry once. That keeps retried and repeated prompts at a fraction of an exact
//! LRU's bookkeeping.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use rustc_hash::FxBuildHasher;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Bytes an entry costs beside its text and its ids: map slot, queue slot and allocation headers,
/// rounded up.
const ENTRY_OVERHEAD_BYTES: usize = 128;

/// What a cached text is found by: the text, and what else the ids depend on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TextKey<'a> {
    /// Which encoder, by its place in the set of encoders.
    pub encoder: usize,
    /// Whether the tokenizer adds its special tokens.
    pub special_tokens: bool,
    pub text: &'a str,
}

/// See the module.
#[derive(Debug)]
pub struct TextCache {
    bytes_max: usize,
    bytes: usize,
    entries: HashMap<u64, Entry, FxBuildHasher>,
    /// Hashes in the order of the clock's hand.
    clock: VecDeque<u64>,
}

#[derive(Debug)]
struct Entry {
    encoder: usize,
    special_tokens: bool,
    text: Box<str>,
    ids: Arc<[u32]>,
    marked: bool,
}

impl TextCache {
    /// An empty cache that holds up to `bytes_max` bytes of texts and ids; 0 = it holds nothing.
    pub fn new(bytes_max: usize) -> Self {
        Self {
            bytes_max,
            bytes: 0,
            entries: HashMap::default(),
            clock: VecDeque::new(),
        }
    }

    /// The ids of a text seen before.
    pub fn get(&mut self, key: &TextKey<'_>) -> Option<Arc<[u32]>> {
        let entry = self.entries.get_mut(&hash(key))?;
        if !entry.is_for(key) {
            return None;
        }
        entry.marked = true;
        Some(Arc::clone(&entry.ids))
    }

    /// Remembers the ids of a text. A text that alone is larger than a quarter of the cache is not
    /// kept, because it would push out everything else.
    pub fn put(&mut self, key: &TextKey<'_>, ids: Arc<[u32]>) {
        let entry = Entry {
            encoder: key.encoder,
            special_tokens: key.special_tokens,
            text: Box::from(key.text),
            ids,
            marked: false,
        };
        if entry.bytes() > self.bytes_max / 4 {
            return;
        }
        let hash = hash(key);
        self.bytes += entry.bytes();
        match self.entries.insert(hash, entry) {
            Some(replaced) => self.bytes -= replaced.bytes(),
            None => self.clock.push_back(hash),
        }
        self.shrink();
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    fn shrink(&mut self) {
        while self.bytes > self.bytes_max {
            let Some(hash) = self.clock.pop_front() else {
                return;
            };
            let Some(entry) = self.entries.get_mut(&hash) else {
                continue;
            };
            if std::mem::take(&mut entry.marked) {
                self.clock.push_back(hash);
            } else if let Some(entry) = self.entries.remove(&hash) {
                self.bytes -= entry.bytes();
            }
        }
    }
}

impl Entry {
    fn is_for(&self, key: &TextKey<'_>) -> bool {
        self.encoder == key.encoder
            && self.special_tokens == key.special_tokens
            && *self.text == *key.text
    }

    fn bytes(&self) -> usize {
        self.text.len() + self.ids.len() * size_of::<u32>() + ENTRY_OVERHEAD_BYTES
    }
}

fn hash(key: &TextKey<'_>) -> u64 {
    let seed = (key.encoder as u64) << 1 | u64::from(key.special_tokens);
    xxh3_64_with_seed(key.text.as_bytes(), seed)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key(text: &str) -> TextKey<'_> {
        TextKey {
            encoder: 0,
            special_tokens: false,
            text,
        }
    }

    fn ids(count: usize) -> Arc<[u32]> {
        (0..count as u32).collect()
    }

    #[test]
    fn only_the_same_text_under_the_same_encoder_is_found() {
        let mut cache = TextCache::new(10_000);
        cache.put(&key("a text"), ids(3));
        assert_eq!(cache.get(&key("a text")), Some(ids(3)));
        assert_eq!(cache.get(&key("a tex")), None);
        let other = TextKey {
            encoder: 1,
            ..key("a text")
        };
        assert_eq!(cache.get(&other), None);
        let special = TextKey {
            special_tokens: true,
            ..key("a text")
        };
        assert_eq!(cache.get(&special), None);
    }

    #[test]
    fn what_was_used_is_spared_once() {
        // Room for exactly four of these entries.
        let mut cache = TextCache::new(4 * (ENTRY_OVERHEAD_BYTES + 1 + 4));
        for text in ["a", "b", "c", "d"] {
            cache.put(&key(text), ids(1));
        }
        cache.get(&key("a"));
        cache.put(&key("e"), ids(1));
        assert!(cache.get(&key("a")).is_some());
        assert!(cache.get(&key("b")).is_none());
        assert!(cache.get(&key("e")).is_some());
    }

    #[test]
    fn a_text_too_large_is_not_kept_and_zero_keeps_nothing() {
        let mut cache = TextCache::new(4_000);
        cache.put(&key(&"x".repeat(1_000)), ids(1));
        assert_eq!(cache.bytes(), 0);
        let mut none = TextCache::new(0);
        none.put(&key("a"), ids(1));
        assert_eq!(none.get(&key("a")), None);
    }

    proptest! {
        #[test]
        fn the_bound_holds_and_nothing_wrong_is_found(
            steps in proptest::collection::vec((0_usize..30, any::<bool>()), 1..200)
        ) {
            let mut cache = TextCache::new(2_000);
            for (number, write) in steps {
                let text = format!("text {number}");
                if write {
                    cache.put(&key(&text), ids(number));
                } else if let Some(found) = cache.get(&key(&text)) {
                    prop_assert_eq!(found.len(), number);
                }
                prop_assert!(cache.bytes() <= 2_000);
                let held: usize = cache.entries.values().map(Entry::bytes).sum();
                prop_assert_eq!(cache.bytes(), held);
                prop_assert_eq!(cache.clock.len(), cache.entries.len());
            }
        }
    }
}
