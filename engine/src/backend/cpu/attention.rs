//! Causal attention of a step's new tokens over paged context, in one pass (online softmax).
//!
//! ```text
//! for each span of up to 64 keys:
//!     s = q·Kᵀ                             masked behind the query's own position, and before its window
//!     m' = max(m, max s);  a = exp(m - m')
//!     l = l·a + Σ exp(s - m');  o = o·a + exp(s - m')·V
//! out = o / l
//! ```
//!
//! Queries come scaled by 1 / sqrt(head_dim) already.
//!
//! A context is split every 256 slots or so, always at the same blocks. Each split is computed by itself (`split`) and
//! the splits are put together in order (`merge`), whether one thread does all of them for a few dozen rows, as in a
//! prefill, or several threads share the splits of one long context, as in decode. So the cut changes no bits. The
//! queries of neighbouring tokens and of all heads that share a KV head go together, so that a split's keys and
//! values are loaded once for all of them; what other rows share the tile changes only which products with zero are
//! added, so a row's bits are its own.

use std::cell::RefCell;

use super::Step;
use super::columns::{Cell, Grid, each_chunk};
use super::kernels::Isa;
use super::kv_memory::KvMemory;
use super::merge::Total;
use super::split::Split;
use super::team::Team;

/// Neighbouring tokens whose queries go together.
const TILE_TOKENS: u32 = 32;

/// Slots of a split, when blocks divide it.
const SPLIT_SLOTS: usize = 256;

/// Tiles of at most this many rows may share the splits of their contexts among threads; it bounds what they keep.
const SHARED_ROWS: usize = 32;

thread_local! {
    /// What the splits of a unit have come to so far. It grows to the largest unit and stays.
    static TOTAL: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
    /// The queries of a unit, and what a few of its rows work in. It grows to the largest unit and stays.
    static ROOM: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
    /// What each split of all units has come to, where threads share them. It grows likewise.
    static PARTS: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// A few neighbouring new tokens of one sequence.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tile {
    pub(super) sequence: u32,
    /// First token in the step.
    pub(super) token: u32,
    pub(super) count: u32,
    /// Position of the first token.
    pub(super) position: u32,
}

/// A step's tokens, cut.
#[derive(Debug, Default)]
pub(super) struct Tiles {
    tiles: Vec<Tile>,
    /// First token of each.
    starts: Vec<u32>,
}

impl Tiles {
    /// Cuts a step's tokens into tiles.
    pub(super) fn cut(&mut self, step: &Step) {
        self.tiles.clear();
        self.starts.clear();
        for (sequence, part) in step.sequences.iter().enumerate() {
            let first = part.context_len - part.tokens.len() as u32;
            for token in part.tokens.clone().step_by(TILE_TOKENS as usize) {
                self.starts.push(token);
                self.tiles.push(Tile {
                    sequence: sequence as u32,
                    token,
                    count: TILE_TOKENS.min(part.tokens.end - token),
                    position: first + (token - part.tokens.start),
                });
            }
        }
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
    pub(super) fn compute(&self, team: &Team, tiles: &Tiles, out: &mut [f32]) {
        let Tiles { tiles, starts } = tiles;
        let keys = |tile: &Tile| {
            let splits = self.splits(tile).len();
            tile.count as usize * (splits * SPLIT_SLOTS).min((tile.position + tile.count) as usize)
        };
        let keys: usize = tiles.iter().map(keys).sum();
        let parallel = team.parts(keys * self.heads * self.head_dim * 2) > 1;
        let units = tiles.len() * self.kv_heads;
        let rows = tiles.iter().map(|tile| self.rows(tile)).max().unwrap_or(0);
        let splits = tiles.iter().map(|tile| self.splits(tile).len());
        let splits = splits.max().unwrap_or(0);
        let few = units < 4 * team.threads() && splits > 1 && rows <= SHARED_ROWS;
        let grid = Grid::with_starts(out, self.heads * self.head_dim, starts);
        let grid = grid.columns(self.shared() * self.head_dim);
        if parallel && few {
            let size = rows * Total::row_size(self.head_dim);
            PARTS.with_borrow_mut(|parts| {
                parts.resize(units * splits * size, 0.0);
                each_chunk(team, parts, size, |index, part| {
                    let (unit, split) = (index / splits, index % splits);
                    let tile = &tiles[unit / self.kv_heads];
                    let mut total = Total::begin(part, self.rows(tile), self.head_dim);
                    if let Some(split) = self.splits(tile).nth(split) {
                        self.split(tile, unit % self.kv_heads, (split, true), &mut total);
                    }
                });
                grid.each(None, |cell| {
                    self.put_together(parts, splits * size, size, tiles, cell);
                });
            });
        } else {
            grid.each(parallel.then_some(team), |cell| self.cell(tiles, cell));
        }
    }

    /// The tile and the KV head of a cell of the output.
    fn unit(&self, tiles: &[Tile], cell: &Cell<'_>) -> Option<(usize, usize)> {
        let tile = tiles.binary_search_by_key(&(cell.first_row() as u32), |tile| tile.token);
        let kv_head = cell.first_column() / (self.shared() * self.head_dim);
        Some((tile.ok()?, kv_head))
    }

    /// One tile and KV head, from the first split to the last.
    fn cell(&self, tiles: &[Tile], cell: &mut Cell<'_>) {
        let Some((index, kv_head)) = self.unit(tiles, cell) else {
            return;
        };
        let tile = &tiles[index];
        TOTAL.with_borrow_mut(|total| {
            let rows = self.rows(tile);
            total.resize(rows * Total::row_size(self.head_dim), 0.0);
            let mut total = Total::begin(total, rows, self.head_dim);
            for (index, split) in self.splits(tile).enumerate() {
                self.split(tile, kv_head, (split, index == 0), &mut total);
            }
            self.write(&total, cell);
        });
    }

    /// One tile and KV head whose splits have been computed.
    fn put_together(
        &self,
        parts: &[f32],
        unit_size: usize,
        size: usize,
        tiles: &[Tile],
        cell: &mut Cell<'_>,
    ) {
        let Some((index, kv_head)) = self.unit(tiles, cell) else {
            return;
        };
        let rows = self.rows(&tiles[index]);
        let unit = index * self.kv_heads + kv_head;
        let splits = parts[unit * unit_size..(unit + 1) * unit_size].chunks_exact(size);
        TOTAL.with_borrow_mut(|total| {
            total.resize(rows * Total::row_size(self.head_dim), 0.0);
            let mut total = Total::begin(total, rows, self.head_dim);
            for part in splits.take(self.splits(&tiles[index]).len()) {
                total.add(part);
            }
            self.write(&total, cell);
        });
    }

    /// All rows of a tile over one split, a few at a time.
    /// The first split that a thread computes of a tile lays the queries out.
    fn split(
        &self,
        tile: &Tile,
        kv_head: usize,
        (split, first): (usize, bool),
        total: &mut Total<'_>,
    ) {
        let split = Split {
            attention: self,
            tile,
            kv_head,
            first_block: split * self.split_blocks(),
            blocks: self.split_blocks(),
            rows: self.rows(tile),
            first,
        };
        let rows = self.rows(tile);
        ROOM.with_borrow_mut(|room| {
            let mut row = 0;
            while row < rows {
                row += match (rows - row, self.isa.is_wide()) {
                    (12.., true) => split.rows::<12>(row, room, total),
                    (8.., true) => split.rows::<8>(row, room, total),
                    (6.., _) => split.rows::<6>(row, room, total),
                    (4.., _) => split.rows::<4>(row, room, total),
                    (3, _) => split.rows::<3>(row, room, total),
                    (2, _) => split.rows::<2>(row, room, total),
                    _ => split.rows::<1>(row, room, total),
                };
            }
        });
    }

    /// Row by row, token by token.
    fn write(&self, total: &Total<'_>, cell: &mut Cell<'_>) {
        for token in 0..cell.rows() {
            let heads = cell.row(token).chunks_exact_mut(self.head_dim);
            for (head, out) in heads.enumerate() {
                total.write(token * self.shared() + head, out);
            }
        }
    }

    /// The splits that any of a tile's queries sees.
    fn splits(&self, tile: &Tile) -> std::ops::Range<usize> {
        let slots = self.split_blocks() * self.kv.block_size;
        let end = (tile.position + tile.count) as usize;
        self.hidden(tile.position as usize + 1) / slots..end.div_ceil(slots)
    }

    /// How many of the first `seen` tokens, of which the last one asks, are too long ago for it.
    pub(super) fn hidden(&self, seen: usize) -> usize {
        self.window.map_or(0, |window| seen.saturating_sub(window))
    }

    /// Blocks of a split.
    fn split_blocks(&self) -> usize {
        (SPLIT_SLOTS / self.kv.block_size).max(1)
    }

    /// A tile's tokens times the heads that share a KV head, token by token.
    fn rows(&self, tile: &Tile) -> usize {
        tile.count as usize * self.shared()
    }

    /// Heads that share a KV head.
    pub(super) fn shared(&self) -> usize {
        self.heads / self.kv_heads
    }
}

#[cfg(test)]
mod tests;
