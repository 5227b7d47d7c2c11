//! The runs of one share of all chains, and everything that changes them.
//!
//! A chain belongs to the shard of its first block, so an event needs one shard's lock. Within it
//! blocks are laid out by three rules, and because of them a key is in one place only: the block
//! after a run's block is the next in the run if the keys are equal; otherwise it starts a run of
//! its own, found by its key, at whatever block that run branches off; and only the one shelf that
//! holds a run alone may append to it.
//!
//! Names point at (run, offset). Cutting a run or joining two moves blocks without touching the
//! names: the number of the run says from which offset on to look elsewhere. A number lives as long
//! as names point at it.

use std::sync::Arc;

use crossbeam_epoch::Guard;
use smallvec::SmallVec;

use super::heads::{Heads, HeadsWriter};
use super::keys::Keys;
use super::run::{Holders, NO_STRETCH, RUN_BLOCKS_MAX, Run, Shared, encoded};
use super::sheet::{Overlaps, Sheet, Shelf, Span};
use super::sync::{Mutex, Ordering};

/// Stretches of one run before it is cut in two, so that a lookup reads few of them. A model checker
/// has to see cuts with few holders.
const PARTIAL_MAX: usize = if cfg!(shuttle) { 1 } else { 24 };
/// Marks the number of no run.
const NOWHERE: u32 = u32::MAX;

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
    runs: Vec<Numbered>,
    free: Vec<u32>,
    /// Bytes of runs and tables.
    bytes: usize,
}

/// What a run's number stands for.
#[derive(Debug)]
struct Numbered {
    run: Option<Arc<Run>>,
    /// Names that point at this number, and numbers that lead to it.
    references: u32,
    /// From this offset on, blocks are in another run...
    limit: u32,
    /// ... in this one ...
    onward: u32,
    /// ... this many blocks further into it.
    shift: u32,
    /// The run that this one was cut off from.
    cut_from: u32,
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
                runs: Vec::new(),
                free: Vec::new(),
                bytes,
            }),
        }
    }
}

impl Writer {
    pub(super) fn bytes(&self) -> usize {
        self.bytes + self.runs.capacity() * size_of::<Numbered>() + self.free.capacity() * 4
    }

    /// Whether no number stands for anything.
    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.free.len() == self.runs.len()
    }

    /// Runs that somebody holds.
    pub(super) fn runs(&self) -> usize {
        self.runs
            .iter()
            .filter(|numbered| numbered.run.is_some())
            .count()
    }

    /// The key of a block.
    pub(super) fn key(&self, run: u32, offset: u32) -> Option<u64> {
        let (run, offset) = self.resolve(run, offset)?;
        let run = self.run(run)?;
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
        if let Some((run, offset)) = after.and_then(|(run, offset)| self.resolve(run, offset))
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
        let (run, offset) = self.resolve(run, offset)?;
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
        let Some((number, offset)) = self.resolve(run, offset) else {
            return;
        };
        let Some(run) = self.run(number).cloned() else {
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

    /// Whether two places are one block.
    pub(super) fn is_same(&self, one: (u32, u32), other: (u32, u32)) -> bool {
        self.resolve(one.0, one.1) == self.resolve(other.0, other.1)
    }

    /// Notes that names point at a number.
    pub(super) fn add_names(&mut self, run: u32, names: u32) {
        if let Some(numbered) = self.runs.get_mut(run as usize) {
            numbered.references += names;
        }
    }

    /// Notes that a name less points at a number.
    pub(super) fn drop_name(&mut self, run: u32) {
        if let Some(numbered) = self.runs.get_mut(run as usize) {
            numbered.references = numbered.references.saturating_sub(1);
        }
        self.free_number(run);
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
        let numbered = self.runs.get(number as usize)?;
        let run = Arc::clone(numbered.run.as_ref()?);
        let next = offset + 1;
        let blocks = run.matched(next, &mut Keys(keys), 0);
        if blocks > 0 {
            return Some(self.cover(heads, guard, shelf, number, next..next + blocks));
        }
        let first = keys.first().copied()?;
        let is_end = next == run.len() && numbered.limit == NOWHERE && next < RUN_BLOCKS_MAX;
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
        let number = self.new_number();
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
        let Some(run) = self.run(number).cloned() else {
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
        let number = self.new_number();
        let tail = Run::of_sheet(number, &tail, &run.copied_keys(at..end));
        self.link_tail(run.id, number, at);
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
        let (head, tail) = self.sides_of_cut(number)?;
        let (first, second) = (self.run(head).cloned()?, self.run(tail).cloned()?);
        let at = first.len();
        let is_whole = self
            .runs
            .get(head as usize)
            .is_some_and(|head| head.limit == at);
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
        self.unlink_tail(head, tail, at);
        // The head first: a reader that misses the tail finds that the head has changed.
        self.replace(heads, guard, Arc::new(Run::of_sheet(head, &joined, &keys)));
        self.retire(guard, tail);
        (tail == number).then_some((head, at))
    }

    /// The run before the cut at one end of this run, and the one after it.
    fn sides_of_cut(&self, number: u32) -> Option<(u32, u32)> {
        let numbered = self.runs.get(number as usize)?;
        let (head, tail) = match (numbered.cut_from, numbered.onward) {
            (NOWHERE, NOWHERE) => return None,
            (NOWHERE, onward) => (number, onward),
            (cut_from, _) => (cut_from, number),
        };
        let is_cut = self.runs.get(head as usize)?.onward == tail
            && self.runs.get(tail as usize)?.cut_from == head;
        is_cut.then_some((head, tail))
    }

    /// From block `at` on, names of `head` lead to `tail`, and from where they led elsewhere
    /// before, they still do.
    fn link_tail(&mut self, head: u32, tail: u32, at: u32) {
        let Some(numbered) = self.runs.get_mut(head as usize) else {
            return;
        };
        let (limit, onward, shift) = (numbered.limit, numbered.onward, numbered.shift);
        (numbered.limit, numbered.onward, numbered.shift) = (at, tail, 0);
        if let Some(next) = self.runs.get_mut(onward as usize)
            && next.cut_from == head
        {
            next.cut_from = tail;
        }
        if let Some(numbered) = self.runs.get_mut(tail as usize) {
            numbered.limit = if limit == NOWHERE {
                NOWHERE
            } else {
                limit - at
            };
            (numbered.onward, numbered.shift) = (onward, shift);
            numbered.cut_from = head;
            // The head leads to it.
            numbered.references += 1;
        }
    }

    /// Names of `tail` lead to `head`, which takes its blocks over after its own `at` blocks.
    fn unlink_tail(&mut self, head: u32, tail: u32, at: u32) {
        let Some(numbered) = self.runs.get_mut(tail as usize) else {
            return;
        };
        let (limit, onward, shift) = (numbered.limit, numbered.onward, numbered.shift);
        (numbered.limit, numbered.onward, numbered.shift) = (0, head, at);
        numbered.cut_from = NOWHERE;
        numbered.references -= 1;
        if let Some(next) = self.runs.get_mut(onward as usize)
            && next.cut_from == tail
        {
            next.cut_from = head;
        }
        if let Some(numbered) = self.runs.get_mut(head as usize) {
            numbered.limit = if limit == NOWHERE {
                NOWHERE
            } else {
                limit + at
            };
            (numbered.onward, numbered.shift) = (onward, shift);
            numbered.references += 1;
        }
    }

    /// Where a block is now.
    fn resolve(&self, run: u32, offset: u32) -> Option<(u32, u32)> {
        let (mut run, mut offset) = (run, offset);
        loop {
            let numbered = self.runs.get(run as usize)?;
            if offset < numbered.limit {
                return Some((run, offset));
            }
            offset = offset - numbered.limit + numbered.shift;
            run = numbered.onward;
        }
    }

    fn run(&self, number: u32) -> Option<&Arc<Run>> {
        self.runs.get(number as usize)?.run.as_ref()
    }

    /// Publishes the first run of a number.
    fn adopt(&mut self, heads: &Heads, guard: &Guard, run: Arc<Run>) {
        self.bytes += run.bytes();
        if let Some(numbered) = self.runs.get_mut(run.id as usize) {
            numbered.run = Some(Arc::clone(&run));
        }
        self.bytes -= self.heads.bytes();
        self.heads.publish(heads, run.first_key(), run, guard);
        self.bytes += self.heads.bytes();
    }

    /// Publishes another run under the number and the first key of this one.
    fn replace(&mut self, heads: &Heads, guard: &Guard, run: Arc<Run>) {
        if let Some(before) = self.run(run.id) {
            self.bytes -= before.bytes();
        }
        self.adopt(heads, guard, run);
    }

    /// Takes a run that nobody holds, or that another has taken over, out.
    fn retire(&mut self, guard: &Guard, number: u32) {
        let numbered = self.runs.get_mut(number as usize);
        if let Some(run) = numbered.and_then(|numbered| numbered.run.take()) {
            self.bytes -= run.bytes();
            self.heads.remove(run.first_key(), guard);
        }
        self.free_number(number);
    }

    fn new_number(&mut self) -> u32 {
        let blank = Numbered {
            run: None,
            references: 0,
            limit: NOWHERE,
            onward: NOWHERE,
            shift: 0,
            cut_from: NOWHERE,
        };
        if let Some(number) = self.free.pop() {
            if let Some(numbered) = self.runs.get_mut(number as usize) {
                *numbered = blank;
            }
            return number;
        }
        self.runs.push(blank);
        (self.runs.len() - 1) as u32
    }

    /// Frees a number that stands for no run and that nothing leads to, and then the one that it
    /// led to, and so on.
    fn free_number(&mut self, number: u32) {
        let mut next = number;
        while let Some(numbered) = self.runs.get(next as usize) {
            if numbered.run.is_some() {
                return;
            }
            if numbered.references == 1 && numbered.onward == NOWHERE {
                let Some(head) = self.forget_tail(next) else {
                    return;
                };
                next = head;
                continue;
            }
            if numbered.references > 0 {
                return;
            }
            let onward = numbered.onward;
            self.free.push(next);
            if let Some(numbered) = self.runs.get_mut(next as usize) {
                // Nothing may find its way through a free number.
                (numbered.limit, numbered.onward) = (NOWHERE, NOWHERE);
            }
            if let Some(numbered) = self.runs.get_mut(onward as usize) {
                numbered.references -= 1;
                if numbered.cut_from == next {
                    numbered.cut_from = NOWHERE;
                }
            }
            next = onward;
        }
    }

    /// Frees a dead tail that only the run it was cut off from leads to, so that that run may be
    /// appended to again; returns that run.
    fn forget_tail(&mut self, tail: u32) -> Option<u32> {
        let (head, _) = self
            .sides_of_cut(tail)
            .filter(|(_, found)| *found == tail)?;
        if let Some(numbered) = self.runs.get_mut(head as usize) {
            (numbered.limit, numbered.onward) = (NOWHERE, NOWHERE);
        }
        if let Some(numbered) = self.runs.get_mut(tail as usize) {
            (numbered.references, numbered.cut_from) = (0, NOWHERE);
        }
        self.free.push(tail);
        Some(head)
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
