//! Attention of a few rows over one split of a context.
//!
//! Keys go in spans of eight groups of 16 slots, so that the maximum and the sums are carried on once a span. Spans
//! begin at blocks of the split, whatever the rows see.

use std::f32::consts::LOG2_E;

use super::attention::{Attention, Tile};
use super::kernels::{Isa, LANES, Lanes, Packed, Product, Short, Softmax, tile, weigh};
use super::merge::Total;

/// Groups of 16 slots in a span.
const SPAN: usize = 8;

/// A split and who looks at it.
#[derive(Debug)]
pub(super) struct Split<'a> {
    pub(super) attention: &'a Attention<'a>,
    pub(super) tile: &'a Tile,
    pub(super) kv_head: usize,
    pub(super) first_block: usize,
    pub(super) blocks: usize,
    /// Rows of the tile.
    pub(super) rows: usize,
    /// Whether the rows' queries have yet to be laid out.
    pub(super) first: bool,
}

/// 16 slots of a block.
#[derive(Clone, Copy, Debug, Default)]
struct Group {
    block: u32,
    /// The block at its place in the next span.
    next: u32,
    /// Within the block.
    index: usize,
    /// Of the first slot, in the context.
    position: usize,
    /// How many of the slots any row sees, from the first on.
    keys: usize,
}

/// A few rows and what they have seen.
struct Rows<'a, const R: usize> {
    /// `[head_dim][row]`.
    queries: &'a [[f32; R]],
    /// Row r sees positions `hidden[r]..seen[r]`.
    hidden: [usize; R],
    seen: [usize; R],
    softmax: Softmax<R>,
    /// `[16 of head_dim][row]`.
    sums: &'a mut [[Lanes; R]],
}

impl Split<'_> {
    /// R rows of the tile from `first` on, taken into `total`; returns R. W is what keys and values are packed as.
    pub(super) fn rows<W: Packed, const R: usize>(
        &self,
        first: usize,
        room: &mut Vec<f32>,
        total: &mut Total<'_>,
    ) -> usize {
        let Attention { kv, step, .. } = self.attention;
        let mut rows = self.begin::<R>(first, room);
        let longest = rows.seen.iter().copied().max().unwrap_or(0);
        let earliest = rows.hidden.iter().copied().min().unwrap_or(0);
        let table = &step.sequences[self.tile.sequence as usize].block_table;
        let table = &step.block_tables[table.start as usize..table.end as usize];
        let table = table.get(self.first_block..).unwrap_or_default();
        let groups_of_block = kv.block_size.div_ceil(LANES);
        let groups = table.len().min(self.blocks) * groups_of_block;
        for span in (0..groups).step_by(SPAN) {
            let mut seen = [Group::default(); SPAN];
            let mut count = 0;
            for group in span..groups.min(span + SPAN) {
                let (block, index) = (group / groups_of_block, group % groups_of_block);
                let position = (self.first_block + block) * kv.block_size + index * LANES;
                let slots = (kv.block_size - index * LANES).min(LANES);
                if position < longest && position + slots > earliest {
                    seen[count] = Group {
                        block: table[block],
                        next: Self::later(table, block, groups_of_block),
                        index,
                        position,
                        keys: slots.min(longest - position),
                    };
                    count += 1;
                }
            }
            if count > 0 {
                self.span::<W, R>(&seen[..count], &mut rows);
            }
        }
        for r in 0..R {
            let row = rows.softmax.row(r);
            let sums = rows.sums.iter().map(|chunk| &chunk[r]);
            total.add_row(first + r, row, sums);
        }
        R
    }

    /// The block that a place of the next span has, given that of a block in `table`; or any.
    fn later(table: &[u32], block: usize, groups_of_block: usize) -> u32 {
        let later = table.get(block + (SPAN / groups_of_block).max(1));
        *later.unwrap_or(&table[block])
    }

    /// Nothing seen yet. `room` holds the queries of all rows, and the sums of these; kept small, they stay in the
    /// first-level cache.
    fn begin<'r, const R: usize>(&self, first: usize, room: &'r mut Vec<f32>) -> Rows<'r, R> {
        let attention = self.attention;
        let (shared, head_dim) = (attention.shared(), attention.head_dim);
        let all_queries = self.rows * head_dim;
        let sums = head_dim.div_ceil(LANES) * R * LANES;
        if room.len() < all_queries + sums {
            room.resize(all_queries + sums, 0.0);
        }
        let (queries, room) = room.split_at_mut(all_queries);
        let sums = &mut room[..sums];
        sums.fill(0.0);
        let queries = &mut queries[first * head_dim..(first + R) * head_dim];
        let (queries, _) = queries.as_chunks_mut::<R>();
        if self.first {
            for r in 0..R {
                let token = self.tile.token as usize + (first + r) / shared;
                let head = self.kv_head * shared + (first + r) % shared;
                let query = &attention.queries[token * attention.query_stride..];
                let query = &query[head * head_dim..][..head_dim];
                // Powers of 2 take less than those of e.
                for (column, value) in queries.iter_mut().zip(query) {
                    column[r] = *value * LOG2_E;
                }
            }
        }
        // A query sees itself and everything before it, or what of that lies in its window.
        let seen: [usize; R] =
            std::array::from_fn(|r| self.tile.position as usize + (first + r) / shared + 1);
        Rows {
            queries,
            hidden: seen.map(|seen| attention.hidden(seen)),
            seen,
            softmax: Softmax::new(),
            sums: sums.as_chunks_mut::<LANES>().0.as_chunks_mut::<R>().0,
        }
    }

    fn span<W: Packed, const R: usize>(&self, groups: &[Group], rows: &mut Rows<'_, R>) {
        let isa = self.attention.isa;
        let mut scores = [[[0.0; LANES]; R]; SPAN];
        let scores = &mut scores[..groups.len()];
        let asked = Asked {
            split: self,
            groups,
            queries: rows.queries,
        };
        in_panels(isa, scores, &mut |first, scores| match scores {
            Panels::Four(scores) => asked.score::<W, _>(first, scores),
            Panels::Two(scores) => asked.score::<W, _>(first, scores),
            Panels::One(scores) => asked.score::<W, _>(first, scores),
        });
        mask(groups, rows, scores);
        weigh(isa, scores, &mut rows.softmax);
        for r in 0..R {
            let decay = rows.softmax.decay[r];
            if decay < 1.0 {
                for chunk in rows.sums.iter_mut() {
                    chunk[r].iter_mut().for_each(|sum| *sum *= decay);
                }
            }
        }
        let weighted = Weighted {
            split: self,
            groups,
            weights: scores,
        };
        in_panels(isa, rows.sums, &mut |first, sums| match sums {
            Panels::Four(sums) => weighted.add::<W, _>(first, sums),
            Panels::Two(sums) => weighted.add::<W, _>(first, sums),
            Panels::One(sums) => weighted.add::<W, _>(first, sums),
        });
    }
}

/// The keys of a span, and who looks at them.
struct Asked<'a, const R: usize> {
    split: &'a Split<'a>,
    groups: &'a [Group],
    queries: &'a [[f32; R]],
}

impl<const R: usize> Asked<'_, R> {
    /// Scores of P groups from number `first` on. Meanwhile memory is asked for their values.
    fn score<W: Packed, const P: usize>(&self, first: usize, scores: &mut [[Lanes; R]; P]) {
        let Attention { isa, kv, layer, .. } = *self.split.attention;
        let keys: [_; P] = std::array::from_fn(|p| {
            let Group { block, index, .. } = self.groups[first + p];
            kv.key_panel::<W>(layer, block, self.split.kv_head, index)
        });
        let product = Product {
            left: self.queries,
            panels: keys.map(|(panel, _)| panel),
            ahead: keys.map(|(_, ahead)| ahead),
        };
        tile(isa, &[product], scores);
    }
}

/// The values of a span, and what they weigh for each row.
struct Weighted<'a, const R: usize> {
    split: &'a Split<'a>,
    groups: &'a [Group],
    weights: &'a [[Lanes; R]],
}

impl<const R: usize> Weighted<'_, R> {
    /// Adds P times 16 dimensions to `sums`, from 16 times `chunk` on. Meanwhile memory is asked for the next keys.
    fn add<W: Packed, const P: usize>(&self, chunk: usize, sums: &mut [[Lanes; R]; P]) {
        let Attention { isa, kv, layer, .. } = *self.split.attention;
        // Groups that are not there have no keys.
        let products: [_; SPAN] = std::array::from_fn(|g| {
            let group = self.groups.get(g).copied().unwrap_or_default();
            let blocks = (group.block, group.next);
            let values: [_; P] = std::array::from_fn(|p| {
                kv.value_panel::<W>(layer, blocks, self.split.kv_head, chunk + p)
            });
            let first = group.index * LANES / W::DEPTH;
            // What nobody sees of the last item weighs nothing.
            let items = group.keys.div_ceil(W::DEPTH);
            Product {
                left: Short {
                    rows: self.weights.get(g).unwrap_or(&self.weights[0]),
                    count: items * W::DEPTH,
                },
                panels: values.map(|(panel, _)| &panel[first..][..items]),
                ahead: values.map(|(_, ahead)| ahead.wrapping_add(first)),
            }
        });
        tile(isa, &products[..self.groups.len()], sums);
    }
}

/// Accumulators of some panels.
enum Panels<'a, const R: usize> {
    Four(&'a mut [[Lanes; R]; 4]),
    Two(&'a mut [[Lanes; R]; 2]),
    One(&'a mut [[Lanes; R]; 1]),
}

/// Hands out accumulators, of as many panels at once as the registers take, with the number of the first.
fn in_panels<const R: usize>(
    isa: Isa,
    accumulators: &mut [[Lanes; R]],
    work: &mut impl FnMut(usize, Panels<'_, R>),
) {
    let most = match (isa.is_wide(), R) {
        (true, 0..=6) | (false, 1) => 4,
        (true, _) | (false, 2) => 2,
        _ => 1,
    };
    let mut first = 0;
    while let Some(rest @ [_, ..]) = accumulators.get_mut(first..) {
        let step = if rest.len() >= most { most } else { 1 };
        let rest = &mut rest[..step];
        if let Ok(panels) = <&mut [_; 4]>::try_from(&mut *rest) {
            work(first, Panels::Four(panels));
        } else if let Ok(panels) = <&mut [_; 2]>::try_from(&mut *rest) {
            work(first, Panels::Two(panels));
        } else if let Ok(panels) = <&mut [_; 1]>::try_from(rest) {
            work(first, Panels::One(panels));
        }
        first += step;
    }
}

/// Whatever lies in slots that a row does not see, it cannot be the maximum, and weighs nothing.
fn mask<const R: usize>(groups: &[Group], rows: &Rows<'_, R>, scores: &mut [[Lanes; R]]) {
    let all_seen = rows.seen.iter().copied().min().unwrap_or(0);
    let any_hidden = rows.hidden.iter().copied().max().unwrap_or(0);
    for (group, scores) in groups.iter().zip(scores) {
        let end = group.position + LANES;
        if group.keys == LANES && any_hidden <= group.position && end <= all_seen {
            continue;
        }
        for (r, scores) in scores.iter_mut().enumerate() {
            let hidden = rows.hidden[r].saturating_sub(group.position).min(LANES);
            let seen = rows.seen[r].saturating_sub(group.position).min(group.keys);
            scores[..hidden].fill(f32::NEG_INFINITY);
            scores[seen..].fill(f32::NEG_INFINITY);
        }
    }
}
