//! Runs: stretches of prompts that were only ever seen together.
//!
//! Prompts that share a prefix form a tree. A run is an edge of it: the keys of blocks that follow
//! one another without a branch and without a prompt ending between them. Because a key stands for
//! everything before it, the key of a run's first block names the run, and one map from it to the
//! run is all the tree there is: no parent, no list of children. For the same reason two chains of
//! keys that agree in one place agree in all places before, so that where they part is found by
//! halving.

use std::collections::HashMap;

use pointsman_proto::block_hash::RequestKey;
use rustc_hash::FxBuildHasher;
use smallvec::SmallVec;

use super::slab::{Place, Slab};

/// One endpoint's place among the holders of a run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Held {
    pub(super) holder: Place,
    pub(super) holding: Place,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Run {
    /// As many as the holder of most has.
    pub(super) keys: Vec<RequestKey>,
    /// Who holds its first block, sorted by holder.
    pub(super) held: SmallVec<[Held; 2]>,
}

/// All runs.
#[derive(Debug, Default)]
pub(super) struct Runs {
    by_first_key: HashMap<RequestKey, Place, FxBuildHasher>,
    slab: Slab<Run>,
    /// Keys of all runs.
    keys: usize,
}

impl Run {
    /// The holding of one holder.
    pub(super) fn of(&self, holder: Place) -> Option<Place> {
        let at = self.held.binary_search_by_key(&holder, |held| held.holder);
        at.ok().map(|at| self.held[at].holding)
    }

    pub(super) fn add(&mut self, holder: Place, holding: Place) {
        let at = self.held.partition_point(|held| held.holder < holder);
        self.held.insert(at, Held { holder, holding });
    }

    pub(super) fn len(&self) -> u32 {
        self.keys.len() as u32
    }
}

impl Runs {
    pub(super) fn get(&self, run: Place) -> &Run {
        &self.slab[run]
    }

    pub(super) fn get_mut(&mut self, run: Place) -> &mut Run {
        &mut self.slab[run]
    }

    /// The run that `keys` begin with, and how many of its blocks they share: at least one.
    pub(super) fn find(&self, keys: &[RequestKey]) -> Option<(Place, u32)> {
        let run = *self.by_first_key.get(keys.first()?)?;
        Some((run, shared(&self.slab[run].keys, keys)))
    }

    /// A new run of these keys, which are not empty and whose first one begins no run yet.
    pub(super) fn insert(&mut self, keys: &[RequestKey]) -> Place {
        let run = self.slab.insert(Run {
            keys: keys.to_vec(),
            held: SmallVec::new(),
        });
        self.keys += keys.len();
        if let Some(first) = keys.first() {
            self.by_first_key.insert(*first, run);
        }
        run
    }

    /// Cuts a run before the block `at`, which is neither its first nor past its last. What follows
    /// becomes a run of its own that nobody holds yet.
    pub(super) fn split(&mut self, run: Place, at: u32) -> Place {
        let rest = self.slab[run].keys.split_off(at as usize);
        self.keys -= rest.len();
        self.slab[run].keys.shrink_to_fit();
        self.insert(&rest)
    }

    /// Takes a holder off a run, or notes that it holds less of it, and frees the keys that nobody
    /// holds any more.
    pub(super) fn release(&mut self, run: Place, holder: Place, left: u32, most: u32) {
        let entry = &mut self.slab[run];
        if left == 0 {
            entry.held.retain(|held| held.holder != holder);
        }
        let freed = entry.keys.len().saturating_sub(most as usize);
        self.keys -= freed;
        if most > 0 {
            entry.keys.truncate(most as usize);
            if entry.keys.capacity() > 2 * entry.keys.len() {
                entry.keys.shrink_to_fit();
            }
            return;
        }
        let emptied = self.slab.remove(run);
        if let Some(first) = emptied.keys.first() {
            self.by_first_key.remove(first);
        }
    }

    /// Runs held now.
    pub(super) fn len(&self) -> usize {
        self.slab.len()
    }

    /// Distinct blocks held now.
    pub(super) fn keys(&self) -> usize {
        self.keys
    }

    /// Bytes held, of the maps too.
    pub(super) fn bytes(&self) -> usize {
        // A slot of the standard map is the pair and one byte of its control array.
        let slot = size_of::<(RequestKey, Place)>() + 1;
        self.by_first_key.capacity() * 8 / 7 * slot
            + self.slab.bytes()
            + self.keys * size_of::<RequestKey>()
    }
}

/// Leading keys that two chains share.
fn shared(one: &[RequestKey], other: &[RequestKey]) -> u32 {
    let length = one.len().min(other.len());
    let (one, other) = (&one[..length], &other[..length]);
    if one.last() == other.last() {
        return length as u32;
    }
    let mut low = 0;
    let mut high = length;
    while low < high {
        let middle = low.midpoint(high);
        if one[middle] == other[middle] {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    low as u32
}
