//! The lookup: who holds how many leading blocks of a prompt.
//!
//! It walks the runs along the prompt and keeps the set of holders that held every block so far. At
//! each run the set is cut down to those who hold it; whoever falls out is written down with the
//! blocks passed until then. All of this is a few words per run, whatever the length of the run and
//! however many hold it.
//!
//! A holder may keep some blocks on the GPU and others in slower tiers. What counts is whether each
//! block is in some tier; how far the GPU alone reaches is written down beside it. Runs that are in
//! GPU memory only, the common case, do not pay for that.

use crossbeam_epoch::Guard;

use super::heads::Table;
use super::keys::KeyChain;
use super::run::{Holders, Run, Shared};
use super::sheet::Shelf;
use super::sync::Ordering;

/// What a lookup found, by the number of the holder. Reused from lookup to lookup, it allocates only
/// when the fleet grows.
#[derive(Debug, Default)]
pub struct Found {
    /// Blocks, valid for the numbers in `touched` that are not in `racing`.
    reach: Vec<u32>,
    /// Blocks of those in `racing`.
    position: u32,
    /// Blocks in GPU memory, valid for the numbers in `left_gpu`; for others it is their reach.
    gpu_reach: Vec<u32>,
    /// Holders of the first block.
    touched: Vec<u64>,
    /// Holders of every block so far.
    racing: Vec<u64>,
    /// Of those, the ones with every block so far in GPU memory. Kept up once `tiered`.
    on_gpu: Vec<u64>,
    left_gpu: Vec<u64>,
    /// Scratch of one step: who holds the run at hand, and who falls out within it.
    staying: Vec<u64>,
    falling: Vec<u64>,
    tiered: bool,
    /// Whether no run was passed yet.
    fresh: bool,
    /// Words of `racing` that may be other than zero.
    words: std::ops::Range<usize>,
}

impl Found {
    /// The holders of one word of numbers: bit, leading blocks, and how many of those are in GPU
    /// memory without a break. A plain loop, because a hot prompt has many holders, and reporting
    /// them is then most of a lookup.
    #[inline]
    pub(super) fn in_word(&self, word: usize, mut visit: impl FnMut(usize, u32, u32)) {
        let bits = self.touched.get(word).copied().unwrap_or(0);
        let racing = self.racing.get(word).copied().unwrap_or(0);
        let Some(reach) = self.reach.get(word * 64..word * 64 + 64) else {
            return;
        };
        for bit in ones(bits) {
            let bit = bit as usize;
            let blocks = if racing >> bit & 1 == 1 {
                self.position
            } else {
                reach.get(bit).copied().unwrap_or(0)
            };
            let number = word * 64 + bit;
            let gpu_blocks = if self.tiered && is_set(&self.left_gpu, number) {
                self.gpu_reach.get(number).copied().unwrap_or(0)
            } else {
                blocks
            };
            visit(bit, blocks, gpu_blocks);
        }
    }

    /// Words of numbers that may have holders.
    pub(super) fn words(&self) -> usize {
        self.touched.len()
    }

    /// Leading blocks that a holder has, by its number.
    #[cfg(all(test, shuttle))]
    pub(super) fn reach(&self, number: u32) -> u32 {
        if !is_set(&self.touched, number as usize) {
            0
        } else if is_set(&self.racing, number as usize) {
            self.position
        } else {
            self.reach.get(number as usize).copied().unwrap_or(0)
        }
    }

    pub(super) fn walk(
        &mut self,
        table: &Table,
        guard: &Guard,
        keys: &mut impl KeyChain,
        holders: u32,
    ) {
        self.start(holders);
        let blocks = keys.len() as u32;
        let mut position = 0;
        let mut last: Option<(&Run, u32)> = None;
        while position < blocks {
            let Some(run) = table.find(keys.key(position as usize), guard) else {
                // The run before may have been joined with the one that is missed here.
                let Some((before, start)) = last.take() else {
                    break;
                };
                let now = table.find(before.first_key(), guard);
                if now.is_none_or(|now| std::ptr::eq(now, before)) {
                    break;
                }
                position = start;
                continue;
            };
            let matched = run.matched(0, keys, position);
            if matched == 0 {
                break;
            }
            if !self.pass(run, position, matched) {
                return;
            }
            last = Some((run, position));
            position += matched;
        }
        self.position = position;
    }

    /// Makes every holder a racer.
    fn start(&mut self, holders: u32) {
        let words = (holders as usize).div_ceil(64);
        if self.racing.len() < words {
            for set in [
                &mut self.touched,
                &mut self.racing,
                &mut self.on_gpu,
                &mut self.left_gpu,
                &mut self.staying,
                &mut self.falling,
            ] {
                set.resize(words, 0);
            }
            self.reach.resize(words * 64, 0);
            self.gpu_reach.resize(words * 64, 0);
        }
        self.words = 0..words;
        self.fresh = true;
        self.racing.fill(u64::MAX);
        self.touched.fill(0);
        if self.tiered {
            self.left_gpu.fill(0);
            self.tiered = false;
        }
    }

    /// Cuts the racers down to those who hold the first `matched` blocks of a run; false when
    /// nobody is left.
    #[inline]
    fn pass(&mut self, run: &Run, position: u32, matched: u32) -> bool {
        match run.holders() {
            Holders::Sole(shelf) if shelf.tier == 0 && !self.tiered => {
                self.pass_sole(shelf.holder as usize, position);
            }
            Holders::Shared(shared) if !shared.tiered && !self.tiered => {
                self.pass_shared(&shared, position, matched);
            }
            holders => self.pass_tiered(&holders, position, matched),
        }
        self.fresh = false;
        self.narrow()
    }

    fn pass_sole(&mut self, holder: usize, position: u32) {
        let word = holder / 64;
        for place in self.words.clone() {
            let stays = if place == word {
                self.racing[place] & (1 << (holder % 64))
            } else {
                0
            };
            self.settle(place, stays, 0, position);
        }
    }

    fn pass_shared(&mut self, shared: &Shared<'_>, position: u32, matched: u32) {
        if self.words.len() == 1 {
            self.pass_shared_in_word(shared, position, matched);
            return;
        }
        self.staying[self.words.clone()].fill(0);
        self.falling[self.words.clone()].fill(0);
        // Stretches before bits, see `run`.
        for span in shared.spans() {
            let holder = span.shelf.holder as usize;
            if span.from > 0 || !is_set(&self.racing, holder) {
                continue;
            }
            if span.to >= matched {
                self.staying[holder / 64] |= 1 << (holder % 64);
            } else {
                self.falling[holder / 64] |= 1 << (holder % 64);
                self.reach[holder] = position + span.to;
            }
        }
        for (place, bits) in (shared.base as usize..).zip(shared.bits) {
            if self.words.contains(&place) {
                self.staying[place] |= bits.load(Ordering::Acquire) & self.racing[place];
            }
        }
        for place in self.words.clone() {
            self.settle(place, self.staying[place], self.falling[place], position);
        }
    }

    /// The same where all racers are in one word, as in any fleet of up to 64.
    fn pass_shared_in_word(&mut self, shared: &Shared<'_>, position: u32, matched: u32) {
        let place = self.words.start;
        let racing = self.racing[place];
        let (mut staying, mut falling) = (0, 0);
        for span in shared.spans() {
            let holder = span.shelf.holder as usize;
            let bit = 1_u64 << (holder % 64);
            if span.from > 0 || holder / 64 != place || racing & bit == 0 {
                continue;
            }
            if span.to >= matched {
                staying |= bit;
            } else {
                falling |= bit;
                self.reach[holder] = position + span.to;
            }
        }
        let bits = place
            .checked_sub(shared.base as usize)
            .and_then(|word| shared.bits.get(word));
        staying |= bits.map_or(0, |bits| bits.load(Ordering::Acquire)) & racing;
        self.settle(place, staying, falling, position);
    }

    /// Writes down who falls out: those of `falling` have their reach already, the others come to
    /// the run and no further.
    #[inline]
    fn settle(&mut self, place: usize, staying: u64, falling: u64, position: u32) {
        if self.fresh {
            self.touched[place] = staying | falling;
        } else {
            for bit in ones(self.racing[place] & !staying & !falling) {
                self.reach[place * 64 + bit as usize] = position;
            }
        }
        self.racing[place] = staying;
    }

    /// One step where other tiers than the GPU's have a part in it.
    #[cold]
    fn pass_tiered(&mut self, holders: &Holders<'_>, position: u32, matched: u32) {
        if !self.tiered {
            self.tiered = true;
            self.on_gpu.copy_from_slice(&self.racing);
        }
        self.staying[self.words.clone()].fill(0);
        self.falling[self.words.clone()].fill(0);
        // Who holds anything of the run is gathered in `falling`, and weighed one by one.
        match holders {
            Holders::Sole(shelf) => self.gather(shelf.holder),
            Holders::Shared(shared) => {
                shared
                    .spans()
                    .for_each(|span| self.gather(span.shelf.holder));
                shared.whole().for_each(|holder| self.gather(holder));
            }
        }
        for place in self.words.clone() {
            for bit in ones(self.falling[place]) {
                self.weigh(holders, place * 64 + bit as usize, position, matched);
            }
            self.settle(place, self.staying[place], self.falling[place], position);
        }
    }

    fn gather(&mut self, holder: u32) {
        let holder = holder as usize;
        if is_set(&self.racing, holder) {
            self.falling[holder / 64] |= 1 << (holder % 64);
        }
    }

    /// How far one holder gets within a run, in all tiers and in GPU memory alone.
    fn weigh(&mut self, holders: &Holders<'_>, holder: usize, position: u32, matched: u32) {
        let (place, bit) = (holder / 64, 1_u64 << (holder % 64));
        let reach = reach_within(holders, holder as u32, false).min(matched);
        let on_gpu = reach_within(holders, holder as u32, true).min(matched);
        if reach == matched {
            self.staying[place] |= bit;
        } else {
            self.reach[holder] = position + reach;
            if self.fresh && reach == 0 {
                // It does not hold the first block.
                self.falling[place] &= !bit;
            }
        }
        if on_gpu < reach && self.on_gpu[place] & bit != 0 {
            self.gpu_reach[holder] = position + on_gpu;
            self.left_gpu[place] |= bit;
            self.on_gpu[place] &= !bit;
        }
    }

    /// Leaves out words at both ends where nobody is left; false when nobody is left at all.
    #[inline]
    fn narrow(&mut self) -> bool {
        while !self.words.is_empty() && self.racing[self.words.start] == 0 {
            self.words.start += 1;
        }
        while !self.words.is_empty() && self.racing[self.words.end - 1] == 0 {
            self.words.end -= 1;
        }
        !self.words.is_empty()
    }
}

/// How many leading blocks of a run a holder has, in all tiers or in GPU memory only.
fn reach_within(holders: &Holders<'_>, holder: u32, gpu_only: bool) -> u32 {
    let counts = |shelf: Shelf| shelf.holder == holder && (shelf.tier == 0 || !gpu_only);
    let shared = match holders {
        Holders::Sole(shelf) => return if counts(*shelf) { u32::MAX } else { 0 },
        Holders::Shared(shared) => shared,
    };
    let mut reach = 0;
    loop {
        let onward = shared
            .spans()
            .find(|span| counts(span.shelf) && span.from <= reach && span.to > reach);
        match onward {
            Some(span) => reach = span.to,
            None => break,
        }
    }
    if shared.is_whole(Shelf { holder, tier: 0 }) {
        return u32::MAX;
    }
    reach
}

fn is_set(words: &[u64], number: usize) -> bool {
    words
        .get(number / 64)
        .is_some_and(|word| word & (1 << (number % 64)) != 0)
}

#[inline]
fn ones(bits: u64) -> impl Iterator<Item = u32> {
    let mut left = bits;
    std::iter::from_fn(move || {
        let bit = (left != 0).then(|| left.trailing_zeros())?;
        left &= left - 1;
        Some(bit)
    })
}
