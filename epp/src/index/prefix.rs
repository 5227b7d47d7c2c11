//! The precise prefix index: KV events in, cached prompt tokens per endpoint out.
//!
//! Writers of one endpoint take that endpoint's lock and then, block by block, the write lock of
//! one shard of the holders; writers of different endpoints meet only in a shard. Readers take
//! shard read locks and nothing else, one at a time, for the length of a merge. A lookup walks the
//! prompt's chain of keys from its first block and stops at the first one that nobody holds; an
//! endpoint is out of the race at its first miss, because a cache that lost a block cannot use
//! those after it.
//!
//! Engines of different block sizes may share a pool, so the walk is made once per block size that
//! was ever seen. Data parallel ranks behind one address are one endpoint here.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};

use dashmap::DashMap;
use parking_lot::{Mutex, RwLock};
use pointsman_proto::block_hash::{KeyScope, RequestKey};
use pointsman_proto::kv_events::{BlockStored, Event};
use rustc_hash::FxBuildHasher;
use smallvec::SmallVec;

use super::blocks::{EndpointBlocks, Ledger, Refusal, Stored, check_shape};
use super::holders::{Holder, Holders};
use crate::fleet::kv_events::{BlockSink, EventSource};
use crate::fleet::{EndpointId, Generation, Matches};

/// Distinct block sizes of one index. Each costs a lookup one hash. Events of further sizes are
/// refused, and a size is remembered for the life of the index.
pub const BLOCK_SIZES_MAX: usize = 16;

/// Bounds of an index.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IndexLimits {
    /// Blocks over all endpoints, each counted once per endpoint that holds it. At the bound, new
    /// blocks are refused and counted until old ones are removed. A block costs about 100 bytes
    /// where nobody shares it, less where many do.
    pub max_blocks: usize,
    /// Blocks per endpoint and model that may wait for an unknown parent. At the bound the oldest
    /// are dropped.
    pub max_orphans_per_endpoint: usize,
}

impl Default for IndexLimits {
    fn default() -> Self {
        Self {
            max_blocks: 16_000_000,
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
    /// Blocks held now, each counted once per endpoint.
    pub blocks: usize,
    /// Distinct request keys held now.
    pub keys: usize,
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

/// Buffers of a lookup, to be reused.
#[derive(Clone, Default, Debug)]
pub struct IndexScratch {
    racing: Vec<Racer>,
}

/// An endpoint that held every block so far.
#[derive(Clone, Copy, Debug)]
struct Racer {
    id: EndpointId,
    generation: Generation,
    /// Tokens of the leading blocks that are all on the GPU; fixed once one is not.
    gpu_tokens: u32,
    all_on_gpu: bool,
}

/// See the module.
#[derive(Debug)]
pub struct PrefixIndex {
    limits: IndexLimits,
    holders: Holders,
    endpoints: DashMap<EndpointId, Arc<Mutex<Slot>>, FxBuildHasher>,
    block_sizes: RwLock<SmallVec<[u32; BLOCK_SIZES_MAX]>>,
    /// Whether any worker ever sent events without naming its model.
    unnamed_models: AtomicBool,
    blocks: AtomicUsize,
    counters: Counters,
}

#[derive(Debug)]
struct Slot {
    generation: Generation,
    blocks: EndpointBlocks,
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
            holders: Holders::default(),
            endpoints: DashMap::default(),
            block_sizes: RwLock::default(),
            unnamed_models: AtomicBool::new(false),
            blocks: AtomicUsize::new(0),
            counters: Counters::default(),
        }
    }

    /// Takes an event of an endpoint in. `model` is the base model that its topic names, `""` where
    /// it names none.
    ///
    /// The first event of a later generation drops everything of the earlier one.
    pub fn apply(&self, source: (EndpointId, Generation), model: &str, event: &Event) -> Applied {
        let (id, generation) = source;
        let slot = self.slot(id, generation);
        let mut slot = slot.lock();
        if !self.bring_up_to(id, &mut slot, generation) {
            self.counters.stale_events.fetch_add(1, Relaxed);
            return Applied::StaleGeneration;
        }
        let mut ledger = self.ledger(id, generation);
        match event {
            Event::BlockStored(stored) => {
                if let Err(refusal) = self.check(stored) {
                    return self.refuse(refusal);
                }
                if model.is_empty() {
                    self.unnamed_models.store(true, Relaxed);
                }
                let orphans_max = self.limits.max_orphans_per_endpoint;
                let outcome = slot.blocks.store(model, stored, orphans_max, &mut ledger);
                self.account_stored(outcome)
            }
            Event::BlockRemoved(removed) => {
                let blocks = slot.blocks.remove(model, removed, &mut ledger);
                self.account_removed(blocks)
            }
            Event::AllBlocksCleared => {
                let blocks = slot.blocks.clear_model(model, &mut ledger);
                self.account_removed(blocks)
            }
        }
    }

    /// Drops everything that a generation of an endpoint holds, and what earlier ones left. A later
    /// generation is not touched.
    pub fn clear(&self, id: EndpointId, generation: Generation) {
        let slot = self.slot(id, generation);
        let mut slot = slot.lock();
        if self.bring_up_to(id, &mut slot, generation) {
            let blocks = slot.blocks.clear(&mut self.ledger(id, generation));
            self.account_removed(blocks);
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

    /// Whether events of this generation of an endpoint have come.
    pub fn is_followed(&self, id: EndpointId, generation: Generation) -> bool {
        let slot = self.endpoints.get(&id).map(|slot| Arc::clone(&slot));
        slot.is_some_and(|slot| slot.lock().generation == generation)
    }

    /// The counts as they are.
    pub fn stats(&self) -> IndexStats {
        let orphans = self
            .endpoints
            .iter()
            .map(|slot| Arc::clone(slot.value()))
            .collect::<Vec<_>>()
            .iter()
            .map(|slot| slot.lock().blocks.orphans())
            .sum();
        IndexStats {
            blocks: self.blocks.load(Relaxed),
            keys: self.holders.len(),
            orphans,
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
        let racing = &mut scratch.racing;
        racing.clear();
        let mut key = root;
        let mut walked = 0;
        for block in tokens.chunks_exact(block_size as usize) {
            key = key.child(block, &[]);
            let held = self.holders.read(key, |holders| {
                if walked == 0 {
                    racing.extend(holders.iter().map(start));
                } else {
                    drop_out(racing, holders, walked, out);
                }
                advance(racing, holders, block_size);
            });
            if held.is_none() || racing.is_empty() {
                break;
            }
            walked += block_size;
        }
        for racer in racing.drain(..) {
            out.record(racer.id, racer.generation, walked, racer.gpu_tokens);
        }
    }

    fn slot(&self, id: EndpointId, generation: Generation) -> Arc<Mutex<Slot>> {
        let entry = self.endpoints.entry(id).or_insert_with(|| {
            Arc::new(Mutex::new(Slot {
                generation,
                blocks: EndpointBlocks::default(),
            }))
        });
        Arc::clone(&entry)
    }

    /// Moves a slot on to `generation`, dropping what an earlier one left; false when the slot is
    /// past it.
    fn bring_up_to(&self, id: EndpointId, slot: &mut Slot, generation: Generation) -> bool {
        if slot.generation < generation {
            let blocks = slot.blocks.clear(&mut self.ledger(id, slot.generation));
            self.account_removed(blocks);
            slot.generation = generation;
        }
        slot.generation == generation
    }

    fn ledger(&self, id: EndpointId, generation: Generation) -> EndpointLedger<'_> {
        EndpointLedger {
            index: self,
            id,
            generation,
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

    fn account_stored(&self, outcome: Result<Stored, Refusal>) -> Applied {
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
        PrefixIndex::apply(self, (source.endpoint, source.generation), model, event);
    }

    fn followed(&self, _: EventSource) {}

    fn clear(&self, source: EventSource) {
        PrefixIndex::clear(self, source.endpoint, source.generation);
    }

    fn forget(&self, endpoint: EndpointId, generation: Generation) {
        PrefixIndex::clear(self, endpoint, generation);
    }
}

fn start(holder: &Holder) -> Racer {
    Racer {
        id: holder.id,
        generation: holder.generation,
        gpu_tokens: 0,
        all_on_gpu: true,
    }
}

/// Takes out of the race, and records, who is not among the holders of the next block. Both lists
/// are sorted.
fn drop_out(racing: &mut Vec<Racer>, holders: &[Holder], walked: u32, out: &mut Matches) {
    let mut rest = holders.iter().peekable();
    racing.retain(|racer| {
        while rest.next_if(|holder| holder.id < racer.id).is_some() {}
        let stays = rest
            .peek()
            .is_some_and(|holder| (holder.id, holder.generation) == (racer.id, racer.generation));
        if !stays {
            out.record(racer.id, racer.generation, walked, racer.gpu_tokens);
        }
        stays
    });
}

/// Counts a block that every racer holds. Both lists are sorted, and the holders include every
/// racer.
fn advance(racing: &mut [Racer], holders: &[Holder], block_size: u32) {
    let mut rest = holders.iter();
    for racer in racing {
        let on_gpu = rest
            .find(|holder| holder.id == racer.id)
            .is_some_and(Holder::on_gpu);
        racer.all_on_gpu &= on_gpu;
        if racer.all_on_gpu {
            racer.gpu_tokens += block_size;
        }
    }
}

/// The index as one endpoint's writer sees it.
struct EndpointLedger<'a> {
    index: &'a PrefixIndex,
    id: EndpointId,
    generation: Generation,
}

impl Ledger for EndpointLedger<'_> {
    fn reserve(&mut self) -> bool {
        let max_blocks = self.index.limits.max_blocks;
        let reserved = self.index.blocks.fetch_update(Relaxed, Relaxed, |blocks| {
            (blocks < max_blocks).then_some(blocks + 1)
        });
        reserved.is_ok()
    }

    fn free(&mut self) {
        self.index.blocks.fetch_sub(1, Relaxed);
    }

    fn hold(&mut self, key: RequestKey, tier: usize) {
        self.index.holders.hold(key, self.id, self.generation, tier);
    }

    fn release(&mut self, key: RequestKey, tier: usize) {
        self.index.holders.release(key, self.id, tier);
    }
}
