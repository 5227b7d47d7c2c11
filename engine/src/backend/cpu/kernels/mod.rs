//! The hot loops of the backend: a small tile of rows times panels of 16 columns, and 16 softmax weights.
//!
//! ```text
//! acc[p][r][l] += Σ_k left[k][r] * panels[p][k][l]        r < R, p < P, l < 16, k ascending
//! ```
//!
//! A panel is 16 output columns side by side, so that one step of `k` is one or two vectors for all rows. Products with
//! weights, scores against keys and sums over values all have this shape once their right side is laid out in
//! panels. Each accumulator is one chain of fused multiply-adds along `k`, whatever R and P are: that is what makes a
//! row's result independent of the rows it is computed with.
//!
//! Three versions: AVX-512, AVX2 with FMA, and portable Rust. The choice is made once. The two vector versions chain the
//! same fused operations and give the same bits; portable Rust rounds each product and differs from them.
//! Tile shapes are picked so that all accumulators stay in the registers: 32 vectors of 16, or 16 vectors of 8.

#[cfg(target_arch = "x86_64")]
pub(super) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(super) mod avx512;
mod packed;
#[cfg(test)]
mod tests;

pub(super) use packed::{Packed, Pairs, Quants};

use super::ops::exp2_falling;

/// Columns of a panel.
pub(super) const LANES: usize = 16;

/// One row of a panel, widened.
pub(super) type Lanes = [f32; LANES];

/// Rows of the tallest tile.
pub(super) const MAX_TILE_ROWS: usize = 12;

/// How far ahead of its use a panel is asked for, in bytes. Measured: 512 to 1536 are alike; without asking, eight rows
/// take a fifth longer.
const PREFETCH_BYTES: usize = 1024;

/// The instructions in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Isa {
    /// Whatever the build targets.
    Portable,
    /// AVX2 and FMA, found at run time.
    #[cfg(target_arch = "x86_64")]
    Avx2(avx2::Found),
    /// AVX-512 F, found at run time.
    #[cfg(target_arch = "x86_64")]
    Avx512(avx512::Found),
}

impl Isa {
    /// The best this machine has.
    pub(super) fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            if let Some(found) = avx512::Found::detect() {
                return Self::Avx512(found);
            }
            if let Some(found) = avx2::Found::detect() {
                return Self::Avx2(found);
            }
        }
        Self::Portable
    }

    /// All that this machine has, for tests.
    #[cfg(test)]
    pub(super) fn all() -> Vec<Self> {
        let mut all = vec![Self::Portable];
        #[cfg(target_arch = "x86_64")]
        {
            all.extend(avx2::Found::detect().map(Self::Avx2));
            all.extend(avx512::Found::detect().map(Self::Avx512));
        }
        all
    }

    /// The instructions in words, for the log.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(_) => "avx2",
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(_) => "avx512",
        }
    }

    /// Whether there are 32 registers of 16 floats.
    pub(super) fn is_wide(self) -> bool {
        match self {
            Self::Portable => false,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(_) => false,
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(_) => true,
        }
    }

    /// Rows of a full tile.
    pub(super) fn tile_rows(self) -> usize {
        if self.is_wide() { MAX_TILE_ROWS } else { 6 }
    }

    /// The lowest tile that holds `rows`, of at most [`Self::tile_rows`]. Its further rows are padding.
    pub(super) fn tile_height(self, rows: usize) -> usize {
        match rows.min(self.tile_rows()) {
            0..=4 => rows.max(1),
            5 | 6 => 6,
            7 | 8 => 8,
            _ => MAX_TILE_ROWS,
        }
    }
}

/// The left side of a tile product: R rows, element by element.
pub(super) trait Left<const R: usize>: Copy {
    /// Element `k` of row `r`.
    fn at(&self, k: usize, r: usize) -> f32;
    /// How many `k` there are.
    fn depth(&self) -> usize;
}

/// Rows laid out with the elements of equal `k` side by side.
impl<const R: usize> Left<R> for &[[f32; R]] {
    #[inline]
    fn at(&self, k: usize, r: usize) -> f32 {
        self[k][r]
    }

    #[inline]
    fn depth(&self) -> usize {
        self.len()
    }
}

/// The first `count` of 16 elements of each row.
#[derive(Clone, Copy, Debug)]
pub(super) struct Short<'a, const R: usize> {
    pub(super) rows: &'a [Lanes; R],
    pub(super) count: usize,
}

impl<const R: usize> Left<R> for Short<'_, R> {
    #[inline]
    fn at(&self, k: usize, r: usize) -> f32 {
        self.rows[r][k % LANES]
    }

    #[inline]
    fn depth(&self) -> usize {
        self.count
    }
}

/// A left side and the panels it is multiplied by, of equal depth.
#[derive(Clone, Copy, Debug)]
pub(super) struct Product<'a, L, W, const P: usize> {
    pub(super) left: L,
    pub(super) panels: [&'a [W]; P],
    /// For each panel what memory is asked for meanwhile, item by item: what is needed later. No result depends on it,
    /// and nobody reads through it.
    pub(super) ahead: [*const W; P],
}

impl<'a, L, W, const P: usize> Product<'a, L, W, P> {
    /// Of panels that lie one behind the other, which are asked for a little ahead of their use.
    pub(super) fn new(left: L, panels: [&'a [W]; P]) -> Self {
        let ahead = panels.map(|panel| panel.as_ptr().wrapping_byte_add(PREFETCH_BYTES));
        Self {
            left,
            panels,
            ahead,
        }
    }
}

/// Adds the products to `accumulators`, one behind the other.
#[inline]
pub(super) fn tile<W: Packed, L: Left<R>, const R: usize, const P: usize>(
    isa: Isa,
    products: &[Product<'_, L, W, P>],
    accumulators: &mut [[Lanes; R]; P],
) {
    match isa {
        Isa::Portable => portable(products, accumulators),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2(found) => found.tile(products, accumulators),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512(found) => found.tile(products, accumulators),
    }
}

fn portable<W: Packed, L: Left<R>, const R: usize, const P: usize>(
    products: &[Product<'_, L, W, P>],
    accumulators: &mut [[Lanes; R]; P],
) {
    for Product { left, panels, .. } in products {
        for (panel, sums) in panels.iter().zip(accumulators.iter_mut()) {
            for k in 0..left.depth() {
                let right = panel[k / W::DEPTH].widen(k % W::DEPTH);
                for (r, sums) in sums.iter_mut().enumerate() {
                    let left = left.at(k, r);
                    for (sum, right) in sums.iter_mut().zip(right) {
                        *sum += left * right;
                    }
                }
            }
        }
    }
}

/// What a softmax in one pass keeps of each row.
#[derive(Clone, Copy, Debug)]
pub(super) struct Softmax<const R: usize> {
    /// Largest score so far.
    pub(super) max: [f32; R],
    /// Sums of the weights so far, relative to it: of every 16th key.
    pub(super) norm: [Lanes; R],
    /// What the last scores made of weights from before them.
    pub(super) decay: [f32; R],
}

/// Turns scores `[group][row]` into weights relative to the row's largest score so far, `2^(score - max)`, and takes
/// them into `softmax`. A score of -∞ weighs nothing.
#[inline]
pub(super) fn weigh<const R: usize>(isa: Isa, scores: &mut [[Lanes; R]], softmax: &mut Softmax<R>) {
    match isa {
        Isa::Portable => weigh_body(scores, softmax),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2(found) => found.weigh(scores, softmax),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512(found) => found.weigh(scores, softmax),
    }
}

/// Compiled once for each version.
#[inline(always)]
#[expect(
    clippy::inline_always,
    reason = "it must take on its caller's instruction set"
)]
fn weigh_body<const R: usize>(scores: &mut [[Lanes; R]], softmax: &mut Softmax<R>) {
    for r in 0..R {
        let mut largest = [f32::NEG_INFINITY; LANES];
        for group in scores.iter() {
            for (largest, score) in largest.iter_mut().zip(&group[r]) {
                *largest = larger(*largest, *score);
            }
        }
        let before = softmax.max[r];
        let max = larger(before, reduce(&largest, larger));
        softmax.decay[r] = 1.0;
        if max > before {
            let decay = exp2_falling(before - max);
            softmax.max[r] = max;
            softmax.decay[r] = decay;
            softmax.norm[r].iter_mut().for_each(|sum| *sum *= decay);
        }
        // Where nothing is seen yet, what is not seen weighs nothing all the same.
        let max = if max == f32::NEG_INFINITY { 0.0 } else { max };
        let mut norm = softmax.norm[r];
        for group in scores.iter_mut() {
            for (sum, score) in norm.iter_mut().zip(&mut group[r]) {
                *score = exp2_falling(*score - max);
                *sum += *score;
            }
        }
        softmax.norm[r] = norm;
    }
}

impl<const R: usize> Softmax<R> {
    /// Nothing seen yet.
    pub(super) fn new() -> Self {
        Self {
            max: [f32::NEG_INFINITY; R],
            norm: [[0.0; LANES]; R],
            decay: [1.0; R],
        }
    }

    /// Row r's largest score, and the sum of its weights.
    pub(super) fn row(&self, r: usize) -> (f32, f32) {
        (self.max[r], reduce(&self.norm[r], |a, b| a + b))
    }
}

/// Not `f32::max`, which treats NaN apart; this is one instruction.
#[inline(always)]
#[expect(
    clippy::inline_always,
    reason = "it must take on its caller's instruction set"
)]
fn larger(a: f32, b: f32) -> f32 {
    if b > a { b } else { a }
}

/// Combines 16 values pairwise, in an order that is always the same.
#[inline(always)]
#[expect(
    clippy::inline_always,
    reason = "it must take on its caller's instruction set"
)]
fn reduce(lanes: &Lanes, combine: impl Fn(f32, f32) -> f32) -> f32 {
    let mut eight = [0.0; 8];
    for i in 0..8 {
        eight[i] = combine(lanes[i], lanes[i + 8]);
    }
    let mut four = [0.0; 4];
    for i in 0..4 {
        four[i] = combine(eight[i], eight[i + 4]);
    }
    combine(combine(four[0], four[2]), combine(four[1], four[3]))
}
