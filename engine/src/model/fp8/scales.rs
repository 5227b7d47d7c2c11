//! The scales of a matrix: which weights share one, and which one that is.

use crate::model::ElementType;

/// Rows and columns of a block of weights that share a scale.
pub(super) const BLOCK: usize = 128;

/// Which weights of a matrix share a scale.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Grain {
    /// All of them.
    #[default]
    Tensor,
    /// Those of a row, which is an output channel.
    Row,
    /// Those of a block of 128 rows and 128 columns; blocks at the ends may be smaller.
    Block,
}

impl Grain {
    /// Rows and columns that share a scale.
    pub fn each(self) -> [usize; 2] {
        match self {
            Self::Tensor => [usize::MAX, usize::MAX],
            Self::Row => [1, usize::MAX],
            Self::Block => [BLOCK, BLOCK],
        }
    }

    /// Scales downwards and across of a matrix.
    pub fn shape(self, matrix: [usize; 2]) -> [usize; 2] {
        let [rows, columns] = self.each();
        [matrix[0].div_ceil(rows), matrix[1].div_ceil(columns)]
    }
}

/// The scales of a matrix, where they lie.
#[derive(Clone, Copy, Debug)]
pub struct Scales<'a> {
    /// Which weights share one.
    pub grain: Grain,
    /// Their type.
    pub element: ElementType,
    /// How many there are, downwards and across.
    pub shape: [usize; 2],
    /// Little-endian, row by row, without alignment.
    pub bytes: &'a [u8],
}

impl Scales<'_> {
    /// The scale of the weight in this row and column; NaN outside of the matrix.
    pub fn at(&self, row: usize, column: usize) -> f32 {
        let [rows, columns] = self.grain.each();
        let index = row / rows * self.shape[1] + column / columns;
        self.element.get(self.bytes, index).unwrap_or(f32::NAN)
    }

    /// All of them, row by row.
    pub fn values(&self) -> impl Iterator<Item = f32> {
        (0..).map_while(|index| self.element.get(self.bytes, index))
    }
}
