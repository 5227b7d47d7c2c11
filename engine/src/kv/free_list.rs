//! The free blocks in order of reuse: a doubly linked list threaded through two arrays.
//!
//! A prefix hit takes a block out of the middle, so removal must not search; the links are indexed by block number
//! and every operation is O(1). Block 0, the null block, is never free and serves as the list's sentinel, which
//! removes every special case for the ends.

use super::BlockId;

const SENTINEL: usize = 0;

/// Free blocks, the one to reuse first at the front.
#[derive(Debug)]
pub(super) struct FreeList {
    next: Vec<u32>,
    previous: Vec<u32>,
    len: u32,
}

impl FreeList {
    /// All blocks of a pool of `blocks` but block 0, in ascending order.
    pub(super) fn full(blocks: u32) -> Self {
        let mut list = Self {
            next: vec![0; blocks.max(1) as usize],
            previous: vec![0; blocks.max(1) as usize],
            len: 0,
        };
        for block in 1..blocks {
            list.push_back(BlockId(block));
        }
        list
    }

    pub(super) fn len(&self) -> u32 {
        self.len
    }

    /// The block at the front, taken out.
    pub(super) fn pop_front(&mut self) -> Option<BlockId> {
        let front = self.next[SENTINEL];
        if front as usize == SENTINEL {
            return None;
        }
        self.remove(BlockId(front));
        Some(BlockId(front))
    }

    /// Adds a block that is to be reused last.
    pub(super) fn push_back(&mut self, block: BlockId) {
        let last = self.previous[SENTINEL];
        self.insert_between(last, block, SENTINEL as u32);
    }

    /// Adds a block that is to be reused first.
    pub(super) fn push_front(&mut self, block: BlockId) {
        let first = self.next[SENTINEL];
        self.insert_between(SENTINEL as u32, block, first);
    }

    /// Takes a block out, wherever it is. It must be in the list.
    pub(super) fn remove(&mut self, block: BlockId) {
        let (previous, next) = (self.previous[block.index()], self.next[block.index()]);
        self.next[previous as usize] = next;
        self.previous[next as usize] = previous;
        self.len -= 1;
    }

    fn insert_between(&mut self, previous: u32, block: BlockId, next: u32) {
        self.next[block.index()] = next;
        self.previous[block.index()] = previous;
        self.next[previous as usize] = block.0;
        self.previous[next as usize] = block.0;
        self.len += 1;
    }

    /// The blocks, the one to reuse first first.
    pub(super) fn front_to_back(&self) -> impl Iterator<Item = BlockId> {
        let mut at = SENTINEL;
        std::iter::from_fn(move || {
            let next = self.next[at];
            at = next as usize;
            (at != SENTINEL).then_some(BlockId(next))
        })
    }
}
