//! Scorers: each rates the candidates from 0 to 1 by one criterion.

pub mod kv_cache_utilization;
pub mod latency;
mod min_max;
pub mod prefix_cache;
pub mod queue;
pub mod running_requests;

pub use kv_cache_utilization::KvCacheUtilizationScorer;
pub use prefix_cache::PrefixCacheScorer;
pub use queue::QueueScorer;
pub use running_requests::RunningRequestsScorer;

use super::plugin::{Maker, Scorer};

/// Every scorer.
pub const MAKERS: &[Maker<dyn Scorer>] = &[
    kv_cache_utilization::MAKER,
    latency::MAKER,
    prefix_cache::MAKER,
    queue::MAKER,
    running_requests::MAKER,
];

#[cfg(test)]
mod tests;
