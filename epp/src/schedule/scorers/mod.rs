//! Scorers: each rates the candidates from 0 to 1 by one criterion.

pub mod active_request;
pub mod context_length_aware;
pub mod endpoint_attribute;
pub mod expected_ttft;
pub mod header_label_affinity;
pub mod kv_cache_utilization;
pub mod latency;
pub mod load_aware;
pub mod lora_affinity;
mod min_max;
pub mod mm_embeddings_cache;
pub mod no_hit_lru;
pub mod precise_prefix_cache;
pub mod prefix_cache;
pub mod queue;
pub mod running_requests;
pub mod session_affinity;
pub mod token_load;
pub mod topology_affinity;

pub use kv_cache_utilization::KvCacheUtilizationScorer;
pub use prefix_cache::PrefixCacheScorer;
pub use queue::QueueScorer;
pub use running_requests::RunningRequestsScorer;

use super::plugin::{Maker, Scorer};

/// Every scorer.
pub const MAKERS: &[Maker<dyn Scorer>] = &[
    active_request::MAKER,
    context_length_aware::MAKER,
    endpoint_attribute::MAKER,
    expected_ttft::MAKER,
    header_label_affinity::MAKER,
    kv_cache_utilization::MAKER,
    latency::MAKER,
    load_aware::MAKER,
    lora_affinity::MAKER,
    mm_embeddings_cache::MAKER,
    no_hit_lru::MAKER,
    precise_prefix_cache::MAKER,
    prefix_cache::MAKER,
    queue::MAKER,
    running_requests::MAKER,
    session_affinity::MAKER,
    token_load::MAKER,
    topology_affinity::MAKER,
];

#[cfg(test)]
mod tests;
