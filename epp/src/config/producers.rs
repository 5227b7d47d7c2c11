//! The field's data producers: what they may be told, and what this picker makes of it.
//!
//! The field's producers are stages that run one after the other before each pick. Here the rooms
//! they stand for (tokens, index, fleet) are always there, so a producer in a configuration is a
//! set of options for its room. Parameters that tune how the field does it, and have no counterpart
//! here, are read strictly and change nothing; their docs say so.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::plugins::{self, ParameterError, Parameters, PluginKind, PluginType, Stage};
use super::values;

/// Every data producer, and the plugins that read a request's identity.
pub const PLUGIN_TYPES: &[PluginType] = &[
    producer::<TokenProducer>("token-producer", Stage::Beta),
    producer::<TokenProducer>(
        "tokenizer",
        Stage::Deprecated {
            instead: "token-producer",
        },
    ),
    producer::<ApproxPrefixCacheProducer>("approx-prefix-cache-producer", Stage::Beta),
    producer::<PrecisePrefixCacheProducer>("precise-prefix-cache-producer", Stage::Beta),
    producer::<InflightLoadProducer>("inflight-load-producer", Stage::Beta),
    producer::<SessionIdProducer>("session-id-producer", Stage::Beta),
    producer::<MmEmbeddingsCacheProducer>("mm-embeddings-cache-producer", Stage::Beta),
    PluginType {
        name: "agent-identity",
        kind: PluginKind::RequestControl,
        stage: Stage::Alpha,
        check: plugins::check::<AgentIdentity>,
    },
    PluginType {
        name: "destination-endpoint-served-verifier",
        kind: PluginKind::RequestControl,
        stage: Stage::Beta,
        check: plugins::check::<plugins::NoParameters>,
    },
];

const fn producer<P: Parameters>(name: &'static str, stage: Stage) -> PluginType {
    PluginType {
        name,
        kind: PluginKind::DataProducer,
        stage,
        check: plugins::check::<P>,
    }
}

/// `token-producer`. Without `vllm` the field estimates; here a tokenizer folder of the flags wins
/// over both, and without either prompts are compared by their text.
#[derive(Clone, PartialEq, Default, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
pub struct TokenProducer {
    /// Named in render requests; empty = each request's own model.
    pub model_name: String,
    /// A remote tokenizer.
    pub vllm: Option<RemoteTokenizer>,
    /// How the field guesses the tokens of images and videos. Changes nothing here: nothing is
    /// guessed about media.
    pub estimate: Map<String, Value>,
    /// The field's older sidecar, which is not spoken to.
    pub uds_tokenizer_config: Map<String, Value>,
}

/// `token-producer`'s `vllm`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
pub struct RemoteTokenizer {
    pub url: String,
    /// Go's notation. A pick waits for no more than half a second of it.
    pub timeout: String,
    /// The same for requests with media.
    pub mm_timeout: String,
}

impl Default for RemoteTokenizer {
    fn default() -> Self {
        Self {
            url: "http://localhost:8000".to_owned(),
            timeout: "5s".to_owned(),
            mm_timeout: "30s".to_owned(),
        }
    }
}

impl Parameters for TokenProducer {
    fn validate(&self) -> Result<(), ParameterError> {
        let Some(remote) = &self.vllm else {
            return Ok(());
        };
        if !remote.url.starts_with("http://") || remote.url.ends_with('/') {
            let reason = format!(
                "must be http://HOST:PORT without a slash at the end, not {:?}",
                remote.url
            );
            return Err(ParameterError::new("vllm.url", reason));
        }
        above_zero("vllm.timeout", &remote.timeout)?;
        above_zero("vllm.mmTimeout", &remote.mm_timeout)?;
        Ok(())
    }
}

impl TokenProducer {
    /// The remote tokenizer's address and the longest exchange with it, where one is asked for. A
    /// model name alone asks for the default address, as in the field.
    pub fn remote(&self) -> Option<(String, Duration)> {
        let remote = match &self.vllm {
            Some(remote) => remote.clone(),
            None if self.model_name.is_empty() || !self.uds_tokenizer_config.is_empty() => {
                return None;
            }
            None => RemoteTokenizer::default(),
        };
        let timeout = values::duration(&remote.timeout).unwrap_or(Duration::from_secs(5));
        Some((remote.url, timeout))
    }
}

/// `approx-prefix-cache-producer`: what the picks keep of earlier prompts.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
pub struct ApproxPrefixCacheProducer {
    /// Always so here: an endpoint's share is what its page says it has room for.
    pub auto_tune: bool,
    /// Changes nothing: prompts are compared in pieces of 64 bytes of text, whatever the engine's
    /// blocks are.
    pub block_size_tokens: u32,
    /// Deprecated in the field; changes nothing.
    pub block_size: u32,
    /// Changes nothing: matching costs by runs of blocks, and prompts are matched whole up to the
    /// index's own bound.
    pub max_prefix_blocks_to_match: u32,
    /// Like `maxPrefixBlocksToMatch`.
    pub max_prefix_tokens_to_match: u32,
    /// Changes nothing: of an endpoint whose page does not say its size, 31,250 blocks are
    /// remembered.
    pub lru_capacity_per_server: u32,
}

impl Default for ApproxPrefixCacheProducer {
    fn default() -> Self {
        Self {
            auto_tune: true,
            block_size_tokens: 16,
            block_size: 0,
            max_prefix_blocks_to_match: 2048,
            max_prefix_tokens_to_match: 131_072,
            lru_capacity_per_server: 31_250,
        }
    }
}

impl Parameters for ApproxPrefixCacheProducer {}

/// `precise-prefix-cache-producer`: the index of KV events.
#[derive(Clone, PartialEq, Default, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
pub struct PrecisePrefixCacheProducer {
    /// The field's hashing. Changes nothing: keys are made from the token ids in the events, so no
    /// block size or seed has to agree with an engine's.
    pub token_processor_config: Map<String, Value>,
    /// The field's index backends. Changes nothing: there is one index, bounded by bytes.
    pub indexer_config: Map<String, Value>,
    pub kv_events_config: KvEventsConfig,
    /// Always so here: a pick counts until its response has started and 2 s more.
    pub speculative_indexing: bool,
    /// Changes nothing; see `speculativeIndexing`.
    #[serde(rename = "speculativeTTL")]
    pub speculative_ttl: String,
}

impl Parameters for PrecisePrefixCacheProducer {}

/// Where KV events come from.
#[derive(Clone, PartialEq, Default, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
pub struct KvEventsConfig {
    /// An address that every engine publishes to. Changes nothing: each engine is subscribed to,
    /// because events name no endpoint that could be trusted.
    pub zmq_endpoint: String,
    /// Changes nothing: all topics of an engine are read.
    pub topic_filter: String,
    /// Changes nothing: one task an endpoint.
    pub concurrency: u32,
    pub discover_pods: Option<bool>,
    pub pod_discovery_config: PodDiscoveryConfig,
    /// Changes nothing: the forms of all engines are told apart by themselves.
    pub engine_type: String,
    /// Changes nothing.
    pub tracing: bool,
}

/// The ports that engines publish on.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
pub struct PodDiscoveryConfig {
    /// Each rank publishes on this port and its index; 0 = the endpoint is asked for its ports.
    pub socket_port: u16,
    /// The same for replays.
    pub replay_socket_port: u16,
    /// The field's selection of pods. Changes nothing: the pool's endpoints are followed.
    pub pod_label_selector: String,
    pub pod_namespace: String,
}

impl Default for PodDiscoveryConfig {
    fn default() -> Self {
        Self {
            socket_port: 5557,
            replay_socket_port: 0,
            pod_label_selector: String::new(),
            pod_namespace: String::new(),
        }
    }
}

/// `inflight-load-producer`: what a request counts for while it is in flight.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
pub struct InflightLoadProducer {
    /// Whether the expected answer counts, too.
    pub add_estimated_output_tokens: bool,
    /// Tokens of answer expected for each token of prompt.
    pub output_ratio: f64,
    /// A bound on the expected answer.
    pub max_estimated_output_tokens: Option<u32>,
    /// There is one index, so any name means it.
    pub prefix_match_info_producer_name: String,
}

impl Default for InflightLoadProducer {
    fn default() -> Self {
        Self {
            add_estimated_output_tokens: false,
            output_ratio: 1.5,
            max_estimated_output_tokens: None,
            prefix_match_info_producer_name: String::new(),
        }
    }
}

impl Parameters for InflightLoadProducer {
    fn validate(&self) -> Result<(), ParameterError> {
        if self.output_ratio.is_finite() && self.output_ratio >= 0.0 {
            return Ok(());
        }
        Err(ParameterError::new("outputRatio", "must not be negative"))
    }
}

impl InflightLoadProducer {
    /// What a request counts for, in tokens.
    pub fn load(
        &self,
        uncached_tokens: u32,
        prompt_tokens: u32,
        max_output_tokens: Option<u32>,
    ) -> u32 {
        if !self.add_estimated_output_tokens {
            return uncached_tokens;
        }
        let expected = (f64::from(prompt_tokens) * self.output_ratio) as u32;
        let bounds = [max_output_tokens, self.max_estimated_output_tokens];
        let expected = bounds.into_iter().flatten().fold(expected, u32::min);
        uncached_tokens.saturating_add(expected)
    }
}

/// `session-id-producer`: what names a session.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
pub struct SessionIdProducer {
    pub header_name: String,
    pub cookie_name: String,
    pub lru_size: Option<u32>,
    pub ttl: Option<String>,
}

impl Parameters for SessionIdProducer {
    fn validate(&self) -> Result<(), ParameterError> {
        if !self.header_name.is_empty() && !self.cookie_name.is_empty() {
            return Err(ParameterError::new(
                "cookieName",
                "headerName is given, too; one of them names the session",
            ));
        }
        if self.lru_size == Some(0) {
            return Err(ParameterError::new("lruSize", "must be more than 0"));
        }
        match &self.ttl {
            Some(ttl) => above_zero("ttl", ttl),
            None => Ok(()),
        }
    }
}

/// `mm-embeddings-cache-producer`: which media an endpoint has encoded.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MmEmbeddingsCacheProducer {
    /// The size of an endpoint's cache.
    #[serde(rename = "cacheSizeInMBPerServer")]
    pub cache_size_in_mb_per_server: u32,
}

impl Default for MmEmbeddingsCacheProducer {
    fn default() -> Self {
        Self {
            cache_size_in_mb_per_server: 4096,
        }
    }
}

impl Parameters for MmEmbeddingsCacheProducer {}

/// `agent-identity`: agents' own session headers stand in for a fairness id.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
pub struct AgentIdentity {
    /// Looked up before the agents' own.
    pub additional_session_headers: Vec<String>,
}

impl Parameters for AgentIdentity {}

fn above_zero(path: &str, duration: &str) -> Result<(), ParameterError> {
    match values::duration(duration) {
        Ok(duration) if duration.is_zero() => Err(ParameterError::new(path, "must be more than 0")),
        Ok(_) => Ok(()),
        Err(reason) => Err(ParameterError::new(path, reason)),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(name: &str, parameters: &Value) -> Result<Value, ParameterError> {
        let plugin = PLUGIN_TYPES.iter().find(|plugin| plugin.name == name);
        (plugin.unwrap().check)(parameters)
    }

    #[test]
    fn every_producer_has_the_fields_defaults() {
        for plugin in PLUGIN_TYPES {
            let defaults = (plugin.check)(&Value::Null).unwrap();
            assert_eq!(
                (plugin.check)(&defaults).unwrap(),
                defaults,
                "{}",
                plugin.name
            );
            assert!(
                (plugin.check)(&json!({"nonsense": 1})).is_err(),
                "{}",
                plugin.name
            );
        }
        let approximate = of("approx-prefix-cache-producer", &Value::Null).unwrap();
        assert_eq!(approximate["lruCapacityPerServer"], 31_250);
        assert_eq!(approximate["maxPrefixTokensToMatch"], 131_072);
        let precise = json!({"speculativeIndexing": true, "speculativeTTL": "2s"});
        assert!(of("precise-prefix-cache-producer", &precise).is_ok());
    }

    #[test]
    fn a_remote_tokenizer_is_asked_for_by_url_or_by_model() {
        let remote = |parameters: Value| {
            plugins::read::<TokenProducer>(&parameters).map(|producer| producer.remote())
        };
        assert_eq!(remote(json!({})), Ok(None));
        let five = Duration::from_secs(5);
        assert_eq!(
            remote(json!({"modelName": "m"})),
            Ok(Some(("http://localhost:8000".to_owned(), five)))
        );
        let given = json!({"vllm": {"url": "http://[::1]:80", "timeout": "100ms"}});
        assert_eq!(
            remote(given),
            Ok(Some((
                "http://[::1]:80".to_owned(),
                Duration::from_millis(100)
            )))
        );
        let wrong = remote(json!({"vllm": {"url": "localhost:8000"}})).unwrap_err();
        assert_eq!(wrong.path, "vllm.url");
        let wrong = remote(json!({"vllm": {"timeout": "5"}})).unwrap_err();
        assert_eq!(wrong.path, "vllm.timeout");
    }

    #[test]
    fn in_flight_load_is_the_uncached_prompt_and_the_expected_answer() {
        let of = |parameters: Value| plugins::read::<InflightLoadProducer>(&parameters).unwrap();
        assert_eq!(of(json!({})).load(100, 400, Some(50)), 100);
        let with_output =
            of(json!({"addEstimatedOutputTokens": true, "maxEstimatedOutputTokens": 500}));
        assert_eq!(with_output.load(100, 400, None), 600);
        assert_eq!(with_output.load(100, 400, Some(50)), 150);
        assert_eq!(with_output.load(100, 20, None), 130);
    }

    #[test]
    fn a_session_has_one_source() {
        let both = of(
            "session-id-producer",
            &json!({"headerName": "a", "cookieName": "b"}),
        );
        assert_eq!(both.unwrap_err().path, "cookieName");
        assert_eq!(
            of("session-id-producer", &json!({"ttl": "0s"}))
                .unwrap_err()
                .path,
            "ttl"
        );
    }
}
