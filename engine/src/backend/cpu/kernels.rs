//! The hot loops of the backend: a small tile of rows times panels of 16 columns, and 16 softmax weights.
//!
//! ```text
//! acc[r][p][l] += Σ_k rows[r][k] * panels[p][k][l]        r < R, p < P, l < 16, k ascending
//! ```
//!
//! A panel is 16 output columns side by side, so that one step of `k` is two vector loads for all rows. Products with
//! weights, scores against keys and sums over values all have this shape once their right side is laid out in
//! panels. Each accumulator is one chain of fused multiply-adds along `k`, whatever R and P are: that is what makes a
//! row's result independent of the rows it is computed with.
//!
//! Two versions: AVX2 with FMA, and portable Rust. They round differently, so a machine must stay with one; the choice
//! is made once. Tile shapes are picked by the callers so that all accumulators stay in the 16 vector registers.

use half::bf16;

use super::ops::exp;

/// Columns of a panel.
pub(super) const LANES: usize = 16;

/// One row of a panel.
pub(super) type Lanes = [f32; LANES];

/// The instructions in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Isa {
    /// Whatever the build targets.
    Portable,
    /// AVX2 and FMA, found at run time.
    #[cfg(target_arch = "x86_64")]
    Avx2(avx2::Found),
}

impl Isa {
    /// The best this machine has.
    pub(super) fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        if let Some(found) = avx2::Found::detect() {
            return Self::Avx2(found);
        }
        Self::Portable
    }

    /// The instructions in words, for the log.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(_) => "avx2",
        }
    }
}

/// An element of a panel.
pub(super) trait Element: Copy + Send + Sync + 'static {
    /// The element as f32.
    fn widen(self) -> f32;

    /// 16 elements as two vectors.
    ///
    /// # Safety
    /// The machine must have AVX2.
    #[cfg(target_arch = "x86_64")]
    #[expect(unsafe_code, reason = "vector instructions")]
    unsafe fn load(lanes: &[Self; LANES]) -> avx2::Vectors;
}

/// Adds the product of `rows` and `panels` to `accumulators`. All rows and panels must have the length of the first
/// row.
pub(super) fn tile<E: Element, const R: usize, const P: usize>(
    isa: Isa,
    rows: [&[f32]; R],
    panels: [&[[E; LANES]]; P],
    accumulators: &mut [[Lanes; P]; R],
) {
    match isa {
        Isa::Portable => portable(rows, panels, accumulators),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2(found) => found.tile(rows, panels, accumulators),
    }
}

fn portable<E: Element, const R: usize, const P: usize>(
    rows: [&[f32]; R],
    panels: [&[[E; LANES]]; P],
    accumulators: &mut [[Lanes; P]; R],
) {
    let depth = rows.first().map_or(0, |row| row.len());
    for k in 0..depth {
        for (p, panel) in panels.iter().enumerate() {
            let right = panel[k].map(Element::widen);
            for (row, sums) in rows.iter().zip(accumulators.iter_mut()) {
                let left = row[k];
                for (sum, right) in sums[p].iter_mut().zip(right) {
                    *sum += left * right;
                }
            }
        }
    }
}

/// Turns scores into weights relative to `max`, `exp(score - max)`, and returns their sum.
pub(super) fn weigh(isa: Isa, scores: &mut Lanes, max: f32) -> f32 {
    match isa {
        Isa::Portable => weigh_body(scores, max),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2(found) => found.weigh(scores, max),
    }
}

/// Compiled once for each version.
#[inline(always)]
#[expect(
    clippy::inline_always,
    reason = "it must take on its caller's instruction set"
)]
fn weigh_body(scores: &mut Lanes, max: f32) -> f32 {
    for score in scores.iter_mut() {
        *score = exp(*score - max);
    }
    reduce(scores, |a, b| a + b)
}

/// Combines 16 values pairwise, in an order that is always the same.
#[inline(always)]
#[expect(
    clippy::inline_always,
    reason = "it must take on its caller's instruction set"
)]
pub(super) fn reduce(lanes: &Lanes, combine: impl Fn(f32, f32) -> f32) -> f32 {
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

impl Element for f32 {
    fn widen(self) -> f32 {
        self
    }

    #[cfg(target_arch = "x86_64")]
    #[expect(unsafe_code, reason = "vector instructions")]
    #[target_feature(enable = "avx2")]
    unsafe fn load(lanes: &[Self; LANES]) -> avx2::Vectors {
        avx2::load_f32(lanes)
    }
}

impl Element for bf16 {
    fn widen(self) -> f32 {
        // Not `to_f32`, which treats NaN apart: a bf16 is the upper half of an f32.
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }

    #[cfg(target_arch = "x86_64")]
    #[expect(unsafe_code, reason = "vector instructions")]
    #[target_feature(enable = "avx2")]
    unsafe fn load(lanes: &[Self; LANES]) -> avx2::Vectors {
        avx2::load_bf16(lanes)
    }
}

#[cfg(target_arch = "x86_64")]
pub(super) mod avx2 {
    //! The AVX2 version.

    #![expect(
        unsafe_code,
        reason = "vector instructions that only some machines have"
    )]

    use std::arch::x86_64::{
        __m256, __m256i, _mm256_castsi256_ps, _mm256_castsi256_si128, _mm256_cvtepu16_epi32,
        _mm256_extracti128_si256, _mm256_fmadd_ps, _mm256_set1_ps, _mm256_slli_epi32,
    };
    use std::mem::transmute;

    use half::bf16;

    use super::{Element, LANES, Lanes, weigh_body};

    /// 16 elements.
    pub(in super::super) type Vectors = [__m256; 2];

    /// Proof that the machine has AVX2 and FMA: only detection makes one.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(in super::super) struct Found(());

    impl Found {
        pub(super) fn detect() -> Option<Self> {
            let found = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
            found.then_some(Self(()))
        }

        #[expect(clippy::unused_self, reason = "having one is the proof")]
        pub(super) fn tile<E: Element, const R: usize, const P: usize>(
            self,
            rows: [&[f32]; R],
            panels: [&[[E; LANES]]; P],
            accumulators: &mut [[Lanes; P]; R],
        ) {
            // SAFETY: `self` exists, so the machine has the features.
            unsafe { tile(rows, panels, accumulators) }
        }

        #[expect(clippy::unused_self, reason = "having one is the proof")]
        pub(super) fn weigh(self, scores: &mut Lanes, max: f32) -> f32 {
            // SAFETY: as above.
            unsafe { weigh(scores, max) }
        }
    }

    #[target_feature(enable = "avx2,fma")]
    fn tile<E: Element, const R: usize, const P: usize>(
        rows: [&[f32]; R],
        panels: [&[[E; LANES]]; P],
        accumulators: &mut [[Lanes; P]; R],
    ) {
        let depth = rows.first().map_or(0, |row| row.len());
        // Equal lengths, visible here, let the compiler drop the bounds checks in the loop. (`array::map` hides them.)
        let (mut lefts, mut rights) = (rows, panels);
        for left in &mut lefts {
            *left = &left[..depth];
        }
        for right in &mut rights {
            *right = &right[..depth];
        }
        let mut sums = [[load_f32(&[0.0; LANES]); P]; R];
        for (sums, accumulators) in sums.iter_mut().zip(accumulators.iter()) {
            for (sum, lanes) in sums.iter_mut().zip(accumulators) {
                *sum = load_f32(lanes);
            }
        }
        for k in 0..depth {
            for p in 0..P {
                // SAFETY: this function has the feature that `load` asks for.
                let [low, high] = unsafe { E::load(&rights[p][k]) };
                for r in 0..R {
                    let left = _mm256_set1_ps(lefts[r][k]);
                    let [sum_low, sum_high] = sums[r][p];
                    sums[r][p] = [
                        _mm256_fmadd_ps(left, low, sum_low),
                        _mm256_fmadd_ps(left, high, sum_high),
                    ];
                }
            }
        }
        for (accumulators, sums) in accumulators.iter_mut().zip(sums) {
            for (lanes, sum) in accumulators.iter_mut().zip(sums) {
                // SAFETY: two vectors of 8 floats and 16 floats have the same bytes, and any bytes are floats.
                *lanes = unsafe { transmute::<Vectors, Lanes>(sum) };
            }
        }
    }

    /// See [`super::weigh`].
    #[target_feature(enable = "avx2,fma")]
    fn weigh(scores: &mut Lanes, max: f32) -> f32 {
        weigh_body(scores, max)
    }

    // The loads below copy values and reinterpret them. The load instructions' own functions go through memory with
    // extra checks in builds with debug assertions, and compile to the same single instruction in others.

    #[target_feature(enable = "avx2")]
    #[inline]
    pub(super) fn load_f32(lanes: &Lanes) -> Vectors {
        // SAFETY: 16 floats and two vectors of 8 floats have the same bytes, and any bytes are vectors.
        unsafe { transmute::<Lanes, Vectors>(*lanes) }
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    pub(super) fn load_bf16(lanes: &[bf16; LANES]) -> Vectors {
        // SAFETY: 16 numbers of 16 bits and one vector have the same bytes, and any bytes are a vector.
        let raw = unsafe { transmute::<[bf16; LANES], __m256i>(*lanes) };
        let widen =
            |half| _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(half)));
        let low = widen(_mm256_castsi256_si128(raw));
        [low, widen(_mm256_extracti128_si256::<1>(raw))]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(count: usize, seed: u32) -> Vec<f32> {
        let hash = |i: u32| (i + seed).wrapping_mul(0x9e37_79b9) >> 8;
        (0..count as u32)
            .map(|i| hash(i) as f32 / (1 << 23) as f32 - 1.0)
            .collect()
    }

    /// Both versions against a sum in f64, for one tile shape.
    fn check<const R: usize, const P: usize>(isa: Isa, depth: usize) {
        let left = numbers(R * depth, 1);
        let right = numbers(P * depth * LANES, 2);
        let panels: Vec<Lanes> = right
            .chunks_exact(LANES)
            .map(|c| c.try_into().unwrap())
            .collect();
        let narrow: Vec<[bf16; LANES]> = panels.iter().map(|l| l.map(bf16::from_f32)).collect();
        let rows: [&[f32]; R] = std::array::from_fn(|r| &left[r * depth..(r + 1) * depth]);
        let mut wide_sums = [[[0.5; LANES]; P]; R];
        let mut narrow_sums = wide_sums;
        let of = |p: usize| p * depth..(p + 1) * depth;
        tile(
            isa,
            rows,
            std::array::from_fn(|p| &panels[of(p)]),
            &mut wide_sums,
        );
        tile(
            isa,
            rows,
            std::array::from_fn(|p| &narrow[of(p)]),
            &mut narrow_sums,
        );
        for (r, row) in rows.iter().enumerate() {
            for p in 0..P {
                for l in 0..LANES {
                    let sum = |get: &dyn Fn(usize) -> f32| {
                        0.5 + (0..depth)
                            .map(|k| f64::from(row[k]) * f64::from(get(k)))
                            .sum::<f64>()
                    };
                    let wide = sum(&|k| panels[p * depth + k][l]);
                    let narrow = sum(&|k| narrow[p * depth + k][l].to_f32());
                    assert!((f64::from(wide_sums[r][p][l]) - wide).abs() < 1e-4);
                    assert!((f64::from(narrow_sums[r][p][l]) - narrow).abs() < 1e-4);
                }
            }
        }
    }

    #[test]
    fn tiles_match_a_plain_sum() {
        for isa in [Isa::detect(), Isa::Portable] {
            for depth in [0, 1, 7, 64, 129] {
                check::<1, 1>(isa, depth);
                check::<1, 4>(isa, depth);
                check::<2, 2>(isa, depth);
                check::<6, 1>(isa, depth);
            }
        }
    }

    #[test]
    fn a_row_is_the_same_in_every_tile() {
        let depth = 77;
        let isa = Isa::detect();
        let left = numbers(6 * depth, 3);
        let panel: Vec<Lanes> = numbers(depth * LANES, 4)
            .chunks_exact(LANES)
            .map(|c| c.try_into().unwrap())
            .collect();
        let rows: [&[f32]; 6] = std::array::from_fn(|r| &left[r * depth..(r + 1) * depth]);
        let mut together = [[[0.0; LANES]]; 6];
        tile(isa, rows, [&panel], &mut together);
        for (row, together) in rows.into_iter().zip(together) {
            let mut alone = [[[0.0; LANES]]];
            tile(isa, [row], [&panel], &mut alone);
            assert_eq!(alone[0], together);
        }
    }
}
