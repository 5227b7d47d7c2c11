//! Stored blocks whose parent is not known yet.
//!
//! Without the parent's key their own keys cannot be computed. That happens when an event before
//! them was lost or when epp started after the engine did, and dropping them, as others do, would
//! drop every later block of those prompts too. So they wait here for the parent. The wait is
//! bounded by blocks per endpoint and model; past the bound the oldest go, since a parent that has
//! not come for so long is likely gone.

use std::collections::{BTreeMap, HashMap};

use pointsman_proto::kv_events::{BlockStored, EngineHash, Medium};
use rustc_hash::FxBuildHasher;
use smallvec::SmallVec;

/// Consecutive blocks with one parent: what a stored event says, reduced to what keys need.
#[derive(Clone, Debug)]
pub(super) struct Chunk {
    /// `None` for a block that was removed while it waited. Its tokens stay, because later keys
    /// chain over them.
    pub(super) hashes: Vec<Option<EngineHash>>,
    pub(super) tokens: Vec<u32>,
    /// Per block, what besides its tokens tells it apart; empty where nothing does.
    pub(super) extras: Vec<Box<[u8]>>,
    pub(super) block_size: u32,
    pub(super) medium: Medium,
}

impl Chunk {
    pub(super) fn of(event: &BlockStored) -> Self {
        Self {
            hashes: event.block_hashes.iter().copied().map(Some).collect(),
            tokens: event.token_ids.clone(),
            extras: event.extras.clone(),
            block_size: event.block_size,
            medium: event.medium,
        }
    }
}

type Map<K, V> = HashMap<K, V, FxBuildHasher>;
type Waiting = SmallVec<[u64; 2]>;

/// The waiting chunks of one endpoint and model.
#[derive(Debug, Default)]
pub(super) struct Orphans {
    /// By arrival, oldest first.
    chunks: BTreeMap<u64, (EngineHash, Chunk)>,
    by_parent: Map<EngineHash, Waiting>,
    by_block: Map<EngineHash, Waiting>,
    arrivals: u64,
    blocks: usize,
}

impl Orphans {
    /// Blocks that wait, removed ones included as long as their chunk waits.
    pub(super) fn blocks(&self) -> usize {
        self.blocks
    }

    /// Lets a chunk wait for `parent`; returns how many blocks were dropped to stay within
    /// `blocks_max`.
    pub(super) fn add(&mut self, parent: EngineHash, chunk: Chunk, blocks_max: usize) -> usize {
        let number = self.arrivals;
        self.arrivals += 1;
        self.blocks += chunk.hashes.len();
        self.by_parent.entry(parent).or_default().push(number);
        for hash in chunk.hashes.iter().flatten() {
            self.by_block.entry(*hash).or_default().push(number);
        }
        self.chunks.insert(number, (parent, chunk));

        let mut dropped = 0;
        while self.blocks > blocks_max {
            let Some((&oldest, _)) = self.chunks.first_key_value() else {
                break;
            };
            dropped += self.take(oldest).map_or(0, |chunk| chunk.hashes.len());
        }
        dropped
    }

    /// Takes out everything that waits for `parent`, in order of arrival.
    pub(super) fn adopt(&mut self, parent: EngineHash) -> Vec<Chunk> {
        let Some(numbers) = self.by_parent.get(&parent).cloned() else {
            return Vec::new();
        };
        numbers
            .into_iter()
            .filter_map(|number| self.take(number))
            .collect()
    }

    /// Forgets a block in one tier; the rest of its chunk goes on waiting. Returns whether it
    /// waited here.
    pub(super) fn remove(&mut self, hash: EngineHash, medium: Medium) -> bool {
        let Some(numbers) = self.by_block.get(&hash).cloned() else {
            return false;
        };
        let mut found = false;
        for number in numbers {
            let Some((_, chunk)) = self.chunks.get_mut(&number) else {
                continue;
            };
            if chunk.medium != medium {
                continue;
            }
            for waiting in &mut chunk.hashes {
                if *waiting == Some(hash) {
                    *waiting = None;
                    found = true;
                }
            }
            let is_empty = chunk.hashes.iter().all(Option::is_none);
            forget(&mut self.by_block, hash, number);
            if is_empty {
                self.take(number);
            }
        }
        found
    }

    fn take(&mut self, number: u64) -> Option<Chunk> {
        let (parent, chunk) = self.chunks.remove(&number)?;
        self.blocks -= chunk.hashes.len();
        forget(&mut self.by_parent, parent, number);
        for hash in chunk.hashes.iter().flatten() {
            forget(&mut self.by_block, *hash, number);
        }
        Some(chunk)
    }
}

fn forget(map: &mut Map<EngineHash, Waiting>, hash: EngineHash, number: u64) {
    if let Some(numbers) = map.get_mut(&hash) {
        numbers.retain(|waiting| *waiting != number);
        if numbers.is_empty() {
            map.remove(&hash);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(hashes: &[u64]) -> Chunk {
        Chunk {
            hashes: hashes.iter().map(|hash| Some(EngineHash(*hash))).collect(),
            tokens: vec![0; hashes.len()],
            extras: Vec::new(),
            block_size: 1,
            medium: Medium::Gpu,
        }
    }

    fn is_empty(orphans: &Orphans) -> bool {
        orphans.chunks.is_empty()
            && orphans.by_parent.is_empty()
            && orphans.by_block.is_empty()
            && orphans.blocks == 0
    }

    #[test]
    fn chunks_wait_for_their_parent_in_order() {
        let mut orphans = Orphans::default();
        orphans.add(EngineHash(1), chunk(&[2]), 10);
        orphans.add(EngineHash(9), chunk(&[8]), 10);
        orphans.add(EngineHash(1), chunk(&[3, 4]), 10);
        let adopted = orphans.adopt(EngineHash(1));
        let first: Vec<_> = adopted.iter().map(|chunk| chunk.hashes[0]).collect();
        assert_eq!(first, [Some(EngineHash(2)), Some(EngineHash(3))]);
        assert_eq!(orphans.blocks(), 1);
        assert!(orphans.adopt(EngineHash(1)).is_empty());
        orphans.adopt(EngineHash(9));
        assert!(is_empty(&orphans));
    }

    #[test]
    fn the_oldest_are_dropped_at_the_bound() {
        let mut orphans = Orphans::default();
        assert_eq!(orphans.add(EngineHash(1), chunk(&[2, 3]), 3), 0);
        assert_eq!(orphans.add(EngineHash(4), chunk(&[5, 6]), 3), 2);
        assert!(orphans.adopt(EngineHash(1)).is_empty());
        assert_eq!(orphans.adopt(EngineHash(4)).len(), 1);
        assert_eq!(orphans.add(EngineHash(1), chunk(&[2, 3, 4, 5]), 3), 4);
        assert!(is_empty(&orphans));
    }

    #[test]
    fn removed_blocks_leave_a_hole_and_an_empty_chunk_goes() {
        let mut orphans = Orphans::default();
        orphans.add(EngineHash(1), chunk(&[2, 3]), 10);
        assert!(!orphans.remove(EngineHash(2), Medium::Cpu), "another tier");
        assert!(orphans.remove(EngineHash(2), Medium::Gpu));
        assert!(!orphans.remove(EngineHash(2), Medium::Gpu));
        assert!(orphans.remove(EngineHash(3), Medium::Gpu));
        assert!(is_empty(&orphans));
    }
}
