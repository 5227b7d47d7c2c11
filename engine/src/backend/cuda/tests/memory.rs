//! Arrays that kernels are given: aligned, between guards, NaN where nothing was written; and random numbers.

use half::{bf16, f16};

use super::super::kernels::Address;
use super::on_gpu::Units;

const GUARD: usize = 64;
const POISON: u8 = 0xff;

/// An array of T between guards.
pub(super) struct Array<T> {
    /// 16-byte units, so that it is aligned.
    memory: Units,
    length: usize,
    element: std::marker::PhantomData<T>,
}

impl<T: bytemuck::Pod> Array<T> {
    /// NaN, if T has one.
    pub(super) fn poisoned(length: usize) -> Self {
        let bytes = length * size_of::<T>() + 2 * GUARD;
        let unit = u128::from_ne_bytes([POISON; 16]);
        Self {
            memory: Units::filled(unit, bytes.div_ceil(16)),
            length,
            element: std::marker::PhantomData,
        }
    }

    pub(super) fn of(values: &[T]) -> Self {
        let mut array = Self::poisoned(values.len());
        array.values_mut().copy_from_slice(values);
        array
    }

    pub(super) fn address(&self) -> Address {
        self.memory.as_ptr().expose_provenance() as u64 + GUARD as u64
    }

    pub(super) fn values_mut(&mut self) -> &mut [T] {
        let end = GUARD + self.length * size_of::<T>();
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut self.memory);
        bytemuck::cast_slice_mut(&mut bytes[GUARD..end])
    }

    /// The values; fails if a guard was written.
    pub(super) fn values(&self) -> &[T] {
        let bytes: &[u8] = bytemuck::cast_slice(&self.memory);
        let end = GUARD + self.length * size_of::<T>();
        let guards = bytes[..GUARD].iter().chain(&bytes[end..]);
        assert!(
            guards.into_iter().all(|byte| *byte == POISON),
            "written outside of an array"
        );
        bytemuck::cast_slice(&bytes[GUARD..end])
    }
}

/// The two types of activations.
pub(super) trait Element: bytemuck::Pod {
    const NAME: &str;
    /// Half a unit in the last place, relative.
    const EPSILON: f64;
    fn from_f64(x: f64) -> Self;
    fn to_f64(self) -> f64;
}

impl Element for bf16 {
    const NAME: &str = "bf16";
    const EPSILON: f64 = 1.0 / 256.0;
    fn from_f64(x: f64) -> Self {
        Self::from_f64(x)
    }
    fn to_f64(self) -> f64 {
        Self::to_f64(self)
    }
}

impl Element for f16 {
    const NAME: &str = "f16";
    const EPSILON: f64 = 1.0 / 2048.0;
    fn from_f64(x: f64) -> Self {
        Self::from_f64(x)
    }
    fn to_f64(self) -> f64 {
        Self::to_f64(self)
    }
}

pub(super) fn wide<T: Element>(values: &[T]) -> Vec<f64> {
    values.iter().map(|value| value.to_f64()).collect()
}

/// SplitMix64: enough for shapes and values of tests.
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ x >> 31
    }

    /// From `low` to `high`, both included.
    pub(super) fn between(&mut self, low: usize, high: usize) -> usize {
        low + (self.next() % (high - low + 1) as u64) as usize
    }

    pub(super) fn one_of<T: Copy>(&mut self, values: &[T]) -> T {
        values[self.between(0, values.len() - 1)]
    }

    /// From -1 to 1.
    pub(super) fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 52) as f64 - 1.0
    }

    pub(super) fn values<T: Element>(&mut self, count: usize, size: f64) -> Vec<T> {
        (0..count)
            .map(|_| T::from_f64(self.unit() * size))
            .collect()
    }

    pub(super) fn chance(&mut self, percent: u64) -> bool {
        self.next() % 100 < percent
    }
}

/// Fails unless each value is within the tolerances of what it should be.
pub(super) fn assert_close(
    found: &[f64],
    expected: &[f64],
    relative: f64,
    absolute: f64,
    what: &str,
) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (index, (found, expected)) in found.iter().zip(expected).enumerate() {
        let allowed = expected.abs() * relative + absolute;
        assert!(
            (found - expected).abs() <= allowed,
            "{what}: element {index} is {found}, not {expected} (within {allowed:e})"
        );
    }
}
