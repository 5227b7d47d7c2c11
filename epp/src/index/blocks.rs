//! The blocks of one endpoint: its engine hashes, translated into request keys.
//!
//! Pure bookkeeping for one writer at a time. What it decides about keys goes out through a
//! [`Ledger`], which counts the entries of all endpoints and keeps the holders that lookups read.

use std::collections::{HashMap, VecDeque};

use pointsman_proto::block_hash::{KeyScope, RequestKey};
use pointsman_proto::kv_events::{BlockRemoved, BlockStored, EngineHash};
use rustc_hash::FxBuildHasher;

use super::holders::{TIERS, tier_of};
use super::orphans::{Chunk, Orphans};

/// Models one endpoint may name in its topics. Events of further ones are refused.
const MODELS_MAX: usize = 16;

/// Where changes of keys go.
pub(super) trait Ledger {
    /// Takes room for one more block; false when the index is full.
    fn reserve(&mut self) -> bool;
    /// Gives the room of one block back.
    fn free(&mut self);
    /// The endpoint holds `key` in `tier` under one more name.
    fn hold(&mut self, key: RequestKey, tier: usize);
    /// The endpoint holds `key` in `tier` under one name less.
    fn release(&mut self, key: RequestKey, tier: usize);
}

/// Why a stored event was refused, whole or in part.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Refusal {
    #[error("{tokens} token ids do not fill {blocks} blocks of {block_size}")]
    TokenCount {
        tokens: usize,
        blocks: usize,
        block_size: u32,
    },
    #[error("no room for another block size; {block_size} is the newest")]
    BlockSizes { block_size: u32 },
    #[error("the endpoint names more than {MODELS_MAX} models")]
    Models,
    #[error("the index is full; {refused} blocks are not indexed")]
    Full { refused: usize },
}

/// What a stored event did.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(super) struct Stored {
    /// Blocks indexed, adopted orphans included.
    pub(super) blocks: usize,
    /// Blocks of this event that wait for their parent.
    pub(super) orphaned: usize,
    /// Waiting blocks that were dropped for the bound.
    pub(super) orphans_dropped: usize,
    /// Blocks that found no room.
    pub(super) refused: usize,
}

/// Checks that the tokens of an event fill its blocks. No tokens at all are right too: such an
/// event notes copies of known blocks in another tier.
pub(super) fn check_shape(event: &BlockStored) -> Result<(), Refusal> {
    let tokens = event.token_ids.len();
    let blocks = event.block_hashes.len();
    let expected = blocks.checked_mul(event.block_size as usize);
    if tokens == 0 || (event.block_size > 0 && expected == Some(tokens)) {
        return Ok(());
    }
    Err(Refusal::TokenCount {
        tokens,
        blocks,
        block_size: event.block_size,
    })
}

/// All blocks of one generation of one endpoint.
#[derive(Debug, Default)]
pub(super) struct EndpointBlocks {
    models: Vec<(String, ModelBlocks)>,
}

#[derive(Debug, Default)]
struct ModelBlocks {
    blocks: HashMap<EngineHash, Block, FxBuildHasher>,
    orphans: Orphans,
}

#[derive(Clone, Copy, Debug)]
struct Block {
    key: RequestKey,
    /// One bit per tier.
    tiers: u8,
}

impl EndpointBlocks {
    /// Blocks that wait for their parent.
    pub(super) fn orphans(&self) -> usize {
        self.models
            .iter()
            .map(|(_, model)| model.orphans.blocks())
            .sum()
    }

    /// Takes in the blocks of an event that passed [`check_shape`].
    pub(super) fn store(
        &mut self,
        model: &str,
        event: &BlockStored,
        orphans_max: usize,
        ledger: &mut impl Ledger,
    ) -> Result<Stored, Refusal> {
        let model_blocks = self.model(model).ok_or(Refusal::Models)?;
        if event.token_ids.is_empty() {
            return Ok(model_blocks.note_tier(event, ledger));
        }
        let chunk = Chunk {
            hashes: event.block_hashes.iter().copied().map(Some).collect(),
            tokens: event.token_ids.clone(),
            block_size: event.block_size,
            tier: tier_of(event.medium),
        };
        let Some(parent) = event.parent else {
            let root = RequestKey::root(&KeyScope {
                model,
                adapter: event.lora_name.as_deref(),
                cache_salt: event.cache_salt.as_deref(),
            });
            return Ok(model_blocks.chain(root, chunk, ledger));
        };
        if let Some(block) = model_blocks.blocks.get(&parent) {
            return Ok(model_blocks.chain(block.key, chunk, ledger));
        }
        let orphans_dropped = model_blocks.orphans.add(parent, chunk, orphans_max);
        Ok(Stored {
            orphaned: event.block_hashes.len(),
            orphans_dropped,
            ..Stored::default()
        })
    }

    /// Takes blocks out; returns how many were there.
    pub(super) fn remove(
        &mut self,
        model: &str,
        event: &BlockRemoved,
        ledger: &mut impl Ledger,
    ) -> usize {
        let tier = tier_of(event.medium);
        let Some((_, model_blocks)) = self.models.iter_mut().find(|(name, _)| name == model) else {
            return 0;
        };
        event
            .block_hashes
            .iter()
            .filter(|hash| model_blocks.remove(**hash, tier, ledger))
            .count()
    }

    /// Takes every block of a model out; returns how many there were.
    pub(super) fn clear_model(&mut self, model: &str, ledger: &mut impl Ledger) -> usize {
        let Some(place) = self.models.iter().position(|(name, _)| name == model) else {
            return 0;
        };
        let (_, blocks) = self.models.swap_remove(place);
        blocks.release_all(ledger)
    }

    /// Takes every block out; returns how many there were.
    pub(super) fn clear(&mut self, ledger: &mut impl Ledger) -> usize {
        self.models
            .drain(..)
            .map(|(_, blocks)| blocks.release_all(ledger))
            .sum()
    }

    fn model(&mut self, model: &str) -> Option<&mut ModelBlocks> {
        let place = match self.models.iter().position(|(name, _)| name == model) {
            Some(place) => place,
            None if self.models.len() < MODELS_MAX => {
                self.models.push((model.to_owned(), ModelBlocks::default()));
                self.models.len() - 1
            }
            None => return None,
        };
        self.models.get_mut(place).map(|(_, blocks)| blocks)
    }
}

impl ModelBlocks {
    /// Indexes a chunk whose parent's key is known, and then every orphan that this makes
    /// indexable.
    fn chain(&mut self, parent_key: RequestKey, chunk: Chunk, ledger: &mut impl Ledger) -> Stored {
        let mut stored = Stored::default();
        // A queue, not recursion: a chain of orphans may be as long as their bound.
        let mut queue = VecDeque::from([(parent_key, chunk)]);
        while let Some((mut key, chunk)) = queue.pop_front() {
            let block_tokens = chunk.tokens.chunks_exact(chunk.block_size as usize);
            for (hash, tokens) in chunk.hashes.iter().zip(block_tokens) {
                key = key.child(tokens, &[]);
                let Some(hash) = *hash else { continue };
                if !self.insert(hash, key, chunk.tier, ledger) {
                    stored.refused += 1;
                    continue;
                }
                stored.blocks += 1;
                queue.extend(
                    self.orphans
                        .adopt(hash)
                        .into_iter()
                        .map(|orphan| (key, orphan)),
                );
            }
        }
        stored
    }

    /// Notes that known blocks are in one more tier. Offloading connectors report copies without
    /// their tokens; a block that is not known here cannot be keyed without them and is left out.
    fn note_tier(&mut self, event: &BlockStored, ledger: &mut impl Ledger) -> Stored {
        let tier = tier_of(event.medium);
        let mut stored = Stored::default();
        for hash in &event.block_hashes {
            if let Some(Block { key, .. }) = self.blocks.get(hash).copied()
                && self.insert(*hash, key, tier, ledger)
            {
                stored.blocks += 1;
            }
        }
        stored
    }

    /// Gives a block its key and one more tier; false when there is no room. A hash that is reused
    /// for other content means the new content from then on.
    fn insert(
        &mut self,
        hash: EngineHash,
        key: RequestKey,
        tier: usize,
        ledger: &mut impl Ledger,
    ) -> bool {
        let bit = 1 << tier;
        match self.blocks.get_mut(&hash) {
            Some(block) if block.key == key => {
                if block.tiers & bit == 0 {
                    block.tiers |= bit;
                    ledger.hold(key, tier);
                }
            }
            Some(block) => {
                release_tiers(block, ledger);
                *block = Block { key, tiers: bit };
                ledger.hold(key, tier);
            }
            None => {
                if !ledger.reserve() {
                    return false;
                }
                self.blocks.insert(hash, Block { key, tiers: bit });
                ledger.hold(key, tier);
            }
        }
        true
    }

    fn remove(&mut self, hash: EngineHash, tier: usize, ledger: &mut impl Ledger) -> bool {
        let waited = self.orphans.remove(hash, tier);
        let bit = 1 << tier;
        let Some(block) = self.blocks.get_mut(&hash) else {
            return waited;
        };
        if block.tiers & bit == 0 {
            return waited;
        }
        block.tiers &= !bit;
        let emptied = block.tiers == 0;
        ledger.release(block.key, tier);
        if emptied {
            self.blocks.remove(&hash);
            ledger.free();
        }
        true
    }

    fn release_all(self, ledger: &mut impl Ledger) -> usize {
        for block in self.blocks.values() {
            release_tiers(block, ledger);
            ledger.free();
        }
        self.blocks.len()
    }
}

fn release_tiers(block: &Block, ledger: &mut impl Ledger) {
    for tier in (0..TIERS).filter(|tier| block.tiers & (1 << tier) != 0) {
        ledger.release(block.key, tier);
    }
}
