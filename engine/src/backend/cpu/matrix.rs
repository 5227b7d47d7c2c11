//! A weight matrix, packed once into panels of 16 outputs, and the product with a block of rows.
//!
//! ```text
//! weights [out, in] row-major  ─▶  panels[out / 16][in][16]        the last panel is filled up with zeros
//! y[m, out] = x[m, in] · weightsᵀ
//! ```
//!
//! Elements stay bf16 or become f32 (see `weights`). Rows go in blocks small enough to stay in the second-level cache
//! while all panels pass by, so that large weights are read once a block; a single row takes four panels at a time,
//! because two accumulators would leave the multiply units waiting for each other.

use half::bf16;

use super::columns::Columns;
use super::kernels::{Element, Isa, LANES, tile};
use super::team::Team;
use crate::model::Tensor;

/// Rows that share one pass over the panels; a multiple of the tile height.
const ROW_BLOCK: usize = 48;

/// Rows of a full tile: 6 rows of 2 vectors leave 4 of the 16 registers for the operands.
const TILE_ROWS: usize = 6;

/// A packed matrix of `outputs` rows and `inputs` columns.
#[derive(Debug)]
pub(super) struct Matrix {
    outputs: usize,
    inputs: usize,
    panels: Panels,
}

#[derive(Debug)]
enum Panels {
    F32(Vec<[f32; LANES]>),
    Bf16(Vec<[bf16; LANES]>),
}

/// What to do with the values that are there already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Store {
    Replace,
    Add,
}

impl Matrix {
    /// Packs tensors `[outputs, inputs]` of equal `inputs`, one below the other; in bf16 when `narrow`.
    pub(super) fn pack(tensors: &[Tensor<'_>], narrow: bool) -> Self {
        let inputs = tensors.first().map_or(0, |tensor| tensor.shape[1]);
        let outputs = tensors.iter().map(|tensor| tensor.shape[0]).sum();
        let panels = if narrow {
            Panels::Bf16(pack(tensors, inputs, outputs, bf16::from_f32))
        } else {
            Panels::F32(pack(tensors, inputs, outputs, |value| value))
        };
        Self {
            outputs,
            inputs,
            panels,
        }
    }

    pub(super) fn outputs(&self) -> usize {
        self.outputs
    }

    /// Row `output` of the unpacked matrix into `row`, which has room for `inputs` values.
    pub(super) fn unpack_row(&self, output: usize, row: &mut [f32]) {
        fn gather<E: Element>(panels: &[[E; LANES]], output: usize, row: &mut [f32]) {
            let panel = &panels[output / LANES * row.len()..][..row.len()];
            for (value, lanes) in row.iter_mut().zip(panel) {
                *value = lanes[output % LANES].widen();
            }
        }
        match &self.panels {
            Panels::F32(panels) => gather(panels, output, row),
            Panels::Bf16(panels) => gather(panels, output, row),
        }
    }

    /// `y = x · selfᵀ`, or `y += …`; `x` is `[rows, inputs]`, `y` is `[rows, outputs]`.
    pub(super) fn multiply(&self, team: &Team, isa: Isa, x: &[f32], y: &mut [f32], store: Store) {
        debug_assert_eq!(x.len() / self.inputs, y.len() / self.outputs);
        match &self.panels {
            Panels::F32(panels) => self.multiply_panels(team, isa, panels, x, y, store),
            Panels::Bf16(panels) => self.multiply_panels(team, isa, panels, x, y, store),
        }
    }

    fn multiply_panels<E: Element>(
        &self,
        team: &Team,
        isa: Isa,
        panels: &[[E; LANES]],
        x: &[f32],
        y: &mut [f32],
        store: Store,
    ) {
        let product = Product {
            isa,
            panels,
            x,
            depth: self.inputs,
            store,
        };
        let parts = team.parts(x.len() * self.outputs);
        let columns = Columns::new(y, self.outputs);
        let all = 0..self.outputs.div_ceil(LANES);
        Team::split_panels(parts, LANES, all, columns, &|range, mut columns| {
            product.compute(range, &mut columns);
        });
    }
}

/// One product, shared by the threads that compute it.
struct Product<'a, E> {
    isa: Isa,
    panels: &'a [[E; LANES]],
    x: &'a [f32],
    depth: usize,
    store: Store,
}

impl<E: Element> Product<'_, E> {
    /// The columns of the panels `range`.
    fn compute(&self, range: std::ops::Range<usize>, columns: &mut Columns<'_>) {
        let rows = self.x.len() / self.depth;
        for block in (0..rows).step_by(ROW_BLOCK) {
            let end = rows.min(block + ROW_BLOCK);
            let wide = match end - block {
                1 => 4,
                2 => 2,
                _ => 1,
            };
            let mut panel = range.start;
            while panel < range.end {
                let count = if panel + wide <= range.end { wide } else { 1 };
                let column = (panel - range.start) * LANES;
                self.compute_rows(block..end, panel, count, column, columns);
                panel += count;
            }
        }
    }

    /// `count` panels for the rows of a block, in the tallest tiles that fit.
    fn compute_rows(
        &self,
        rows: std::ops::Range<usize>,
        panel: usize,
        count: usize,
        column: usize,
        columns: &mut Columns<'_>,
    ) {
        let mut row = rows.start;
        while row < rows.end {
            let height = (rows.end - row).min(TILE_ROWS);
            match (height, count) {
                (1, 4) => self.compute_tile::<1, 4>(row, panel, column, columns),
                (2, 2) => self.compute_tile::<2, 2>(row, panel, column, columns),
                (1, _) => self.compute_tile::<1, 1>(row, panel, column, columns),
                (2, _) => self.compute_tile::<2, 1>(row, panel, column, columns),
                (3, _) => self.compute_tile::<3, 1>(row, panel, column, columns),
                (4, _) => self.compute_tile::<4, 1>(row, panel, column, columns),
                (5, _) => self.compute_tile::<5, 1>(row, panel, column, columns),
                _ => self.compute_tile::<TILE_ROWS, 1>(row, panel, column, columns),
            }
            row += height;
        }
    }

    fn compute_tile<const R: usize, const P: usize>(
        &self,
        row: usize,
        panel: usize,
        column: usize,
        columns: &mut Columns<'_>,
    ) {
        let depth = self.depth;
        let rows = std::array::from_fn(|r| &self.x[(row + r) * depth..(row + r + 1) * depth]);
        let panels =
            std::array::from_fn(|p| &self.panels[(panel + p) * depth..(panel + p + 1) * depth]);
        let mut sums = [[[0.0; LANES]; P]; R];
        tile(self.isa, rows, panels, &mut sums);
        for (r, sums) in sums.iter().enumerate() {
            // The last panel may reach behind the last column.
            let out = &mut columns.row(row + r)[column..];
            match self.store {
                Store::Replace => {
                    let pairs = out.iter_mut().zip(sums.as_flattened());
                    pairs.for_each(|(out, sum)| *out = *sum);
                }
                Store::Add => {
                    let pairs = out.iter_mut().zip(sums.as_flattened());
                    pairs.for_each(|(out, sum)| *out += *sum);
                }
            }
        }
    }
}

fn pack<E: Element>(
    tensors: &[Tensor<'_>],
    inputs: usize,
    outputs: usize,
    narrow: impl Fn(f32) -> E,
) -> Vec<[E; LANES]> {
    let zero = narrow(0.0);
    let mut panels = vec![[zero; LANES]; outputs.div_ceil(LANES) * inputs];
    let mut output = 0;
    for tensor in tensors {
        for row in 0..tensor.shape[0] {
            let panel = &mut panels[output / LANES * inputs..][..inputs];
            for (input, lanes) in panel.iter_mut().enumerate() {
                let value = tensor.get(row * inputs + input).unwrap_or_default();
                lanes[output % LANES] = narrow(value);
            }
            output += 1;
        }
    }
    panels
}

#[cfg(test)]
mod tests {
    #![expect(clippy::float_cmp, reason = "small integers are exact in f32")]

    use super::*;
    use crate::model::ElementType;

    /// A matrix of small integers, whose products f32 holds exactly.
    fn tensor_bytes(outputs: usize, inputs: usize) -> Vec<u8> {
        let value = |i: usize| ((i * 7 + i / 5) % 9) as f32 - 4.0;
        (0..outputs * inputs)
            .flat_map(|i| value(i).to_le_bytes())
            .collect()
    }

    #[test]
    fn products_are_exact_for_every_shape() {
        for threads in [1, 3] {
            let team = Team::new(threads).unwrap();
            for (outputs, inputs, rows) in [
                (1, 1, 1),
                (16, 4, 2),
                (17, 33, 3),
                (70, 64, 1),
                (70, 20, 50),
                (900, 300, 5),
            ] {
                let (first, second) = (outputs / 3, outputs - outputs / 3);
                let bytes = tensor_bytes(outputs, inputs);
                let (upper, lower) = bytes.split_at(first * inputs * 4);
                let shapes = [[first, inputs], [second, inputs]];
                let part = |bytes, shape| Tensor {
                    element: ElementType::F32,
                    shape,
                    bytes,
                };
                let parts = [part(upper, &shapes[0]), part(lower, &shapes[1])];
                let x: Vec<f32> = (0..rows * inputs).map(|i| (i % 5) as f32 - 2.0).collect();
                for narrow in [false, true] {
                    let matrix = Matrix::pack(&parts, narrow);
                    let mut y = vec![1.0; rows * outputs];
                    team.run(|| matrix.multiply(&team, Isa::detect(), &x, &mut y, Store::Add));
                    let mut weights = vec![0.0; inputs];
                    for output in 0..outputs {
                        matrix.unpack_row(output, &mut weights);
                        for row in 0..rows {
                            let x = &x[row * inputs..(row + 1) * inputs];
                            let dot: f32 = x.iter().zip(&weights).map(|(a, b)| a * b).sum();
                            assert_eq!(y[row * outputs + output], dot + 1.0);
                        }
                    }
                }
            }
        }
    }
}
