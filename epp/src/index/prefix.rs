//! The precise prefix index: KV events in, cached prompt tokens per endpoint out.
//!
//! Writers of one endpoint take that endpoint's lock; beneath it the [`Chains`] lock one shard for
//! the length of an event. Lookups take no lock. They walk the prompt's chain of keys from its first
//! block, hash it as far as somebody holds it, and an endpoint is out of the race at its first miss,
//! because a cache that lost a block cannot use those after it.
//!
//! Engines of different block sizes may share a pool, so the walk is made once per block size that
//! was ever seen.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use arc_swap::ArcSwap;
use dashmap::DashMap;
use parking_lot::{Mutex, RwLock};
use pointsman_proto::block_hash::{KeyScope, RequestKey};
use pointsman_proto::kv_events::{BlockStored, Event};
use rustc_hash::FxBuildHasher;
use smallvec::SmallVec;
use tokio::sync::Notify;

use super::chains::{Chains, Found, TokenKeys};
use super::ranks::{Outcome, Ranks, Refusal, check_shape};
use crate::fleet::kv_events::{BlockSink, EventSource};
use crate::fleet::{EndpointId, Generation, Matches};

/// Distinct block sizes of one index. Each costs a lookup one hash. Events of further sizes are
/// refused, and a size is remembered for the life of the index.
pub const BLOCK_SIZES_MAX: usize = 16;

/// Blocks reclaimed before others get their turn: some hundred microseconds of work.
const RECLAIMED_AT_ONCE: usize = 1_024;

/// Bounds of an index.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IndexLimits {
    /// Bytes of the index, all tables included. At the bound, new blocks are refused and counted
    /// until old ones are removed. A block of an endpoint costs 25 to 45 bytes. Waiting orphans
    /// have a bound of their own.
    pub max_bytes: usize,
    /// Blocks per rank and model that may wait for an unknown parent. At the bound the oldest
    /// are dropped.
    pub max_orphans_per_endpoint: usize,
}

impl Default for IndexLimits {
    fn default() -> Self {
        Self {
            max_bytes: 1 << 30,
            max_orphans_per_endpoint: 8_192,
        }
    }
}

/// What one event did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Applied {
    /// Blocks were indexed, orphans that this adopted included.
    Stored { blocks: usize },
    /// The blocks wait for their parent.
    Orphaned { blocks: usize },
    /// Blocks were taken out.
    Removed { blocks: usize },
    /// The event does not fit, or not all of it found room.
    Refused(Refusal),
    /// The event is of an earlier generation of the endpoint and was ignored.
    StaleGeneration,
}

/// Counts of an index, of the moment or since the start.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct IndexStats {
    /// Blocks held now, each counted once per endpoint, rank, tier and name.
    pub blocks: usize,
    /// Stretches of prompts that are kept as one.
    pub runs: usize,
    /// Bytes of the index now, waiting blocks excepted.
    pub bytes: usize,
    /// Blocks that wait for their parent now.
    pub orphans: usize,
    /// Blocks indexed since the start.
    pub stored: u64,
    /// Blocks taken out since the start, by removals and clears.
    pub removed: u64,
    /// Waiting blocks dropped for their bound since the start.
    pub orphans_dropped: u64,
    /// Blocks refused because the index was full since the start.
    pub refused_blocks: u64,
    /// Events refused because they do not fit since the start.
    pub refused_events: u64,
    /// Events of an earlier generation ignored since the start.
    pub stale_events: u64,
}

impl std::ops::AddAssign for IndexStats {
    fn add_assign(&mut self, other: Self) {
        self.blocks += other.blocks;
        self.runs += other.runs;
        self.bytes += other.bytes;
        self.orphans += other.orphans;
        self.stored += other.stored;
        self.removed += other.removed;
        self.orphans_dropped += other.orphans_dropped;
        self.refused_blocks += other.refused_blocks;
        self.refused_events += other.refused_events;
        self.stale_events += other.stale_events;
    }
}

/// Buffers of a lookup, to be reused.
#[derive(Default, Debug)]
pub struct IndexScratch {
    keys: Vec<RequestKey>,
    found: Found,
}

/// See the module.
#[derive(Debug)]
pub struct PrefixIndex {
    limits: IndexLimits,
    chains: Chains,
    endpoints: DashMap<EndpointId, Arc<Mutex<Ranks>>, FxBuildHasher>,
    /// By endpoint number: the generation whose events are followed, or 0. Copied on each change,
    /// which is seldom, so that lookups read it at once.
    followed: ArcSwap<Vec<u32>>,
    following: Mutex<()>,
    block_sizes: RwLock<SmallVec<[u32; BLOCK_SIZES_MAX]>>,
    /// Whether any worker ever sent events without naming its model.
    unnamed_models: AtomicBool,
    counters: Counters,
    /// Told when there is something to reclaim.
    cleared: Notify,
}

#[derive(Debug, Default)]
struct Counters {
    stored: AtomicU64,
    removed: AtomicU64,
    orphans_dropped: AtomicU64,
    refused_blocks: AtomicU64,
    refused_events: AtomicU64,
    stale_events: AtomicU64,
}

impl PrefixIndex {
    /// An empty index.
    pub fn new(limits: IndexLimits) -> Self {
        Self {
            limits,
            chains: Chains::new(limits.max_bytes),
            endpoints: DashMap::default(),
            followed: ArcSwap::default(),
            following: Mutex::new(()),
            block_sizes: RwLock::default(),
            unnamed_models: AtomicBool::new(false),
            counters: Counters::default(),
            cleared: Notify::new(),
        }
    }

    /// Takes an event of a rank in. `model` is the base model that its topic names, `""` where it
    /// names none.
    ///
    /// The first event of a later generation drops everything of the earlier one.
    pub fn apply(&self, source: EventSource, model: &str, event: &Event) -> Applied {
        let ranks = self.ranks(source.endpoint, source.generation);
        let mut ranks = ranks.lock();
        if !self.bring_up_to(&mut ranks, source.generation) {
            self.counters.stale_events.fetch_add(1, Relaxed);
            return Applied::StaleGeneration;
        }
        match event {
            Event::BlockStored(stored) => {
                if let Err(refusal) = self.check(stored) {
                    return self.refuse(refusal);
                }
                if model.is_empty() {
                    self.unnamed_models.store(true, Relaxed);
                }
                let orphans_max = self.limits.max_orphans_per_endpoint;
                let chains = &self.chains;
                let outcome = ranks.store(chains, source.rank, model, stored, orphans_max);
                self.account_stored(outcome)
            }
            Event::BlockRemoved(removed) => {
                let blocks = ranks.remove(&self.chains, source.rank, model, removed);
                self.account_removed(blocks)
            }
            Event::AllBlocksCleared => {
                let blocks = ranks.clear_model(&self.chains, source.rank, model);
                self.account_cleared(blocks)
            }
        }
    }

    /// What is held of a rank is complete from here on.
    pub fn followed(&self, source: EventSource) {
        let ranks = self.ranks(source.endpoint, source.generation);
        let mut ranks = ranks.lock();
        if self.bring_up_to(&mut ranks, source.generation) {
            ranks.follow(source.rank);
            self.note_followed(&ranks);
        }
    }

    /// Drops everything that a rank holds, and what earlier generations of its endpoint left. A
    /// later generation is not touched.
    pub fn clear(&self, source: EventSource) {
        let ranks = self.ranks(source.endpoint, source.generation);
        let mut ranks = ranks.lock();
        if self.bring_up_to(&mut ranks, source.generation) {
            let blocks = ranks.clear_rank(&self.chains, source.rank);
            self.note_followed(&ranks);
            self.account_cleared(blocks);
        }
    }

    /// Drops everything that an endpoint holds that left. A later generation is not touched.
    pub fn forget(&self, endpoint: EndpointId, generation: Generation) {
        let ranks = self.ranks(endpoint, generation);
        let mut ranks = ranks.lock();
        if self.bring_up_to(&mut ranks, generation) {
            let blocks = ranks.clear(&self.chains);
            self.note_followed(&ranks);
            self.account_cleared(blocks);
        }
    }

    /// Whether the events of this generation of an endpoint are followed, with all its ranks.
    pub fn is_followed(&self, endpoint: EndpointId, generation: Generation) -> bool {
        let followed = self.followed.load();
        followed.get(endpoint.index()) == Some(&generation.0)
    }

    /// Frees memory of what was cleared, up to that many blocks; true when there is more to do.
    pub fn reclaim(&self, blocks: usize) -> bool {
        self.chains.reclaim(blocks)
    }

    /// Reclaims whatever is cleared, a little at a time, for as long as the index lives.
    pub async fn keep_reclaiming(self: Arc<Self>) {
        loop {
            self.cleared.notified().await;
            while self.reclaim(RECLAIMED_AT_ONCE) {
                tokio::task::yield_now().await;
            }
        }
    }

    /// Fills `out` with the leading tokens of a prompt that each endpoint holds.
    ///
    /// Workers that do not name their model in their topic are looked up under any model: such a
    /// worker serves one model, and a request for another is not sent to it for other reasons.
    pub fn matches(
        &self,
        scope: &KeyScope<'_>,
        tokens: &[u32],
        scratch: &mut IndexScratch,
        out: &mut Matches,
    ) {
        out.clear();
        let block_sizes = self.block_sizes.read().clone();
        let unnamed = KeyScope {
            model: "",
            adapter: scope.adapter,
            cache_salt: scope.cache_salt,
        };
        let look_for_unnamed = !scope.model.is_empty() && self.unnamed_models.load(Relaxed);
        for block_size in block_sizes {
            self.walk(RequestKey::root(scope), tokens, block_size, scratch, out);
            if look_for_unnamed {
                self.walk(RequestKey::root(&unnamed), tokens, block_size, scratch, out);
            }
        }
    }

    /// The counts as they are.
    pub fn stats(&self) -> IndexStats {
        let all: Vec<_> = self
            .endpoints
            .iter()
            .map(|ranks| Arc::clone(ranks.value()))
            .collect();
        let sum = |count: fn(&Ranks) -> usize| all.iter().map(|ranks| count(&ranks.lock())).sum();
        IndexStats {
            blocks: sum(Ranks::blocks),
            runs: self.chains.runs(),
            bytes: self.chains.bytes(),
            orphans: sum(Ranks::orphans),
            stored: self.counters.stored.load(Relaxed),
            removed: self.counters.removed.load(Relaxed),
            orphans_dropped: self.counters.orphans_dropped.load(Relaxed),
            refused_blocks: self.counters.refused_blocks.load(Relaxed),
            refused_events: self.counters.refused_events.load(Relaxed),
            stale_events: self.counters.stale_events.load(Relaxed),
        }
    }

    fn walk(
        &self,
        root: RequestKey,
        tokens: &[u32],
        block_size: u32,
        scratch: &mut IndexScratch,
        out: &mut Matches,
    ) {
        let mut keys = TokenKeys::new(root, tokens, block_size, &mut scratch.keys);
        self.chains.find(&mut keys, &mut scratch.found);
        self.chains
            .report(&scratch.found, |tag, blocks, gpu_blocks| {
                let (tokens, gpu_tokens) = (blocks * block_size, gpu_blocks * block_size);
                out.record(tag.endpoint, tag.generation, tokens, gpu_tokens);
            });
    }

    fn ranks(&self, endpoint: EndpointId, generation: Generation) -> Arc<Mutex<Ranks>> {
        let entry = self
            .endpoints
            .entry(endpoint)
            .or_insert_with(|| Arc::new(Mutex::new(Ranks::new(endpoint, generation))));
        Arc::clone(&entry)
    }

    /// Moves an endpoint on to `generation`, dropping what an earlier one left; false when it is
    /// past it.
    fn bring_up_to(&self, ranks: &mut Ranks, generation: Generation) -> bool {
        if ranks.generation < generation {
            let blocks = ranks.clear(&self.chains);
            self.account_cleared(blocks);
            ranks.generation = generation;
            self.note_followed(ranks);
        }
        ranks.generation == generation
    }

    fn note_followed(&self, ranks: &Ranks) {
        let generation = if ranks.is_followed() {
            ranks.generation.0
        } else {
            0
        };
        let place = ranks.endpoint.index();
        let _writing = self.following.lock();
        let before = self.followed.load();
        if before.get(place).copied().unwrap_or(0) != generation {
            let mut after = Vec::clone(&before);
            after.resize(after.len().max(place + 1), 0);
            after[place] = generation;
            self.followed.store(Arc::new(after));
        }
    }

    /// Checks an event and makes its block size known to lookups.
    fn check(&self, stored: &BlockStored) -> Result<(), Refusal> {
        check_shape(stored)?;
        let block_size = stored.block_size;
        if stored.token_ids.is_empty() || self.block_sizes.read().contains(&block_size) {
            return Ok(());
        }
        let mut sizes = self.block_sizes.write();
        if !sizes.contains(&block_size) {
            if sizes.len() == BLOCK_SIZES_MAX {
                return Err(Refusal::BlockSizes { block_size });
            }
            sizes.push(block_size);
        }
        Ok(())
    }

    fn account_stored(&self, outcome: Result<Outcome, Refusal>) -> Applied {
        let stored = match outcome {
            Ok(stored) => stored,
            Err(refusal) => return self.refuse(refusal),
        };
        let counters = &self.counters;
        counters.stored.fetch_add(stored.blocks as u64, Relaxed);
        counters
            .orphans_dropped
            .fetch_add(stored.orphans_dropped as u64, Relaxed);
        if stored.refused > 0 {
            counters
                .refused_blocks
                .fetch_add(stored.refused as u64, Relaxed);
            return Applied::Refused(Refusal::Full {
                refused: stored.refused,
            });
        }
        if stored.orphaned > 0 {
            return Applied::Orphaned {
                blocks: stored.orphaned,
            };
        }
        Applied::Stored {
            blocks: stored.blocks,
        }
    }

    fn account_cleared(&self, blocks: usize) -> Applied {
        self.cleared.notify_one();
        self.account_removed(blocks)
    }

    fn account_removed(&self, blocks: usize) -> Applied {
        self.counters.removed.fetch_add(blocks as u64, Relaxed);
        Applied::Removed { blocks }
    }

    fn refuse(&self, refusal: Refusal) -> Applied {
        self.counters.refused_events.fetch_add(1, Relaxed);
        Applied::Refused(refusal)
    }
}

impl BlockSink for PrefixIndex {
    fn apply(&self, source: EventSource, model: &str, event: &Event) {
        PrefixIndex::apply(self, source, model, event);
    }

    fn followed(&self, source: EventSource) {
        PrefixIndex::followed(self, source);
    }

    fn clear(&self, source: EventSource) {
        PrefixIndex::clear(self, source);
    }

    fn forget(&self, endpoint: EndpointId, generation: Generation) {
        PrefixIndex::forget(self, endpoint, generation);
    }
}
