//! Every family of series that requests, picks and streams are recorded in: name, labels, buckets,
//! help, and what the field called it before.
//!
//! `llm_d_epp_*` are the field's names with the field's labels and buckets, so that dashboards go on
//! working; the earlier names are those of its releases up to GAIE v1.5. `pointsman_*` are ours,
//! where the field has no name or its buckets are too coarse: its fastest scheduling bucket is
//! 100 µs, and its slowest 100 ms. Families that are read off the rooms at the moment of a scrape
//! stand where they are written.

use super::family::{Family, Legacy, Merge, was};

/// The field's labels of one request.
pub const OF_REQUEST: &[&str] = &["model_name", "target_model_name", "fairness_id", "priority"];
const OF_ERROR: &[&str] = &[
    "model_name",
    "target_model_name",
    "fairness_id",
    "priority",
    "error_code",
];
const OF_TTFT: &[&str] = &[
    "model_name",
    "target_model_name",
    "fairness_id",
    "priority",
    "streaming",
];
const OF_TYPE: &[&str] = &[
    "model_name",
    "target_model_name",
    "fairness_id",
    "priority",
    "type",
];

/// What the releases up to v1.5 told apart.
const MODELS: &[(&str, &str)] = &[
    ("model_name", "model_name"),
    ("target_model_name", "target_model_name"),
];

/// From 5 ms to an hour.
pub const LATENCY_SECONDS: &[f64] = &[
    0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0,
    10.0, 15.0, 20.0, 30.0, 45.0, 60.0, 120.0, 180.0, 240.0, 300.0, 360.0, 480.0, 600.0, 900.0,
    1200.0, 1800.0, 2700.0, 3600.0,
];
const PER_TOKEN_SECONDS: &[f64] = &[
    0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0,
];
pub const SCHEDULER_SECONDS: &[f64] = &[
    0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1,
];
const QUEUE_SECONDS: &[f64] = &[
    0.0001, 0.0005, 0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
    60.0,
];
/// Ours: fine enough for a pick of some microseconds, long enough for one that waited.
pub const PICK_SECONDS: &[f64] = &[
    5e-6, 1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1, 0.5, 1.0,
    5.0,
];
/// The field's default buckets, and finer ones below them.
const LOOKUP_SECONDS: &[f64] = &[
    1e-6, 5e-6, 1e-5, 5e-5, 1e-4, 5e-4, 1e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
    5.0, 10.0,
];
/// 32778 is what the field has.
const INPUT_TOKENS: &[f64] = &[
    1.0,
    8.0,
    16.0,
    32.0,
    64.0,
    128.0,
    256.0,
    512.0,
    1024.0,
    2048.0,
    4096.0,
    8192.0,
    16384.0,
    32778.0,
    65536.0,
    131_072.0,
    262_144.0,
    524_288.0,
    1_048_576.0,
];
const OUTPUT_TOKENS: &[f64] = &[
    1.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0,
];
const REQUEST_BYTES: &[f64] = &[
    64.0,
    128.0,
    256.0,
    512.0,
    1024.0,
    2048.0,
    4096.0,
    8192.0,
    16384.0,
    32768.0,
    65536.0,
    131_072.0,
    262_144.0,
    524_288.0,
    1_048_576.0,
    2_097_152.0,
    4_194_304.0,
    8_388_608.0,
    16_777_216.0,
    33_554_432.0,
    67_108_864.0,
    134_217_728.0,
    268_435_456.0,
    536_870_912.0,
    1_073_741_824.0,
];
const RESPONSE_BYTES: &[f64] = &[
    1.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0,
    32778.0, 65536.0,
];
const RATIO: &[f64] = &[0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0];
const PREFIX_BYTES: &[f64] = &[
    0.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0, 32768.0,
    65536.0,
];

// One request.

pub const REQUEST_TOTAL: Family =
    Family::counter("llm_d_epp_request_total", OF_REQUEST, "Requests received.").also(&[was(
        "inference_objective_request_total",
        &[
            ("model_name", "model_name"),
            ("target_model_name", "target_model_name"),
            ("priority", "priority"),
        ],
    )]);
pub const REQUEST_ERROR_TOTAL: Family = Family::counter(
    "llm_d_epp_request_error_total",
    OF_ERROR,
    "Requests refused by the picker or failed by the worker.",
)
.also(&[was(
    "inference_objective_request_error_total",
    &[
        ("model_name", "model_name"),
        ("target_model_name", "target_model_name"),
        ("error_code", "error_code"),
    ],
)]);
pub const REQUEST_RUNNING: Family = Family::gauge(
    "llm_d_epp_request_running",
    OF_REQUEST,
    "Requests in flight.",
)
.also(&[was(
    "inference_objective_running_requests",
    &[("model_name", "model_name")],
)]);
pub const REQUEST_SECONDS: Family = of_models(
    "llm_d_epp_request_duration_seconds",
    LATENCY_SECONDS,
    "Time from a complete request to the end of its response, in seconds.",
    &[was("inference_objective_request_duration_seconds", MODELS)],
);
pub const REQUEST_SIZE: Family = of_models(
    "llm_d_epp_request_size_bytes",
    REQUEST_BYTES,
    "Size of request bodies, in bytes.",
    &[was("inference_objective_request_sizes", MODELS)],
);
pub const RESPONSE_SIZE: Family = of_models(
    "llm_d_epp_response_size_bytes",
    RESPONSE_BYTES,
    "Size of response bodies, in bytes.",
    &[was("inference_objective_response_sizes", MODELS)],
);
pub const REQUEST_INPUT_TOKENS: Family = of_models(
    "llm_d_epp_request_input_tokens",
    INPUT_TOKENS,
    "Prompt tokens as the worker counted them.",
    &[was("inference_objective_input_tokens", MODELS)],
);
pub const REQUEST_OUTPUT_TOKENS: Family = of_models(
    "llm_d_epp_request_output_tokens",
    OUTPUT_TOKENS,
    "Generated tokens as the worker counted them.",
    &[was("inference_objective_output_tokens", MODELS)],
);
pub const REQUEST_CACHED_TOKENS: Family = of_models(
    "llm_d_epp_request_cached_tokens",
    INPUT_TOKENS,
    "Prompt tokens that the worker had in its prefix cache.",
    &[was("inference_objective_prompt_cached_tokens", MODELS)],
);
pub const REQUEST_NTPOT: Family = of_models(
    "llm_d_epp_request_ntpot_seconds",
    PER_TOKEN_SECONDS,
    "Duration of a request divided by its output tokens, in seconds.",
    &[was(
        "inference_objective_normalized_time_per_output_token_seconds",
        MODELS,
    )],
);
pub const REQUEST_TTFT: Family = Family::histogram(
    "llm_d_epp_request_ttft_seconds",
    OF_TTFT,
    LATENCY_SECONDS,
    "Time from a complete request to the first byte of its response body, in seconds.",
)
.also(&[was("inference_objective_request_ttft_seconds", MODELS)]);
pub const REQUEST_TPOT: Family = of_models(
    "llm_d_epp_request_streaming_tpot_seconds",
    PER_TOKEN_SECONDS,
    "Time per output token after the first one of a streamed response, in seconds.",
    &[was("inference_objective_request_tpot_seconds", MODELS)],
);
pub const REQUEST_ITL: Family = of_models(
    "llm_d_epp_request_streaming_itl_seconds",
    PER_TOKEN_SECONDS,
    "Time between two chunks of a streamed response, in seconds.",
    &[],
);
pub const PREDICTED_TTFT: Family = of_models(
    "llm_d_epp_request_predicted_ttft_seconds",
    LATENCY_SECONDS,
    "Time to first token that the pick expected, in seconds.",
    &[was(
        "inference_objective_request_predicted_ttft_seconds",
        MODELS,
    )],
);
pub const PREDICTED_TPOT: Family = of_models(
    "llm_d_epp_request_predicted_tpot_seconds",
    PER_TOKEN_SECONDS,
    "Time per output token that the pick expected, in seconds.",
    &[was(
        "inference_objective_request_predicted_tpot_seconds",
        MODELS,
    )],
);
pub const TTFT_PREDICTION_SECONDS: Family = of_models(
    "llm_d_epp_request_ttft_prediction_duration_seconds",
    PICK_SECONDS,
    "Time to predict the time to first token, in seconds.",
    &[],
);
pub const TPOT_PREDICTION_SECONDS: Family = of_models(
    "llm_d_epp_request_tpot_prediction_duration_seconds",
    PICK_SECONDS,
    "Time to predict the time per output token, in seconds.",
    &[],
);
pub const SLO_VIOLATION_TOTAL: Family = Family::counter(
    "llm_d_epp_request_slo_violation_total",
    OF_TYPE,
    "Requests that missed the target their client set, by the kind of target.",
)
.also(&[was(
    "inference_objective_request_slo_violation_total",
    OF_MODELS_AND_TYPE,
)]);
pub const REQUEST_METRIC: Family = Family::gauge(
    "llm_d_epp_inference_request_metric",
    OF_TYPE,
    "What the latest request measured or was predicted, by type.",
)
.also(&[Legacy {
    merge: Merge::Largest,
    ..was(
        "inference_objective_inference_request_metric",
        OF_MODELS_AND_TYPE,
    )
}]);
const OF_MODELS_AND_TYPE: &[(&str, &str)] = &[
    ("model_name", "model_name"),
    ("target_model_name", "target_model_name"),
    ("type", "type"),
];
pub const PREDICTED_CACHED_TOKENS: Family = of_models(
    "pointsman_request_predicted_cached_tokens",
    INPUT_TOKENS,
    "Prompt tokens that the picked endpoint was expected to have in its prefix cache.",
    &[],
);
pub const REQUEST_ABORTED_TOTAL: Family = Family::counter(
    "pointsman_request_aborted_total",
    OF_REQUEST,
    "Requests whose stream ended before their response did.",
);

// Scheduling.

pub const SCHEDULER_E2E: Family = Family::histogram(
    "llm_d_epp_scheduler_e2e_duration_seconds",
    &[],
    SCHEDULER_SECONDS,
    "Time to choose an endpoint once the prompt is read, in seconds.",
)
.also(&[was(
    "inference_extension_scheduler_e2e_duration_seconds",
    &[],
)]);
pub const SCHEDULER_ATTEMPTS: Family = Family::counter(
    "llm_d_epp_scheduler_attempts_total",
    &[
        "status",
        "target_model_name",
        "endpoint_name",
        "namespace",
        "port",
    ],
    "Scheduling attempts and where they went.",
)
.also(&[was(
    "inference_extension_scheduler_attempts_total",
    &[
        ("status", "status"),
        ("target_model_name", "target_model_name"),
        ("pod_name", "endpoint_name"),
        ("namespace", "namespace"),
        ("port", "port"),
    ],
)]);
pub const PLUGIN_SECONDS: Family = Family::histogram(
    "llm_d_epp_plugin_duration_seconds",
    &["extension_point", "plugin_type", "plugin_name"],
    SCHEDULER_SECONDS,
    "Time that a plugin took, in seconds, measured at one pick in 64.",
)
.also(&[was(
    "inference_extension_plugin_duration_seconds",
    &[
        ("extension_point", "extension_point"),
        ("plugin_type", "plugin_type"),
        ("plugin_name", "plugin_name"),
    ],
)]);
pub const REQUEST_PROCESSING: Family = Family::histogram(
    "llm_d_epp_request_processing_duration_seconds",
    &[],
    LATENCY_SECONDS,
    "Time from a complete request until it is sent on, waiting for admission included, in seconds.",
);
pub const RESPONSE_PROCESSING: Family = Family::histogram(
    "llm_d_epp_response_processing_duration_seconds",
    &[],
    LATENCY_SECONDS,
    "Time spent on a response by the picker, the worker's own left out, in seconds.",
);
pub const REWRITE_DECISIONS: Family = Family::counter(
    "llm_d_epp_model_rewrite_decisions_total",
    &["model_rewrite_name", "model_name", "target_model"],
    "Requests whose model was rewritten.",
)
.also(&[was(
    "inference_extension_model_rewrite_decisions_total",
    &[
        ("model_rewrite_name", "model_rewrite_name"),
        ("model_name", "model_name"),
        ("target_model", "target_model"),
    ],
)]);
pub const INFO: Family = Family::gauge(
    "llm_d_epp_info",
    &["commit", "build_ref"],
    "The build that runs.",
)
.also(&[was(
    "inference_extension_info",
    &[("commit", "commit"), ("build_ref", "build_ref")],
)]);
pub const DISAGG_DECISIONS: Family = Family::counter(
    "llm_d_epp_disagg_decision_total",
    &["plugin_name", "plugin_type", "model_name", "decision_type"],
    "Requests by the stages they were split into.",
)
.also(&[was(
    "llm_d_inference_scheduler_disagg_decision_total",
    DECISION,
)]);
pub const PD_DECISIONS: Family = Family::counter(
    "llm_d_epp_pd_decision_total",
    &["plugin_name", "plugin_type", "model_name", "decision_type"],
    "Requests by whether prefill was split off. Deprecated: llm_d_epp_disagg_decision_total has it.",
)
.also(&[was("llm_d_inference_scheduler_pd_decision_total", DECISION)]);
const DECISION: &[(&str, &str)] = &[
    ("model_name", "model_name"),
    ("decision_type", "decision_type"),
];

// Prefix caches.

pub const PREFIX_HIT_RATIO: Family = Family::histogram(
    "llm_d_epp_prefix_indexer_hit_ratio",
    &[],
    RATIO,
    "Share of a prompt that the picked endpoint was expected to have cached.",
)
.also(&[was("inference_extension_prefix_indexer_hit_ratio", &[])]);
pub const PREFIX_HIT_BYTES: Family = Family::histogram(
    "llm_d_epp_prefix_indexer_hit_bytes",
    &[],
    PREFIX_BYTES,
    "Bytes of a prompt that the picked endpoint was expected to have cached.",
)
.also(&[was("inference_extension_prefix_indexer_hit_bytes", &[])]);
pub const INDEX_LOOKUPS: Family = Family::counter(
    "llm_d_epp_kv_cache_index_lookup_requests_total",
    &[],
    "Prompts looked up in the index of KV events.",
)
.also(&[was("kvcache_index_lookup_requests_total", &[])]);
pub const INDEX_HITS: Family = Family::counter(
    "llm_d_epp_kv_cache_index_lookup_hits_total",
    &[],
    "Leading blocks of looked-up prompts that the best endpoint held.",
)
.also(&[was("kvcache_index_lookup_hits_total", &[])]);
pub const INDEX_MAX_HITS: Family = Family::counter(
    "llm_d_epp_kv_cache_index_max_pod_hit_count_total",
    &[],
    "The longest run of leading blocks at one endpoint, summed over lookups.",
)
.also(&[was("kvcache_index_max_pod_hit_count_total", &[])]);
pub const INDEX_LOOKUP_SECONDS: Family = Family::histogram(
    "llm_d_epp_kv_cache_index_lookup_latency_seconds",
    &[],
    LOOKUP_SECONDS,
    "Time to look a prompt up in the index of KV events, in seconds.",
)
.also(&[was("kvcache_index_lookup_latency_seconds", &[])]);
pub const ENCODER_QUERIES: Family = Family::counter(
    "llm_d_epp_encoder_cache_queries_total",
    &["plugin_type", "plugin_name", "modality"],
    "Media items looked up among those sent before.",
);
pub const ENCODER_HITS: Family = Family::counter(
    "llm_d_epp_encoder_cache_hits_total",
    &["plugin_type", "plugin_name", "pod", "modality"],
    "Media items that an endpoint was expected to have encoded.",
);
pub const ENCODER_HIT_RATIO: Family = Family::histogram(
    "llm_d_epp_encoder_cache_hit_ratio",
    &["plugin_type", "plugin_name"],
    RATIO,
    "Share of a request's media items that the picked endpoint was expected to have encoded.",
);

// Flow control.

pub const FLOW_QUEUE_SECONDS: Family = Family::histogram(
    "llm_d_epp_flow_control_request_queue_duration_seconds",
    &[
        "fairness_id",
        "priority",
        "outcome",
        "inference_pool",
        "model_name",
        "target_model_name",
    ],
    QUEUE_SECONDS,
    "Time from a request's arrival in the queue to its outcome, in seconds.",
)
.also(&[was(
    "inference_extension_flow_control_request_queue_duration_seconds",
    &[
        ("fairness_id", "fairness_id"),
        ("priority", "priority"),
        ("outcome", "outcome"),
        ("inference_pool", "inference_pool"),
        ("model_name", "model_name"),
        ("target_model_name", "target_model_name"),
    ],
)]);
pub const FLOW_CYCLE_SECONDS: Family = Family::histogram(
    "llm_d_epp_flow_control_dispatch_cycle_duration_seconds",
    &[],
    SCHEDULER_SECONDS,
    "Time to decide which waiting requests go, in seconds.",
)
.also(&[was(
    "inference_extension_flow_control_dispatch_cycle_duration_seconds",
    &[],
)]);
pub const FLOW_ENQUEUE_SECONDS: Family = Family::histogram(
    "llm_d_epp_flow_control_request_enqueue_duration_seconds",
    &["fairness_id", "priority", "outcome"],
    SCHEDULER_SECONDS,
    "Time to put a request into its queue, in seconds.",
)
.also(&[was(
    "inference_extension_flow_control_request_enqueue_duration_seconds",
    &[
        ("fairness_id", "fairness_id"),
        ("priority", "priority"),
        ("outcome", "outcome"),
    ],
)]);
pub const FLOW_REQUESTS: Family = Family::counter(
    "llm_d_epp_flow_control_requests_total",
    &["outcome", "priority", "inference_pool"],
    "Requests by what flow control decided.",
);

// Streams.

pub const STREAMS_IN_FLIGHT: Family = Family::gauge(
    "llm_d_epp_extproc_streams_inflight",
    &[],
    "Open ext_proc streams, one for each request in flight.",
);
pub const STREAM_SECONDS: Family = Family::histogram(
    "llm_d_epp_extproc_stream_duration_seconds",
    &[],
    LATENCY_SECONDS,
    "How long ext_proc streams were open, in seconds.",
);
pub const STREAMS_TOTAL: Family = Family::counter(
    "llm_d_epp_extproc_streams_total",
    &["code"],
    "Ended ext_proc streams by gRPC status.",
);

// Ours.

pub const PICK_DURATION: Family = Family::histogram(
    "pointsman_pick_duration_seconds",
    &[],
    PICK_SECONDS,
    "Time from a complete request to its pick, reading, tokenization and lookup included, in seconds.",
);
pub const READ_DURATION: Family = Family::histogram(
    "pointsman_read_duration_seconds",
    &[],
    PICK_SECONDS,
    "Time to read a request body, in seconds.",
);
pub const LOOKUP_DURATION: Family = Family::histogram(
    "pointsman_prefix_lookup_duration_seconds",
    &[],
    PICK_SECONDS,
    "Time to look a prompt up in the prefix indexes, in seconds.",
);
pub const SERVED_ELSEWHERE: Family = Family::counter(
    "pointsman_served_elsewhere_total",
    &[],
    "Requests that the gateway sent to another endpoint than the first one picked.",
);
pub const EXPIRED_LEASES: Family = Family::counter(
    "pointsman_expired_leases_total",
    &[],
    "Requests no longer counted against their endpoint because nothing was heard of them in time.",
);
pub const CONFIG_RELOADS: Family = Family::counter(
    "pointsman_config_reloads_total",
    &["result"],
    "Changed configurations by whether they were taken over.",
);
pub const ACCESS_LOG_ENTRIES: Family = Family::counter(
    "pointsman_access_log_entries_total",
    &["kind"],
    "Access-log entries from gateways, by kind.",
);
pub const WITHOUT_TOKENS: Family = Family::counter(
    "pointsman_request_without_tokens_total",
    &["reason"],
    "Prompts looked up by their text, for want of token ids, by reason.",
);

const fn of_models(
    name: &'static str,
    buckets: &'static [f64],
    help: &'static str,
    legacy: &'static [Legacy],
) -> Family {
    Family::histogram(name, OF_REQUEST, buckets, help).also(legacy)
}
