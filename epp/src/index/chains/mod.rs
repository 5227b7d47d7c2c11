//! Which holder has which block: the structure under both indexes.
//!
//! Blocks are known by *request keys*, chained hashes: a key stands for its block and for all before
//! it. A prompt is a chain of keys, and the chains of a fleet share their beginnings. They are kept
//! as *runs*: stretches of a chain with the same holders, which are stored once however many blocks
//! and holders they have. A lookup goes from run to run, by one probe of `heads` each, and cuts a
//! set of holders down (`find`); that a run's last key equals the prompt's proves all before it.
//!
//! ```text
//! heads:  first key ──▶ run ─┬─ keys       one word a block, stored once
//!                            └─ coverage   one bit a holder; a word for each holder of a part
//! names:  holder's name ──▶ (run, offset)  sixteen bytes for each block of each holder
//! ```
//!
//! Readers take no lock, allocate nothing and never wait. Writers of one shard exclude one another;
//! a chain lives in one shard, so an event takes one lock. A run is replaced rather than changed
//! (`run` says what may change in place and why that is seen right), and what readers may still
//! look at is freed when their epochs have passed.
//!
//! Names are what a holder calls its blocks (an engine's block hashes). They mean something only
//! with that holder, so two engines may give one content two names or two contents one name.

mod find;
mod heads;
mod holders;
mod keys;
mod names;
mod numbers;
mod published;
mod run;
mod shard;
mod sheet;
mod sync;

use std::collections::HashMap;

use crossbeam_epoch::Guard;
use pointsman_proto::block_hash::RequestKey;
use pointsman_proto::kv_events::{EngineHash, Medium};
use rustc_hash::FxBuildHasher;
use smallvec::SmallVec;

pub use find::Found;
use holders::HolderNumbers;
pub use holders::HolderTag;
pub use keys::{KeyChain, TokenKeys};
use names::{Inserted, Names, Place, Removed};
use shard::{Laid, Shard, Writer};
use sheet::Shelf;
use sync::{AtomicUsize, Mutex, MutexGuard, Ordering};

/// Shards, as a power of two: writers of as many chains at once meet in one of them seldom.
/// A checked model has two, so that its chains meet.
const SHARD_BITS: u32 = if cfg!(shuttle) { 1 } else { 4 };
const SHARDS: usize = 1 << SHARD_BITS;
/// Tiers of a cache: GPU, CPU, disk.
const TIERS: usize = 3;

/// See the module.
#[derive(Debug)]
pub struct Chains {
    shards: Box<[Shard]>,
    numbers: HolderNumbers,
    retired: Mutex<Vec<Holder>>,
    bytes_max: usize,
    bytes: AtomicUsize,
}

/// One holder's side, for its one writer.
#[derive(Debug)]
pub struct Holder {
    number: u32,
    names: [Names; TIERS],
    /// Further names of one block, by tier and key: the block goes with the last of its names.
    aliases: Aliases,
    blocks: usize,
    /// The keys of the event at hand.
    keys: Vec<u64>,
}

type Aliases = HashMap<(u8, u64), u32, FxBuildHasher>;

/// What became of blocks that were to be stored.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Stored {
    /// Blocks that the holder has now, copies and those it had before included.
    pub stored: usize,
    /// Blocks that found no room.
    pub refused: usize,
}

/// The parent of blocks that were to be stored is no block of this holder.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the parent block is not known")]
pub struct UnknownParent;

impl Chains {
    /// Chains of up to about `bytes_max` bytes, all tables included. At the bound, new blocks are
    /// refused until old ones are removed; the event and the table that reach it may exceed it.
    pub fn new(bytes_max: usize) -> Self {
        let shards: Box<[Shard]> = (0..SHARDS).map(|_| Shard::new()).collect();
        let bytes = shards.iter().map(|shard| shard.writer.lock().bytes()).sum();
        Self {
            shards,
            numbers: HolderNumbers::new(),
            retired: Mutex::new(Vec::new()),
            bytes_max,
            bytes: AtomicUsize::new(bytes),
        }
    }

    /// A new holder; `None` when there are 2^30 of them.
    pub fn holder(&self, tag: HolderTag) -> Option<Holder> {
        Some(Holder {
            number: self.numbers.register(tag)?,
            names: Default::default(),
            aliases: Aliases::default(),
            blocks: 0,
            keys: Vec::new(),
        })
    }

    /// Lets a holder have blocks that follow one another: `keys_after` is given the key of `parent`
    /// (`None` where there is no parent, so that the first block starts a prompt) and writes their
    /// keys, one for each name.
    ///
    /// A name that the holder knows already counts as a copy where its block is the same, and means
    /// the new block from then on where it is another.
    pub fn store(
        &self,
        holder: &mut Holder,
        medium: Medium,
        parent: Option<EngineHash>,
        names: &[EngineHash],
        keys_after: impl FnOnce(Option<RequestKey>, &mut Vec<u64>),
    ) -> Result<Stored, UnknownParent> {
        let tier = tier_of(medium);
        let place = match parent {
            None => None,
            Some(parent) => Some(holder.place(tier, parent).ok_or(UnknownParent)?),
        };
        let parent = match place {
            None => None,
            Some(place) => Some(self.key_at(place).ok_or(UnknownParent)?),
        };
        std::hint::black_box(holder.names[tier].touch(names));
        let mut keys = std::mem::take(&mut holder.keys);
        keys.clear();
        // Hashing is the longest part of an event and holds up nobody: the parent keeps its place
        // without the lock, because only this writer could take it away.
        keys_after(parent, &mut keys);
        let first = keys.first().copied().unwrap_or_default();
        let shard = place.map_or_else(|| shard_of(first), |place| shard_of_run(place.run));
        let guard = crossbeam_epoch::pin();
        let locked = self.locked(shard);
        let mut event = Event::new(self, locked, &guard, holder, tier);
        let stored = event.store(place.map(within_shard), names, &keys);
        event.locked.sweep(&guard);
        let moved = event.end();
        let mut locked = None;
        for place in moved {
            let locked = self.locked_again(&mut locked, place);
            locked.lift(holder.number, tier, place, &mut holder.aliases, &guard);
        }
        holder.keys = keys;
        Ok(stored)
    }

    /// Notes that a holder has blocks that it has already in some tier in another one as well.
    /// Returns how many of them it knew.
    pub fn copy(&self, holder: &mut Holder, medium: Medium, names: &[EngineHash]) -> usize {
        let guard = crossbeam_epoch::pin();
        let tier = tier_of(medium);
        let mut copied = 0;
        for name in names {
            let Some(place) = holder.place(tier, *name) else {
                continue;
            };
            let locked = self.locked(shard_of_run(place.run));
            let mut event = Event::new(self, locked, &guard, holder, tier);
            copied += event.copy(place, *name);
        }
        copied
    }

    /// Takes one copy of each of these blocks out; returns how many names of them the holder knew in
    /// that tier.
    pub fn remove(&self, holder: &mut Holder, medium: Medium, names: &[EngineHash]) -> usize {
        let tier = tier_of(medium);
        let guard = crossbeam_epoch::pin();
        std::hint::black_box(holder.names[tier].touch(names));
        let mut locked = None;
        let mut known = 0;
        for name in names {
            match holder.names[tier].remove(*name) {
                Removed::Absent => continue,
                Removed::Kept => {}
                Removed::Gone(place) => {
                    holder.blocks -= 1;
                    let locked = self.locked_again(&mut locked, place);
                    locked.lift(holder.number, tier, place, &mut holder.aliases, &guard);
                }
            }
            known += 1;
        }
        if let Some(locked) = &mut locked {
            locked.sweep(&guard);
        }
        drop(locked);
        let given_back = holder.names[tier].shrink();
        self.bytes.fetch_sub(given_back, Ordering::Relaxed);
        known
    }

    /// The key of a block by its name.
    pub fn key_of(&self, holder: &Holder, medium: Medium, name: EngineHash) -> Option<RequestKey> {
        self.key_at(holder.place(tier_of(medium), name)?)
    }

    /// Forgets a holder: lookups that begin from here on do not see it. Its memory comes back with
    /// [`reclaim`](Self::reclaim).
    pub fn retire(&self, holder: Holder) {
        self.numbers.retire(holder.number);
        self.retired.lock().push(holder);
    }

    /// Frees up to `blocks` blocks of retired holders; true when there is more to do.
    pub fn reclaim(&self, blocks: usize) -> bool {
        let Some(mut holder) = self.retired.lock().pop() else {
            return false;
        };
        let guard = crossbeam_epoch::pin();
        let mut locked = None;
        for _ in 0..blocks {
            let mut tiers = (0..).zip(&mut holder.names);
            let Some((tier, place)) = tiers.find_map(|(tier, names)| Some((tier, names.pop()?)))
            else {
                let bytes = holder.names.iter().map(Names::bytes).sum();
                self.bytes.fetch_sub(bytes, Ordering::Relaxed);
                self.numbers.release(holder.number);
                return !self.retired.lock().is_empty();
            };
            let locked = self.locked_again(&mut locked, place);
            locked.lift(holder.number, tier, place, &mut Aliases::default(), &guard);
        }
        drop(locked);
        self.retired.lock().push(holder);
        true
    }

    /// Fills `found` with how many leading blocks of a prompt each holder has.
    pub fn find(&self, keys: &mut impl KeyChain, found: &mut Found) {
        let guard = crossbeam_epoch::pin();
        let shard = self.shards.get(shard_of(keys.key(0)));
        if let Some(table) = shard.and_then(|shard| shard.heads.table(&guard)) {
            found.walk(table, &guard, keys, self.numbers.used());
        }
    }

    /// Tells who has how many leading blocks, by what each number stands for, and how many of those
    /// in GPU memory without a break.
    pub fn report(&self, found: &Found, mut visit: impl FnMut(HolderTag, u32, u32)) {
        for word in 0..found.words() {
            let tags = self.numbers.word(word);
            found.in_word(word, |bit, blocks, gpu_blocks| {
                if let Some(tag) = tags.get(bit).and_then(holders::Tag::get) {
                    visit(tag, blocks, gpu_blocks);
                }
            });
        }
    }

    /// Bytes of everything, what waits for readers to pass excepted.
    pub fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Runs, over all shards.
    pub fn runs(&self) -> usize {
        self.shards
            .iter()
            .map(|shard| shard.writer.lock().runs())
            .sum()
    }

    fn key_at(&self, place: Place) -> Option<RequestKey> {
        let locked = self.locked(shard_of_run(place.run));
        let (run, offset) = within_shard(place);
        locked.writer.key(run, offset).map(RequestKey)
    }

    fn locked(&self, number: usize) -> Locked<'_> {
        let number = number % SHARDS;
        let shard = &self.shards[number];
        let writer = shard.writer.lock();
        Locked {
            number: number as u32,
            shard,
            before: writer.bytes(),
            writer,
            bytes: &self.bytes,
        }
    }

    /// The lock of the shard that a place is in: the one that is held, if that is it.
    fn locked_again<'a, 'b>(
        &'a self,
        held: &'b mut Option<Locked<'a>>,
        place: Place,
    ) -> &'b mut Locked<'a> {
        let number = shard_of_run(place.run);
        if held
            .as_ref()
            .is_some_and(|held| held.number as usize != number)
        {
            *held = None;
        }
        held.get_or_insert_with(|| self.locked(number))
    }
}

impl Holder {
    /// Its number, by which a lookup reports it.
    pub fn number(&self) -> u32 {
        self.number
    }

    /// Named blocks, each counted once per tier and name.
    pub fn blocks(&self) -> usize {
        self.blocks
    }

    /// Where a block is: in this tier, or else in any.
    fn place(&self, tier: usize, name: EngineHash) -> Option<Place> {
        let mut others = self.names.iter();
        self.names[tier]
            .get(name)
            .or_else(|| others.find_map(|names| names.get(name)))
    }
}

/// One shard under its lock. Its change in size is added up when it is let go.
struct Locked<'a> {
    number: u32,
    shard: &'a Shard,
    writer: MutexGuard<'a, Writer>,
    before: usize,
    bytes: &'a AtomicUsize,
}

impl Locked<'_> {
    /// Lets writers free what they replaced, every few events: what they leave, readers have to
    /// free between two lookups.
    fn sweep(&mut self, guard: &Guard) {
        if self.writer.is_sweep_due() {
            guard.flush();
        }
    }

    /// Takes a block that lost its name out of what a holder has, unless it has another name.
    fn lift(
        &mut self,
        number: u32,
        tier: usize,
        place: Place,
        aliases: &mut Aliases,
        guard: &Guard,
    ) {
        let (run, offset) = within_shard(place);
        let alias = (!aliases.is_empty())
            .then(|| self.writer.key(run, offset))
            .flatten()
            .map(|key| (tier as u8, key));
        let names = alias.and_then(|alias| aliases.get_mut(&alias).map(|names| (alias, names)));
        if let Some((alias, names)) = names {
            *names -= 1;
            if *names == 0 {
                aliases.remove(&alias);
            }
        } else {
            let shelf = Shelf {
                holder: number,
                tier: tier as u8,
            };
            self.writer
                .lift(&self.shard.heads, guard, shelf, run, offset);
        }
        self.writer.numbers_mut().drop_name(run);
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        // Wrapping: a negative change comes out right as well.
        let change = self.writer.bytes().wrapping_sub(self.before);
        if change != 0 {
            self.bytes.fetch_add(change, Ordering::Relaxed);
        }
    }
}

/// One event at work under its shard's lock.
struct Event<'a> {
    chains: &'a Chains,
    locked: Locked<'a>,
    guard: &'a Guard,
    holder: &'a mut Holder,
    tier: usize,
    /// Where names were that have moved; lifted when the lock is let go, for they may be in other
    /// shards.
    moved: SmallVec<[Place; 4]>,
}

impl<'a> Event<'a> {
    fn new(
        chains: &'a Chains,
        locked: Locked<'a>,
        guard: &'a Guard,
        holder: &'a mut Holder,
        tier: usize,
    ) -> Self {
        Self {
            chains,
            locked,
            guard,
            holder,
            tier,
            moved: SmallVec::new(),
        }
    }

    /// Lets the lock go; returns what is left to lift.
    fn end(self) -> SmallVec<[Place; 4]> {
        self.moved
    }

    fn store(&mut self, parent: Option<(u32, u32)>, names: &[EngineHash], keys: &[u64]) -> Stored {
        let blocks = names.len().min(keys.len());
        let mut stored = 0;
        let mut after = parent;
        if self.chains.bytes() < self.chains.bytes_max {
            let reserved = self.holder.names[self.tier].reserve(blocks);
            self.chains.bytes.fetch_add(reserved, Ordering::Relaxed);
            while let Some(rest) = keys.get(stored..blocks).filter(|rest| !rest.is_empty()) {
                let shelf = self.shelf();
                let heads = &self.locked.shard.heads;
                let writer = &mut self.locked.writer;
                let laid = writer.lay(heads, self.guard, shelf, after, rest);
                if laid.blocks == 0 {
                    break;
                }
                let end = stored + laid.blocks as usize;
                self.name(&laid, &names[stored..end], &keys[stored..end]);
                after = Some((laid.run, laid.offset + laid.blocks - 1));
                stored = end;
            }
        }
        Stored {
            stored,
            refused: blocks - stored,
        }
    }

    /// Lets the holder have a block that is there already; returns how many it stored.
    fn copy(&mut self, place: Place, name: EngineHash) -> usize {
        let (run, offset) = within_shard(place);
        let Some(key) = self.locked.writer.key(run, offset) else {
            return 0;
        };
        if self.chains.bytes() >= self.chains.bytes_max {
            return 0;
        }
        let reserved = self.holder.names[self.tier].reserve(1);
        self.chains.bytes.fetch_add(reserved, Ordering::Relaxed);
        let shelf = self.shelf();
        let heads = &self.locked.shard.heads;
        let writer = &mut self.locked.writer;
        let Some(laid) = writer.lay_at(heads, self.guard, shelf, run, offset) else {
            return 0;
        };
        self.name(&laid, &[name], &[key]);
        1
    }

    /// Names blocks that were laid.
    fn name(&mut self, laid: &Laid, names: &[EngineHash], keys: &[u64]) {
        let mut new = 0;
        for ((name, key), offset) in names.iter().zip(keys).zip(laid.offset..) {
            let place = Place {
                run: laid.run << SHARD_BITS | self.locked.number,
                offset: offset as u16,
            };
            match self.insert(*name, place) {
                Inserted::Copy => continue,
                Inserted::New => self.holder.blocks += 1,
                Inserted::Moved(before, _) => self.moved.push(before),
            }
            new += 1;
            if laid.held.iter().any(|held| held.contains(&offset)) {
                *self
                    .holder
                    .aliases
                    .entry((self.tier as u8, *key))
                    .or_default() += 1;
            }
        }
        self.locked.writer.numbers_mut().add_names(laid.run, new);
    }

    /// Gives a name its place. Where it points at that block already by way of another run's number,
    /// it goes on doing so.
    fn insert(&mut self, name: EngineHash, place: Place) -> Inserted {
        let names = &mut self.holder.names[self.tier];
        let inserted = names.insert(name, place);
        let Inserted::Moved(before, copies) = inserted else {
            return inserted;
        };
        let is_near = shard_of_run(before.run) == shard_of_run(place.run);
        let numbers = self.locked.writer.numbers();
        let resolved = |place| {
            let (run, offset) = within_shard(place);
            numbers.resolve(run, offset)
        };
        if is_near && resolved(before) == resolved(place) {
            names.restore(name, before, copies);
            return Inserted::Copy;
        }
        inserted
    }

    fn shelf(&self) -> Shelf {
        Shelf {
            holder: self.holder.number,
            tier: self.tier as u8,
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

fn shard_of(first_key: u64) -> usize {
    (first_key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - SHARD_BITS)) as usize
}

/// A place as its shard's writer knows it.
fn within_shard(place: Place) -> (u32, u32) {
    (place.run >> SHARD_BITS, u32::from(place.offset))
}

fn shard_of_run(run: u32) -> usize {
    run as usize & (SHARDS - 1)
}

#[cfg(all(test, shuttle))]
mod model_check;
#[cfg(any(test, feature = "reference"))]
pub mod reference;
#[cfg(all(test, not(shuttle)))]
mod tests;
