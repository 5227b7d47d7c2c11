//! The chains as literally as can be: for each holder a map of names, and a lookup that goes block
//! by block. It is what the real ones are compared with.

use std::collections::{BTreeMap, BTreeSet};

use pointsman_proto::block_hash::RequestKey;
use pointsman_proto::kv_events::{EngineHash, Medium};

/// Blocks of one tier by name: key, and how many copies.
type Shelf = BTreeMap<u64, (u64, u32)>;

/// Every holder by its number.
#[derive(Clone, Default, Debug)]
pub struct Reference {
    holders: BTreeMap<u32, [Shelf; 3]>,
}

impl Reference {
    /// Stores blocks with these keys; `None` when the parent is no block of the holder.
    pub fn store(
        &mut self,
        holder: u32,
        medium: Medium,
        parent: Option<EngineHash>,
        names: &[EngineHash],
        keys_after: impl FnOnce(Option<RequestKey>) -> Vec<RequestKey>,
    ) -> Option<()> {
        let parent = match parent {
            None => None,
            Some(parent) => Some(self.key_of(holder, medium, parent)?),
        };
        for (name, key) in names.iter().zip(keys_after(parent)) {
            self.put(holder, medium, *name, key.0);
        }
        Some(())
    }

    /// Notes further copies of known blocks.
    pub fn copy(&mut self, holder: u32, medium: Medium, names: &[EngineHash]) {
        for name in names {
            if let Some(key) = self.key_of(holder, medium, *name) {
                self.put(holder, medium, *name, key.0);
            }
        }
    }

    pub fn remove(&mut self, holder: u32, medium: Medium, name: EngineHash) -> bool {
        let shelf = &mut self.holders.entry(holder).or_default()[tier_of(medium)];
        match shelf.get_mut(&name.0) {
            None => false,
            Some((_, copies)) if *copies > 1 => {
                *copies -= 1;
                true
            }
            Some(_) => shelf.remove(&name.0).is_some(),
        }
    }

    pub fn retire(&mut self, holder: u32) {
        self.holders.remove(&holder);
    }

    pub fn key_of(&self, holder: u32, medium: Medium, name: EngineHash) -> Option<RequestKey> {
        let shelves = self.holders.get(&holder)?;
        let own = shelves[tier_of(medium)].get(&name.0);
        let any = || shelves.iter().find_map(|shelf| shelf.get(&name.0));
        own.or_else(any).map(|(key, _)| RequestKey(*key))
    }

    /// Holder, leading blocks in any tier, leading blocks in GPU memory; of those that have the
    /// first block.
    pub fn find(&self, keys: &[RequestKey]) -> Vec<(u32, u32, u32)> {
        let leading = |held: &BTreeSet<u64>| {
            keys.iter().take_while(|key| held.contains(&key.0)).count() as u32
        };
        let keys_in = |shelf: &Shelf| shelf.values().map(|(key, _)| *key).collect::<BTreeSet<_>>();
        self.holders
            .iter()
            .map(|(holder, shelves)| {
                let all = shelves.iter().flat_map(keys_in).collect();
                (*holder, leading(&all), leading(&keys_in(&shelves[0])))
            })
            .filter(|(_, reach, _)| *reach > 0)
            .collect()
    }

    fn put(&mut self, holder: u32, medium: Medium, name: EngineHash, key: u64) {
        let shelf = &mut self.holders.entry(holder).or_default()[tier_of(medium)];
        match shelf.get_mut(&name.0) {
            Some((held, copies)) if *held == key => *copies += 1,
            _ => {
                shelf.insert(name.0, (key, 1));
            }
        }
    }
}

fn tier_of(medium: Medium) -> usize {
    match medium {
        Medium::Gpu => 0,
        Medium::Cpu => 1,
        Medium::Disk => 2,
    }
}
