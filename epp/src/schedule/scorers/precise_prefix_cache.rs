//! `precise-prefix-cache-scorer`: the name of before for `prefix-cache-scorer` with the precise
//! producer. It scores alike.
//!
//! In the field this type also carries the configuration of the index and of the KV-event
//! subscriber. Here those are not a scorer's to set: the index follows KV events by itself, in a
//! hash space of its own, and has its bounds in bytes. So the field's parameters are accepted by
//! name, so that a configuration of it starts and a misspelt one does not, and have no effect.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::super::plugin::{Context, Maker, Scorer};
use super::prefix_cache::{self, PrefixCacheScorer};
use crate::config::plugins::{self, PluginKind, PluginType, Stage};

/// The plugin's type name.
pub const TYPE_NAME: &str = "precise-prefix-cache-scorer";

/// The field's parameters; none has an effect.
#[derive(Clone, PartialEq, Default, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
pub struct Parameters {
    pub token_processor_config: Option<TokenProcessorConfig>,
    pub indexer_config: Option<IndexerConfig>,
    pub kv_events_config: Option<KvEventsConfig>,
    pub speculative_indexing: bool,
    /// A duration such as `2s`.
    #[serde(rename = "speculativeTTL")]
    pub speculative_ttl: String,
}

impl plugins::Parameters for Parameters {}

/// How the field makes its keys.
#[derive(Clone, PartialEq, Default, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
pub struct TokenProcessorConfig {
    /// The name of before for the next.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub block_size: Option<u32>,
    pub block_size_tokens: u32,
    pub hash_seed: String,
    pub hash_algorithm: String,
}

/// The field's index. What is behind the names differs by back end and is not looked at.
#[derive(Clone, PartialEq, Default, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
pub struct IndexerConfig {
    pub kv_block_index_config: Option<KvBlockIndexConfig>,
    pub kv_cache_backend_configs: Vec<Value>,
    /// Of releases before the render endpoint.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokenizers_pool_config: Option<Value>,
    /// Of releases before the render endpoint.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prefix_store_config: Option<Value>,
    /// The place of before for the setting of the same name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_processor_config: Option<TokenProcessorConfig>,
}

/// The field's back ends of the index.
#[derive(Clone, PartialEq, Default, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
pub struct KvBlockIndexConfig {
    pub in_memory_config: Option<Value>,
    pub redis_config: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub valkey_config: Option<Value>,
    pub cost_aware_memory_config: Option<Value>,
    pub enable_metrics: bool,
    pub metrics_logging_interval: Value,
}

/// The field's subscriber of KV events.
#[derive(Clone, PartialEq, Default, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
pub struct KvEventsConfig {
    pub zmq_endpoint: String,
    pub topic_filter: String,
    pub concurrency: u32,
    pub engine_type: String,
    pub discover_pods: Option<bool>,
    pub pod_discovery_config: Option<PodDiscoveryConfig>,
}

/// How the field finds the publishers.
#[derive(Clone, PartialEq, Default, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
pub struct PodDiscoveryConfig {
    pub pod_label_selector: String,
    pub pod_namespace: String,
    pub socket_port: u16,
    pub replay_socket_port: u16,
}

/// The plugin type.
pub const MAKER: Maker<dyn Scorer> = Maker {
    plugin: PluginType {
        name: TYPE_NAME,
        kind: PluginKind::Scorer,
        stage: Stage::Deprecated {
            instead: prefix_cache::TYPE_NAME,
        },
        check: plugins::check::<Parameters>,
    },
    make: |given| {
        plugins::read::<Parameters>(given)?;
        Ok(Box::new(PrecisePrefixCacheScorer::default()))
    },
};

/// See the module.
#[derive(Clone, Copy, Default, Debug)]
pub struct PrecisePrefixCacheScorer {
    scorer: PrefixCacheScorer,
}

impl Scorer for PrecisePrefixCacheScorer {
    fn type_name(&self) -> &'static str {
        TYPE_NAME
    }

    fn score(&self, context: &Context<'_>, candidates: &[usize], scores: &mut [f32]) {
        self.scorer.score(context, candidates, scores);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::super::fixtures::snapshot;
    use super::super::tests::{rounded, scored};
    use super::*;
    use crate::fleet::{Live, Matches};

    #[test]
    fn it_scores_like_the_prefix_cache_scorer() {
        let fleet = snapshot(&[Live::default(); 2]);
        let mut matches = Matches::default();
        let second = &fleet.members[1];
        matches.record(second.id, second.generation, 32, 32);
        let scores = scored(&MAKER, &Value::Null, &fleet, &matches, 64);
        assert_eq!(rounded(&scores), [0, 500]);
    }

    #[test]
    fn a_configuration_of_the_field_is_accepted_and_a_misspelt_one_is_not() {
        let mut parameters = json!({
            "tokenProcessorConfig": {"blockSize": 64, "hashSeed": "42"},
            "indexerConfig": {
                "kvBlockIndexConfig": {
                    "inMemoryConfig": {"size": 100, "podCacheSize": 10},
                    "enableMetrics": true,
                    "metricsLoggingInterval": 60_000_000_000_u64,
                },
                "kvCacheBackendConfigs": [{"name": "gpu", "weight": 1.0}],
                "tokenizersPoolConfig": {"modelName": "m"},
            },
            "kvEventsConfig": {
                "zmqEndpoint": "tcp://*:5557",
                "topicFilter": "kv@",
                "concurrency": 4,
                "discoverPods": false,
                "podDiscoveryConfig": {"socketPort": 5557},
            },
            "speculativeIndexing": true,
            "speculativeTTL": "2s",
        });
        (MAKER.plugin.check)(&parameters).unwrap();
        parameters["kvEventsConfig"]["topicFiler"] = "kv@".into();
        let error = (MAKER.plugin.check)(&parameters).unwrap_err();
        assert!(error.path.starts_with("kvEventsConfig"), "{error}");
        assert!(error.reason.contains("topicFiler"), "{error}");
    }
}
