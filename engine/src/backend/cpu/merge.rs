//! What attention over parts of a context comes to when they are put together.
//!
//! ```text
//! m' = max(m₁, m₂);  l = l₁·2^(m₁ - m') + l₂·2^(m₂ - m');  o = o₁·2^(m₁ - m') + o₂·2^(m₂ - m')
//! ```
//!
//! Taking a part into nothing leaves it as it is, to the bit, so a part may lie in memory before it is merged.

use super::kernels::{LANES, Lanes};
use super::ops::exp2_falling;

/// Rows of `[max, norm, sums…]`, in borrowed memory.
#[derive(Debug)]
pub(super) struct Total<'a> {
    rows: &'a mut [f32],
    row_size: usize,
}

impl<'a> Total<'a> {
    /// Floats that a row takes.
    pub(super) fn row_size(head_dim: usize) -> usize {
        head_dim.next_multiple_of(LANES) + 2
    }

    /// Nothing yet, in `memory`.
    pub(super) fn begin(memory: &'a mut [f32], rows: usize, head_dim: usize) -> Self {
        let row_size = Self::row_size(head_dim);
        let rows = &mut memory[..rows * row_size];
        for row in rows.chunks_exact_mut(row_size) {
            row.fill(0.0);
            row[0] = f32::NEG_INFINITY;
        }
        Self { rows, row_size }
    }

    /// Takes one row of a later part in.
    pub(super) fn add_row<'s>(
        &mut self,
        row: usize,
        (max, norm): (f32, f32),
        sums: impl Iterator<Item = &'s Lanes>,
    ) {
        if norm == 0.0 {
            return;
        }
        let row = &mut self.rows[row * self.row_size..(row + 1) * self.row_size];
        let [old_max, old_norm, old_sums @ ..] = row else {
            return;
        };
        let new_max = if max > *old_max { max } else { *old_max };
        let (old, new) = (
            exp2_falling(*old_max - new_max),
            exp2_falling(max - new_max),
        );
        *old_norm = *old_norm * old + norm * new;
        *old_max = new_max;
        let (old_sums, _) = old_sums.as_chunks_mut::<LANES>();
        for (old_sums, sums) in old_sums.iter_mut().zip(sums) {
            for (old_sum, sum) in old_sums.iter_mut().zip(sums) {
                *old_sum = *old_sum * old + sum * new;
            }
        }
    }

    /// Takes all rows of a later part in, which another total was begun in.
    pub(super) fn add(&mut self, part: &[f32]) {
        let rows = self.rows.len() / self.row_size;
        for (index, row) in part.chunks_exact(self.row_size).take(rows).enumerate() {
            if let [max, norm, sums @ ..] = row {
                self.add_row(index, (*max, *norm), sums.as_chunks::<LANES>().0.iter());
            }
        }
    }

    /// What row `row` comes to, into `out`.
    pub(super) fn write(&self, row: usize, out: &mut [f32]) {
        if let [_, norm, sums @ ..] = &self.rows[row * self.row_size..(row + 1) * self.row_size] {
            let inverse = 1.0 / norm;
            for (out, sum) in out.iter_mut().zip(sums) {
                *out = sum * inverse;
            }
        }
    }
}
