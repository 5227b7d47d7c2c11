//! Causal attention of a step's new tokens over paged context, in one pass (online softmax).
//!
//! ```text
//! for each group of 16 keys, from the start of the context:
//!     s = q·Kᵀ                             masked behind the query's own position
//!     m' = max(m, max s);  a = exp(m - m')
//!     l = l·a + Σ exp(s - m');  o = o·a + exp(s - m')·V
//! out = o / l
//! ```
//!
//! Queries come scaled by 1 / sqrt(head_dim) already.
//!
//! The queries of a few neighbouring tokens and of all heads that share a KV head go together, so each key and value
//! is loaded once for all of them. Groups start at block boundaries, which are the same for every batch; what other
//! rows share the tile changes only which products with zero are added, so a row's bits are its own.

use std::ops::Range;

use super::columns::Columns;
use super::kernels::{Isa, LANES, Lanes, reduce, tile, weigh};
use super::kv_memory::KvMemory;
use super::ops::exp;
use super::team::Team;
use super::{MAX_HEAD_DIM, Step};

/// Neighbouring tokens whose queries go together.
const TILE_TOKENS: u32 = 8;

/// Accumulator rows of the widest head.
const MAX_CHUNKS: usize = MAX_HEAD_DIM / LANES;

/// A few neighbouring new tokens of one sequence.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tile {
    sequence: u32,
    /// First token in the step.
    token: u32,
    count: u32,
    /// Position of the first token.
    position: u32,
}

impl Tile {
    /// Cuts a step's tokens into tiles.
    pub(super) fn cut(step: &Step, tiles: &mut Vec<Self>) {
        tiles.clear();
        for (sequence, part) in step.sequences.iter().enumerate() {
            let first = part.context_len - part.tokens.len() as u32;
            for token in part.tokens.clone().step_by(TILE_TOKENS as usize) {
                tiles.push(Self {
                    sequence: sequence as u32,
                    token,
                    count: TILE_TOKENS.min(part.tokens.end - token),
                    position: first + (token - part.tokens.start),
                });
            }
        }
    }

    /// Keys that this tile's queries look at.
    fn cost(&self) -> usize {
        self.count as usize * (self.position + self.count) as usize
    }
}

/// One layer's attention, shared by the threads that compute it.
#[derive(Debug)]
pub(super) struct Attention<'a> {
    pub(super) isa: Isa,
    pub(super) step: &'a Step,
    pub(super) kv: &'a KvMemory,
    pub(super) layer: usize,
    /// Rows that begin with all query heads, rotated and scaled.
    pub(super) queries: &'a [f32],
    pub(super) query_stride: usize,
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    pub(super) head_dim: usize,
    /// How many tokens a query sees, itself included; none for all before it.
    pub(super) window: Option<usize>,
}

impl Attention<'_> {
    /// All tiles into `out`, which is `[tokens, heads * head_dim]`.
    pub(super) fn compute(&self, team: &Team, tiles: &[Tile], out: &mut [f32]) {
        let keys: usize = tiles.iter().map(Tile::cost).sum();
        let parts = team.parts(keys * self.heads * self.head_dim * 2);
        self.split(parts, keys, tiles, out);
    }

    /// Cuts the tiles where half of the work is on either side.
    fn split(&self, parts: usize, keys: usize, tiles: &[Tile], out: &mut [f32]) {
        let Some(first) = tiles.first() else { return };
        if parts <= 1 || tiles.len() <= 1 {
            for tile in tiles {
                let from = (tile.token - first.token) as usize * self.width();
                self.tile(
                    tile,
                    &mut out[from..from + tile.count as usize * self.width()],
                );
            }
            return;
        }
        let goal = keys * (parts / 2) / parts;
        let mut left_keys = 0;
        let mut middle = 0;
        while middle < tiles.len() - 1 && (middle == 0 || left_keys < goal) {
            left_keys += tiles[middle].cost();
            middle += 1;
        }
        let (left, right) = tiles.split_at(middle);
        let tokens = right
            .first()
            .map_or(0, |tile| (tile.token - first.token) as usize);
        let (left_out, right_out) = out.split_at_mut(tokens * self.width());
        rayon::join(
            || self.split(parts / 2, left_keys, left, left_out),
            || self.split(parts - parts / 2, keys - left_keys, right, right_out),
        );
    }

    fn width(&self) -> usize {
        self.heads * self.head_dim
    }

    /// The tile's tokens times the heads that share a KV head are its rows, token by token.
    fn tile(&self, tile: &Tile, out: &mut [f32]) {
        let shared = self.heads / self.kv_heads;
        let rows = tile.count as usize * shared;
        let mut out = Columns::new(out, self.width());
        for kv_head in 0..self.kv_heads {
            let mut row = 0;
            while row < rows {
                row += match rows - row {
                    1 => self.rows::<1>(tile, kv_head, row, &mut out),
                    2 | 3 => self.rows::<2>(tile, kv_head, row, &mut out),
                    _ => self.rows::<4>(tile, kv_head, row, &mut out),
                };
            }
        }
    }

    /// R rows from `first` on; returns R.
    fn rows<const R: usize>(
        &self,
        tile: &Tile,
        kv_head: usize,
        first: usize,
        out: &mut Columns<'_>,
    ) -> usize {
        let shared = self.heads / self.kv_heads;
        let token = |r: usize| (first + r) / shared;
        let column = |r: usize| (kv_head * shared + (first + r) % shared) * self.head_dim;
        let queries: [&[f32]; R] = std::array::from_fn(|r| {
            let row = (tile.token as usize + token(r)) * self.query_stride;
            &self.queries[row + column(r)..][..self.head_dim]
        });
        // A query sees itself and everything before it.
        let seen: [usize; R] = std::array::from_fn(|r| tile.position as usize + token(r) + 1);
        // Or, with a window, what is not too long before it.
        let hidden = seen.map(|seen| self.window.map_or(0, |window| seen.saturating_sub(window)));
        let mut state = OnlineSoftmax::<R>::new();
        let visible = (hidden, seen);
        self.pass_over_context(tile.sequence, kv_head, queries, visible, &mut state);
        for r in 0..R {
            let out = &mut out.row(token(r))[column(r)..][..self.head_dim];
            state.write(r, out);
        }
        R
    }

    fn pass_over_context<const R: usize>(
        &self,
        sequence: u32,
        kv_head: usize,
        queries: [&[f32]; R],
        (hidden, seen): ([usize; R], [usize; R]),
        state: &mut OnlineSoftmax<R>,
    ) {
        let block_size = self.kv.block_size;
        let table = &self.step.sequences[sequence as usize].block_table;
        let table = &self.step.block_tables[table.start as usize..table.end as usize];
        let chunks = self.head_dim.div_ceil(LANES);
        let longest = seen.iter().copied().max().unwrap_or(0);
        let first = hidden.iter().copied().min().unwrap_or(0);
        for (index, &block) in table.iter().enumerate().skip(first / block_size) {
            for group in 0..block_size.div_ceil(LANES) {
                let position = index * block_size + group * LANES;
                if position >= longest {
                    return;
                }
                if position + LANES <= first {
                    continue;
                }
                let in_block = block_size - group * LANES;
                let keys = in_block.min(LANES).min(longest - position);
                let mut scores = [[[0.0; LANES]]; R];
                let panel = self.kv.key_panel(self.layer, block, kv_head, group);
                tile(self.isa, queries, [panel], &mut scores);
                for (r, [scores]) in scores.iter_mut().enumerate() {
                    let valid = hidden[r].saturating_sub(position).min(keys)
                        ..seen[r].saturating_sub(position).min(keys);
                    state.take_scores(self.isa, r, scores, valid, chunks);
                }
                let weights = scores.each_ref().map(|[scores]| &scores[..keys]);
                for chunk in 0..chunks {
                    let panel = self.kv.value_panel(self.layer, block, kv_head, chunk);
                    let panel = &panel[group * LANES..][..keys];
                    tile(self.isa, weights, [panel], &mut state.sums[chunk]);
                }
            }
        }
    }
}

/// Running maximum, normaliser and weighted sum of R rows.
struct OnlineSoftmax<const R: usize> {
    max: [f32; R],
    norm: [f32; R],
    sums: [[[Lanes; 1]; R]; MAX_CHUNKS],
}

impl<const R: usize> OnlineSoftmax<R> {
    fn new() -> Self {
        Self {
            max: [f32::NEG_INFINITY; R],
            norm: [0.0; R],
            sums: [[[[0.0; LANES]]; R]; MAX_CHUNKS],
        }
    }

    /// Turns the `valid` scores of row `r` into weights relative to the maximum so far, and the rest into zeros.
    fn take_scores(
        &mut self,
        isa: Isa,
        r: usize,
        scores: &mut Lanes,
        valid: Range<usize>,
        chunks: usize,
    ) {
        if valid.is_empty() {
            *scores = [0.0; LANES];
            return;
        }
        // Whatever lies in slots that are not valid, it cannot be the maximum, and its weight is zero.
        scores[..valid.start].fill(f32::NEG_INFINITY);
        scores[valid.end..].fill(f32::NEG_INFINITY);
        let max = reduce(scores, |a, b| if a > b { a } else { b });
        let max = if max > self.max[r] { max } else { self.max[r] };
        let sum = weigh(isa, scores, max);
        scores[..valid.start].fill(0.0);
        scores[valid.end..].fill(0.0);
        if max > self.max[r] {
            let decay = exp(self.max[r] - max);
            self.norm[r] *= decay;
            for chunk in &mut self.sums[..chunks] {
                for sum in &mut chunk[r][0] {
                    *sum *= decay;
                }
            }
            self.max[r] = max;
        }
        self.norm[r] += sum;
    }

    fn write(&self, r: usize, out: &mut [f32]) {
        let inverse = 1.0 / self.norm[r];
        for (out, chunk) in out.chunks_mut(LANES).zip(&self.sums) {
            for (out, sum) in out.iter_mut().zip(chunk[r][0]) {
                *out = sum * inverse;
            }
        }
    }
}
