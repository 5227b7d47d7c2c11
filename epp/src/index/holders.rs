//! Request key to the endpoints that hold it: the half of the index that lookups read.
//!
//! A sharded map, so that a reader takes one shard's read lock for one block and writers of other
//! shards do not wait for it. The holders of a key are kept sorted by endpoint number, so that a
//! lookup intersects them with the endpoints still in the race by one merge, however many there
//! are.
//!
//! A holder counts references per tier, because one endpoint may name the same content twice (two
//! data-parallel ranks, two adapters of a store) and loses it only with the last of the names.

use std::hash::{BuildHasherDefault, Hasher};

use dashmap::{DashMap, Entry};
use pointsman_proto::block_hash::RequestKey;
use pointsman_proto::kv_events::Medium;
use smallvec::SmallVec;

use crate::fleet::{EndpointId, Generation};

/// Number of cache tiers: GPU, CPU, disk.
pub(super) const TIERS: usize = 3;
const GPU: usize = 0;

/// A tier's place in an array of [`TIERS`].
pub(super) fn tier_of(medium: Medium) -> usize {
    match medium {
        Medium::Gpu => GPU,
        Medium::Cpu => 1,
        Medium::Disk => 2,
    }
}

/// One endpoint that holds a key.
#[derive(Clone, Copy, Debug)]
pub(super) struct Holder {
    pub(super) id: EndpointId,
    pub(super) generation: Generation,
    references: [u16; TIERS],
}

impl Holder {
    pub(super) fn on_gpu(&self) -> bool {
        self.references[GPU] > 0
    }
}

/// Two holders fit in the map's entry itself; more are spilled to the heap.
type HolderList = SmallVec<[Holder; 2]>;

/// The map.
#[derive(Debug, Default)]
pub(super) struct Holders {
    by_key: DashMap<RequestKey, HolderList, BuildHasherDefault<KeyHasher>>,
}

impl Holders {
    /// Distinct keys that somebody holds.
    pub(super) fn len(&self) -> usize {
        self.by_key.len()
    }

    /// Shows the holders of a key, sorted by endpoint, to `read`, under the shard's read lock;
    /// `None` when nobody holds it.
    pub(super) fn read<T>(&self, key: RequestKey, read: impl FnOnce(&[Holder]) -> T) -> Option<T> {
        self.by_key.get(&key).map(|holders| read(&holders))
    }

    /// Adds a reference.
    pub(super) fn hold(
        &self,
        key: RequestKey,
        id: EndpointId,
        generation: Generation,
        tier: usize,
    ) {
        let mut holders = self.by_key.entry(key).or_default();
        let place = match holders.binary_search_by_key(&id, |holder| holder.id) {
            Ok(place) => place,
            Err(place) => {
                let holder = Holder {
                    id,
                    generation,
                    references: [0; TIERS],
                };
                holders.insert(place, holder);
                place
            }
        };
        let count = &mut holders[place].references[tier];
        // 65,535 names for one content at one endpoint is no cache; past it the block is forgotten
        // a little early.
        *count = count.saturating_add(1);
    }

    /// Takes a reference away.
    pub(super) fn release(&self, key: RequestKey, id: EndpointId, tier: usize) {
        let Entry::Occupied(mut entry) = self.by_key.entry(key) else {
            return;
        };
        let holders = entry.get_mut();
        let Ok(place) = holders.binary_search_by_key(&id, |holder| holder.id) else {
            return;
        };
        let references = &mut holders[place].references;
        references[tier] = references[tier].saturating_sub(1);
        if *references == [0; TIERS] {
            holders.remove(place);
        }
        if holders.is_empty() {
            entry.remove();
        }
    }
}

/// Passes a request key through: it is a hash already.
#[derive(Default)]
pub(super) struct KeyHasher(u64);

impl Hasher for KeyHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = value;
    }
}
