//! Disjoint column ranges of one row-major matrix, so that threads can fill different columns of the same rows.
//!
//! Slices can be cut between rows only. This is the one place that goes around that, behind an interface that cannot
//! be misused: a `Columns` is made from an exclusive borrow of the whole matrix, and splitting consumes it.

#![expect(
    unsafe_code,
    reason = "columns of a row-major matrix are not contiguous"
)]

use std::marker::PhantomData;

/// Columns `start .. start + width` of every row.
#[derive(Debug)]
pub(super) struct Columns<'a> {
    matrix: *mut f32,
    rows: usize,
    stride: usize,
    start: usize,
    width: usize,
    borrow: PhantomData<&'a mut [f32]>,
}

// SAFETY: a `Columns` stands for an exclusive borrow of its own elements, and `&mut [f32]` is `Send`.
unsafe impl Send for Columns<'_> {}

impl<'a> Columns<'a> {
    /// All columns of a matrix with rows of `stride` elements; a last partial row is left out.
    pub(super) fn new(matrix: &'a mut [f32], stride: usize) -> Self {
        Self {
            rows: matrix.len() / stride.max(1),
            matrix: matrix.as_mut_ptr(),
            stride,
            start: 0,
            width: stride,
            borrow: PhantomData,
        }
    }

    /// Cuts off the first `width` columns, or as many as there are.
    pub(super) fn split_at(self, width: usize) -> (Self, Self) {
        let width = width.min(self.width);
        let right = Self {
            start: self.start + width,
            width: self.width - width,
            ..self
        };
        (Self { width, ..self }, right)
    }

    /// This range's part of one row.
    pub(super) fn row(&mut self, row: usize) -> &mut [f32] {
        assert!(row < self.rows, "row {row} of {}", self.rows);
        // SAFETY: `row < rows` and `start + width <= stride`, so the range lies in the matrix that `new` borrowed
        // exclusively for 'a. Other `Columns` of that matrix cover other columns, because `split_at` consumes
        // what it splits; and the result borrows `self` exclusively.
        unsafe {
            let first = self.matrix.add(row * self.stride + self.start);
            std::slice::from_raw_parts_mut(first, self.width)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_cover_each_element_once() {
        let mut matrix = vec![0.0; 3 * 5];
        let (mut left, right) = Columns::new(&mut matrix, 5).split_at(2);
        let (mut middle, mut rest) = right.split_at(2);
        for row in 0..3 {
            left.row(row).fill(1.0);
            middle.row(row).fill(2.0);
            rest.row(row).fill(3.0);
        }
        assert_eq!(matrix, [1.0, 1.0, 2.0, 2.0, 3.0].repeat(3));
        let (all, mut none) = Columns::new(&mut matrix, 5).split_at(9);
        assert_eq!((all.width, none.row(2).len()), (5, 0));
    }
}
