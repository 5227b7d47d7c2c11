//! What readers of the KV events are told: changes of the cache as values, in order.
//!
//! Nothing is collected, and nothing allocated, where nobody reads.

use std::ops::Range;
use std::sync::Arc;

use pointsman_proto::block_hash::BlockDigest;
use pointsman_proto::kv_events::{BlockRemoved, BlockStored, Event, Medium};

use super::{BlockId, Run};

/// Events since the last time they were taken.
#[derive(Debug)]
pub(super) struct Journal {
    events: Option<Vec<Event<BlockDigest>>>,
    block_size: u32,
}

/// Consecutive blocks of a prompt.
#[derive(Debug)]
pub(super) struct Stored<'a> {
    pub(super) parent: Option<BlockDigest>,
    pub(super) digests: &'a [BlockDigest],
    pub(super) tokens: &'a [u32],
    /// Told only of blocks without parent.
    pub(super) cache_salt: Option<&'a Arc<str>>,
    pub(super) medium: Medium,
}

impl Journal {
    /// Begins with `AllBlocksCleared`: whoever watches this address may remember an earlier process.
    pub(super) fn new(block_size: u32, open: bool) -> Self {
        Self {
            events: open.then(|| vec![Event::AllBlocksCleared]),
            block_size,
        }
    }

    pub(super) fn is_open(&self) -> bool {
        self.events.is_some()
    }

    pub(super) fn take(&mut self) -> Vec<Event<BlockDigest>> {
        self.events.as_mut().map(std::mem::take).unwrap_or_default()
    }

    pub(super) fn cleared(&mut self) {
        if let Some(events) = &mut self.events {
            events.push(Event::AllBlocksCleared);
        }
    }

    pub(super) fn stored(&mut self, stored: &Stored<'_>) {
        let Some(events) = &mut self.events else {
            return;
        };
        let salt = stored.cache_salt.filter(|_| stored.parent.is_none());
        events.push(Event::BlockStored(BlockStored {
            block_hashes: stored.digests.to_vec(),
            parent: stored.parent,
            token_ids: stored.tokens.to_vec(),
            block_size: self.block_size,
            lora_name: None,
            medium: stored.medium,
            cache_salt: salt.map(|salt| (**salt).to_owned()),
            extras: Vec::new(),
        }));
    }

    /// One event for consecutive blocks of a run.
    pub(super) fn stored_run(&mut self, run: &Run<'_>, blocks: Range<usize>, medium: Medium) {
        if self.events.is_none() || blocks.is_empty() {
            return;
        }
        let size = self.block_size as usize;
        let before = blocks.start.checked_sub(1);
        self.stored(&Stored {
            parent: before.map(|index| run.digests[index]),
            tokens: &run.tokens[blocks.start * size..blocks.end * size],
            digests: &run.digests[blocks],
            cache_salt: run.cache_salt,
            medium,
        });
    }

    /// Removals come in runs; one event takes all of a run.
    pub(super) fn removed(&mut self, digest: BlockDigest, medium: Medium) {
        let Some(events) = &mut self.events else {
            return;
        };
        match events.last_mut() {
            Some(Event::BlockRemoved(removed)) if removed.medium == medium => {
                removed.block_hashes.push(digest);
            }
            _ => events.push(Event::BlockRemoved(BlockRemoved {
                block_hashes: vec![digest],
                medium,
            })),
        }
    }
}

/// What must be told again of a device block when it moves to the host: its tokens, its parent and its salt. Kept for
/// each device block, so it is bounded by the pool.
#[derive(Debug)]
pub(super) struct Origins {
    block_size: usize,
    tokens: Vec<u32>,
    blocks: Vec<Origin>,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Origin {
    pub(super) parent: Option<BlockDigest>,
    pub(super) cache_salt: Option<Arc<str>>,
}

impl Origins {
    pub(super) fn new(blocks: u32, block_size: u32) -> Self {
        Self {
            block_size: block_size as usize,
            tokens: vec![0; blocks as usize * block_size as usize],
            blocks: vec![Origin::default(); blocks as usize],
        }
    }

    /// Notes where block `index` of `run` came from.
    pub(super) fn note(&mut self, block: BlockId, run: &Run<'_>, index: usize) {
        let size = self.block_size;
        let tokens = &run.tokens[index * size..(index + 1) * size];
        self.tokens[block.index() * size..(block.index() + 1) * size].copy_from_slice(tokens);
        let parent = index.checked_sub(1).map(|before| run.digests[before]);
        self.blocks[block.index()] = Origin {
            cache_salt: run.cache_salt.filter(|_| parent.is_none()).cloned(),
            parent,
        };
    }

    pub(super) fn origin(&self, block: BlockId) -> &Origin {
        &self.blocks[block.index()]
    }

    pub(super) fn tokens(&self, block: BlockId) -> &[u32] {
        &self.tokens[block.index() * self.block_size..(block.index() + 1) * self.block_size]
    }
}
