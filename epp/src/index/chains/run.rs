//! A run: consecutive blocks of one chain, their keys and who holds them.
//!
//! A run is published whole and replaced when its shape changes, with one exception each way:
//!
//! - While a single shelf holds it, its length moves in place: that shelf appends what it computes
//!   next and truncates what it evicts last. The holder of such a run never changes.
//! - Once several shelves hold it, its length is fixed, and single stretches move in place: each is
//!   one word, written at once.
//!
//! So whatever a reader concludes about one shelf comes from one atomic word and from what never
//! changes, and needs no second look. Keys are chained: a key that equals the prompt's at some
//! block proves every block before it, so a comparison starts at the end.
//!
//! ```text
//! cells of a shared run = one bit per holder that covers all of it in GPU memory, from word `base` on
//!                       | stretches, each  holder:30 tier:2 from:16 to:16, empty where from == to
//! ```
//!
//! A holder moves from a stretch to the bits by setting the bit first, and readers read the
//! stretches first, so that it is never missed in between. The other way it is the run that is
//! replaced.

use std::sync::Arc;

use super::keys::KeyChain;
use super::sheet::{Sheet, Shelf, Span, Spans};
use super::sync::{AtomicU32, AtomicU64, Ordering};

/// Blocks of the longest run, because offsets have 16 bits. A longer chain goes on in another run.
pub(super) const RUN_BLOCKS_MAX: u32 = u16::MAX as u32;
/// Highest number of a holder, because stretches have 30 bits for it.
pub(super) const HOLDERS_MAX: u32 = 1 << 30;
/// Cells kept free in a shared run for holders that join it, beside a quarter of those in use.
const SPARE_CELLS: usize = 2;
/// Blocks compared before the end of a long run is, when their keys are still to be computed.
const FIRST_STRIDE: u32 = 16;

/// See the module.
#[derive(Debug)]
pub(super) struct Run {
    /// The number by which its shard's writer knows it.
    pub(super) id: u32,
    len: AtomicU32,
    keys: Arc<[AtomicU64]>,
    kind: Kind,
    cells: Box<[AtomicU64]>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Sole(Shelf),
    Shared {
        /// The word of holder numbers that the first bits stand for.
        base: u32,
        words: u32,
        /// Whether any stretch may be in another tier than the GPU's.
        tiered: bool,
    },
}

/// What a lookup reads of a run.
pub(super) enum Holders<'run> {
    Sole(Shelf),
    Shared(Shared<'run>),
}

/// The holders of a shared run.
#[derive(Clone, Copy)]
pub(super) struct Shared<'run> {
    pub(super) base: u32,
    /// Of holders that cover all of the run in GPU memory.
    pub(super) bits: &'run [AtomicU64],
    stretches: &'run [AtomicU64],
    pub(super) tiered: bool,
    pub(super) len: u32,
}

impl Run {
    /// A run that one shelf holds, with room for `capacity` blocks.
    pub(super) fn sole(id: u32, shelf: Shelf, keys: &[u64], capacity: usize) -> Self {
        let spare = capacity.saturating_sub(keys.len());
        let stored = keys.iter().copied().chain(std::iter::repeat_n(0, spare));
        Self {
            id,
            len: AtomicU32::new(keys.len() as u32),
            keys: stored.map(AtomicU64::new).collect(),
            kind: Kind::Sole(shelf),
            cells: Box::default(),
        }
    }

    /// A run of the shape that a sheet gives it, with keys of its own.
    pub(super) fn of_sheet(id: u32, sheet: &Sheet, keys: &[u64]) -> Self {
        Self::shaped(id, sheet, keys.iter().copied().map(AtomicU64::new).collect())
    }

    /// This run in another shape. Keys stay where they are, unless half of their room is empty, or a
    /// single shelf is going to write to them, which those who read the shared run must not see.
    pub(super) fn reshaped(&self, sheet: &Sheet) -> Self {
        let is_roomy = self.keys.len() > 16 && sheet.len as usize * 2 < self.keys.len();
        if is_roomy || sheet.sole().is_some() {
            return Self::of_sheet(self.id, sheet, &self.copied_keys(0..sheet.len));
        }
        Self::shaped(self.id, sheet, Arc::clone(&self.keys))
    }

    /// This run, held by its one shelf, with other room for keys.
    pub(super) fn resized(&self, shelf: Shelf, capacity: usize) -> Self {
        Self::sole(self.id, shelf, &self.copied_keys(0..self.len()), capacity)
    }

    fn shaped(id: u32, sheet: &Sheet, keys: Arc<[AtomicU64]>) -> Self {
        let (kind, cells) = match sheet.sole() {
            Some(shelf) => (Kind::Sole(shelf), Box::default()),
            None => shared_cells(sheet),
        };
        Self {
            id,
            len: AtomicU32::new(sheet.len),
            keys,
            kind,
            cells,
        }
    }

    /// Blocks in it.
    #[inline]
    pub(super) fn len(&self) -> u32 {
        self.len.load(Ordering::Acquire)
    }

    /// Blocks it has room for.
    pub(super) fn capacity(&self) -> usize {
        self.keys.len()
    }

    /// Bytes that it takes, the headers of its allocations included.
    pub(super) fn bytes(&self) -> usize {
        let counts = 2 * size_of::<usize>();
        size_of::<Self>() + counts + self.keys.len() * 8 + counts + self.cells.len() * 8
    }

    /// The key of a block; 0 past the end of its room.
    #[inline]
    pub(super) fn key(&self, offset: u32) -> u64 {
        self.keys
            .get(offset as usize)
            .map_or(0, |key| key.load(Ordering::Acquire))
    }

    pub(super) fn first_key(&self) -> u64 {
        self.key(0)
    }

    pub(super) fn copied_keys(&self, range: std::ops::Range<u32>) -> Vec<u64> {
        range.map(|offset| self.key(offset)).collect()
    }

    /// How many blocks of a chain, from its block `position` on, equal this run's from `offset` on.
    #[inline]
    pub(super) fn matched(&self, offset: u32, keys: &mut impl KeyChain, position: u32) -> u32 {
        let rest = self.len().saturating_sub(offset);
        let most = rest.min((keys.len() as u32).saturating_sub(position));
        let mut stride = (keys.ready() as u32)
            .saturating_sub(position)
            .max(FIRST_STRIDE);
        let mut known = 0;
        while known < most {
            let next = most.min(known + stride);
            if !self.equals(offset, keys, position, next) {
                return self.bisect(offset, keys, position, known..next);
            }
            known = next;
            stride *= 2;
        }
        known
    }

    /// Whether `blocks` blocks are equal, which the last of them tells.
    #[inline]
    fn equals(&self, offset: u32, keys: &mut impl KeyChain, position: u32, blocks: u32) -> bool {
        self.key(offset + blocks - 1) == keys.key((position + blocks - 1) as usize)
    }

    /// The number of equal blocks, where `range.start` are and `range.end` are not.
    fn bisect(
        &self,
        offset: u32,
        keys: &mut impl KeyChain,
        position: u32,
        mut range: std::ops::Range<u32>,
    ) -> u32 {
        while range.len() > 1 {
            let middle = range.start + range.len() as u32 / 2;
            if self.equals(offset, keys, position, middle) {
                range.start = middle;
            } else {
                range.end = middle;
            }
        }
        range.start
    }

    #[inline]
    pub(super) fn holders(&self) -> Holders<'_> {
        match self.kind {
            Kind::Sole(shelf) => Holders::Sole(shelf),
            Kind::Shared {
                base,
                words,
                tiered,
            } => {
                let (bits, stretches) = self.cells.split_at(words as usize);
                Holders::Shared(Shared {
                    base,
                    bits,
                    stretches,
                    tiered,
                    len: self.len(),
                })
            }
        }
    }

    /// Who covers what, to be changed.
    pub(super) fn sheet(&self) -> Sheet {
        let len = self.len();
        let mut spans = Spans::new();
        match self.holders() {
            Holders::Sole(shelf) => spans.push(Span {
                shelf,
                from: 0,
                to: len,
            }),
            Holders::Shared(shared) => {
                spans.extend(shared.spans());
                spans.extend(shared.whole().map(|holder| Span {
                    shelf: Shelf { holder, tier: 0 },
                    from: 0,
                    to: len,
                }));
            }
        }
        Sheet { len, spans }
    }

    /// Appends to a run of one shelf; returns how many keys found room.
    pub(super) fn append(&self, keys: &[u64]) -> usize {
        let len = self.len() as usize;
        let room = self.keys.get(len..).unwrap_or_default();
        for (place, key) in room.iter().zip(keys) {
            place.store(*key, Ordering::Release);
        }
        let appended = room.len().min(keys.len());
        // The length last: a reader that sees it sees the keys.
        self.len.store((len + appended) as u32, Ordering::Release);
        appended
    }

    /// Drops the last block of a run of one shelf.
    pub(super) fn truncate(&self) {
        self.len
            .store(self.len().saturating_sub(1), Ordering::Release);
    }
}

impl Shared<'_> {
    /// The stretches, in no order.
    #[inline]
    pub(super) fn spans(&self) -> impl Iterator<Item = Span> {
        self.stretches
            .iter()
            .map(|cell| decoded(cell.load(Ordering::Acquire)))
            .filter(|span| span.from < span.to)
    }

    /// The numbers of the holders that cover all of the run in GPU memory.
    pub(super) fn whole(&self) -> impl Iterator<Item = u32> {
        let words = (self.base..).zip(self.bits);
        words.flat_map(|(word, bits)| {
            let mut left = bits.load(Ordering::Acquire);
            std::iter::from_fn(move || {
                let bit = (left != 0).then(|| left.trailing_zeros())?;
                left &= left - 1;
                Some(word * 64 + bit)
            })
        })
    }

    /// Whether a shelf's bit is set.
    pub(super) fn is_whole(&self, shelf: Shelf) -> bool {
        shelf.tier == 0
            && self
                .bit(shelf.holder)
                .is_some_and(|(word, mask)| word.load(Ordering::Relaxed) & mask != 0)
    }

    /// Sets a shelf's bit; false where there is none for it.
    pub(super) fn set_whole(&self, shelf: Shelf) -> bool {
        let Some((word, mask)) = self.bit(shelf.holder).filter(|_| shelf.tier == 0) else {
            return false;
        };
        word.fetch_or(mask, Ordering::AcqRel);
        true
    }

    /// The cells of a shelf's stretches.
    pub(super) fn cells_of(&self, shelf: Shelf) -> impl Iterator<Item = (&AtomicU64, Span)> {
        self.stretches.iter().filter_map(move |cell| {
            let span = decoded(cell.load(Ordering::Relaxed));
            (span.from < span.to && span.shelf == shelf).then_some((cell, span))
        })
    }

    /// A cell that holds no stretch.
    pub(super) fn spare_cell(&self) -> Option<&AtomicU64> {
        self.stretches.iter().find(|cell| {
            let span = decoded(cell.load(Ordering::Relaxed));
            span.from == span.to
        })
    }

    /// Stretches that are not empty.
    pub(super) fn stretches(&self) -> usize {
        self.spans().count()
    }

    #[inline]
    fn bit(&self, holder: u32) -> Option<(&AtomicU64, u64)> {
        let word = (holder / 64).checked_sub(self.base)?;
        self.bits
            .get(word as usize)
            .map(|word| (word, 1 << (holder % 64)))
    }
}

/// One word for a stretch.
#[inline]
pub(super) fn encoded(span: Span) -> u64 {
    u64::from(span.shelf.holder) << 34
        | u64::from(span.shelf.tier & 3) << 32
        | u64::from(span.from & 0xffff) << 16
        | u64::from(span.to & 0xffff)
}

/// The word of no stretch.
pub(super) const NO_STRETCH: u64 = 0;

#[inline]
fn decoded(cell: u64) -> Span {
    Span {
        shelf: Shelf {
            holder: (cell >> 34) as u32,
            tier: (cell >> 32) as u8 & 3,
        },
        from: (cell >> 16) as u32 & 0xffff,
        to: cell as u32 & 0xffff,
    }
}

/// The cells of a shared run. Bits are worth their words when no fewer holders fill them than would
/// take as many stretches; a fleet of ten thousand with two scattered holders keeps stretches.
fn shared_cells(sheet: &Sheet) -> (Kind, Box<[AtomicU64]>) {
    let is_whole = |span: &&Span| span.shelf.tier == 0 && span.from == 0 && span.to == sheet.len;
    let whole = || sheet.spans.iter().filter(is_whole);
    let first = whole().map(|span| span.shelf.holder / 64).min().unwrap_or(0);
    let last = whole().map(|span| span.shelf.holder / 64).max().unwrap_or(0);
    let count = whole().count();
    let words = if count > (last - first) as usize {
        (last - first + 1) as usize
    } else {
        0
    };
    let mut cells = vec![NO_STRETCH; words];
    for span in &sheet.spans {
        let bit = is_whole(&span)
            .then(|| cells.get_mut((span.shelf.holder / 64 - first) as usize))
            .flatten();
        match bit.filter(|_| words > 0) {
            Some(word) => *word |= 1 << (span.shelf.holder % 64),
            None => cells.push(encoded(*span)),
        }
    }
    let spare = SPARE_CELLS + (cells.len() - words) / 4;
    cells.extend(std::iter::repeat_n(NO_STRETCH, spare));
    let kind = Kind::Shared {
        base: first,
        words: words as u32,
        tiered: sheet.spans.iter().any(|span| span.shelf.tier != 0),
    };
    (kind, cells.into_iter().map(AtomicU64::new).collect())
}
