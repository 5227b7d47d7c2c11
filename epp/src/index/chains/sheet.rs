//! Who covers which stretch of one run, as a plain value.
//!
//! Everything that changes the shape of a run is worked out here, on a copy, and the run is then
//! rebuilt from the result: a hole in the middle, a cut, a trim. Small changes to a single holder's
//! stretch are made in the published run itself and do not come here.

use std::ops::Range;

use smallvec::SmallVec;

/// A holder's cache in one tier: what a bit or a span of a run stands for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) struct Shelf {
    /// The holder's number.
    pub(super) holder: u32,
    /// The tier's place, see [`Tier`](super::Tier).
    pub(super) tier: u8,
}

/// A stretch of a run that one shelf covers.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Span {
    pub(super) shelf: Shelf,
    pub(super) from: u32,
    pub(super) to: u32,
}

pub(super) type Spans = SmallVec<[Span; 16]>;
/// Stretches that were covered before.
pub(super) type Overlaps = SmallVec<[Range<u32>; 1]>;

/// The coverage of a run of `len` blocks.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Sheet {
    pub(super) len: u32,
    /// In no order; of one shelf they neither overlap nor touch, and none is empty.
    pub(super) spans: Spans,
}

impl Sheet {
    /// Adds a stretch to a shelf's coverage. Returns which of it was covered before.
    pub(super) fn cover(&mut self, shelf: Shelf, range: Range<u32>) -> Overlaps {
        let mut overlaps = Overlaps::new();
        let mut merged = range.clone();
        self.spans.retain(|span| {
            let touches =
                span.shelf == shelf && span.from <= range.end && span.to >= range.start;
            if touches {
                merged = merged.start.min(span.from)..merged.end.max(span.to);
                let overlap = span.from.max(range.start)..span.to.min(range.end);
                if !overlap.is_empty() {
                    overlaps.push(overlap);
                }
            }
            !touches
        });
        if !merged.is_empty() {
            self.spans.push(Span {
                shelf,
                from: merged.start,
                to: merged.end,
            });
        }
        overlaps
    }

    /// Takes one block out of a shelf's coverage.
    pub(super) fn uncover(&mut self, shelf: Shelf, offset: u32) {
        let holds =
            |span: &Span| span.shelf == shelf && (span.from..span.to).contains(&offset);
        let Some(place) = self.spans.iter().position(holds) else {
            return;
        };
        let span = self.spans.swap_remove(place);
        for rest in [span.from..offset, offset + 1..span.to] {
            if !rest.is_empty() {
                self.spans.push(Span {
                    shelf,
                    from: rest.start,
                    to: rest.end,
                });
            }
        }
    }

    /// Drops the blocks past the last covered one.
    pub(super) fn trim(&mut self) {
        self.len = self.spans.iter().map(|span| span.to).max().unwrap_or(0);
    }

    /// Cuts off everything from block `at` on.
    pub(super) fn split(mut self, at: u32) -> (Self, Self) {
        let mut tail = Self {
            len: self.len - at,
            spans: Spans::new(),
        };
        for span in &self.spans {
            if span.to > at {
                tail.spans.push(Span {
                    shelf: span.shelf,
                    from: span.from.saturating_sub(at),
                    to: span.to - at,
                });
            }
        }
        self.spans.retain(|span| span.from < at);
        for span in &mut self.spans {
            span.to = span.to.min(at);
        }
        self.len = at;
        (self, tail)
    }

    /// The only shelf, where there is one and it covers the whole run.
    pub(super) fn sole(&self) -> Option<Shelf> {
        match self.spans.as_slice() {
            [span] if span.from == 0 && span.to == self.len => Some(span.shelf),
            _ => None,
        }
    }

    /// Spans that do not cover the whole run.
    pub(super) fn partial(&self) -> usize {
        let whole = |span: &&Span| span.from == 0 && span.to == self.len;
        self.spans.len() - self.spans.iter().filter(whole).count()
    }

    /// Whether every shelf of either run covers it whole, and they are the same shelves.
    pub(super) fn joins(&self, tail: &Self) -> bool {
        if self.spans.len() != tail.spans.len() || self.partial() + tail.partial() > 0 {
            return false;
        }
        let shelves = |sheet: &Self| {
            let mut shelves: SmallVec<[Shelf; 16]> =
                sheet.spans.iter().map(|span| span.shelf).collect();
            shelves.sort_unstable();
            shelves
        };
        shelves(self) == shelves(tail)
    }

    /// Where a cut leaves the fewest spans on the fuller side: the median of the ends inside.
    pub(super) fn cut(&self) -> Option<u32> {
        let mut ends: SmallVec<[u32; 32]> = self
            .spans
            .iter()
            .flat_map(|span| [span.from, span.to])
            .filter(|end| (1..self.len).contains(end))
            .collect();
        ends.sort_unstable();
        ends.get(ends.len() / 2).copied()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    const LEN: u32 = 12;

    type Model = BTreeSet<(Shelf, u32)>;

    fn shelf(number: u32) -> Shelf {
        Shelf {
            holder: number / 2,
            tier: (number % 2) as u8,
        }
    }

    fn model(sheet: &Sheet) -> Model {
        let mut model = Model::new();
        for span in &sheet.spans {
            assert!(span.from < span.to && span.to <= sheet.len, "{span:?}");
            for offset in span.from..span.to {
                assert!(model.insert((span.shelf, offset)), "overlap at {offset}");
            }
        }
        for span in &sheet.spans {
            assert!(
                !model.contains(&(span.shelf, span.to)),
                "spans of one shelf touch at {}",
                span.to
            );
        }
        model
    }

    proptest! {
        #[test]
        fn coverage_is_the_set_of_its_blocks(
            steps in proptest::collection::vec((0_u32..4, 0..LEN, 0..=LEN, any::<bool>()), 1..40),
            at in 1..LEN,
        ) {
            let mut sheet = Sheet { len: LEN, spans: Spans::new() };
            let mut expected = Model::new();
            for (number, from, to, covers) in steps {
                let shelf = shelf(number);
                if covers {
                    let overlaps: BTreeSet<u32> =
                        sheet.cover(shelf, from..to.max(from)).into_iter().flatten().collect();
                    let before: BTreeSet<u32> = (from..to.max(from))
                        .filter(|offset| expected.contains(&(shelf, *offset)))
                        .collect();
                    prop_assert_eq!(overlaps, before);
                    expected.extend((from..to).map(|offset| (shelf, offset)));
                } else {
                    sheet.uncover(shelf, from);
                    expected.remove(&(shelf, from));
                }
                prop_assert_eq!(&model(&sheet), &expected);
            }
            let (head, tail) = sheet.clone().split(at);
            let mut parts = model(&head);
            parts.extend(model(&tail).into_iter().map(|(shelf, offset)| (shelf, offset + at)));
            prop_assert_eq!(&parts, &expected);
            sheet.trim();
            prop_assert_eq!(sheet.len, expected.iter().map(|(_, o)| o + 1).max().unwrap_or(0));
        }
    }
}
