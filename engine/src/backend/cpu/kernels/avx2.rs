//! The AVX2 version: a panel's row is two vectors.

#![expect(
    unsafe_code,
    reason = "vector instructions that only some machines have"
)]

use std::arch::x86_64::{
    __m128i, __m256, __m256i, _MM_HINT_T0, _mm_prefetch, _mm_unpackhi_epi64, _mm256_and_si256,
    _mm256_castsi256_ps, _mm256_cvtepi8_epi32, _mm256_cvtepi32_ps, _mm256_fmadd_ps,
    _mm256_set1_epi32, _mm256_set1_ps, _mm256_setzero_ps, _mm256_slli_epi32,
};
use std::mem::transmute;

use super::{Lanes, Left, Packed, Pairs, Product, Quants, Softmax, weigh_body};

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
    #[inline]
    pub(super) fn tile<W: Packed, L: Left<R>, const R: usize, const P: usize>(
        self,
        products: &[Product<'_, L, W, P>],
        accumulators: &mut [[Lanes; R]; P],
    ) {
        // SAFETY: `self` exists, so the machine has the features.
        unsafe { tile(products, accumulators) }
    }

    #[expect(clippy::unused_self, reason = "having one is the proof")]
    #[inline]
    pub(super) fn weigh<const R: usize>(self, scores: &mut [[Lanes; R]], softmax: &mut Softmax<R>) {
        // SAFETY: as above.
        unsafe { weigh(scores, softmax) }
    }
}

#[target_feature(enable = "avx2,fma")]
#[expect(
    clippy::needless_range_loop,
    reason = "with numbers everywhere the compiler unrolls all loops but the one over items"
)]
fn tile<W: Packed, L: Left<R>, const R: usize, const P: usize>(
    products: &[Product<'_, L, W, P>],
    accumulators: &mut [[Lanes; R]; P],
) {
    let mut sums = [[[_mm256_setzero_ps(); 2]; R]; P];
    for (sums, accumulators) in sums.iter_mut().zip(accumulators.iter()) {
        for (sum, lanes) in sums.iter_mut().zip(accumulators) {
            *sum = load(lanes);
        }
    }
    for Product {
        left,
        panels,
        ahead,
    } in products
    {
        let items = left.depth() / W::DEPTH;
        // Equal lengths, visible here, let the compiler drop the bounds checks in the loop. (`array::map` hides them.)
        let mut rights = *panels;
        for right in &mut rights {
            *right = &right[..items];
        }
        for item in 0..items {
            for p in 0..P {
                // Wherever that is, asking for it is harmless.
                _mm_prefetch::<_MM_HINT_T0>(ahead[p].wrapping_add(item).cast());
                for step in 0..W::DEPTH {
                    // SAFETY: this function has the feature that `avx2` asks for.
                    let [low, high] = unsafe { rights[p][item].avx2(step) };
                    for r in 0..R {
                        let left = _mm256_set1_ps(left.at(item * W::DEPTH + step, r));
                        let [sum_low, sum_high] = sums[p][r];
                        sums[p][r] = [
                            _mm256_fmadd_ps(left, low, sum_low),
                            _mm256_fmadd_ps(left, high, sum_high),
                        ];
                    }
                }
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
fn weigh<const R: usize>(scores: &mut [[Lanes; R]], softmax: &mut Softmax<R>) {
    weigh_body(scores, softmax);
}

// The loads below copy values and reinterpret them. The load instructions' own functions go through memory with
// extra checks in builds with debug assertions, and compile to the same single instruction in others.

#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn load(lanes: &Lanes) -> Vectors {
    // SAFETY: 16 floats and two vectors of 8 floats have the same bytes, and any bytes are vectors.
    unsafe { transmute::<Lanes, Vectors>(*lanes) }
}

#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn widen_pairs(pairs: &Pairs, step: usize) -> Vectors {
    // SAFETY: 16 numbers of 32 bits and two vectors have the same bytes, and any bytes are vectors.
    let [low, high] = unsafe { transmute::<Pairs, [__m256i; 2]>(*pairs) };
    let upper = _mm256_set1_epi32(-0x1_0000);
    if step == 0 {
        [
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(low)),
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(high)),
        ]
    } else {
        [
            _mm256_castsi256_ps(_mm256_and_si256(low, upper)),
            _mm256_castsi256_ps(_mm256_and_si256(high, upper)),
        ]
    }
}

#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn widen_quants(quants: &Quants) -> Vectors {
    // SAFETY: 16 bytes and one short vector have the same bytes, and any bytes are a vector.
    let raw = unsafe { transmute::<Quants, __m128i>(*quants) };
    [
        _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(raw)),
        _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_unpackhi_epi64(raw, raw))),
    ]
}
