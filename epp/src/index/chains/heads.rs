//! First block of a run to the run: the only table that a lookup probes.
//!
//! Open addressing with linear probing, one writer at a time, any number of readers. A reader takes
//! no lock and writes nothing: it reads a slot's key, then its run. The two are not read at once,
//! so a slot that changes hands between them may show a reader the wrong run; the reader compares
//! keys with the run's own before it believes it, and takes a run that does not match for a miss,
//! which is what was true at some moment between its two reads.
//!
//! Entries never move. A run that goes leaves its slot marked as used, the slot is taken again by
//! the next key that probes past it, and when used-up slots crowd the table, a new table replaces
//! it.

use std::sync::Arc;

use crossbeam_epoch::Guard;

use super::published::Published;
use super::run::Run;
use super::sync::{AtomicU64, Ordering};

/// Slots of the smallest table; few where a model checker has to see it replaced.
const SLOTS_MIN: usize = if cfg!(shuttle) { 2 } else { 16 };
/// Marks a slot that was never used. The one key that equals it is stored as its neighbour; runs
/// are compared by their own keys, so no answer is wrong for it.
const UNUSED: u64 = 0;

/// The table as readers see it.
#[derive(Debug)]
pub(super) struct Table {
    slots: Box<[Slot]>,
}

#[derive(Debug)]
struct Slot {
    key: AtomicU64,
    run: Published<Run>,
}

/// The table and its writer's books.
#[derive(Debug)]
pub(super) struct Heads {
    published: Published<Table>,
}

/// What only the writer of a [`Heads`] keeps. Its methods need it, which keeps writers apart.
#[derive(Debug)]
pub(super) struct HeadsWriter {
    table: Arc<Table>,
    runs: usize,
    /// Slots that ever had a key, those of live runs included.
    used: usize,
}

impl Heads {
    pub(super) fn new() -> (Self, HeadsWriter) {
        let table = Arc::new(Table::new(SLOTS_MIN));
        let heads = Self {
            published: Published::new(Arc::clone(&table)),
        };
        let writer = HeadsWriter {
            table,
            runs: 0,
            used: 0,
        };
        (heads, writer)
    }

    /// The table as it is now, for one lookup.
    #[inline]
    pub(super) fn table<'guard>(&self, guard: &'guard Guard) -> Option<&'guard Table> {
        self.published.load(guard)
    }
}

impl Table {
    fn new(slots: usize) -> Self {
        let slot = || Slot {
            key: AtomicU64::new(UNUSED),
            run: Published::empty(),
        };
        Self {
            slots: (0..slots).map(|_| slot()).collect(),
        }
    }

    /// The run that starts with `key`, if there is one; its first key is still to be compared.
    #[inline]
    pub(super) fn find<'guard>(&self, key: u64, guard: &'guard Guard) -> Option<&'guard Run> {
        self.slot(key)?.run.load(guard)
    }

    #[inline]
    fn slot(&self, key: u64) -> Option<&Slot> {
        let key = stored(key);
        let mask = self.slots.len() - 1;
        let mut place = home(key) & mask;
        // A table always has unused slots, so the walk ends; the bound is for a reader that meets
        // a table in the middle of being filled.
        for _ in 0..self.slots.len() {
            let slot = self.slots.get(place)?;
            match slot.key.load(Ordering::Acquire) {
                found if found == key => return Some(slot),
                UNUSED => return None,
                _ => place = (place + 1) & mask,
            }
        }
        None
    }
}

impl HeadsWriter {
    /// The run that starts with `key`.
    pub(super) fn find<'guard>(&self, key: u64, guard: &'guard Guard) -> Option<&'guard Run> {
        self.table.find(key, guard)
    }

    /// Whether a run starts with `key`.
    pub(super) fn starts(&self, key: u64, guard: &Guard) -> bool {
        self.table
            .slot(key)
            .is_some_and(|slot| slot.run.load(guard).is_some())
    }

    /// Publishes a run under its first key, in place of the one that was there. Returns by how many
    /// bytes the table grew.
    pub(super) fn publish(
        &mut self,
        heads: &Heads,
        key: u64,
        run: Arc<Run>,
        guard: &Guard,
    ) -> usize {
        if let Some(slot) = self.table.slot(key) {
            if slot.run.load(guard).is_none() {
                self.runs += 1;
            }
            slot.run.swap(Some(run), guard);
            return 0;
        }
        let grown = self.make_room(heads, guard);
        self.runs += 1;
        self.used += self.table.insert(key, run, guard);
        grown
    }

    /// Takes the run that starts with `key` out.
    pub(super) fn remove(&mut self, key: u64, guard: &Guard) {
        if let Some(slot) = self.table.slot(key)
            && slot.run.load(guard).is_some()
        {
            slot.run.swap(None, guard);
            self.runs -= 1;
        }
    }

    /// Runs in the table.
    pub(super) fn runs(&self) -> usize {
        self.runs
    }

    /// Bytes of the table.
    pub(super) fn bytes(&self) -> usize {
        self.table.slots.len() * size_of::<Slot>()
    }

    /// Replaces the table when three quarters of its slots are used; returns the new table's bytes
    /// beyond the old one's.
    fn make_room(&mut self, heads: &Heads, guard: &Guard) -> usize {
        if (self.used + 1) * 4 <= self.table.slots.len() * 3 {
            return 0;
        }
        let before = self.bytes();
        let slots = ((self.runs + 1) * 2).next_power_of_two().max(SLOTS_MIN);
        let table = Arc::new(Table::new(slots));
        self.used = 0;
        for slot in &self.table.slots {
            if let Some(run) = slot.run.share(guard) {
                self.used += table.insert(run.first_key(), run, guard);
            }
        }
        self.table = Arc::clone(&table);
        heads.published.swap(Some(table), guard);
        self.bytes().saturating_sub(before)
    }
}

impl Table {
    /// Puts a run whose key is not in the table into the first slot that holds none; returns how
    /// many unused slots that used up.
    fn insert(&self, key: u64, run: Arc<Run>, guard: &Guard) -> usize {
        let key = stored(key);
        let mask = self.slots.len() - 1;
        let mut place = home(key) & mask;
        for _ in 0..self.slots.len() {
            let Some(slot) = self.slots.get(place) else {
                break;
            };
            let found = slot.key.load(Ordering::Relaxed);
            if found == UNUSED || slot.run.load(guard).is_none() {
                // The key first: a reader that sees it before the run finds nothing yet.
                slot.key.store(key, Ordering::Release);
                slot.run.swap(Some(run), guard);
                return usize::from(found == UNUSED);
            }
            place = (place + 1) & mask;
        }
        0
    }
}

fn stored(key: u64) -> u64 {
    key.max(1)
}

/// Request keys are hashes, but tests and other recipes need not be: one multiplication spreads
/// them.
#[inline]
fn home(key: u64) -> usize {
    (key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20) as usize
}
