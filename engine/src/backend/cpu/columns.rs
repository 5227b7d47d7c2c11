//! A row-major matrix cut into a grid of cells, so that threads can fill different columns of the same rows.
//!
//! Slices can be cut between rows only, and by one owner. This is the one place that goes around that, behind an interface that cannot
//! be misused: a `Grid` is made from an exclusive borrow of the whole matrix, its cuts never overlap, and it hands each
//! cell out once.

#![expect(
    unsafe_code,
    reason = "columns of a row-major matrix are not contiguous"
)]

use std::marker::PhantomData;
use std::ops::Range;

use super::team::Team;

/// A matrix and how it is cut.
#[derive(Debug)]
pub(super) struct Grid<'a> {
    matrix: *mut f32,
    stride: usize,
    rows: usize,
    heights: Heights<'a>,
    width: usize,
    borrow: PhantomData<&'a mut [f32]>,
}

/// Where the rows are cut.
#[derive(Debug)]
enum Heights<'a> {
    Equal(usize),
    /// The first row of each part; ascending, and within the matrix.
    Starts(&'a [u32]),
}

/// Some columns of some rows.
#[derive(Debug)]
pub(super) struct Cell<'a> {
    matrix: *mut f32,
    stride: usize,
    rows: Range<usize>,
    columns: Range<usize>,
    borrow: PhantomData<&'a mut [f32]>,
}

// SAFETY: a shared `Grid` gives nothing away but through `each`, which takes it whole; it crosses threads as the
// pointer of an exclusive borrow, and `&mut [f32]` is `Send`.
unsafe impl Sync for Grid<'_> {}

impl<'a> Grid<'a> {
    /// All rows of `stride` elements, cut every `height` rows; a last partial row is left out.
    pub(super) fn new(matrix: &'a mut [f32], stride: usize, height: usize) -> Self {
        Self {
            rows: matrix.len() / stride.max(1),
            matrix: matrix.as_mut_ptr(),
            stride,
            heights: Heights::Equal(height.max(1)),
            width: stride.max(1),
            borrow: PhantomData,
        }
    }

    /// All rows of `stride` elements, cut before each row of `starts`; rows before the first are left out.
    pub(super) fn with_starts(matrix: &'a mut [f32], stride: usize, starts: &'a [u32]) -> Self {
        let grid = Self::new(matrix, stride, 1);
        let last = starts.last().map_or(0, |start| *start as usize);
        assert!(
            starts.is_sorted() && last <= grid.rows,
            "the cuts of a grid must ascend within it"
        );
        Self {
            heights: Heights::Starts(starts),
            ..grid
        }
    }

    /// Cuts every `width` columns, too.
    pub(super) fn columns(self, width: usize) -> Self {
        Self {
            width: width.max(1),
            ..self
        }
    }

    /// Calls `work` with each cell, on all threads or, without a team, on this one. Cells of the same rows follow
    /// each other.
    pub(super) fn each(self, team: Option<&Team>, work: impl Fn(&mut Cell<'_>) + Sync) {
        let down = match self.heights {
            Heights::Equal(height) => self.rows.div_ceil(height),
            Heights::Starts(starts) => starts.len(),
        };
        let across = self.stride.div_ceil(self.width);
        let grid = &self;
        let unit = |unit| {
            let (part, column) = (unit / across, unit % across * grid.width);
            let rows = match grid.heights {
                Heights::Equal(height) => part * height..grid.rows.min((part + 1) * height),
                Heights::Starts(starts) => {
                    let end = starts.get(part + 1).map_or(grid.rows, |end| *end as usize);
                    starts[part] as usize..end
                }
            };
            work(&mut Cell {
                matrix: grid.matrix,
                stride: grid.stride,
                rows,
                columns: column..grid.stride.min(column + grid.width),
                borrow: PhantomData,
            });
        };
        match team {
            Some(team) => team.units(down * across, &unit),
            None => (0..down * across).for_each(unit),
        }
    }
}

impl Cell<'_> {
    pub(super) fn first_row(&self) -> usize {
        self.rows.start
    }

    pub(super) fn first_column(&self) -> usize {
        self.columns.start
    }

    pub(super) fn rows(&self) -> usize {
        self.rows.len()
    }

    pub(super) fn columns(&self) -> usize {
        self.columns.len()
    }

    /// This cell's part of one of its rows.
    pub(super) fn row(&mut self, row: usize) -> &mut [f32] {
        assert!(row < self.rows.len(), "row {row} of {:?}", self.rows);
        // SAFETY: rows and columns of a cell lie within the matrix that `Grid::new` borrowed exclusively for longer
        // than the cell lives. Other cells cover other elements: numbers of units differ, so their rows' part or
        // their columns' part differs, and parts are disjoint. The result borrows the cell exclusively.
        unsafe {
            let first = (self.rows.start + row) * self.stride + self.columns.start;
            std::slice::from_raw_parts_mut(self.matrix.add(first), self.columns.len())
        }
    }
}

/// Cuts `values` every `size` elements, and calls `work` with each part's number and the part, on all threads.
pub(super) fn each_chunk<T: Send>(
    team: &Team,
    values: &mut [T],
    size: usize,
    work: impl Fn(usize, &mut [T]) + Sync,
) {
    struct Shared<T>(*mut T);
    // SAFETY: the pointer of an exclusive borrow of values that may be sent; each unit takes other values.
    unsafe impl<T: Send> Sync for Shared<T> {}
    let (length, size) = (values.len(), size.max(1));
    let shared = &Shared(values.as_mut_ptr());
    team.units(length.div_ceil(size), &|unit| {
        let start = unit * size;
        let count = size.min(length - start);
        // SAFETY: within `values`, which is borrowed exclusively until `units` returns; units do not overlap, and each
        // comes once.
        let part = unsafe { std::slice::from_raw_parts_mut(shared.0.add(start), count) };
        work(unit, part);
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn covered(
        team: &Team,
        grid: impl Fn(&mut [f32]) -> Grid<'_>,
        rows: usize,
        stride: usize,
    ) -> Vec<f32> {
        let mut matrix = vec![0.0; rows * stride];
        grid(&mut matrix).each(Some(team), |cell| {
            for row in 0..cell.rows() {
                cell.row(row).iter_mut().for_each(|value| *value += 1.0);
            }
        });
        matrix
    }

    #[test]
    fn cells_cover_each_element_once() {
        let team = Team::new(3).unwrap();
        for (rows, stride, height, width) in
            [(3, 5, 2, 2), (7, 16, 3, 16), (1, 1, 9, 9), (0, 4, 1, 1)]
        {
            let matrix = covered(
                &team,
                |m| Grid::new(m, stride, height).columns(width),
                rows,
                stride,
            );
            assert_eq!(matrix, vec![1.0; rows * stride]);
        }
        let matrix = covered(
            &team,
            |m| Grid::with_starts(m, 3, &[0, 2, 2, 5]).columns(2),
            6,
            3,
        );
        assert_eq!(matrix, vec![1.0; 18]);
    }

    #[test]
    #[should_panic(expected = "must ascend")]
    fn cuts_that_overlap_are_refused() {
        Grid::with_starts(&mut [0.0; 6], 1, &[0, 3, 2]);
    }
}
