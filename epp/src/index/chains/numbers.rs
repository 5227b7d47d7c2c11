//! The numbers of runs: what names point at, whatever becomes of the run.
//!
//! A name says (run, offset). Cutting a run in two or joining two moves blocks without touching the
//! names, of which there may be thousands: the number of the run says from which offset on to look
//! elsewhere, and where. A number lives as long as names point at it or other numbers lead to it.

use std::sync::Arc;

use super::run::Run;

/// Marks the number of no run.
pub(super) const NOWHERE: u32 = u32::MAX;

/// The numbers of one shard.
#[derive(Debug, Default)]
pub(super) struct Numbers {
    runs: Vec<Numbered>,
    free: Vec<u32>,
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

impl Numbers {
    pub(super) fn bytes(&self) -> usize {
        self.runs.capacity() * size_of::<Numbered>() + self.free.capacity() * 4
    }

    /// Whether no number stands for anything.
    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.free.len() == self.runs.len()
    }

    /// Where a block is now.
    pub(super) fn resolve(&self, run: u32, offset: u32) -> Option<(u32, u32)> {
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

    pub(super) fn run(&self, number: u32) -> Option<&Arc<Run>> {
        self.runs.get(number as usize)?.run.as_ref()
    }

    /// Whether all of a run's blocks are in the run, so that it may be appended to.
    pub(super) fn is_open(&self, number: u32) -> bool {
        self.runs
            .get(number as usize)
            .is_some_and(|numbered| numbered.limit == NOWHERE)
    }

    /// Whether a run ends where it was cut.
    pub(super) fn ends_at_cut(&self, number: u32, len: u32) -> bool {
        self.runs
            .get(number as usize)
            .is_some_and(|numbered| numbered.limit == len)
    }

    /// Lets a run's number stand for it.
    pub(super) fn set(&mut self, run: &Arc<Run>) {
        if let Some(numbered) = self.runs.get_mut(run.id as usize) {
            numbered.run = Some(Arc::clone(run));
        }
    }

    /// Lets a number stand for no run.
    pub(super) fn take(&mut self, number: u32) -> Option<Arc<Run>> {
        let numbered = self.runs.get_mut(number as usize)?;
        numbered.run.take()
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

    /// A number for a new run.
    pub(super) fn new_number(&mut self) -> u32 {
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
    pub(super) fn free_number(&mut self, number: u32) {
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

    /// The run before the cut at one end of this run, and the one after it.
    pub(super) fn sides_of_cut(&self, number: u32) -> Option<(u32, u32)> {
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
    pub(super) fn link_tail(&mut self, head: u32, tail: u32, at: u32) {
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
    pub(super) fn unlink_tail(&mut self, head: u32, tail: u32, at: u32) {
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
}
