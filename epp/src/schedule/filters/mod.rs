//! Filters: each narrows the candidates by one criterion.

pub mod by_label;
pub mod endpoint_attribute;
pub mod header_based_testing;
pub mod healthy;
pub mod label_selector;
pub mod prefix_cache_affinity;
pub mod role;
pub mod session_affinity;
pub mod slo_headroom_tier;
pub mod topology_affinity;
pub mod utilization;

pub use healthy::HealthyFilter;

use super::plugin::{Filter, Maker};

/// Every filter.
pub const MAKERS: &[Maker<dyn Filter>] = &[
    by_label::MAKER,
    endpoint_attribute::MAKER,
    header_based_testing::MAKER,
    healthy::MAKER,
    label_selector::MAKER,
    label_selector::DEPRECATED_MAKER,
    prefix_cache_affinity::MAKER,
    role::DECODE_MAKER,
    role::ENCODE_MAKER,
    role::PREFILL_MAKER,
    session_affinity::MAKER,
    slo_headroom_tier::MAKER,
    topology_affinity::MAKER,
    utilization::MAKER,
];

#[cfg(test)]
mod tests;
