//! The numbers behind the page: counters, gauges, histograms and summaries that are written without a lock and
//! without taking memory, because the engine thread writes them between two steps.
//!
//! A histogram counts a sample in its bucket as it comes, so nothing piles up between two scrapes and a scrape has
//! nothing to fold. The number of samples is the sum of the buckets: a page that is read while samples come in never
//! shows a count that its buckets do not add up to.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A number that only grows. Clones are the same counter.
#[derive(Clone, Debug, Default)]
pub struct Counter(Arc<AtomicU64>);

impl Counter {
    /// Adds `count`.
    pub fn increment(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    /// Sets the counter to a total that is kept elsewhere; it never goes back.
    pub fn absolute(&self, total: u64) {
        self.0.fetch_max(total, Ordering::Relaxed);
    }

    /// The count so far.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A number that goes up and down. Clones are the same gauge.
#[derive(Clone, Debug, Default)]
pub struct Gauge(Arc<AtomicU64>);

impl Gauge {
    /// Sets the value.
    pub fn set(&self, value: f64) {
        self.0.store(value.to_bits(), Ordering::Relaxed);
    }

    /// The value last set, 0 at first.
    pub fn get(&self) -> f64 {
        f64::from_bits(self.0.load(Ordering::Relaxed))
    }
}

/// Samples by size. Clones are the same histogram.
#[derive(Clone, Debug)]
pub struct Histogram(Arc<Buckets>);

#[derive(Debug)]
struct Buckets {
    /// Upper bounds, ascending; a sample belongs to the first that is not below it.
    bounds: Box<[f64]>,
    /// Samples in each bucket alone; one more than there are bounds.
    counts: Box<[AtomicU64]>,
    sum: Sum,
}

impl Histogram {
    /// An empty histogram with these upper bounds, which must ascend.
    pub fn new(bounds: &[f64]) -> Self {
        debug_assert!(bounds.is_sorted(), "bounds must ascend: {bounds:?}");
        Self(Arc::new(Buckets {
            bounds: bounds.into(),
            counts: (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect(),
            sum: Sum::default(),
        }))
    }

    /// Counts a sample.
    pub fn record(&self, sample: f64) {
        let bucket = self.0.bounds.partition_point(|bound| *bound < sample);
        if let Some(count) = self.0.counts.get(bucket) {
            count.fetch_add(1, Ordering::Relaxed);
            self.0.sum.add(sample);
        }
    }

    /// The samples of each bucket and all below it; the last number is that of all samples.
    pub(super) fn cumulative(&self) -> impl Iterator<Item = u64> {
        self.0.counts.iter().scan(0, |sum, count| {
            *sum += count.load(Ordering::Relaxed);
            Some(*sum)
        })
    }

    pub(super) fn sum(&self) -> f64 {
        self.0.sum.get()
    }
}

/// How many samples there were and what they add up to. Clones are the same summary.
#[derive(Clone, Debug, Default)]
pub struct Summary(Arc<(AtomicU64, Sum)>);

impl Summary {
    /// Counts a sample.
    pub fn record(&self, sample: f64) {
        self.0.0.fetch_add(1, Ordering::Relaxed);
        self.0.1.add(sample);
    }

    pub(super) fn count(&self) -> u64 {
        self.0.0.load(Ordering::Relaxed)
    }

    pub(super) fn sum(&self) -> f64 {
        self.0.1.get()
    }
}

/// A float that several threads add to.
#[derive(Debug, Default)]
struct Sum(AtomicU64);

impl Sum {
    fn add(&self, sample: f64) {
        let add = |bits| Some((f64::from_bits(bits) + sample).to_bits());
        // It retries until it is through, so there is no failure to see.
        let _ = self
            .0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
    }

    fn get(&self) -> f64 {
        f64::from_bits(self.0.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_on_a_bound_belongs_below_it() {
        let histogram = Histogram::new(&[1.0, 2.0]);
        for sample in [0.5, 1.0, 1.5, 2.0, 7.0] {
            histogram.record(sample);
        }
        assert_eq!(histogram.cumulative().collect::<Vec<_>>(), [2, 4, 5]);
        assert_eq!(histogram.sum().to_bits(), 12.0_f64.to_bits());
    }

    #[test]
    fn no_sample_is_lost_between_threads() {
        let histogram = Histogram::new(&[1.0]);
        let summary = Summary::default();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..1000 {
                        histogram.record(1.0);
                        summary.record(2.0);
                    }
                });
            }
        });
        assert_eq!(histogram.cumulative().last(), Some(4000));
        assert_eq!(histogram.sum().to_bits(), 4000.0_f64.to_bits());
        assert_eq!(summary.count(), 4000);
        assert_eq!(summary.sum().to_bits(), 8000.0_f64.to_bits());
    }

    #[test]
    fn a_total_never_goes_back() {
        let counter = Counter::default();
        counter.absolute(5);
        counter.absolute(3);
        counter.increment(1);
        assert_eq!(counter.get(), 6);
    }
}
