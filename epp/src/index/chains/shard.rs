//! The runs of one share of all chains, and everything that changes them.
//!
//! A chain belongs to the shard of its first block, so an event needs one shard's lock. Within it
//! blocks are laid out by three rules, and because of them a key is in one place only: the block
//! after a run's block is the next in the run if the keys are equal; otherwise it starts a run of
//! its own, found by its key, at whatever block that run branches off; and only the one shelf that
//! holds a run alone may append to it.
//!
//! What names point at, and what becomes of it when runs are cut and joined, is kept in `numbers`.

use std::sync::Arc;

use crossbeam_epoch::Guard;
use smallvec::SmallVec;

use super::heads::{Heads, HeadsWriter};
use super::keys::Keys;
use super::numbers::Numbers;
use super::run::{Holders, NO_STRETCH, RUN_BLOCKS_MAX, Run, Shared, encoded};
use super::sheet::{Overlaps, Sheet, Shelf, Span};
use super::sync::{Mutex, Ordering};

/// Stretches of one run before it is cut in two, so that a lookup reads few of them. A model checker
/// has to see cuts with few holders.
const PARTIAL_MAX: usize = if cfg!(shuttle) { 1 } else { 24 };

/// Replaced runs of a shard that wait to be freed before its writer sees to it.
const REPLACED_PER_SWEEP: u32 = 32;

/// See the module.
#[derive(Debug)]
pub(super) struct Shard {
    pub(super) heads: Heads,
    pub(super) writer: Mutex<Writer>,
}

/// What the shard's lock guards.
#[derive(Debug)]
pub(super) struct Writer {
    heads: HeadsWriter,
    numbers: Numbers,
    /// Runs and tables replaced since the last sweep.
    replaced: u32,
    /// Bytes of runs and tables.
    bytes: usize,
}

/// Where blocks came to lie.
#[derive(Debug)]
pub(super) struct Laid {
    /// The run's number within the shard.
    pub(super) run: u32,
    /// Of the first of them.
    pub(super) offset: u32,
    pub(super) blocks: u32,
    /// Offsets of those that the shelf held before.
    pub(super) held: Overlaps,
}

impl Shard {
    pub(super) fn new() -> Self {
        let (heads, writer) = Heads::new();
        let bytes = writer.bytes();
        Self {
            heads,
            writer: Mutex::new(Writer {
                heads: writer,
                numbers: Numbers::default(),
                replaced: 0,
                bytes,
            }),
        }
    }
}

impl Writer {
    pub(super) fn bytes(&self) -> usize {
        self.bytes + self.numbers.bytes()
    }

    /// Whether enough was replaced since this last said so.
    pub(super) fn is_sweep_due(&mut self) -> bool {
        let is_due = self.replaced >= REPLACED_PER_SWEEP;
        if is_due {
            self.replaced = 0;
        }
        is_due
    }

    /// Runs that somebody holds.
    pub(super) fn runs(&self) -> usize {
        self.heads.runs()
    }

    /// The numbers of its runs.
    pub(super) fn numbers(&self) -> &Numbers {
        &self.numbers
    }

    pub(super) fn numbers_mut(&mut self) -> &mut Numbers {
        &mut self.numbers
    }

    /// The key of a block.
    pub(super) fn key(&self, run: u32, offset: u32) -> Option<u64> {
        let (run, offset) = self.numbers.resolve(run, offset)?;
        let run = self.numbers.run(run)?;
        (offset < run.len()).then(|| run.key(offset))
    }

    /// Lets a shelf hold the first of these blocks, and as many of those after it as come to lie in
    /// the same run. They follow the block `after`, or start a prompt.
    pub(super) fn lay(
        &mut self,
        heads: &Heads,
        guard: &Guard,
        shelf: Shelf,
        after: Option<(u32, u32)>,
        keys: &[u64],
    ) -> Laid {
        if let Some((run, offset)) =
            after.and_then(|(run, offset)| self.numbers.resolve(run, offset))
            && let Some(laid) = self.lay_after(heads, guard, shelf, (run, offset), keys)
        {
            return laid;
        }
        let first = keys.first().copied().unwrap_or_default();
        let start = self.heads.find(first, guard);
        if let Some(run) = start.filter(|run| run.first_key() == first) {
            let number = run.id;
            let blocks = run.matched(0, &mut Keys(keys), 0);
            return self.cover(heads, guard, shelf, number, 0..blocks);
        }
        self.start(heads, guard, shelf, keys)
    }

    /// Lets a shelf hold one block that is there.
    pub(super) fn lay_at(
        &mut self,
        heads: &Heads,
        guard: &Guard,
        shelf: Shelf,
        run: u32,
        offset: u32,
    ) -> Option<Laid> {
        let (run, offset) = self.numbers.resolve(run, offset)?;
        Some(self.cover(heads, guard, shelf, run, offset..offset + 1))
    }

    /// Takes a block out of what a shelf holds.
    pub(super) fn lift(
        &mut self,
        heads: &Heads,
        guard: &Guard,
        shelf: Shelf,
        run: u32,
        offset: u32,
    ) {
        let Some((number, offset)) = self.numbers.resolve(run, offset) else {
            return;
        };
        let Some(run) = self.numbers.run(number).cloned() else {
            return;
        };
        match run.holders() {
            Holders::Sole(sole) => {
                if sole == shelf && offset < run.len() {
                    self.lift_sole(heads, guard, &run, shelf, offset);
                }
            }
            Holders::Shared(shared) => {
                self.lift_shared(heads, guard, &run, &shared, shelf, offset);
            }
        }
    }

    /// The next blocks of the run that the parent is in, or those appended to it.
    fn lay_after(
        &mut self,
        heads: &Heads,
        guard: &Guard,
        shelf: Shelf,
        parent: (u32, u32),
        keys: &[u64],
    ) -> Option<Laid> {
        let (number, offset) = parent;
        let run = Arc::clone(self.numbers.run(number)?);
        let next = offset + 1;
        let blocks = run.matched(next, &mut Keys(keys), 0);
        if blocks > 0 {
            return Some(self.cover(heads, guard, shelf, number, next..next + blocks));
        }
        let first = keys.first().copied()?;
        let is_end = next == run.len() && self.numbers.is_open(number) && next < RUN_BLOCKS_MAX;
        if !is_end || !matches!(run.holders(), Holders::Sole(sole) if sole == shelf) {
            return None;
        }
        if self.heads.starts(first, guard) {
            return None;
        }
        let most = self.new_keys(keys, (RUN_BLOCKS_MAX - next) as usize, guard);
        let appended = self.append(heads, guard, &run, shelf, &keys[..most]);
        Some(Laid {
            run: number,
            offset: next,
            blocks: appended,
            held: Overlaps::new(),
        })
    }

    /// How many of these keys, the first of which is in no run, go into one run together. One that
    /// starts a run already ends it: its parent was gone for a while, and it was not.
    fn new_keys(&self, keys: &[u64], most: usize, guard: &Guard) -> usize {
        let rest = keys.iter().take(most).skip(1);
        let known = rest.take_while(|key| !self.heads.starts(**key, guard));
        (1 + known.count()).min(keys.len())
    }

    fn append(
        &mut self,
        heads: &Heads,
        guard: &Guard,
        run: &Arc<Run>,
        shelf: Shelf,
        keys: &[u64],
    ) -> u32 {
        let wanted = run.len() as usize + keys.len();
        if wanted <= run.capacity() {
            return run.append(keys) as u32;
        }
        let larger = run.resized(shelf, grown(run.capacity(), wanted));
        let appended = larger.append(keys);
        self.replace(heads, guard, Arc::new(larger));
        appended as u32
    }

    /// A run of new blocks.
    fn start(&mut self, heads: &Heads, guard: &Guard, shelf: Shelf, keys: &[u64]) -> Laid {
        let most = self.new_keys(keys, RUN_BLOCKS_MAX as usize, guard);
        let keys = &keys[..most];
        let number = self.numbers.new_number();
        let run = Arc::new(Run::sole(
            number,
            shelf,
            keys,
            keys.len().next_multiple_of(2),
        ));
        self.adopt(heads, guard, run);
        Laid {
            run: number,
            offset: 0,
            blocks: most as u32,
            held: Overlaps::new(),
        }
    }

    /// Lets a shelf hold blocks of a run.
    fn cover(
        &mut self,
        heads: &Heads,
        guard: &Guard,
        shelf: Shelf,
        number: u32,
        range: std::ops::Range<u32>,
    ) -> Laid {
        let mut laid = Laid {
            run: number,
            offset: range.start,
            blocks: range.end - range.start,
            held: Overlaps::new(),
        };
        let Some(run) = self.numbers.run(number).cloned() else {
            return laid;
        };
        let in_place = match run.holders() {
            Holders::Sole(sole) => (sole == shelf).then(|| Overlaps::from_elem(range.clone(), 1)),
            Holders::Shared(shared) => cover_in_place(&shared, shelf, range.clone()),
        };
        if let Some(held) = in_place {
            laid.held = held;
        } else {
            let mut sheet = run.sheet();
            laid.held = sheet.cover(shelf, range);
            self.reshape(heads, guard, &run, sheet);
        }
        if let Some((head, shift)) = self.join(heads, guard, number) {
            laid.run = head;
            laid.offset += shift;
            for held in &mut laid.held {
                *held = held.start + shift..held.end + shift;
            }
        }
        laid
    }

    fn lift_sole(
        &mut self,
        heads: &Heads,
        guard: &Guard,
        run: &Arc<Run>,
        shelf: Shelf,
        offset: u32,
    ) {
        let len = run.len();
        if offset + 1 < len {
            let mut sheet = run.sheet();
            sheet.uncover(shelf, offset);
            self.reshape(heads, guard, run, sheet);
        } else if len == 1 {
            self.retire(guard, run.id);
        } else {
            run.truncate();
            if run.capacity() > 16 && (len as usize) * 2 < run.capacity() {
                let smaller = run.resized(shelf, (len as usize * 5 / 4).next_multiple_of(2));
                self.replace(heads, guard, Arc::new(smaller));
            }
        }
    }

    fn lift_shared(
        &mut self,
        heads: &Heads,
        guard: &Guard,
        run: &Arc<Run>,
        shared: &Shared<'_>,
        shelf: Shelf,
        offset: u32,
    ) {
        let covers = |span: &Span| (span.from..span.to).contains(&offset);
        let found = shared.cells_of(shelf).find(|(_, span)| covers(span));
        let shrunk = match found {
            None if shared.is_whole(shelf) => None,
            None => return,
            Some((cell, span)) => shrunk(span, offset).map(|rest| (cell, rest)),
        };
        if let Some((cell, rest)) = shrunk {
            let word = if rest.from < rest.to {
                encoded(rest)
            } else {
                NO_STRETCH
            };
            cell.store(word, Ordering::Release);
            if wants_reshape(shared) {
                self.reshape(heads, guard, run, run.sheet());
            }
        } else {
            let mut sheet = run.sheet();
            sheet.uncover(shelf, offset);
            self.reshape(heads, guard, run, sheet);
        }
    }

    /// Replaces a run by one of another shape, cuts it where too many stretches crowd it, and
    /// forgets it where nobody holds anything of it.
    fn reshape(&mut self, heads: &Heads, guard: &Guard, run: &Arc<Run>, mut sheet: Sheet) {
        sheet.trim();
        if sheet.len == 0 {
            self.retire(guard, run.id);
            return;
        }
        let cut = (sheet.partial() > PARTIAL_MAX).then(|| sheet.cut());
        let Some(at) = cut.flatten() else {
            self.replace(heads, guard, Arc::new(run.reshaped(&sheet)));
            return;
        };
        let end = sheet.len;
        let (head, tail) = sheet.split(at);
        let number = self.numbers.new_number();
        let tail = Run::of_sheet(number, &tail, &run.copied_keys(at..end));
        self.numbers.link_tail(run.id, number, at);
        // The tail first: a reader that sees the shorter head finds it.
        self.adopt(heads, guard, Arc::new(tail));
        if head.spans.is_empty() {
            self.retire(guard, run.id);
        } else {
            let head = Run::of_sheet(run.id, &head, &run.copied_keys(0..at));
            self.replace(heads, guard, Arc::new(head));
        }
    }

    /// Undoes a cut where both sides have come to be held by the same shelves, whole. Returns where
    /// the run's blocks are if it was the tail: in which run, and how many blocks further.
    fn join(&mut self, heads: &Heads, guard: &Guard, number: u32) -> Option<(u32, u32)> {
        let (head, tail) = self.numbers.sides_of_cut(number)?;
        let (first, second) = (
            self.numbers.run(head).cloned()?,
            self.numbers.run(tail).cloned()?,
        );
        let at = first.len();
        let is_whole = self.numbers.ends_at_cut(head, at);
        let (mut joined, rest) = (first.sheet(), second.sheet());
        if !is_whole || !joined.joins(&rest) {
            return None;
        }
        joined.len += rest.len;
        for span in &mut joined.spans {
            span.to = joined.len;
        }
        let mut keys = first.copied_keys(0..at);
        keys.extend(second.copied_keys(0..rest.len));
        self.numbers.unlink_tail(head, tail, at);
        // The head first: a reader that misses the tail finds that the head has changed.
        self.replace(heads, guard, Arc::new(Run::of_sheet(head, &joined, &keys)));
        self.retire(guard, tail);
        (tail == number).then_some((head, at))
    }

    /// Publishes the first run of a number.
    fn adopt(&mut self, heads: &Heads, guard: &Guard, run: Arc<Run>) {
        self.bytes += run.bytes();
        self.numbers.set(&run);
        self.bytes -= self.heads.bytes();
        self.heads.publish(heads, run.first_key(), run, guard);
        self.bytes += self.heads.bytes();
    }

    /// Publishes another run under the number and the first key of this one.
    fn replace(&mut self, heads: &Heads, guard: &Guard, run: Arc<Run>) {
        if let Some(before) = self.numbers.run(run.id) {
            self.replaced += 1;
            self.bytes -= before.bytes();
        }
        self.adopt(heads, guard, run);
    }

    /// Takes a run that nobody holds, or that another has taken over, out.
    fn retire(&mut self, guard: &Guard, number: u32) {
        if let Some(run) = self.numbers.take(number) {
            self.replaced += 1;
            self.bytes -= run.bytes();
            self.heads.remove(run.first_key(), guard);
        }
        self.numbers.free_number(number);
    }
}

/// Room for a run that has outgrown its own: twice as much while that is little, then a quarter more.
fn grown(capacity: usize, wanted: usize) -> usize {
    let more = if capacity < 128 {
        capacity * 2
    } else {
        capacity * 5 / 4
    };
    wanted.max(more).next_multiple_of(2)
}

/// Lets a shelf hold blocks of a shared run without replacing the run; `None` where that cannot be
/// done by writing one word.
fn cover_in_place(
    shared: &Shared<'_>,
    shelf: Shelf,
    range: std::ops::Range<u32>,
) -> Option<Overlaps> {
    if shared.is_whole(shelf) {
        return Some(Overlaps::from_elem(range, 1));
    }
    let own: SmallVec<[_; 2]> = shared.cells_of(shelf).take(2).collect();
    let whole = 0..shared.len;
    match own.as_slice() {
        [] => {
            if range == whole && shared.set_whole(shelf) {
                return Some(Overlaps::new());
            }
            let fits = shared.tiered || shelf.tier == 0;
            let cell = shared.spare_cell().filter(|_| fits)?;
            if shared.stretches() >= PARTIAL_MAX {
                return None;
            }
            cell.store(encoded(span(shelf, range)), Ordering::Release);
            Some(Overlaps::new())
        }
        [(cell, before)] if before.from <= range.end && before.to >= range.start => {
            let overlap = before.from.max(range.start)..before.to.min(range.end);
            let merged = before.from.min(range.start)..before.to.max(range.end);
            // The bit first, see `run`.
            let word = if merged == whole && shared.set_whole(shelf) {
                NO_STRETCH
            } else {
                encoded(span(shelf, merged))
            };
            cell.store(word, Ordering::Release);
            Some(if overlap.is_empty() {
                Overlaps::new()
            } else {
                Overlaps::from_elem(overlap, 1)
            })
        }
        _ => None,
    }
}

/// A span without its first or its last block; `None` for a block in between.
fn shrunk(span: Span, offset: u32) -> Option<Span> {
    if offset + 1 == span.to {
        Some(Span { to: offset, ..span })
    } else if offset == span.from {
        Some(Span {
            from: offset + 1,
            ..span
        })
    } else {
        None
    }
}

/// Whether a shared run that lost a block is due for another shape: nobody or only one shelf is
/// left, or a good part of it is held by nobody.
fn wants_reshape(shared: &Shared<'_>) -> bool {
    let mut stretches = shared.spans();
    let (first, second) = (stretches.next(), stretches.next());
    let whole = shared.whole().take(2).count();
    match (whole, first, second) {
        (0 | 1, None, _) => true,
        (0, Some(span), None) if span.from == 0 => true,
        (0, _, _) => {
            let reach = shared.spans().map(|span| span.to).max().unwrap_or(0);
            reach + (shared.len / 4).max(8) <= shared.len
        }
        _ => false,
    }
}

fn span(shelf: Shelf, range: std::ops::Range<u32>) -> Span {
    Span {
        shelf,
        from: range.start,
        to: range.end,
    }
}
