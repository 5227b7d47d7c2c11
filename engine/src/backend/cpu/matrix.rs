//! A weight matrix, packed once into panels of 16 outputs, and the product with a block of rows.
//!
//! ```text
//! weights [out, in] row-major  ─▶  panels[out / 16][in][16]        the last panel is filled up with zeros
//! y[m, out] = x[m, in] · weightsᵀ
//! ```
//!
//! The rows are first laid out in tiles, the elements of a tile's rows side by side, so that the hot loop reads one
//! stream. Then tiles go in blocks small enough to stay in the second-level cache while panels pass by, so that large
//! weights are read once a block; and a few rows take several panels at a time, because few accumulators would leave
//! the multiply units waiting for each other.

use std::cell::RefCell;

use super::columns::{Cell, Grid, each_chunk};
use super::kernels::{self, Isa, LANES, Lanes, Packed, tile};
use super::packing::{Panels, Storage};
use super::team::Team;
use crate::model::Tensor;

/// Bytes of rows that stay in the second-level cache while panels pass by.
const BLOCK_BYTES: usize = 256 << 10;

/// Units of work for each thread, so that one that is late delays the others little.
const UNITS_PER_THREAD: usize = 8;

/// Panels that the kernels take at once, at most. Units of columns are multiples of it.
const WIDE: usize = 4;

thread_local! {
    /// The rows of the product in work, in tiles. It grows to the largest one and stays.
    static LEFT: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// A packed matrix of `outputs` rows and `inputs` columns.
#[derive(Debug)]
pub(super) struct Matrix {
    outputs: usize,
    inputs: usize,
    panels: Panels,
}

/// What to do with the values that are there already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Store {
    Replace,
    Add,
}

impl Matrix {
    /// Packs tensors `[outputs, inputs]` of equal `inputs`, one below the other.
    ///
    /// # Errors
    /// When the system has no memory for them.
    pub(super) fn pack(
        team: &Team,
        tensors: &[Tensor<'_>],
        storage: Storage,
    ) -> std::io::Result<Self> {
        let inputs = tensors.first().map_or(0, |tensor| tensor.shape[1]);
        let outputs = tensors.iter().map(|tensor| tensor.shape[0]).sum();
        Ok(Self {
            outputs,
            inputs,
            panels: Panels::pack(team, tensors, inputs, outputs, storage)?,
        })
    }

    pub(super) fn outputs(&self) -> usize {
        self.outputs
    }

    /// Row `output` of the unpacked matrix into `row`, which has room for `inputs` values.
    pub(super) fn unpack_row(&self, output: usize, row: &mut [f32]) {
        self.panels.unpack_row(self.inputs, output, row);
    }

    /// `y = x · selfᵀ`, or `y += …`; `x` is `[rows, inputs]`, `y` is `[rows, outputs]`.
    pub(super) fn multiply(&self, team: &Team, isa: Isa, x: &[f32], y: &mut [f32], store: Store) {
        debug_assert_eq!(x.len() / self.inputs, y.len() / self.outputs);
        match &self.panels {
            Panels::F32(panels) => self.multiply_panels(team, isa, (panels, &[]), x, y, store),
            Panels::Bf16(panels) => self.multiply_panels(team, isa, (panels, &[]), x, y, store),
            Panels::Int8(panels, scales) => {
                self.multiply_panels(team, isa, (panels, scales), x, y, store);
            }
        }
    }

    fn multiply_panels<W: Packed>(
        &self,
        team: &Team,
        isa: Isa,
        (panels, scales): (&[W], &[Lanes]),
        x: &[f32],
        y: &mut [f32],
        store: Store,
    ) {
        let rows = x.len() / self.inputs.max(1);
        if rows == 0 {
            return;
        }
        LEFT.with_borrow_mut(|left| {
            let tiles = Tiles::new(isa, rows, self.inputs, W::DEPTH);
            tiles.lay_out(team, x, left);
            let product = Product {
                isa,
                panels,
                scales,
                tiles,
                left,
                store,
            };
            product.compute(team, self.outputs, y);
        });
    }
}

/// How rows are laid out in tiles: full ones, and a last one that may be lower.
#[derive(Clone, Copy, Debug)]
struct Tiles {
    rows: usize,
    inputs: usize,
    /// `inputs`, and zeros up to a whole item of a panel.
    depth: usize,
    height: usize,
    last_height: usize,
}

impl Tiles {
    fn new(isa: Isa, rows: usize, inputs: usize, item: usize) -> Self {
        let height = isa.tile_height(rows);
        let rest = rows % height;
        Self {
            rows,
            inputs,
            depth: inputs.next_multiple_of(item),
            height,
            last_height: if rest == 0 {
                height
            } else {
                isa.tile_height(rest)
            },
        }
    }

    fn count(&self) -> usize {
        self.rows.div_ceil(self.height)
    }

    /// Writes `x`, `[rows, inputs]`, into `left`.
    fn lay_out(&self, team: &Team, x: &[f32], left: &mut Vec<f32>) {
        let full = (self.count() - 1) * self.height;
        left.resize((full + self.last_height) * self.depth, 0.0);
        let work = |index: usize, tile: &mut [f32]| {
            let rows = x.chunks_exact(self.inputs).skip(index * self.height);
            let rows = rows.take(self.height);
            match tile.len() / self.depth {
                1 => interleave::<1>(rows, tile),
                2 => interleave::<2>(rows, tile),
                3 => interleave::<3>(rows, tile),
                4 => interleave::<4>(rows, tile),
                6 => interleave::<6>(rows, tile),
                8 => interleave::<8>(rows, tile),
                _ => interleave::<12>(rows, tile),
            }
        };
        if self.count() < 2 * team.threads() {
            let tiles = left.chunks_mut(self.height * self.depth);
            tiles
                .enumerate()
                .for_each(|(index, tile)| work(index, tile));
        } else {
            each_chunk(team, left, self.height * self.depth, work);
        }
    }
}

/// Puts the elements of up to R rows side by side, and zeros where there are none.
fn interleave<'a, const R: usize>(rows: impl Iterator<Item = &'a [f32]>, tile: &mut [f32]) {
    let (columns, _) = tile.as_chunks_mut::<R>();
    let mut all: [&[f32]; R] = [&[]; R];
    let mut inputs = 0;
    for (slot, row) in all.iter_mut().zip(rows) {
        *slot = row;
        inputs = row.len();
    }
    if all.iter().all(|row| row.len() == inputs) {
        for (k, column) in columns[..inputs].iter_mut().enumerate() {
            for (value, row) in column.iter_mut().zip(&all) {
                *value = row[k];
            }
        }
        columns[inputs..].fill([0.0; R]);
    } else {
        for (k, column) in columns.iter_mut().enumerate() {
            for (value, row) in column.iter_mut().zip(&all) {
                *value = row.get(k).copied().unwrap_or(0.0);
            }
        }
    }
}

/// One product, shared by the threads that compute it.
struct Product<'a, W> {
    isa: Isa,
    panels: &'a [W],
    /// For each panel, what its columns are multiplied by; empty for nothing.
    scales: &'a [Lanes],
    tiles: Tiles,
    left: &'a [f32],
    store: Store,
}

impl<W: Packed> Product<'_, W> {
    fn compute(&self, team: &Team, outputs: usize, y: &mut [f32]) {
        let tiles = &self.tiles;
        let row_bytes = tiles.depth * size_of::<f32>();
        let block = (BLOCK_BYTES / row_bytes / tiles.height).clamp(1, tiles.count());
        let blocks = tiles.count().div_ceil(block);
        let panels = outputs.div_ceil(LANES);
        let parallel = team.parts(tiles.rows * tiles.depth * outputs) > 1;
        let units = if parallel {
            team.threads() * UNITS_PER_THREAD
        } else {
            1
        };
        let width = panels
            .div_ceil(units.div_ceil(blocks))
            .next_multiple_of(WIDE);
        Grid::new(y, outputs, block * tiles.height)
            .columns(width * LANES)
            .each(parallel.then_some(team), |cell| self.cell(cell));
    }

    /// The rows and columns of a cell: a few panels at a time, past all tiles.
    fn cell(&self, cell: &mut Cell<'_>) {
        let tiles = &self.tiles;
        let first = cell.first_row() / tiles.height;
        let count = cell.rows().div_ceil(tiles.height);
        let panels = cell.columns().div_ceil(LANES);
        let panel = cell.first_column() / LANES;
        let mut done = 0;
        while done < panels {
            let at_once = self.at_once(panels - done);
            for index in 0..count {
                let last = first + index + 1 == tiles.count();
                let height = if last {
                    tiles.last_height
                } else {
                    tiles.height
                };
                let place = Place {
                    tile: first + index,
                    row: index * tiles.height,
                    panel: panel + done,
                    column: done * LANES,
                };
                self.tile(height, at_once, place, cell);
            }
            done += at_once;
        }
    }

    /// How many panels to take at once, when there are `left`.
    fn at_once(&self, left: usize) -> usize {
        let most = match (self.isa.is_wide(), self.tiles.height) {
            (true, 0..=6) | (false, 1) => WIDE,
            (true, _) | (false, 2) => 2,
            _ => 1,
        };
        if left >= most { most } else { 1 }
    }

    fn tile(&self, height: usize, panels: usize, place: Place, cell: &mut Cell<'_>) {
        match (height, panels) {
            (1, 4) => self.tile_of::<1, 4>(place, cell),
            (2, 4) => self.tile_of::<2, 4>(place, cell),
            (3, 4) => self.tile_of::<3, 4>(place, cell),
            (4, 4) => self.tile_of::<4, 4>(place, cell),
            (6, 4) => self.tile_of::<6, 4>(place, cell),
            (1, 2) => self.tile_of::<1, 2>(place, cell),
            (2, 2) => self.tile_of::<2, 2>(place, cell),
            (3, 2) => self.tile_of::<3, 2>(place, cell),
            (4, 2) => self.tile_of::<4, 2>(place, cell),
            (6, 2) => self.tile_of::<6, 2>(place, cell),
            (8, 2) => self.tile_of::<8, 2>(place, cell),
            (12, 2) => self.tile_of::<12, 2>(place, cell),
            (1, _) => self.tile_of::<1, 1>(place, cell),
            (2, _) => self.tile_of::<2, 1>(place, cell),
            (3, _) => self.tile_of::<3, 1>(place, cell),
            (4, _) => self.tile_of::<4, 1>(place, cell),
            (6, _) => self.tile_of::<6, 1>(place, cell),
            (8, _) => self.tile_of::<8, 1>(place, cell),
            _ => self.tile_of::<12, 1>(place, cell),
        }
    }

    fn tile_of<const R: usize, const P: usize>(&self, place: Place, cell: &mut Cell<'_>) {
        let Tiles { depth, height, .. } = self.tiles;
        let start = place.tile * height * depth;
        let (left, _) = self.left[start..start + R * depth].as_chunks::<R>();
        let items = depth / W::DEPTH;
        let panels: [&[W]; P] =
            std::array::from_fn(|p| &self.panels[(place.panel + p) * items..][..items]);
        let mut sums = [[[0.0; LANES]; R]; P];
        tile(self.isa, &[kernels::Product::new(left, panels)], &mut sums);
        if !self.scales.is_empty() {
            for (sums, scales) in sums.iter_mut().zip(&self.scales[place.panel..]) {
                for sums in sums {
                    let pairs = sums.iter_mut().zip(scales);
                    pairs.for_each(|(sum, scale)| *sum *= scale);
                }
            }
        }
        // Rows of padding, and columns behind the last one, go nowhere.
        for r in 0..R.min(cell.rows() - place.row) {
            let out = &mut cell.row(place.row + r)[place.column..];
            for (out, sums) in out.chunks_mut(LANES).zip(&sums) {
                let pairs = out.iter_mut().zip(&sums[r]);
                match self.store {
                    Store::Replace => pairs.for_each(|(out, sum)| *out = *sum),
                    Store::Add => pairs.for_each(|(out, sum)| *out += *sum),
                }
            }
        }
    }
}

/// Where a tile product reads and writes.
#[derive(Clone, Copy)]
struct Place {
    tile: usize,
    /// In the cell.
    row: usize,
    panel: usize,
    /// In the cell.
    column: usize,
}

#[cfg(test)]
mod tests;
