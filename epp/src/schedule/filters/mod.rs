//! Filters: each narrows the candidates by one criterion.

pub mod healthy;
pub mod prefix_cache_affinity;
pub mod slo_headroom_tier;

pub use healthy::HealthyFilter;

use super::plugin::{Filter, Maker};

/// Every filter.
pub const MAKERS: &[Maker<dyn Filter>] = &[
    healthy::MAKER,
    prefix_cache_affinity::MAKER,
    slo_headroom_tier::MAKER,
];
