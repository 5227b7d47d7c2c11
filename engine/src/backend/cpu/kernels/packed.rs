//! What panels are made of: f32, pairs of bf16, and 8-bit integers.
//!
//! Two bf16 that follow each other along `k` share 32 bits. A bf16 is the upper half of an f32, so one shift and one
//! mask turn 16 such pairs into two vectors; lanes that hold one bf16 each would have to be spread first.

use super::{LANES, Lanes};
#[cfg(target_arch = "x86_64")]
use super::{avx2, avx512};

/// 16 columns of two inputs: bf16, the earlier input in the lower half.
pub(in super::super) type Pairs = [u32; LANES];

/// 16 columns of one input, as integers. Each column has a scale of its own, which the caller applies.
pub(in super::super) type Quants = [i8; LANES];

const UPPER: u32 = 0xffff_0000;

/// One item of a panel: 16 columns of `DEPTH` inputs.
pub(in super::super) trait Packed: bytemuck::Pod + Send + Sync {
    /// Inputs in an item.
    const DEPTH: usize;

    /// The values of input `step` of the item.
    fn widen(&self, step: usize) -> Lanes;

    /// The same as two vectors.
    ///
    /// # Safety
    /// The machine must have AVX2.
    #[cfg(target_arch = "x86_64")]
    #[expect(unsafe_code, reason = "vector instructions")]
    unsafe fn avx2(&self, step: usize) -> avx2::Vectors;

    /// The same as one vector.
    ///
    /// # Safety
    /// The machine must have AVX-512 F.
    #[cfg(target_arch = "x86_64")]
    #[expect(unsafe_code, reason = "vector instructions")]
    unsafe fn avx512(&self, step: usize) -> avx512::Vector;
}

impl Packed for Lanes {
    const DEPTH: usize = 1;

    fn widen(&self, _: usize) -> Lanes {
        *self
    }

    #[cfg(target_arch = "x86_64")]
    #[expect(unsafe_code, reason = "vector instructions")]
    #[target_feature(enable = "avx2")]
    #[inline]
    unsafe fn avx2(&self, _: usize) -> avx2::Vectors {
        avx2::load(self)
    }

    #[cfg(target_arch = "x86_64")]
    #[expect(unsafe_code, reason = "vector instructions")]
    #[target_feature(enable = "avx512f")]
    #[inline]
    unsafe fn avx512(&self, _: usize) -> avx512::Vector {
        avx512::load(self)
    }
}

impl Packed for Pairs {
    const DEPTH: usize = 2;

    fn widen(&self, step: usize) -> Lanes {
        self.map(|pair| f32::from_bits(if step == 0 { pair << 16 } else { pair & UPPER }))
    }

    #[cfg(target_arch = "x86_64")]
    #[expect(unsafe_code, reason = "vector instructions")]
    #[target_feature(enable = "avx2")]
    #[inline]
    unsafe fn avx2(&self, step: usize) -> avx2::Vectors {
        avx2::widen_pairs(self, step)
    }

    #[cfg(target_arch = "x86_64")]
    #[expect(unsafe_code, reason = "vector instructions")]
    #[target_feature(enable = "avx512f")]
    #[inline]
    unsafe fn avx512(&self, step: usize) -> avx512::Vector {
        avx512::widen_pairs(self, step)
    }
}

impl Packed for Quants {
    const DEPTH: usize = 1;

    fn widen(&self, _: usize) -> Lanes {
        self.map(f32::from)
    }

    #[cfg(target_arch = "x86_64")]
    #[expect(unsafe_code, reason = "vector instructions")]
    #[target_feature(enable = "avx2")]
    #[inline]
    unsafe fn avx2(&self, _: usize) -> avx2::Vectors {
        avx2::widen_quants(self)
    }

    #[cfg(target_arch = "x86_64")]
    #[expect(unsafe_code, reason = "vector instructions")]
    #[target_feature(enable = "avx512f")]
    #[inline]
    unsafe fn avx512(&self, _: usize) -> avx512::Vector {
        avx512::widen_quants(self)
    }
}
