//! The second tier: blocks of host memory that keep what the first tier had to give up.
//!
//! A block is saved when its device memory is about to be reused, not when it is computed. Writing through would copy
//! every block that is ever computed, though most are never evicted, or never asked for again; saving on eviction
//! copies only what would otherwise be lost, at the price that the copy stands in front of the step that needs the
//! memory. And it is paid once: a block that comes back to the device keeps its host copy, so evicting it again
//! costs nothing as long as that copy lasts.
//!
//! Reuse order is least recently saved or loaded. A block that a step is to load from is pinned: it is no candidate
//! for reuse until the step was computed.

use pointsman_proto::block_hash::BlockDigest;
use rustc_hash::{FxBuildHasher, FxHashMap};

use super::BlockId;
use super::free_list::FreeList;

/// A block of host memory, numbered from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostBlock(pub u32);

impl HostBlock {
    fn index(self) -> usize {
        self.0 as usize
    }

    /// Its place in the list, whose place 0 is nobody's.
    fn place(self) -> BlockId {
        BlockId(self.0 + 1)
    }
}

/// Host blocks and what they hold.
#[derive(Debug)]
pub(super) struct HostTier {
    /// All blocks that are not pinned, the one to reuse first at the front.
    order: FreeList,
    blocks: Vec<Slot>,
    /// Exactly the blocks that hold something.
    cached: FxHashMap<BlockDigest, HostBlock>,
    pinned: Vec<HostBlock>,
}

#[derive(Clone, Debug, Default)]
struct Slot {
    digest: Option<BlockDigest>,
    pinned: bool,
    /// Whether readers of the events know of it.
    announced: bool,
}

/// Where a block goes, and what has to make room for it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Saved {
    pub(super) to: HostBlock,
    /// A digest that was announced and is gone now.
    pub(super) removed: Option<BlockDigest>,
}

impl HostTier {
    /// A tier of `blocks` blocks.
    pub(super) fn new(blocks: u32) -> Self {
        Self {
            order: FreeList::full(blocks.saturating_add(1)),
            blocks: vec![Slot::default(); blocks as usize],
            // Never more entries than blocks: the map never grows later.
            cached: FxHashMap::with_capacity_and_hasher(blocks as usize, FxBuildHasher),
            pinned: Vec::with_capacity(blocks as usize),
        }
    }

    pub(super) fn find(&self, digest: &BlockDigest) -> Option<HostBlock> {
        self.cached.get(digest).copied()
    }

    /// A place for the block of `digest`. None when it has one already, which is as good as new then, or when all
    /// blocks are pinned, and the block is lost.
    pub(super) fn save(&mut self, digest: BlockDigest) -> Option<Saved> {
        if let Some(block) = self.find(&digest) {
            if !self.blocks[block.index()].pinned {
                self.order.remove(block.place());
                self.order.push_back(block.place());
            }
            return None;
        }
        let place = self.order.pop_front()?;
        let to = HostBlock(place.0 - 1);
        let slot = &mut self.blocks[to.index()];
        let before = slot.digest.replace(digest);
        if let Some(before) = &before {
            self.cached.remove(before);
        }
        let removed = before.filter(|_| slot.announced);
        slot.announced = false;
        self.cached.insert(digest, to);
        self.order.push_back(place);
        Some(Saved { to, removed })
    }

    /// Whether `digest` is here and nobody was told yet; from now on it counts as told.
    pub(super) fn announce(&mut self, digest: &BlockDigest) -> bool {
        let Some(block) = self.find(digest) else {
            return false;
        };
        let slot = &mut self.blocks[block.index()];
        !std::mem::replace(&mut slot.announced, true)
    }

    /// Keeps a block that a step is to load from.
    pub(super) fn pin(&mut self, block: HostBlock) {
        let slot = &mut self.blocks[block.index()];
        if !std::mem::replace(&mut slot.pinned, true) {
            self.order.remove(block.place());
            self.pinned.push(block);
        }
    }

    /// The step was computed. The end of a prefix goes before its beginning here, too.
    pub(super) fn unpin_all(&mut self) {
        while let Some(block) = self.pinned.pop() {
            self.blocks[block.index()].pinned = false;
            self.order.push_back(block.place());
        }
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        self.cached.clear();
        self.pinned.clear();
        self.blocks.fill(Slot::default());
        self.order = FreeList::full(self.blocks.len() as u32 + 1);
    }

    /// Blocks that hold something.
    pub(super) fn used(&self) -> u32 {
        self.cached.len() as u32
    }

    /// What each block holds.
    #[cfg(test)]
    pub(super) fn contents(&self) -> Vec<Option<BlockDigest>> {
        self.blocks.iter().map(|slot| slot.digest).collect()
    }

    /// All that is held.
    #[cfg(test)]
    pub(super) fn digests(&self) -> Vec<BlockDigest> {
        let mut digests: Vec<_> = self.cached.keys().copied().collect();
        digests.sort_unstable();
        digests
    }
}
