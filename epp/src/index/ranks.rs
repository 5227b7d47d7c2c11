//! What one endpoint said of its caches: a holder for each data-parallel rank and model.
//!
//! Pure bookkeeping for one writer at a time. Blocks go to the [`Chains`] under the names that the
//! engine gives them; blocks whose parent is not known wait in [`Orphans`].

use std::collections::VecDeque;

use pointsman_proto::block_hash::{KeyScope, RequestKey};
use pointsman_proto::kv_events::{BlockRemoved, BlockStored, EngineHash};

use super::chains::{Chains, Holder, HolderTag, UnknownParent};
use super::orphans::{Chunk, Orphans};
use crate::fleet::{EndpointId, Generation};

/// Models one rank may name in its topics. Events of further ones are refused.
const MODELS_MAX: usize = 16;

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
    #[error("the rank names more than {MODELS_MAX} models, or there are too many ranks")]
    Models,
    #[error("the index is full; {refused} blocks are not indexed")]
    Full { refused: usize },
}

/// What a stored event did.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(super) struct Outcome {
    /// Blocks indexed, adopted orphans included.
    pub(super) blocks: usize,
    /// Blocks of this event that wait for their parent.
    pub(super) orphaned: usize,
    /// Waiting blocks that were dropped for the bound.
    pub(super) orphans_dropped: usize,
    /// Blocks that found no room.
    pub(super) refused: usize,
}

/// One generation of one endpoint.
#[derive(Debug)]
pub(super) struct Ranks {
    pub(super) endpoint: EndpointId,
    pub(super) generation: Generation,
    list: Vec<Rank>,
}

#[derive(Debug)]
struct Rank {
    number: u32,
    is_followed: bool,
    models: Vec<Model>,
}

#[derive(Debug)]
struct Model {
    name: String,
    holder: Holder,
    orphans: Orphans,
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

impl Ranks {
    pub(super) fn new(endpoint: EndpointId, generation: Generation) -> Self {
        Self {
            endpoint,
            generation,
            list: Vec::new(),
        }
    }

    /// Whether every rank that was heard of is followed.
    pub(super) fn is_followed(&self) -> bool {
        !self.list.is_empty() && self.list.iter().all(|rank| rank.is_followed)
    }

    pub(super) fn follow(&mut self, rank: u32) {
        self.rank(rank).is_followed = true;
    }

    /// Named blocks, each counted once per rank, tier and name.
    pub(super) fn blocks(&self) -> usize {
        self.models().map(|model| model.holder.blocks()).sum()
    }

    /// Blocks that wait for their parent.
    pub(super) fn orphans(&self) -> usize {
        self.models().map(|model| model.orphans.blocks()).sum()
    }

    /// Takes in the blocks of an event that passed [`check_shape`].
    pub(super) fn store(
        &mut self,
        chains: &Chains,
        rank: u32,
        model: &str,
        event: &BlockStored,
        orphans_max: usize,
    ) -> Result<Outcome, Refusal> {
        let model = self.model(chains, rank, model).ok_or(Refusal::Models)?;
        if event.token_ids.is_empty() {
            // Offloading connectors report copies without their tokens; a block that is not known
            // here cannot be keyed without them and is left out.
            let blocks = chains.copy(&mut model.holder, event.medium, &event.block_hashes);
            return Ok(Outcome {
                blocks,
                ..Outcome::default()
            });
        }
        Ok(model.store(chains, event, orphans_max))
    }

    /// Takes blocks out; returns how many were there.
    pub(super) fn remove(
        &mut self,
        chains: &Chains,
        rank: u32,
        model: &str,
        event: &BlockRemoved,
    ) -> usize {
        let Some(model) = self.known_model(rank, model) else {
            return 0;
        };
        model.remove(chains, event)
    }

    /// Forgets every block of one model of one rank; returns how many there were.
    pub(super) fn clear_model(&mut self, chains: &Chains, rank: u32, model: &str) -> usize {
        let rank = self.list.iter_mut().find(|known| known.number == rank);
        let Some(rank) = rank else { return 0 };
        let place = rank.models.iter().position(|known| known.name == model);
        place.map_or(0, |place| retire(chains, rank.models.swap_remove(place)))
    }

    /// Forgets a rank; returns how many blocks it had.
    pub(super) fn clear_rank(&mut self, chains: &Chains, rank: u32) -> usize {
        let rank = self.rank(rank);
        rank.is_followed = false;
        let models = rank.models.drain(..);
        models.map(|model| retire(chains, model)).sum()
    }

    /// Forgets every rank; returns how many blocks they had.
    pub(super) fn clear(&mut self, chains: &Chains) -> usize {
        let models = self.list.drain(..).flat_map(|rank| rank.models);
        models.map(|model| retire(chains, model)).sum()
    }

    fn models(&self) -> impl Iterator<Item = &Model> {
        self.list.iter().flat_map(|rank| &rank.models)
    }

    fn rank(&mut self, number: u32) -> &mut Rank {
        let known = self.list.iter().position(|rank| rank.number == number);
        let place = known.unwrap_or_else(|| {
            self.list.push(Rank {
                number,
                is_followed: false,
                models: Vec::new(),
            });
            self.list.len() - 1
        });
        &mut self.list[place]
    }

    fn known_model(&mut self, rank: u32, name: &str) -> Option<&mut Model> {
        let rank = self.list.iter_mut().find(|known| known.number == rank)?;
        rank.models.iter_mut().find(|model| model.name == name)
    }

    fn model(&mut self, chains: &Chains, number: u32, name: &str) -> Option<&mut Model> {
        let tag = HolderTag {
            endpoint: self.endpoint,
            generation: self.generation,
            rank: u16::try_from(number).ok()?,
        };
        let rank = self.rank(number);
        let place = match rank.models.iter().position(|model| model.name == name) {
            Some(place) => place,
            None if rank.models.len() < MODELS_MAX => {
                rank.models.push(Model {
                    name: name.to_owned(),
                    holder: chains.holder(tag)?,
                    orphans: Orphans::default(),
                });
                rank.models.len() - 1
            }
            None => return None,
        };
        rank.models.get_mut(place)
    }
}

impl Model {
    fn store(&mut self, chains: &Chains, event: &BlockStored, orphans_max: usize) -> Outcome {
        let Self {
            name,
            holder,
            orphans,
        } = self;
        let hashes = &event.block_hashes;
        let stored = chains.store(
            holder,
            event.medium,
            event.parent,
            hashes,
            |parent, keys| {
                let root = || {
                    RequestKey::root(&KeyScope {
                        model: name,
                        adapter: event.lora_name.as_deref(),
                        cache_salt: event.cache_salt.as_deref(),
                    })
                };
                let tokens = event.token_ids.chunks_exact(event.block_size as usize);
                let parent = parent.unwrap_or_else(root);
                write_keys(parent, tokens, &event.extras, keys);
            },
        );
        let mut outcome = Outcome::default();
        match (stored, event.parent) {
            (Ok(stored), _) => {
                (outcome.blocks, outcome.refused) = (stored.stored, stored.refused);
                if orphans.blocks() > 0 {
                    self.adopt(chains, hashes.clone(), &mut outcome);
                }
            }
            (Err(UnknownParent), Some(parent)) => {
                outcome.orphaned = hashes.len();
                outcome.orphans_dropped = orphans.add(parent, Chunk::of(event), orphans_max);
            }
            // Without a parent none can be unknown.
            (Err(UnknownParent), None) => {}
        }
        outcome
    }

    /// Takes in what waits for these blocks, and what waits for that, and so on. A queue, not
    /// recursion: a chain of orphans may be as long as their bound.
    fn adopt(&mut self, chains: &Chains, parents: Vec<EngineHash>, outcome: &mut Outcome) {
        let mut parents = VecDeque::from(parents);
        while let Some(parent) = parents.pop_front() {
            for chunk in self.orphans.adopt(parent) {
                // Blocks that were removed while they waited get a name for the moment, since the
                // keys and places of later ones follow from theirs.
                let hole = |place: usize| EngineHash(u64::MAX - place as u64);
                let names: Vec<_> = (0..)
                    .zip(&chunk.hashes)
                    .map(|(place, hash)| hash.unwrap_or_else(|| hole(place)))
                    .collect();
                let write = |parent: Option<RequestKey>, keys: &mut Vec<u64>| {
                    let tokens = chunk.tokens.chunks_exact(chunk.block_size as usize);
                    let parent = parent.unwrap_or(RequestKey(0));
                    write_keys(parent, tokens, &chunk.extras, keys);
                };
                let stored =
                    chains.store(&mut self.holder, chunk.medium, Some(parent), &names, write);
                let Ok(stored) = stored else { continue };
                outcome.blocks += stored.stored;
                outcome.refused += stored.refused;
                for (name, hash) in names.iter().zip(&chunk.hashes) {
                    if let Some(hash) = hash {
                        parents.push_back(*hash);
                    } else {
                        outcome.blocks -= 1;
                        chains.remove(&mut self.holder, chunk.medium, &[*name]);
                    }
                }
            }
        }
    }

    fn remove(&mut self, chains: &Chains, event: &BlockRemoved) -> usize {
        let hashes = &event.block_hashes;
        let mut waited = 0;
        if self.orphans.blocks() > 0 {
            let orphans = &mut self.orphans;
            let removed = hashes
                .iter()
                .filter(|hash| orphans.remove(**hash, event.medium));
            waited = removed.count();
        }
        waited + chains.remove(&mut self.holder, event.medium, hashes)
    }
}

fn retire(chains: &Chains, model: Model) -> usize {
    let blocks = model.holder.blocks();
    chains.retire(model.holder);
    blocks
}

/// Writes the keys of consecutive blocks after `parent`. `extras` has what else tells each block
/// apart, or is empty where nothing does.
fn write_keys<'a>(
    parent: RequestKey,
    blocks: impl Iterator<Item = &'a [u32]>,
    extras: &[Box<[u8]>],
    keys: &mut Vec<u64>,
) {
    let mut extras = extras.iter();
    let mut key = parent;
    for tokens in blocks {
        key = key.child(tokens, extras.next().map_or(&[], |extras| extras));
        keys.push(key.0);
    }
}
