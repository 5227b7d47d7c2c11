//! A map that holds the most recently used keys: what plugins remember of earlier picks.
//!
//! A request can name any session and carry any image, so what is kept of them needs a bound that
//! clients cannot move. At the bound the entry that was used longest ago makes room.

use std::hash::Hash;

use rustc_hash::FxHashMap;

/// No slot.
const NONE: u32 = u32::MAX;

/// A map of bounded size, ordered by last use. Slots form a list from the newest to the oldest.
#[derive(Debug)]
pub struct Recent<K, V> {
    places: FxHashMap<K, u32>,
    slots: Vec<Slot<K, V>>,
    free: Vec<u32>,
    newest: u32,
    oldest: u32,
    capacity: usize,
}

#[derive(Debug)]
struct Slot<K, V> {
    entry: Option<(K, V)>,
    newer: u32,
    older: u32,
}

impl<K: Copy + Eq + Hash, V> Recent<K, V> {
    /// An empty map of up to `capacity` entries, at least one. It allocates as it fills.
    pub fn new(capacity: usize) -> Self {
        Self {
            places: FxHashMap::default(),
            slots: Vec::new(),
            free: Vec::new(),
            newest: NONE,
            oldest: NONE,
            capacity: capacity.clamp(1, NONE as usize),
        }
    }

    pub fn len(&self) -> usize {
        self.places.len()
    }

    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// The value of a key; does not count as a use.
    pub fn get(&self, key: &K) -> Option<&V> {
        let slot = self.slot(*self.places.get(key)?)?;
        slot.entry.as_ref().map(|(_, value)| value)
    }

    /// The value of a key, to be changed; does not count as a use.
    pub fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        let place = *self.places.get(key)?;
        let slot = self.slots.get_mut(place as usize)?;
        slot.entry.as_mut().map(|(_, value)| value)
    }

    /// Sets a value and makes its key the newest. Returns what had to make room for it.
    pub fn put(&mut self, key: K, value: V) -> Option<(K, V)> {
        self.remove(&key);
        let evicted = if self.len() >= self.capacity {
            self.pop_oldest()
        } else {
            None
        };
        let slot = Slot {
            entry: Some((key, value)),
            newer: NONE,
            older: self.newest,
        };
        let place = self.free.pop().unwrap_or(self.slots.len() as u32);
        match self.slots.get_mut(place as usize) {
            Some(freed) => *freed = slot,
            None => self.slots.push(slot),
        }
        self.link(self.newest, |slot| slot.newer = place);
        self.newest = place;
        if self.oldest == NONE {
            self.oldest = place;
        }
        self.places.insert(key, place);
        evicted
    }

    /// Forgets a key.
    pub fn remove(&mut self, key: &K) -> Option<V> {
        let place = self.places.remove(key)?;
        let slot = self.slots.get_mut(place as usize)?;
        let (newer, older) = (slot.newer, slot.older);
        let entry = slot.entry.take();
        self.link(newer, |slot| slot.older = older);
        self.link(older, |slot| slot.newer = newer);
        if self.newest == place {
            self.newest = older;
        }
        if self.oldest == place {
            self.oldest = newer;
        }
        self.free.push(place);
        entry.map(|(_, value)| value)
    }

    /// The entry that was used longest ago.
    pub fn oldest(&self) -> Option<(&K, &V)> {
        let entry = self.slot(self.oldest)?.entry.as_ref()?;
        Some((&entry.0, &entry.1))
    }

    /// Forgets the entry that was used longest ago.
    pub fn pop_oldest(&mut self) -> Option<(K, V)> {
        let key = *self.oldest()?.0;
        self.remove(&key).map(|value| (key, value))
    }

    fn slot(&self, place: u32) -> Option<&Slot<K, V>> {
        self.slots.get(place as usize)
    }

    fn link(&mut self, place: u32, set: impl FnOnce(&mut Slot<K, V>)) {
        if let Some(slot) = self.slots.get_mut(place as usize) {
            set(slot);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        Put(u8, u16),
        Remove(u8),
        PopOldest,
        Change(u8, u16),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            4 => (0_u8..12, any::<u16>()).prop_map(|(key, value)| Step::Put(key, value)),
            1 => (0_u8..12).prop_map(Step::Remove),
            1 => Just(Step::PopOldest),
            1 => (0_u8..12, any::<u16>()).prop_map(|(key, value)| Step::Change(key, value)),
        ];
        proptest::collection::vec(step, 0..200)
    }

    /// The same map as a list, oldest first.
    fn put(model: &mut Vec<(u8, u16)>, capacity: usize, key: u8, value: u16) -> Option<(u8, u16)> {
        model.retain(|(known, _)| *known != key);
        let evicted = (model.len() == capacity).then(|| model.remove(0));
        model.push((key, value));
        evicted
    }

    fn take(model: &mut Vec<(u8, u16)>, key: u8) -> Option<u16> {
        let at = model.iter().position(|(known, _)| *known == key)?;
        Some(model.remove(at).1)
    }

    proptest! {
        #[test]
        fn it_is_a_list_in_the_order_of_use(steps in steps(), capacity in 1_usize..8) {
            let mut recent = Recent::new(capacity);
            let mut model: Vec<(u8, u16)> = Vec::new();
            for step in steps {
                match step {
                    Step::Put(key, value) => {
                        let expected = put(&mut model, capacity, key, value);
                        prop_assert_eq!(recent.put(key, value), expected);
                    }
                    Step::Remove(key) => {
                        prop_assert_eq!(recent.remove(&key), take(&mut model, key));
                    }
                    Step::PopOldest => {
                        let expected = (!model.is_empty()).then(|| model.remove(0));
                        prop_assert_eq!(recent.pop_oldest(), expected);
                    }
                    Step::Change(key, value) => {
                        let entry = model.iter_mut().find(|(known, _)| *known == key);
                        prop_assert_eq!(recent.get(&key).is_some(), entry.is_some());
                        if let (Some(held), Some(entry)) = (recent.get_mut(&key), entry) {
                            *held = value;
                            entry.1 = value;
                        }
                    }
                }
                prop_assert_eq!(recent.len(), model.len());
                prop_assert_eq!(recent.is_empty(), model.is_empty());
                prop_assert_eq!(recent.oldest().map(|(key, value)| (*key, *value)), model.first().copied());
                prop_assert!(recent.slots.len() <= capacity);
                for (key, value) in &model {
                    prop_assert_eq!(recent.get(key), Some(value));
                }
            }
        }
    }
}
