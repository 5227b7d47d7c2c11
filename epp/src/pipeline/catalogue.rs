//! Every plugin type of the house, gathered from the rooms that own them: what a configuration is
//! checked against.

use super::attributes;
use crate::config::epc::Catalogue;
use crate::config::producers;
use crate::fleet::data_layer;
use crate::schedule::latency;
use crate::{flow, request, schedule};

/// The catalogue of this build.
pub fn catalogue() -> Catalogue {
    let of_rooms = [
        flow::PLUGIN_TYPES,
        request::PLUGIN_TYPES,
        data_layer::PLUGIN_TYPES,
        producers::PLUGIN_TYPES,
        &[latency::PLUGIN_TYPE, attributes::PLUGIN_TYPE],
    ];
    let of_rooms = of_rooms.into_iter().flatten().copied();
    Catalogue::new(schedule::plugin_types().into_iter().chain(of_rooms))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::epc;

    /// Plugin types of the field that this build does not have, and why each is left out.
    const LEFT_OUT: &[(&str, &str)] = &[
        (
            "burst-prefix-cache-producer",
            "alpha; the approximate index counts picks at once",
        ),
        (
            "disaggregatedset-rollout-pod-extractor",
            "alpha; needs Kubernetes",
        ),
        (
            "disaggregatedset-rollout-screener",
            "alpha; needs Kubernetes",
        ),
        (
            "multicluster-approx-prefix-cache-producer",
            "alpha; one cluster",
        ),
        ("multicluster-file-discovery", "alpha; one cluster"),
        (
            "multicluster-kv-cache-utilization-scorer",
            "alpha; one cluster",
        ),
        ("multicluster-metrics-data-source", "alpha; one cluster"),
        ("multicluster-metrics-extractor", "alpha; one cluster"),
        ("multicluster-prefix-cache-scorer", "alpha; one cluster"),
        ("multicluster-queue-scorer", "alpha; one cluster"),
        ("multicluster-session-affinity-filter", "alpha; one cluster"),
        (
            "p2p-source-producer",
            "alpha; hand-over between workers comes later",
        ),
        (
            "predicted-latency-scorer",
            "gone from the field; latency-scorer took its place",
        ),
    ];

    #[test]
    fn what_is_left_out_of_the_fields_types_is_known() {
        let mut missing = catalogue().missing_of_the_field();
        missing.sort_unstable();
        let left_out: Vec<_> = LEFT_OUT.iter().map(|(name, _)| *name).collect();
        assert_eq!(missing, left_out);
    }

    #[test]
    fn what_runs_without_a_configuration_resolves() {
        assert!(epc::field_default(&catalogue()).is_ok());
    }
}
