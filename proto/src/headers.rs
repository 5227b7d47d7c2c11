//! Names of HTTP headers and of ext_proc metadata, all lower case, as they travel between client,
//! proxy, picker and worker.
//!
//! The endpoint picker protocol (v1.0.0) fixes the destination names; the request headers are those
//! of the field's pickers, each canonical name with the older alias that is still read (the
//! canonical one wins). Header lookups are case-insensitive everywhere, so the lower-case form
//! serves for reading and writing.
//!
//! This module names; it parses no value and strips nothing itself.

// Endpoint picker protocol: the proxy reads what the picker writes, and the other way round.

/// Request header and `envoy.lb` metadata key: the picked `ip:port`, or an ordered fallback list
/// `ip:port,ip:port`.
pub const DESTINATION_ENDPOINT: &str = "x-gateway-destination-endpoint";
/// `envoy.lb` metadata key: a struct of endpoint to score, for all candidates.
pub const DESTINATION_ENDPOINT_SCORES: &str = "x-gateway-destination-endpoint-scores";
/// `envoy.lb` metadata key of the response phase: the `ip:port` that served the request.
pub const DESTINATION_ENDPOINT_SERVED: &str = "x-gateway-destination-endpoint-served";
/// Subset-hint metadata key: the list of `ip:port` that the pick is confined to.
pub const DESTINATION_ENDPOINT_SUBSET: &str = "x-gateway-destination-endpoint-subset";
/// Metadata namespace of the picked, scored and served endpoints.
pub const METADATA_NAMESPACE: &str = "envoy.lb";
/// Metadata namespace of the subset hint.
pub const SUBSET_METADATA_NAMESPACE: &str = "envoy.lb.subset_hint";

// Our own metadata: what the gateway hands on to its access log and to its rate limits.

/// Metadata namespace of the picker: the lease of a request that runs without a stream.
pub const PICKER_METADATA_NAMESPACE: &str = "dev.pointsman.epp";
/// Key of [`PICKER_METADATA_NAMESPACE`]: the lease token, as text.
pub const LEASE_TOKEN: &str = "token";
/// Key of [`PICKER_METADATA_NAMESPACE`]: the endpoint that was picked first.
pub const PICKED_ENDPOINT: &str = "picked";
/// Metadata namespace of token counts. The picker writes `input_tokens`, `output_tokens`,
/// `total_tokens` and `cached_tokens` with the last answer of a response that it sees; the
/// gateway's `sse_to_metadata` filter writes `prompt_tokens`, `completion_tokens` and
/// `cached_tokens` where the picker sees none.
pub const USAGE_METADATA_NAMESPACE: &str = "dev.pointsman.usage";
/// Namespace of the typed metadata (`envoy.data.ai.v3.TokenUsage`) of Envoy's own token counter.
pub const AI_TOKEN_USAGE_NAMESPACE: &str = "envoy.ai.token_usage";
/// gRPC metadata of the ext_proc call: the pool that the gateway asks for, where one picker serves
/// several.
pub const POOL: &str = "x-pointsman-pool";

// What a client, or an operator's filter before us, tells the picker.

/// The tenant a request is queued under.
pub const FAIRNESS_ID: &str = "x-llm-d-inference-fairness-id";
/// Older name of [`FAIRNESS_ID`].
pub const FAIRNESS_ID_ALIAS: &str = "x-gateway-inference-fairness-id";
/// Name of the InferenceObjective that gives a request its priority.
pub const OBJECTIVE: &str = "x-llm-d-inference-objective";
/// Older name of [`OBJECTIVE`].
pub const OBJECTIVE_ALIAS: &str = "x-gateway-inference-objective";
/// The model name to write into the body in place of the client's.
pub const MODEL_NAME_REWRITE: &str = "x-llm-d-model-name-rewrite";
/// Older name of [`MODEL_NAME_REWRITE`].
pub const MODEL_NAME_REWRITE_ALIAS: &str = "x-gateway-model-name-rewrite";
/// The client's target for the time to first token, in milliseconds.
pub const SLO_TTFT_MS: &str = "x-llm-d-slo-ttft-ms";
/// Older name of [`SLO_TTFT_MS`].
pub const SLO_TTFT_MS_ALIAS: &str = "x-slo-ttft-ms";
/// The client's target for the time per output token, in milliseconds.
pub const SLO_TPOT_MS: &str = "x-llm-d-slo-tpot-ms";
/// Older name of [`SLO_TPOT_MS`].
pub const SLO_TPOT_MS_ALIAS: &str = "x-slo-tpot-ms";
/// Frames per second of the request's video, for estimating its tokens.
pub const VIDEO_FPS: &str = "x-llm-d-video-fps";
/// Length of the request's video in seconds.
pub const VIDEO_DURATION_SECONDS: &str = "x-llm-d-video-duration-seconds";
/// Resolution of the request's video.
pub const VIDEO_RESOLUTION: &str = "x-llm-d-video-resolution";
/// Session token: later requests of a session go where the earlier ones went.
pub const SESSION_TOKEN: &str = "x-session-token";
/// Session id; the worker reads it, too.
pub const SESSION_ID: &str = "x-session-id";
/// Name of the scheduling profile to use.
pub const PROFILE: &str = "epp-profile";
/// `if-available` asks for a pick only where its condition holds, with 412 otherwise.
pub const PREFER: &str = "prefer";
/// Comma list of `ip` or `ip:port` that conformance tests pick themselves.
pub const TEST_ENDPOINT_SELECTION: &str = "test-epp-endpoint-selection";

/// Headers by which coding agents name their session, in the order in which they are looked up.
pub const AGENT_SESSIONS: [&str; 4] = [
    "x-claude-code-session-id",
    "x-session-affinity",
    "session-id",
    "session_id",
];

// What the worker reads.

/// The request's id; the picker makes one where it is missing.
pub const REQUEST_ID: &str = "x-request-id";
/// The data-parallel rank that must run the request.
pub const DATA_PARALLEL_RANK: &str = "x-data-parallel-rank";
/// The request's priority; it wins over the body's field.
pub const VLLM_PRIORITY: &str = "x-vllm-priority";
/// Milliseconds that the request has, as Envoy tells its upstreams where a route has a timeout.
pub const EXPECTED_TIMEOUT_MS: &str = "x-envoy-expected-rq-timeout-ms";
/// `text` or `json`: asks for [`ENDPOINT_LOAD_METRICS`] in the response.
pub const ENDPOINT_LOAD_METRICS_FORMAT: &str = "endpoint-load-metrics-format";
/// Where a decode worker fetches the prefill from.
pub const PREFILLER_HOST_PORT: &str = "x-prefiller-host-port";
/// Where a worker fetches encoded images from.
pub const ENCODER_HOSTS_PORTS: &str = "x-encoder-hosts-ports";
/// The data-parallel server that must run the request.
pub const DATA_PARALLEL_HOST_PORT: &str = "x-data-parallel-host-port";
/// Where a worker fetches KV blocks from.
pub const KV_CACHE_SOURCE_HOST_PORT: &str = "x-kv-cache-source-host-port";

// What the client reads in a response.

/// Why the picker refused or dropped the request.
pub const REQUEST_DROPPED_REASON: &str = "x-llm-d-request-dropped-reason";
/// Set to `true` on each response that the picker saw.
pub const WENT_INTO_RESPONSE_HEADERS: &str = "x-went-into-resp-headers";
/// The endpoint that served, for conformance tests.
pub const CONFORMANCE_SERVED_ENDPOINT: &str = "x-conformance-test-served-endpoint";
/// Why the picker chose this endpoint, for people who look.
pub const DECISION: &str = "x-pointsman-decision";
/// The worker's load in ORCA's format.
pub const ENDPOINT_LOAD_METRICS: &str = "endpoint-load-metrics";

/// Headers that only the picker may set on the way to a worker. What a client sent under these
/// names is consumed or dropped, and never forwarded. `content-length` is among them because the
/// picker states it anew for the body that it forwards.
pub const SYSTEM_OWNED: [&str; 19] = [
    DESTINATION_ENDPOINT,
    DESTINATION_ENDPOINT_SCORES,
    DESTINATION_ENDPOINT_SERVED,
    DESTINATION_ENDPOINT_SUBSET,
    FAIRNESS_ID,
    FAIRNESS_ID_ALIAS,
    OBJECTIVE,
    OBJECTIVE_ALIAS,
    MODEL_NAME_REWRITE,
    MODEL_NAME_REWRITE_ALIAS,
    SLO_TTFT_MS,
    SLO_TTFT_MS_ALIAS,
    SLO_TPOT_MS,
    SLO_TPOT_MS_ALIAS,
    PREFILLER_HOST_PORT,
    ENCODER_HOSTS_PORTS,
    DATA_PARALLEL_HOST_PORT,
    KV_CACHE_SOURCE_HOST_PORT,
    "content-length",
];

/// Whether `name`, in any case, is one of [`SYSTEM_OWNED`].
pub fn is_system_owned(name: &str) -> bool {
    SYSTEM_OWNED
        .iter()
        .any(|owned| owned.eq_ignore_ascii_case(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn system_owned_names_match_in_any_case() {
        assert!(is_system_owned("X-Gateway-Destination-Endpoint"));
        assert!(is_system_owned("Content-Length"));
        assert!(!is_system_owned("x-request-id"));
        assert!(!is_system_owned("x-gateway-destination-endpoin"));
    }

    #[test]
    fn names_are_lower_case_and_listed_once() {
        for (position, name) in SYSTEM_OWNED.iter().enumerate() {
            assert_eq!(*name, name.to_ascii_lowercase());
            assert!(!SYSTEM_OWNED[..position].contains(name), "{name} twice");
        }
    }
}
