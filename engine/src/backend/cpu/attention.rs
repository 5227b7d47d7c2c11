//! Causal attention of a step's new tokens over paged context, in one pass (online softmax).
//!
//! ```text
//! for each span of up to 128 keys:
//!     s = q·Kᵀ·log₂e                       masked behind the query's own position, and before its window
//!     m' = max(m, max s);  a = 2^(m - m')
//!     l = l·a + Σ 2^(s - m');  o = o·a + 2^(s - m')·V
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
use super::kernels::{Isa, Lanes, Packed, Pairs};
use super::kv_memory::{KvElement, KvMemory};
use super::merge::Total;
use super::split::Split;
use super::team::Team;

/// Neighbouring tokens whose queries go together.
const TILE_TOKENS: u32 = 32;

/// Slots of a split, when blocks divide it.
const SPLIT_SLOTS: usize = 256;

/// A tile and KV head that is more than one part of so many times the threads is shared among them.
const LARGE: usize = 4;

/// Floats at most that the splits of shared tiles come to.
const SHARED_FLOATS: usize = 16 << 20;

thread_local! {
    /// What the splits of a unit have come to so far. It grows to the largest unit and stays.
    static TOTAL: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
    /// The queries of a unit, and what a few of its rows work in. It grows to the largest unit and stays.
    static ROOM: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
    /// What threads share. It grows likewise.
    static SHARED: RefCell<Shared> = const { RefCell::new(Shared::new()) };
}

/// The tiles whose splits several threads compute.
#[derive(Debug)]
struct Shared {
    /// First token of each, ascending.
    tokens: Vec<u32>,
    /// Of the longest context.
    splits: usize,
    /// Floats for the rows of the tallest tile.
    size: usize,
    /// What each split has come to: `[tile][kv head][split][size]`.
    parts: Vec<f32>,
    /// How many of those there are now.
    used: usize,
}

impl Shared {
    const fn new() -> Self {
        Self {
            tokens: Vec::new(),
            splits: 0,
            size: 0,
            parts: Vec::new(),
            used: 0,
        }
    }

    /// The place among the shared tiles of the one that a cell of the output belongs to.
    fn place(&self, cell: &Cell<'_>) -> Option<usize> {
        self.tokens.binary_search(&(cell.first_row() as u32)).ok()
    }
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
        let grid = Grid::with_starts(out, self.heads * self.head_dim, starts);
        let grid = grid.columns(self.shared() * self.head_dim);
        if !parallel {
            return grid.each(None, |cell| self.cell(tiles, cell));
        }
        SHARED.with_borrow_mut(|shared| {
            self.choose(team, tiles, shared);
            self.compute_shared(team, tiles, shared);
            grid.each(Some(team), |cell| match shared.place(cell) {
                Some(place) => self.put_together(shared, place, tiles, cell),
                None => self.cell(tiles, cell),
            });
        });
    }

    /// Chooses the tiles whose contexts' splits are shared: those so large that threads would wait for the one that
    /// has it. There are few of them, for each is a good part of all work.
    fn choose(&self, team: &Team, tiles: &[Tile], shared: &mut Shared) {
        let work = |tile: &Tile| self.rows(tile) * self.splits(tile).len();
        let all: usize = tiles.iter().map(work).sum();
        let large = |tile: &&Tile| {
            let parts = LARGE * team.threads();
            self.splits(tile).len() > 1 && work(tile) * parts > all * self.kv_heads
        };
        let chosen = tiles.iter().filter(large);
        let rows = chosen.clone().map(|tile| self.rows(tile)).max();
        let splits = chosen.clone().map(|tile| self.splits(tile).len()).max();
        shared.tokens.clear();
        shared.size = rows.unwrap_or(0) * Total::row_size(self.head_dim);
        shared.splits = splits.unwrap_or(0);
        let each = self.kv_heads * shared.splits * shared.size;
        let chosen = chosen.take(SHARED_FLOATS / each.max(1));
        shared.tokens.extend(chosen.map(|tile| tile.token));
        shared.used = shared.tokens.len() * each;
        if shared.parts.len() < shared.used {
            shared.parts.resize(shared.used, 0.0);
        }
    }

    /// Each split of each chosen tile and KV head by itself.
    fn compute_shared(&self, team: &Team, tiles: &[Tile], shared: &mut Shared) {
        let Shared {
            tokens,
            splits,
            size,
            parts,
            used,
        } = shared;
        each_chunk(team, &mut parts[..*used], *size, |index, part| {
            let (unit, split) = (index / *splits, index % *splits);
            let token = tokens[unit / self.kv_heads];
            let Ok(tile) = tiles.binary_search_by_key(&token, |tile| tile.token) else {
                return;
            };
            let tile = &tiles[tile];
            if let Some(split) = self.splits(tile).nth(split) {
                let mut total = Total::begin(part, self.rows(tile), self.head_dim);
                self.split(tile, unit % self.kv_heads, (split, true), &mut total);
            }
        });
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
    fn put_together(&self, shared: &Shared, place: usize, tiles: &[Tile], cell: &mut Cell<'_>) {
        let Some((index, kv_head)) = self.unit(tiles, cell) else {
            return;
        };
        let rows = self.rows(&tiles[index]);
        let unit = place * self.kv_heads + kv_head;
        let unit_size = shared.splits * shared.size;
        let splits =
            shared.parts[unit * unit_size..(unit + 1) * unit_size].chunks_exact(shared.size);
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
        ROOM.with_borrow_mut(|room| match self.kv.geometry.element {
            KvElement::F32 => self.all_rows::<Lanes>(&split, room, total),
            KvElement::Bf16 => self.all_rows::<Pairs>(&split, room, total),
        });
    }

    fn all_rows<W: Packed>(&self, split: &Split<'_>, room: &mut Vec<f32>, total: &mut Total<'_>) {
        let rows = split.rows;
        let mut row = 0;
        while row < rows {
            row += match (rows - row, self.isa.is_wide()) {
                (12.., true) => split.rows::<W, 12>(row, room, total),
                (8.., true) => split.rows::<W, 8>(row, room, total),
                (6.., _) => split.rows::<W, 6>(row, room, total),
                (4.., _) => split.rows::<W, 4>(row, room, total),
                (3, _) => split.rows::<W, 3>(row, room, total),
                (2, _) => split.rows::<W, 2>(row, room, total),
                _ => split.rows::<W, 1>(row, room, total),
            };
        }
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
