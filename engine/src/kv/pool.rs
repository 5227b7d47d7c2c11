//! The block pool and its prefix cache.
//!
//! Each block is in one of three states:
//!
//! ```text
//!               allocate                    commit (full, computed)
//!   free, empty ────────▶ held, no digest ───────────────────────▶ held, cached
//!        ▲                      │ release                              │   ▲
//!        └──────────────────────┘                     release (last)   ▼   │ hit
//!        ▲                                                          free, cached
//!        └────────────────────────── evicted by allocate ──────────────────┘
//! ```
//!
//! Reuse order is least recently used, with two twists that are vLLM's: a released run is queued tail first, so that
//! the end of a prefix goes before its beginning (a beginning without end is still of use, the reverse is not); and
//! blocks without digest are reused before all others, because nothing is lost with them.
//!
//! Events are values, collected until [`BlockPool::take_events`]. A block is announced when it is committed, and a
//! caller commits only what is really computed.

use pointsman_proto::block_hash::BlockDigest;
use pointsman_proto::kv_events::{BlockRemoved, BlockStored, EngineHash, Event, Medium};
use rustc_hash::{FxBuildHasher, FxHashMap};

use super::free_list::FreeList;

/// A block's number; its KV slots are `number * block_size ..`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockId(pub u32);

impl BlockId {
    pub(super) fn index(self) -> usize {
        self.0 as usize
    }
}

/// Blocks, their reference counts and their digests.
#[derive(Debug)]
pub struct BlockPool {
    block_size: u32,
    blocks: Vec<Block>,
    free: FreeList,
    /// Exactly the cached blocks.
    cached: FxHashMap<BlockDigest, BlockId>,
    events: Option<Vec<Event>>,
}

#[derive(Clone, Debug, Default)]
struct Block {
    references: u32,
    digest: Option<BlockDigest>,
}

/// A run of freshly computed full blocks of one sequence.
#[derive(Debug)]
pub struct Run<'a> {
    /// Digests of all the sequence's full blocks up to the end of the run.
    pub digests: &'a [BlockDigest],
    /// The sequence's tokens, at least to the end of the run.
    pub tokens: &'a [u32],
    /// The first block of the run, as an index into `digests` and the block table.
    pub first: usize,
    /// The sequence's cache salt.
    pub cache_salt: Option<&'a str>,
}

impl BlockPool {
    /// A pool of `blocks` blocks, of which block 0 is never handed out. With `events`, changes of the cache are
    /// collected, beginning with `AllBlocksCleared`: whoever watches this address may remember an earlier process.
    pub fn new(blocks: u32, block_size: u32, events: bool) -> Self {
        Self {
            block_size,
            blocks: vec![Block::default(); blocks.max(1) as usize],
            free: FreeList::full(blocks),
            // Never more entries than blocks: the map never grows later.
            cached: FxHashMap::with_capacity_and_hasher(blocks as usize, FxBuildHasher),
            events: events.then(|| vec![Event::AllBlocksCleared]),
        }
    }

    /// Tokens per block.
    pub fn block_size(&self) -> u32 {
        self.block_size
    }

    /// Blocks that can be held; the null block is not counted.
    pub fn total(&self) -> u32 {
        self.blocks.len() as u32 - 1
    }

    /// Blocks that can be allocated, cached ones included.
    pub fn free(&self) -> u32 {
        self.free.len()
    }

    /// Blocks that someone holds.
    pub fn used(&self) -> u32 {
        self.total() - self.free()
    }

    /// The blocks of the longest cached prefix of `digests`, appended to `found`.
    pub fn lookup(&self, digests: &[BlockDigest], found: &mut Vec<BlockId>) {
        found.extend(digests.iter().map_while(|digest| self.cached.get(digest)));
    }

    /// How many of `blocks` are on the free list; holding them leaves that many fewer to allocate.
    pub fn count_free(&self, blocks: &[BlockId]) -> u32 {
        let free = |block: &&BlockId| self.blocks[block.index()].references == 0;
        blocks.iter().filter(free).count() as u32
    }

    /// Holds cached blocks once more, as [`BlockPool::lookup`] found them.
    pub fn hold(&mut self, blocks: &[BlockId]) {
        for &block in blocks {
            self.hold_one(block);
        }
    }

    /// Allocates `count` blocks onto the end of `table`, or none at all and returns false. Cached blocks that are
    /// reused leave the cache.
    pub fn allocate(&mut self, count: u32, table: &mut Vec<BlockId>) -> bool {
        if count > self.free() {
            return false;
        }
        for _ in 0..count {
            let Some(block) = self.free.pop_front() else {
                return false;
            };
            self.evict(block);
            self.blocks[block.index()].references = 1;
            table.push(block);
        }
        true
    }

    /// Gives back a sequence's blocks, in the order of its prefix, and empties `table`.
    pub fn release(&mut self, table: &mut Vec<BlockId>) {
        while let Some(block) = table.pop() {
            self.release_one(block);
        }
    }

    /// Enters the computed blocks `run.first .. run.digests.len()` of `table` into the cache. A block whose digest
    /// another block already carries is replaced in `table` by that one, and released.
    pub fn commit(&mut self, run: &Run<'_>, table: &mut [BlockId]) {
        let mut stored_from = run.first;
        let blocks = run.digests.iter().zip(table).enumerate().skip(run.first);
        for (index, (&digest, place)) in blocks {
            let block = *place;
            match self.cached.get(&digest).copied() {
                None => {
                    debug_assert!(self.blocks[block.index()].digest.is_none());
                    self.cached.insert(digest, block);
                    self.blocks[block.index()].digest = Some(digest);
                }
                Some(same) => {
                    if same != block {
                        self.hold_one(same);
                        self.release_one(block);
                        *place = same;
                    }
                    self.announce(run, stored_from..index);
                    stored_from = index + 1;
                }
            }
        }
        self.announce(run, stored_from..run.digests.len());
    }

    /// Forgets all cached prefixes; false, and nothing changes, while anyone holds a block.
    pub fn reset(&mut self) -> bool {
        if self.used() > 0 {
            return false;
        }
        self.cached.clear();
        for block in &mut self.blocks {
            block.digest = None;
        }
        self.free = FreeList::full(self.blocks.len() as u32);
        self.emit(Event::AllBlocksCleared);
        true
    }

    /// The changes since the last call, in order.
    pub fn take_events(&mut self) -> Vec<Event> {
        self.events.as_mut().map(std::mem::take).unwrap_or_default()
    }

    fn hold_one(&mut self, block: BlockId) {
        let entry = &mut self.blocks[block.index()];
        if entry.references == 0 {
            self.free.remove(block);
        }
        entry.references += 1;
    }

    fn release_one(&mut self, block: BlockId) {
        let entry = &mut self.blocks[block.index()];
        debug_assert!(entry.references > 0, "block {block:?} is released twice");
        entry.references -= 1;
        if entry.references > 0 {
            return;
        }
        if entry.digest.is_some() {
            self.free.push_back(block);
        } else {
            self.free.push_front(block);
        }
    }

    /// Makes a block's memory reusable: whatever prefix it held is no longer cached.
    fn evict(&mut self, block: BlockId) {
        let Some(digest) = self.blocks[block.index()].digest.take() else {
            return;
        };
        self.cached.remove(&digest);
        let Some(events) = &mut self.events else {
            return;
        };
        let hash = EngineHash::from(&digest);
        // Evictions come in runs; one event takes them all.
        if let Some(Event::BlockRemoved(removed)) = events.last_mut() {
            removed.block_hashes.push(hash);
            return;
        }
        events.push(Event::BlockRemoved(BlockRemoved {
            block_hashes: vec![hash],
            medium: Medium::Gpu,
        }));
    }

    /// One `BlockStored` for consecutive blocks of a run.
    fn announce(&mut self, run: &Run<'_>, blocks: std::ops::Range<usize>) {
        if self.events.is_none() || blocks.is_empty() {
            return;
        }
        let size = self.block_size as usize;
        let before = blocks.start.checked_sub(1);
        let first_of_prompt = before.is_none();
        let stored = BlockStored {
            block_hashes: run.digests[blocks.clone()]
                .iter()
                .map(EngineHash::from)
                .collect(),
            parent: before.map(|index| EngineHash::from(&run.digests[index])),
            token_ids: run.tokens[blocks.start * size..blocks.end * size].to_vec(),
            block_size: self.block_size,
            lora_name: None,
            medium: Medium::Gpu,
            cache_salt: run
                .cache_salt
                .filter(|_| first_of_prompt)
                .map(str::to_owned),
            extras: Vec::new(),
        };
        self.emit(Event::BlockStored(stored));
    }

    fn emit(&mut self, event: Event) {
        if let Some(events) = &mut self.events {
            events.push(event);
        }
    }

    /// Everything a test wants to compare: free blocks in order, references and digests.
    #[cfg(test)]
    pub(super) fn inspect(&self) -> (Vec<BlockId>, Vec<(u32, Option<BlockDigest>)>) {
        let blocks = self.blocks.iter();
        (
            self.free.order(),
            blocks
                .map(|block| (block.references, block.digest))
                .collect(),
        )
    }

    /// The cache as a set of digests.
    #[cfg(test)]
    pub(super) fn cached_digests(&self) -> Vec<BlockDigest> {
        let mut digests: Vec<_> = self.cached.keys().copied().collect();
        digests.sort_unstable();
        digests
    }
}
