//! The AVX-512 version: a panel's row is one vector.

#![expect(
    unsafe_code,
    reason = "vector instructions that only some machines have"
)]

use std::arch::x86_64::{
    __m128i, __m512, __m512i, _MM_HINT_T0, _mm_prefetch, _mm512_and_si512, _mm512_castsi512_ps,
    _mm512_cvtepi8_epi32, _mm512_cvtepi32_ps, _mm512_fmadd_ps, _mm512_set1_epi32, _mm512_set1_ps,
    _mm512_setzero_ps, _mm512_slli_epi32,
};
use std::mem::transmute;

use super::{Lanes, Left, Packed, Pairs, Product, Quants, Softmax, weigh_body};

/// 16 elements.
pub(in super::super) type Vector = __m512;

/// Proof that the machine has AVX-512 F: only detection makes one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) struct Found(());

impl Found {
    pub(super) fn detect() -> Option<Self> {
        let found = is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("fma");
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

#[target_feature(enable = "avx512f,fma")]
#[expect(
    clippy::needless_range_loop,
    reason = "with numbers everywhere the compiler unrolls all loops but the one over items"
)]
fn tile<W: Packed, L: Left<R>, const R: usize, const P: usize>(
    products: &[Product<'_, L, W, P>],
    accumulators: &mut [[Lanes; R]; P],
) {
    let mut sums = [[_mm512_setzero_ps(); R]; P];
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
            for ahead in ahead {
                // Wherever that is, asking for it is harmless.
                _mm_prefetch::<_MM_HINT_T0>(ahead.wrapping_add(item).cast());
            }
            for step in 0..W::DEPTH {
                let mut columns = [_mm512_setzero_ps(); P];
                for (columns, right) in columns.iter_mut().zip(&rights) {
                    // SAFETY: this function has the feature that `avx512` asks for.
                    *columns = unsafe { right[item].avx512(step) };
                }
                for r in 0..R {
                    let left = _mm512_set1_ps(left.at(item * W::DEPTH + step, r));
                    for p in 0..P {
                        sums[p][r] = _mm512_fmadd_ps(left, columns[p], sums[p][r]);
                    }
                }
            }
        }
    }
    for (accumulators, sums) in accumulators.iter_mut().zip(sums) {
        for (lanes, sum) in accumulators.iter_mut().zip(sums) {
            // SAFETY: a vector of 16 floats and 16 floats have the same bytes, and any bytes are floats.
            *lanes = unsafe { transmute::<Vector, Lanes>(sum) };
        }
    }
}

/// See [`super::weigh`].
#[target_feature(enable = "avx512f,fma")]
fn weigh<const R: usize>(scores: &mut [[Lanes; R]], softmax: &mut Softmax<R>) {
    weigh_body(scores, softmax);
}

// The loads below copy values and reinterpret them. The load instructions' own functions go through memory with
// extra checks in builds with debug assertions, and compile to the same single instruction in others.

#[target_feature(enable = "avx512f")]
#[inline]
pub(super) fn load(lanes: &Lanes) -> Vector {
    // SAFETY: 16 floats and a vector of 16 floats have the same bytes, and any bytes are a vector.
    unsafe { transmute::<Lanes, Vector>(*lanes) }
}

#[target_feature(enable = "avx512f")]
#[inline]
pub(super) fn widen_pairs(pairs: &Pairs, step: usize) -> Vector {
    // SAFETY: 16 numbers of 32 bits and one vector have the same bytes, and any bytes are a vector.
    let raw = unsafe { transmute::<Pairs, __m512i>(*pairs) };
    _mm512_castsi512_ps(if step == 0 {
        _mm512_slli_epi32::<16>(raw)
    } else {
        _mm512_and_si512(raw, _mm512_set1_epi32(-0x1_0000))
    })
}

#[target_feature(enable = "avx512f")]
#[inline]
pub(super) fn widen_quants(quants: &Quants) -> Vector {
    // SAFETY: 16 bytes and one short vector have the same bytes, and any bytes are a vector.
    let raw = unsafe { transmute::<Quants, __m128i>(*quants) };
    _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(raw))
}
