//! The three kinds of measured value: counter, gauge, histogram. Each is a handful of atomics that
//! any thread may touch at any time; a reading may mix two moments, which a scrape every few
//! seconds cannot tell.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};

/// A count that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    pub fn increment(&self, by: u64) {
        self.0.fetch_add(by, Relaxed);
    }

    /// Takes over a count that is kept elsewhere.
    pub fn set(&self, count: u64) {
        self.0.store(count, Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// How many of something there are now. Clones count in the same place.
#[derive(Clone, Debug, Default)]
pub struct Gauge(Arc<AtomicI64>);

impl Gauge {
    pub fn increment(&self) {
        self.0.fetch_add(1, Relaxed);
    }

    pub fn decrement(&self) {
        self.0.fetch_sub(1, Relaxed);
    }

    pub fn get(&self) -> i64 {
        self.0.load(Relaxed)
    }
}

/// The last of a measurement, or nothing yet.
#[derive(Debug)]
pub struct Last(AtomicU64);

/// A bit pattern of a number that is not one: nothing was measured.
const NOTHING: u64 = u64::MAX;

impl Default for Last {
    fn default() -> Self {
        Self(AtomicU64::new(NOTHING))
    }
}

impl Last {
    pub fn set(&self, value: f64) {
        self.0.store(value.to_bits(), Relaxed);
    }

    pub fn get(&self) -> Option<f64> {
        let bits = self.0.load(Relaxed);
        (bits != NOTHING).then(|| f64::from_bits(bits))
    }
}

/// How values are spread over fixed buckets.
#[derive(Debug)]
pub struct Histogram {
    /// Upper bounds, inclusive and ascending.
    bounds: &'static [f64],
    /// One for each bound and one for what lies above all. Not cumulative: a value touches one.
    counts: Box<[AtomicU64]>,
    sum_bits: AtomicU64,
}

impl Histogram {
    pub fn new(bounds: &'static [f64]) -> Self {
        Self {
            bounds,
            counts: (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect(),
            sum_bits: AtomicU64::new(0),
        }
    }

    /// Takes a value in. What is not a number is left out: it would spoil the sum for good.
    pub fn record(&self, value: f64) {
        if value.is_nan() {
            return;
        }
        let bucket = self.bounds.partition_point(|bound| *bound < value);
        if let Some(count) = self.counts.get(bucket) {
            count.fetch_add(1, Relaxed);
        }
        let mut seen = self.sum_bits.load(Relaxed);
        loop {
            let sum = (f64::from_bits(seen) + value).to_bits();
            match self
                .sum_bits
                .compare_exchange_weak(seen, sum, Relaxed, Relaxed)
            {
                Ok(_) => return,
                Err(changed) => seen = changed,
            }
        }
    }

    /// How many values were taken in.
    pub fn count(&self) -> u64 {
        self.counts.iter().map(|count| count.load(Relaxed)).sum()
    }

    pub fn sum(&self) -> f64 {
        f64::from_bits(self.sum_bits.load(Relaxed))
    }

    pub(super) fn bounds(&self) -> &'static [f64] {
        self.bounds
    }

    /// Adds its counts, bucket by bucket, and its sum.
    pub(super) fn add_to(&self, counts: &mut Vec<u64>, sum: &mut f64) {
        counts.resize(self.counts.len().max(counts.len()), 0);
        for (total, count) in counts.iter_mut().zip(&self.counts) {
            *total += count.load(Relaxed);
        }
        *sum += self.sum();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BOUNDS: &[f64] = &[0.0, 1.0, 2.5, 10.0];

    proptest! {
        /// A bucket holds what is at most its bound and more than the one before.
        #[test]
        fn buckets_hold_what_they_say(values in prop::collection::vec(-2.0..20.0, 0..60)) {
            let histogram = Histogram::new(BOUNDS);
            for value in &values {
                histogram.record(*value);
            }
            let (mut counts, mut sum) = (Vec::new(), 0.0);
            histogram.add_to(&mut counts, &mut sum);
            let mut below = 0;
            for (bound, count) in BOUNDS.iter().zip(&counts) {
                below += count;
                prop_assert_eq!(below, values.iter().filter(|value| *value <= bound).count() as u64);
            }
            prop_assert_eq!(histogram.count(), values.len() as u64);
            prop_assert!((sum - values.iter().sum::<f64>()).abs() < 1e-9);
        }
    }

    #[test]
    fn a_value_on_a_bound_is_in_its_bucket_and_what_is_no_number_in_none() {
        let histogram = Histogram::new(BOUNDS);
        histogram.record(2.5);
        histogram.record(f64::NAN);
        histogram.record(f64::INFINITY);
        let (mut counts, mut sum) = (Vec::new(), 0.0);
        histogram.add_to(&mut counts, &mut sum);
        assert_eq!(counts, [0, 0, 1, 0, 1]);
    }

    #[test]
    fn the_last_value_is_nothing_before_the_first() {
        let last = Last::default();
        assert_eq!(last.get(), None);
        last.set(0.5);
        assert_eq!(last.get(), Some(0.5));
    }
}
