//! A scheduling profile: which filters, which scorers with which weights, and one picker.

use super::filters::HealthyFilter;
use super::pickers::MaxScorePicker;
use super::plugin::{Filter, Picker, Scorer};
use super::scorers::{KvCacheUtilizationScorer, PrefixCacheScorer, QueueScorer};

/// A scorer and how much it counts.
#[derive(Debug)]
pub struct WeightedScorer {
    pub scorer: Box<dyn Scorer>,
    pub weight: f32,
}

/// An ordered set of plugins.
#[derive(Debug)]
pub struct Profile {
    pub filters: Vec<Box<dyn Filter>>,
    pub scorers: Vec<WeightedScorer>,
    pub picker: Box<dyn Picker>,
    /// Endpoints returned beyond the first, for gateways that retry along a list. Gateways that
    /// take a single destination need 0.
    pub fallback_endpoints: usize,
}

impl Profile {
    /// A profile of only a picker.
    pub fn new(picker: Box<dyn Picker>) -> Self {
        Self {
            filters: Vec::new(),
            scorers: Vec::new(),
            picker,
            fallback_endpoints: 0,
        }
    }

    /// The field's policy without configuration: queue 2, KV usage 2, prefix 3, highest score wins.
    /// Endpoints that do not answer are kept out by our own filter.
    pub fn field_default() -> Self {
        Self::new(Box::new(MaxScorePicker::default()))
            .with_filter(Box::new(HealthyFilter::default()))
            .with_scorer(Box::new(QueueScorer::default()), 2.0)
            .with_scorer(Box::new(KvCacheUtilizationScorer::default()), 2.0)
            .with_scorer(Box::new(PrefixCacheScorer::default()), 3.0)
    }

    /// Adds a filter after those present.
    #[must_use]
    pub fn with_filter(mut self, filter: Box<dyn Filter>) -> Self {
        self.filters.push(filter);
        self
    }

    /// Adds a scorer. Weights are not normalised: the field adds weighted scores as they are.
    #[must_use]
    pub fn with_scorer(mut self, scorer: Box<dyn Scorer>, weight: f32) -> Self {
        self.scorers.push(WeightedScorer { scorer, weight });
        self
    }

    /// Returns this many endpoints beyond the first.
    #[must_use]
    pub fn with_fallback_endpoints(mut self, count: usize) -> Self {
        self.fallback_endpoints = count;
        self
    }

    /// How many endpoints a decision of this profile holds at most.
    pub fn endpoints(&self) -> usize {
        self.picker.endpoints().max(1 + self.fallback_endpoints)
    }
}
