//! What one shelf calls its blocks, and where they are.
//!
//! The table is kept in the order of the (mixed) names, with gaps: a name's home is its share of
//! the table's length, and an entry sits at its home or as soon after it as the smaller names allow.
//! That is linear probing whose clusters are sorted. It may be nine tenths full before a miss gets
//! long, since a miss ends at the first greater name; it may have any length, so it grows by
//! less than half instead of doubling; and growing is one pass from left to right. With sixteen bytes an
//! entry this is what makes the index small: this table is most of its memory.
//!
//! Names are opaque and need not be random, so they are mixed by a multiplication that can be
//! undone: equal mixed names are equal names. Copies of a block are counted, because an engine
//! that computes one block twice reports it twice and evicts it twice.

use pointsman_proto::kv_events::EngineHash;

/// Odd, so that the multiplication is a bijection of 64 bits (2^64 over the golden ratio).
const MIX: u64 = 0x9e37_79b9_7f4a_7c15;
/// Slots of the smallest table.
const SLOTS_MIN: usize = 16;
/// Slots past the last home, for the cluster at the end.
const TAIL_SLOTS: usize = 16;

/// Where a block is: a run, and how many blocks into it.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(super) struct Place {
    /// The run's number, with its shard's in the low bits.
    pub(super) run: u32,
    pub(super) offset: u16,
}

/// What became of a name that was put in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Inserted {
    New,
    /// It names the same block already.
    Copy,
    /// It named this block before, that often.
    Moved(Place, u16),
}

/// What became of a name that was taken out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Removed {
    Absent,
    /// Copies are left.
    Kept,
    Gone(Place),
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Names {
    slots: Vec<Slot>,
    /// Slots that are homes.
    homes: usize,
    len: usize,
}

#[derive(Clone, Copy, Default, Debug)]
struct Slot {
    name: u64,
    run: u32,
    offset: u16,
    /// 0 marks an empty slot.
    copies: u16,
}

impl Slot {
    fn place(self) -> Place {
        Place {
            run: self.run,
            offset: self.offset,
        }
    }
}

impl Names {
    /// Bytes of the table.
    pub(super) fn bytes(&self) -> usize {
        self.slots.capacity() * size_of::<Slot>()
    }

    pub(super) fn get(&self, name: EngineHash) -> Option<Place> {
        self.find(mixed(name)).ok().map(|at| self.slots[at].place())
    }

    /// Reads the homes of names that are about to be put in or taken out. The reads do not depend
    /// on one another, so the processor fetches them together; one at a time they would cost as
    /// much each.
    pub(super) fn touch(&self, names: &[EngineHash]) -> u64 {
        let touched = names.iter().map(|name| {
            let home = self.home(mixed(*name));
            self.slots.get(home).map_or(0, |slot| slot.name)
        });
        touched.fold(0, std::ops::BitXor::bitxor)
    }

    /// Makes room for `more` names; returns how many bytes that took.
    pub(super) fn reserve(&mut self, more: usize) -> usize {
        let wanted = self.len + more;
        if wanted * 5 <= self.homes * 4 {
            return 0;
        }
        let before = self.bytes();
        self.rebuild((wanted * 9 / 5).max(SLOTS_MIN));
        self.bytes().saturating_sub(before)
    }

    /// Gives a name its place.
    pub(super) fn insert(&mut self, name: EngineHash, place: Place) -> Inserted {
        self.reserve(1);
        let name = mixed(name);
        match self.find(name) {
            Ok(at) => {
                let slot = &mut self.slots[at];
                if slot.place() == place {
                    slot.copies = slot.copies.saturating_add(1);
                    return Inserted::Copy;
                }
                let before = (slot.place(), slot.copies);
                (slot.run, slot.offset, slot.copies) = (place.run, place.offset, 1);
                Inserted::Moved(before.0, before.1)
            }
            Err(at) => {
                let slot = Slot {
                    name,
                    run: place.run,
                    offset: place.offset,
                    copies: 1,
                };
                self.insert_at(at, slot);
                Inserted::New
            }
        }
    }

    /// Lets a name mean what it meant before it was moved, one more time.
    pub(super) fn restore(&mut self, name: EngineHash, place: Place, copies: u16) {
        if let Ok(at) = self.find(mixed(name)) {
            let slot = &mut self.slots[at];
            (slot.run, slot.offset) = (place.run, place.offset);
            slot.copies = copies.saturating_add(1);
        }
    }

    /// Takes one copy of a name out.
    pub(super) fn remove(&mut self, name: EngineHash) -> Removed {
        let Ok(at) = self.find(mixed(name)) else {
            return Removed::Absent;
        };
        let slot = &mut self.slots[at];
        if slot.copies > 1 {
            slot.copies -= 1;
            return Removed::Kept;
        }
        let place = slot.place();
        self.close_gap(at);
        self.len -= 1;
        Removed::Gone(place)
    }

    /// Gives back room that a shrunken table does not need; returns how many bytes.
    pub(super) fn shrink(&mut self) -> usize {
        if self.homes <= SLOTS_MIN || self.len * 3 > self.homes {
            return 0;
        }
        let before = self.bytes();
        self.rebuild((self.len * 8 / 5).max(SLOTS_MIN));
        before.saturating_sub(self.bytes())
    }

    /// Takes out some name, the greatest first.
    pub(super) fn pop(&mut self) -> Option<Place> {
        while let Some(slot) = self.slots.pop() {
            if slot.copies > 0 {
                self.len -= 1;
                return Some(slot.place());
            }
        }
        None
    }

    /// Where a mixed name is, or where it would be put.
    #[inline]
    fn find(&self, name: u64) -> Result<usize, usize> {
        let mut at = self.home(name);
        while let Some(slot) = self.slots.get(at) {
            if slot.copies == 0 || slot.name > name {
                return Err(at);
            }
            if slot.name == name {
                return Ok(at);
            }
            at += 1;
        }
        Err(at)
    }

    #[inline]
    fn home(&self, name: u64) -> usize {
        ((u128::from(name) * self.homes as u128) >> 64) as usize
    }

    /// Puts a slot in and moves what follows it, up to the next gap.
    fn insert_at(&mut self, at: usize, slot: Slot) {
        let rest = self.slots.get(at..).unwrap_or_default();
        let gap = rest.iter().position(|slot| slot.copies == 0);
        let end = if let Some(gap) = gap {
            at + gap
        } else {
            // The last cluster has reached the end of the table.
            self.slots.reserve_exact(TAIL_SLOTS);
            self.slots.push(Slot::default());
            self.slots.len() - 1
        };
        self.slots.copy_within(at..end, at + 1);
        self.slots[at] = slot;
        self.len += 1;
    }

    /// Empties a slot and moves what follows it back, as far as it is not at home.
    fn close_gap(&mut self, at: usize) {
        let rest = self.slots.get(at + 1..).unwrap_or_default();
        let stays = rest
            .iter()
            .zip(at + 1..)
            .position(|(slot, place)| slot.copies == 0 || self.home(slot.name) == place);
        let end = at + stays.unwrap_or(rest.len());
        self.slots.copy_within(at + 1..=end, at);
        self.slots[end] = Slot::default();
    }

    fn rebuild(&mut self, homes: usize) {
        let mut slots = vec![Slot::default(); homes + TAIL_SLOTS];
        self.homes = homes;
        let mut free = 0;
        for slot in self.slots.iter().filter(|slot| slot.copies > 0) {
            let at = self.home(slot.name).max(free);
            if at >= slots.len() {
                slots.push(*slot);
            } else {
                slots[at] = *slot;
            }
            free = at + 1;
        }
        self.slots = slots;
    }
}

#[inline]
fn mixed(name: EngineHash) -> u64 {
    name.0.wrapping_mul(MIX)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    /// Names that crowd together at both ends of the table, and some that do not.
    fn name() -> impl Strategy<Value = EngineHash> {
        // The multiplication is undone, so that the mixed names are the ones that are drawn.
        let mut inverse = 1_u64;
        for _ in 0..6 {
            inverse = inverse.wrapping_mul(2_u64.wrapping_sub(MIX.wrapping_mul(inverse)));
        }
        prop_oneof![
            0_u64..40,
            (0_u64..40).prop_map(|low| u64::MAX - low),
            any::<u64>()
        ]
        .prop_map(move |mixed| EngineHash(mixed.wrapping_mul(inverse)))
    }

    fn check(names: &Names) {
        let filled: Vec<_> = names
            .slots
            .iter()
            .enumerate()
            .filter(|(_, slot)| slot.copies > 0)
            .collect();
        assert_eq!(filled.len(), names.len);
        assert!(filled.is_sorted_by_key(|(_, slot)| slot.name));
        for (at, slot) in filled {
            let home = names.home(slot.name);
            assert!(home <= at, "{slot:?} at {at} before its home {home}");
            assert!(names.slots[home..at].iter().all(|slot| slot.copies > 0));
        }
    }

    proptest! {
        #[test]
        fn names_are_a_map_of_counted_places(
            steps in proptest::collection::vec((name(), 0_u32..3, 0_u8..4), 1..300)
        ) {
            let mut names = Names::default();
            let mut model: BTreeMap<u64, (Place, u16)> = BTreeMap::new();
            for (name, run, action) in steps {
                let place = Place { run, offset: 7 };
                if action > 0 {
                    let expected = match model.get_mut(&name.0) {
                        None => {
                            model.insert(name.0, (place, 1));
                            Inserted::New
                        }
                        Some((at, copies)) if *at == place => {
                            *copies += 1;
                            Inserted::Copy
                        }
                        Some(entry) => {
                            let (at, copies) = std::mem::replace(entry, (place, 1));
                            Inserted::Moved(at, copies)
                        }
                    };
                    prop_assert_eq!(names.insert(name, place), expected);
                } else {
                    let expected = match model.get_mut(&name.0) {
                        None => Removed::Absent,
                        Some((_, copies)) if *copies > 1 => {
                            *copies -= 1;
                            Removed::Kept
                        }
                        Some((at, _)) => {
                            let at = *at;
                            model.remove(&name.0);
                            Removed::Gone(at)
                        }
                    };
                    prop_assert_eq!(names.remove(name), expected);
                    names.shrink();
                }
                check(&names);
                for (name, (place, _)) in &model {
                    prop_assert_eq!(names.get(EngineHash(*name)), Some(*place));
                }
            }
            let mut popped = 0;
            while names.pop().is_some() {
                popped += 1;
            }
            prop_assert_eq!((popped, names.len), (model.len(), 0));
        }
    }

    #[test]
    fn memory_follows_the_number_of_names() {
        let mut names = Names::default();
        for number in 0..100_000 {
            names.insert(EngineHash(number), Place::default());
        }
        assert!(names.bytes() < 100_000 * 16 * 10 / 6, "{}", names.bytes());
        for number in 0..99_000 {
            names.remove(EngineHash(number));
            names.shrink();
        }
        assert!(names.bytes() < 4_000 * 16, "{}", names.bytes());
    }
}
