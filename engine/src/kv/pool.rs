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
//! With a second tier ([`super::host`]) an evicted block is saved to host memory, and a lookup goes on there where
//! the device has no more. A block found there is loaded into a device block of its holder, and is cached on the
//! device once its holder commits it, like a block that was computed. Both directions are [`Transfer`]s for the step
//! that is being formed. Saves go before loads: what a save reads is overwritten by that very step, a load's or the
//! computation's; what a load reads is pinned, so no save overwrites it.
//!
//! Events are values, collected until [`BlockPool::take_events`]. A block is announced when it is committed, and a
//! caller commits only what is really computed; one that is saved is announced with the eviction that saves it, so a
//! caller publishes only after the step was computed.

use std::sync::Arc;

use pointsman_proto::block_hash::BlockDigest;
use pointsman_proto::kv_events::{Event, Medium};
use rustc_hash::{FxBuildHasher, FxHashMap};

use super::free_list::FreeList;
use super::host::{HostBlock, HostTier};
use super::journal::{Journal, Origins, Stored};

/// A block's number; its KV slots are `number * block_size ..`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockId(pub u32);

impl BlockId {
    pub(super) fn index(self) -> usize {
        self.0 as usize
    }
}

/// A cached block, as a lookup finds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hit {
    /// It can be held as it is.
    Device(BlockId),
    /// It must be loaded into a device block first.
    Host(HostBlock),
}

/// A block to copy between the tiers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transfer {
    /// Device to host.
    Save {
        /// Is about to be overwritten.
        from: BlockId,
        /// Takes its contents.
        to: HostBlock,
    },
    /// Host to device.
    Load {
        /// Stays as it is.
        from: HostBlock,
        /// Takes its contents.
        to: BlockId,
    },
}

/// Blocks, their reference counts and their digests.
#[derive(Debug)]
pub struct BlockPool {
    block_size: u32,
    blocks: Vec<Block>,
    free: FreeList,
    /// Exactly the cached blocks.
    cached: FxHashMap<BlockDigest, BlockId>,
    journal: Journal,
    host: Option<HostTier>,
    /// Present where evictions have to be announced as saves.
    origins: Option<Origins>,
    /// Evicted by the allocation under way; kept for its memory.
    evicted: Vec<BlockId>,
    saves: Vec<Transfer>,
    loads: Vec<Transfer>,
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
    pub cache_salt: Option<&'a Arc<str>>,
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
            journal: Journal::new(block_size, events),
            host: None,
            origins: None,
            evicted: Vec::with_capacity(blocks as usize),
            saves: Vec::new(),
            loads: Vec::new(),
        }
    }

    /// Adds a second tier of `blocks` blocks of host memory; 0 adds none.
    #[must_use]
    pub fn with_host(mut self, blocks: u32) -> Self {
        if blocks == 0 {
            return self;
        }
        self.host = Some(HostTier::new(blocks));
        self.origins = self
            .journal
            .is_open()
            .then(|| Origins::new(self.blocks.len() as u32, self.block_size));
        // A step overwrites no block twice, so neither list ever grows later.
        self.saves.reserve(self.blocks.len());
        self.loads.reserve(self.blocks.len());
        self
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

    /// Blocks of the second tier that hold something.
    pub fn host_used(&self) -> u32 {
        self.host.as_ref().map_or(0, HostTier::used)
    }

    /// The blocks of the longest cached prefix of `digests`, appended to `found`. The device is asked first.
    pub fn lookup(&self, digests: &[BlockDigest], found: &mut Vec<Hit>) {
        let find = |digest| {
            let device = self.cached.get(digest).copied().map(Hit::Device);
            device.or_else(|| Some(Hit::Host(self.host.as_ref()?.find(digest)?)))
        };
        found.extend(digests.iter().map_while(find));
    }

    /// How many blocks the longest cached prefix of `digests` has, in both tiers.
    pub fn cached_prefix(&self, digests: &[BlockDigest]) -> usize {
        let host = |digest: &BlockDigest| self.host.as_ref().and_then(|host| host.find(digest));
        let cached =
            |digest: &&BlockDigest| self.cached.contains_key(*digest) || host(digest).is_some();
        digests.iter().take_while(cached).count()
    }

    /// How many blocks would be left to allocate if a sequence of `blocks` blocks that begins with `hits` were
    /// admitted; none when it does not fit.
    pub fn left_after(&self, hits: &[Hit], blocks: usize) -> Option<u32> {
        let (mut held, mut free) = (0, 0);
        for hit in hits {
            if let Hit::Device(block) = hit {
                held += 1;
                free += u32::from(self.blocks[block.index()].references == 0);
            }
        }
        let missing = u32::try_from(blocks.saturating_sub(held)).ok()?;
        (self.free() - free).checked_sub(missing)
    }

    /// Fills the empty `table` of a sequence of `blocks` blocks that begins with `hits`: those on the device are held
    /// once more, those of the second tier are loaded, the rest is allocated. All of it or nothing, and then false.
    pub fn admit(&mut self, hits: &[Hit], blocks: usize, table: &mut Vec<BlockId>) -> bool {
        if self.left_after(hits, blocks).is_none() {
            return false;
        }
        // All of them first, so that none makes room for another.
        for hit in hits {
            match (*hit, &mut self.host) {
                (Hit::Device(block), _) => self.hold_one(block),
                (Hit::Host(block), Some(host)) => host.pin(block),
                (Hit::Host(_), None) => {}
            }
        }
        for hit in hits {
            match *hit {
                Hit::Device(block) => table.push(block),
                Hit::Host(from) => {
                    if let Some(to) = self.take_free() {
                        self.loads.push(Transfer::Load { from, to });
                        table.push(to);
                    }
                }
            }
        }
        for _ in hits.len()..blocks {
            table.extend(self.take_free());
        }
        self.settle_evictions();
        true
    }

    /// Tells of the reused blocks `hits` of `run` once more, for readers who asked to hear of all of a request's blocks.
    pub fn announce_again(&mut self, run: &Run<'_>, hits: &[Hit]) {
        let medium = |hit: &Hit| match hit {
            Hit::Device(_) => Medium::Gpu,
            Hit::Host(_) => Medium::Cpu,
        };
        let mut start = 0;
        for run_of_hits in hits.chunk_by(|left, right| medium(left) == medium(right)) {
            let end = start + run_of_hits.len();
            self.journal
                .stored_run(run, start..end, medium(&run_of_hits[0]));
            start = end;
        }
    }

    /// Whether `count` blocks can be allocated, and no block has to be copied before they are overwritten.
    pub fn can_overwrite(&self, count: u32) -> bool {
        let fresh = |block: BlockId| self.blocks[block.index()].digest.is_none();
        let saves_nothing = || {
            let copies = self.saves.len() + self.loads.len();
            copies == 0 && self.free.front_to_back().take(count as usize).all(fresh)
        };
        count <= self.free() && (self.host.is_none() || saves_nothing())
    }

    /// Allocates `count` blocks onto the end of `table`, or none at all and returns false. Cached blocks that are
    /// reused leave the cache.
    pub fn allocate(&mut self, count: u32, table: &mut Vec<BlockId>) -> bool {
        if count > self.free() {
            return false;
        }
        for _ in 0..count {
            table.extend(self.take_free());
        }
        self.settle_evictions();
        true
    }

    /// Hands the transfers for the step being formed to `take`, in the order in which they must be made, and before
    /// anything is computed. Those that nobody takes stay for the next step.
    pub fn take_transfers(&mut self, take: impl FnMut(Transfer)) {
        self.saves
            .drain(..)
            .chain(self.loads.drain(..))
            .for_each(take);
    }

    /// The transfers that were taken are made.
    pub fn transferred(&mut self) {
        if let Some(host) = &mut self.host {
            host.unpin_all();
        }
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
                    if let Some(origins) = &mut self.origins {
                        origins.note(block, run, index);
                    }
                }
                Some(same) => {
                    if same != block {
                        self.hold_one(same);
                        self.release_one(block);
                        *place = same;
                    }
                    self.journal
                        .stored_run(run, stored_from..index, Medium::Gpu);
                    stored_from = index + 1;
                }
            }
        }
        self.journal
            .stored_run(run, stored_from..run.digests.len(), Medium::Gpu);
    }

    /// Forgets all cached prefixes of both tiers; false, and nothing changes, while anyone holds a block.
    pub fn reset(&mut self) -> bool {
        if self.used() > 0 {
            return false;
        }
        self.cached.clear();
        for block in &mut self.blocks {
            block.digest = None;
        }
        self.free = FreeList::full(self.blocks.len() as u32);
        if let Some(host) = &mut self.host {
            host.clear();
        }
        self.saves.clear();
        self.loads.clear();
        self.journal.cleared();
        true
    }

    /// The changes since the last call, in order.
    pub fn take_events(&mut self) -> Vec<Event<BlockDigest>> {
        self.journal.take()
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

    /// The next block to reuse, held once and out of the cache. [`Self::settle_evictions`] is due after it.
    fn take_free(&mut self) -> Option<BlockId> {
        let block = self.free.pop_front()?;
        let entry = &mut self.blocks[block.index()];
        entry.references = 1;
        // The block keeps its digest until the eviction is settled.
        if let Some(digest) = &entry.digest {
            self.cached.remove(digest);
            self.evicted.push(block);
        }
        Some(block)
    }

    /// Saves what an allocation has evicted, and tells of it: first of what is in the host tier now, so that no reader
    /// takes a prefix for lost in between.
    fn settle_evictions(&mut self) {
        if self.evicted.is_empty() {
            return;
        }
        if let Some(host) = &mut self.host {
            for &from in &self.evicted {
                let digest = self.blocks[from.index()].digest;
                let Some(saved) = digest.and_then(|digest| host.save(digest)) else {
                    continue;
                };
                self.saves.push(Transfer::Save { from, to: saved.to });
                if let Some(removed) = saved.removed {
                    self.journal.removed(removed, Medium::Cpu);
                }
            }
        }
        self.announce_saved();
        for block in self.evicted.drain(..) {
            if let Some(digest) = self.blocks[block.index()].digest.take() {
                self.journal.removed(digest, Medium::Gpu);
            }
        }
    }

    /// One `BlockStored` for each chain among the evicted blocks that are in the host tier now.
    fn announce_saved(&mut self) {
        let (Some(host), Some(origins)) = (&mut self.host, &self.origins) else {
            return;
        };
        let (mut digests, mut tokens) = (Vec::new(), Vec::new());
        let mut first = None;
        let mut tell = |first: Option<BlockId>, digests: &mut Vec<_>, tokens: &mut Vec<_>| {
            if let Some(origin) = first.map(|block| origins.origin(block)) {
                self.journal.stored(&Stored {
                    parent: origin.parent,
                    digests,
                    tokens,
                    cache_salt: origin.cache_salt.as_ref(),
                    medium: Medium::Cpu,
                });
            }
            digests.clear();
            tokens.clear();
        };
        // The end of a prefix was evicted before its beginning, so backwards is forwards.
        for &block in self.evicted.iter().rev() {
            let digest = self.blocks[block.index()].digest;
            let Some(digest) = digest.filter(|digest| host.announce(digest)) else {
                continue;
            };
            let parent = &origins.origin(block).parent;
            if parent.is_none() || parent.as_ref() != digests.last() {
                tell(first.replace(block), &mut digests, &mut tokens);
            }
            digests.push(digest);
            tokens.extend_from_slice(origins.tokens(block));
        }
        tell(first, &mut digests, &mut tokens);
    }

    /// Everything a test wants to compare: free blocks in order, references and digests.
    #[cfg(test)]
    pub(super) fn inspect(&self) -> (Vec<BlockId>, Vec<(u32, Option<BlockDigest>)>) {
        let blocks = self.blocks.iter();
        (
            self.free.front_to_back().collect(),
            blocks
                .map(|block| (block.references, block.digest))
                .collect(),
        )
    }

    /// Whether somebody could find `block` in the cache.
    #[cfg(test)]
    pub(crate) fn is_cached(&self, block: BlockId) -> bool {
        self.blocks[block.index()].digest.is_some()
    }

    /// The second tier.
    #[cfg(test)]
    pub(super) fn host(&self) -> Option<&HostTier> {
        self.host.as_ref()
    }

    /// The cache as a set of digests.
    #[cfg(test)]
    pub(super) fn cached_digests(&self) -> Vec<BlockDigest> {
        let mut digests: Vec<_> = self.cached.keys().copied().collect();
        digests.sort_unstable();
        digests
    }
}
