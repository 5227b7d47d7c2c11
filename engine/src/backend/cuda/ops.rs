//! The kernels as operations on a device: grids and arguments follow from shapes here, and nowhere else.

#![expect(unsafe_code, reason = "a kernel's arguments are pointers")]

use super::device::{
    Activation, Argument, Device, DeviceError, Grid, Product, StridedCopy, arguments,
};
use super::kernels::{
    ATTENTION_THREADS, Address, AttentionArguments, ChangesArguments, DrawArguments,
    LogprobArguments, ROW_THREADS, RopeArguments, SKINNY_COLUMNS, SKINNY_ROWS, SKINNY_THREADS,
    Scaling, SkinnyArguments, attention_bytes,
};
use super::plan::{self, head_parts};
use super::weights::{Matrix, Piece};

/// Threads of a block where a row is as wide as it happens to be.
const THREADS_MAX: u32 = 512;

/// Blocks for elements that are dealt out over all of them, at most.
const BLOCKS_MAX: u32 = 4_096;

/// Rows that weights of 8 bits are multiplied with as they are, 16 at a time. Each time takes a byte a weight; making them
/// wide takes one, writing them two and reading them again two more.
const NARROW_ROWS: u32 = 4 * SKINNY_ROWS;

/// Bytes of an activation, and of a weight of its type.
const WIDE_BYTES: u64 = 2;

/// A device, and the type of the activations on it.
#[derive(Debug)]
pub struct Ops<'a> {
    /// Where it is computed.
    pub device: &'a mut dyn Device,
    /// What all rows are of.
    pub activation: Activation,
}

/// A norm's weight and what is added to the mean square.
#[derive(Clone, Copy, Debug)]
pub struct Norm {
    pub weight: Address,
    pub eps: f32,
}

/// The arguments of [`Ops::embed_norm`].
#[derive(Clone, Copy, Debug)]
pub struct Embedding {
    pub tokens: Address,
    /// Null, or where among `sampled` each token is found.
    pub sources: Address,
    pub sampled: Address,
    pub table: Address,
    pub vocabulary: u32,
}

/// A product with a weight `[n, k]`.
#[derive(Clone, Copy, Debug)]
pub struct Multiply {
    pub y: Address,
    pub x: Address,
    pub weight: Address,
    pub m: u32,
    pub n: u32,
    pub k: u32,
    /// Elements from one row of y to the next.
    pub y_stride: u32,
    /// y is of f32.
    pub wide: bool,
}

impl Ops<'_> {
    /// See `norm.cu`.
    pub fn embed_norm(
        &mut self,
        rows: u32,
        width: u32,
        [hidden, normed]: [Address; 2],
        from: Embedding,
        norm: Norm,
    ) -> Result<(), DeviceError> {
        let a = arguments![
            hidden,
            normed,
            from.tokens,
            from.sources,
            from.sampled,
            from.table,
            norm.weight,
            width,
            from.vocabulary,
            norm.eps
        ];
        self.launch("embed_norm", row_grid(rows, width), a)
    }

    /// See `norm.cu`.
    pub fn add_norm(
        &mut self,
        rows: u32,
        width: u32,
        [hidden, normed, delta]: [Address; 3],
        norm: Norm,
    ) -> Result<(), DeviceError> {
        let a = arguments![hidden, normed, delta, norm.weight, width, norm.eps];
        self.launch("add_norm", row_grid(rows, width), a)
    }

    /// See `norm.cu`; `picked` are the numbers of so many rows.
    pub fn gather_norm(
        &mut self,
        (rows, picked): (u32, Address),
        width: u32,
        [normed, hidden, delta]: [Address; 3],
        norm: Norm,
    ) -> Result<(), DeviceError> {
        let a = arguments![normed, hidden, delta, picked, norm.weight, width, norm.eps];
        self.launch("gather_norm", row_grid(rows, width), a)
    }

    /// See `rope.cu`.
    pub fn finish_qkv(&mut self, tokens: u32, a: RopeArguments) -> Result<(), DeviceError> {
        // A warp for each head, up to what a block has.
        let threads = ((a.heads + 2 * a.kv_heads) * 32).min(THREADS_MAX);
        let grid = Grid {
            blocks: [tokens, 1, 1],
            threads,
            shared_bytes: 0,
        };
        self.launch("finish_qkv", grid, arguments![a])
    }

    /// See `prefill.cu`.
    pub fn prefill(
        &mut self,
        tiles: u32,
        head_dim: u32,
        a: AttentionArguments,
    ) -> Result<(), DeviceError> {
        let grid = Grid {
            blocks: [tiles, a.kv_heads, 1],
            threads: ATTENTION_THREADS,
            shared_bytes: attention_bytes(head_dim),
        };
        self.attention("prefill", head_dim, grid, a)
    }

    /// See `decode.cu`: both of its kernels.
    pub fn decode(
        &mut self,
        (decodes, splits): (u32, u32),
        head_dim: u32,
        a: AttentionArguments,
    ) -> Result<(), DeviceError> {
        let parts = head_parts(a.heads / a.kv_heads);
        let grid = Grid {
            blocks: [splits, a.kv_heads * parts, decodes],
            threads: ATTENTION_THREADS,
            shared_bytes: attention_bytes(head_dim),
        };
        self.attention("decode", head_dim, grid, a)?;
        if splits == 1 {
            return Ok(());
        }
        let grid = Grid {
            blocks: [a.heads, decodes, 1],
            threads: head_dim,
            shared_bytes: 0,
        };
        self.attention("combine", head_dim, grid, a)
    }

    /// See `activation.cu`.
    pub fn silu_multiply(
        &mut self,
        rows: u32,
        inner: u32,
        [out, gate_up]: [Address; 2],
    ) -> Result<(), DeviceError> {
        let grid = element_grid(u64::from(rows) * u64::from(inner));
        self.launch("silu_multiply", grid, arguments![out, gate_up, rows, inner])
    }

    /// `y = x·wᵀ`, by our own kernel for few rows and by the device's library for more.
    pub fn multiply(&mut self, by: Multiply) -> Result<(), DeviceError> {
        let Multiply {
            m,
            n,
            k,
            y_stride,
            wide,
            ..
        } = by;
        if plan::product_for(m) == plan::Product::Library {
            let product = Product {
                m,
                n,
                k,
                y_stride,
                wide,
            };
            return self.device.multiply(product, by.y, by.x, by.weight);
        }
        let a = SkinnyArguments {
            y: by.y,
            x: by.x,
            weight: by.weight,
            m,
            n,
            k,
            x_stride: k,
            y_stride,
            ..SkinnyArguments::default()
        };
        self.skinny(a, self.activation.name(), wide)
    }

    /// `y = x·wᵀ` for `m` rows, y being `[m, n]` of the activations' type. `widened` has room for the whole matrix where it
    /// is not of that type already.
    pub fn multiply_by(
        &mut self,
        matrix: &Matrix,
        widened: Address,
        [y, x]: [Address; 2],
        m: u32,
    ) -> Result<(), DeviceError> {
        let Matrix { n, k, .. } = *matrix;
        let whole = |weight| Multiply {
            y,
            x,
            weight,
            m,
            n,
            k,
            y_stride: n,
            wide: false,
        };
        if let Some(weight) = matrix.wide() {
            return self.multiply(whole(weight.address));
        }
        if m > NARROW_ROWS {
            self.widen(matrix, widened)?;
            return self.multiply(whole(widened));
        }
        let mut column = 0;
        for piece in &matrix.pieces {
            let own = self.activation.name();
            let element = piece.scales.map_or(own, |_| "e4m3");
            let (scaling, scales) = piece.scales.unwrap_or((Scaling::None, piece.weight));
            for first in (0..m).step_by(SKINNY_ROWS as usize) {
                let after = |rows: u32, width: u32| u64::from(rows) * u64::from(width) * WIDE_BYTES;
                let a = SkinnyArguments {
                    y: y + after(first, n) + after(1, column),
                    x: x + after(first, k),
                    weight: piece.weight.address,
                    scales: scales.address,
                    m: SKINNY_ROWS.min(m - first),
                    n: piece.rows,
                    k,
                    x_stride: k,
                    y_stride: n,
                    scaling: scaling as u32,
                    add: 0,
                };
                self.skinny(a, element, false)?;
            }
            column += piece.rows;
        }
        Ok(())
    }

    /// Replaces so many activations by their sum over the ranks of a group.
    pub fn add_up(&mut self, at: Address, elements: u32) -> Result<(), DeviceError> {
        self.device.add_up(at, elements as usize, self.activation)
    }

    /// See `skinny.cu`.
    fn skinny(&mut self, a: SkinnyArguments, weight: &str, wide: bool) -> Result<(), DeviceError> {
        let grid = Grid {
            blocks: [a.n.div_ceil(SKINNY_COLUMNS), 1, 1],
            threads: SKINNY_THREADS,
            shared_bytes: 0,
        };
        let own = self.activation.name();
        let y = if wide { "float" } else { own };
        let room = match plan::product_for(a.m) {
            plan::Product::Skinny(room) => room,
            plan::Product::Library => SKINNY_ROWS,
        };
        // SAFETY: the arguments are `skinny`'s, and what lies at the addresses is the caller's word, as below.
        unsafe {
            self.device.launch(
                &format!("skinny_{own}_{weight}_{y}_{room}"),
                grid,
                arguments![a],
            )
        }
    }

    /// All of a matrix in the activations' type; see `activation.cu`.
    fn widen(&mut self, matrix: &Matrix, widened: Address) -> Result<(), DeviceError> {
        let mut to = widened;
        for Piece {
            rows,
            weight,
            scales,
        } in matrix.pieces.iter().copied()
        {
            let elements = u64::from(rows) * u64::from(matrix.k);
            let bytes = elements * WIDE_BYTES;
            if let Some((scaling, scales)) = scales {
                let (from, scales, scaling) = (weight.address, scales.address, scaling as u32);
                let a = arguments![to, from, scales, scaling, rows, matrix.k];
                self.launch("widen_e4m3", element_grid(elements), a)?;
            } else {
                self.device.copy(StridedCopy {
                    from: weight.address,
                    to,
                    rows: 1,
                    bytes: bytes as usize,
                    from_stride: bytes as usize,
                    to_stride: bytes as usize,
                })?;
            }
            to += bytes;
        }
        Ok(())
    }

    /// See `changes.cu`.
    pub fn change_logits(&mut self, blocks: u32, a: ChangesArguments) -> Result<(), DeviceError> {
        self.rows("change_logits", blocks, arguments![a])
    }

    /// See `sample.cu`.
    pub fn sample(&mut self, rows: u32, a: DrawArguments) -> Result<(), DeviceError> {
        self.rows("sample", rows, arguments![a])
    }

    /// See `logprobs.cu`.
    pub fn logprobs(&mut self, rows: u32, a: LogprobArguments) -> Result<(), DeviceError> {
        self.rows("logprobs", rows, arguments![a])
    }

    fn rows(&mut self, kernel: &str, blocks: u32, a: &[Argument]) -> Result<(), DeviceError> {
        let grid = Grid {
            blocks: [blocks, 1, 1],
            threads: ROW_THREADS,
            shared_bytes: 0,
        };
        // SAFETY: as in `launch`.
        unsafe { self.device.launch(kernel, grid, a) }
    }

    fn attention(
        &mut self,
        kernel: &str,
        head_dim: u32,
        grid: Grid,
        a: AttentionArguments,
    ) -> Result<(), DeviceError> {
        let name = format!("{kernel}_{}_{head_dim}", self.activation.name());
        // SAFETY: as in `launch`.
        unsafe { self.device.launch(&name, grid, arguments![a]) }
    }

    fn launch(&mut self, kernel: &str, grid: Grid, a: &[Argument]) -> Result<(), DeviceError> {
        let name = format!("{kernel}_{}", self.activation.name());
        // SAFETY: the callers above pass each kernel's own arguments; the addresses come from `forward`, which sizes
        // every buffer by the same numbers.
        unsafe { self.device.launch(&name, grid, a) }
    }
}

/// Threads for all elements, 8 each, up to as many blocks as keep a device busy.
fn element_grid(elements: u64) -> Grid {
    Grid {
        blocks: [
            elements.div_ceil(8 * 256).min(BLOCKS_MAX.into()) as u32,
            1,
            1,
        ],
        threads: 256,
        shared_bytes: 0,
    }
}

/// A block for each row, and memory for one row in each.
fn row_grid(rows: u32, width: u32) -> Grid {
    Grid {
        blocks: [rows, 1, 1],
        threads: (width / 8).next_multiple_of(32).clamp(32, THREADS_MAX),
        shared_bytes: width * 2,
    }
}
