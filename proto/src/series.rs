//! Names of the worker's Prometheus series, which are vLLM's, as they stand on the scraped page.
//!
//! Pickers, dashboards and autoscalers of the field look for these names, so our worker exports
//! them and our picker reads them from any engine that does. Counters carry the `_total` that
//! Prometheus clients append; histograms are named without `_bucket`, `_sum` and `_count`. Unless
//! the line says otherwise, a series has the labels [`MODEL_NAME`] and [`ENGINE`].
//!
//! Bucket bounds and the text format are the exporter's and the scraper's own affair.

/// Content type of the page.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

// Labels.

/// Label: the served model's name.
pub const MODEL_NAME: &str = "model_name";
/// Label: the data-parallel rank, `0` for a single one.
pub const ENGINE: &str = "engine";
/// Label: why a request waits, ended early or was refused.
pub const REASON: &str = "reason";
/// Label: how a request finished: `stop`, `length`, `abort`, `error` or `repetition`.
pub const FINISHED_REASON: &str = "finished_reason";
/// Label of [`ENGINE_SLEEP_STATE`]: `awake`, `weights_offloaded` or `discard_all`.
pub const SLEEP_STATE: &str = "sleep_state";
/// Label: where a prompt token's KV came from.
pub const SOURCE: &str = "source";
/// Label of [`CACHE_CONFIG_INFO`]: tokens per block.
pub const BLOCK_SIZE: &str = "block_size";
/// Label of [`CACHE_CONFIG_INFO`]: number of blocks.
pub const NUM_GPU_BLOCKS: &str = "num_gpu_blocks";
/// Label of [`LORA_REQUESTS_INFO`]: number of adapters that may run at once.
pub const MAX_LORA: &str = "max_lora";
/// Label of [`LORA_REQUESTS_INFO`]: comma-joined names of the adapters that run.
pub const RUNNING_LORA_ADAPTERS: &str = "running_lora_adapters";
/// Label of [`LORA_REQUESTS_INFO`]: comma-joined names of the adapters that wait.
pub const WAITING_LORA_ADAPTERS: &str = "waiting_lora_adapters";

// Read by endpoint pickers.

/// Gauge: requests in the running batch.
pub const NUM_REQUESTS_RUNNING: &str = "vllm:num_requests_running";
/// Gauge: requests that wait to be scheduled.
pub const NUM_REQUESTS_WAITING: &str = "vllm:num_requests_waiting";
/// Gauge: share of KV blocks in use, from 0 to 1.
pub const KV_CACHE_USAGE_PERC: &str = "vllm:kv_cache_usage_perc";
/// Gauge that is always 1; the cache's configuration stands in its labels, with [`ENGINE`] but no
/// model name.
pub const CACHE_CONFIG_INFO: &str = "vllm:cache_config_info";
/// Gauge whose value is the Unix time of its last change; adapters stand in its labels, without
/// model or engine.
pub const LORA_REQUESTS_INFO: &str = "vllm:lora_requests_info";

// Read by autoscalers, dashboards and load tests.

/// Gauge: waiting requests by [`REASON`], `capacity` or `deferred`.
pub const NUM_REQUESTS_WAITING_BY_REASON: &str = "vllm:num_requests_waiting_by_reason";
/// Gauge: 1 for the [`SLEEP_STATE`] that the engine is in, 0 for the others.
pub const ENGINE_SLEEP_STATE: &str = "vllm:engine_sleep_state";
/// Counter: prompt tokens looked up in the prefix cache.
pub const PREFIX_CACHE_QUERIES: &str = "vllm:prefix_cache_queries_total";
/// Counter: prompt tokens found in the prefix cache.
pub const PREFIX_CACHE_HITS: &str = "vllm:prefix_cache_hits_total";
/// Counter: requests taken out of the running batch to free blocks.
pub const NUM_PREEMPTIONS: &str = "vllm:num_preemptions_total";
/// Counter: prompt tokens of admitted requests, cached or computed.
pub const PROMPT_TOKENS: &str = "vllm:prompt_tokens_total";
/// Counter: prompt tokens by [`SOURCE`]: `local_compute`, `local_cache_hit` or
/// `external_kv_transfer`.
pub const PROMPT_TOKENS_BY_SOURCE: &str = "vllm:prompt_tokens_by_source_total";
/// Counter: prompt tokens that were not computed.
pub const PROMPT_TOKENS_CACHED: &str = "vllm:prompt_tokens_cached_total";
/// Counter: prompt tokens that were not computed by [`SOURCE`]: the memory in which their KV lay, `device`, `host`
/// and others.
pub const PROMPT_TOKENS_CACHED_BY_SOURCE: &str = "vllm:prompt_tokens_cached_by_source_total";
/// Counter: generated tokens.
pub const GENERATION_TOKENS: &str = "vllm:generation_tokens_total";
/// Counter: finished requests by [`FINISHED_REASON`]; aborted ones count, too.
pub const REQUEST_SUCCESS: &str = "vllm:request_success_total";
/// Counter: requests refused at the door by [`REASON`], `max_num_queued_reqs` or
/// `max_num_queued_tokens`; model label only.
pub const ADMISSION_REJECTIONS: &str = "vllm:admission_rejections_total";
/// Histogram: seconds from arrival to the first token.
pub const TIME_TO_FIRST_TOKEN_SECONDS: &str = "vllm:time_to_first_token_seconds";
/// Histogram: seconds between two tokens of one request.
pub const INTER_TOKEN_LATENCY_SECONDS: &str = "vllm:inter_token_latency_seconds";
/// Histogram: a finished request's decode seconds divided by its tokens after the first.
pub const REQUEST_TIME_PER_OUTPUT_TOKEN_SECONDS: &str =
    "vllm:request_time_per_output_token_seconds";
/// Histogram: seconds from arrival to the last token.
pub const E2E_REQUEST_LATENCY_SECONDS: &str = "vllm:e2e_request_latency_seconds";
/// Histogram: seconds from queued to first scheduled.
pub const REQUEST_QUEUE_TIME_SECONDS: &str = "vllm:request_queue_time_seconds";
/// Histogram: seconds from first scheduled to the last token.
pub const REQUEST_INFERENCE_TIME_SECONDS: &str = "vllm:request_inference_time_seconds";
/// Histogram: seconds from first scheduled to the first token.
pub const REQUEST_PREFILL_TIME_SECONDS: &str = "vllm:request_prefill_time_seconds";
/// Histogram: seconds from the first token to the last.
pub const REQUEST_DECODE_TIME_SECONDS: &str = "vllm:request_decode_time_seconds";
/// Histogram: prompt tokens of a request.
pub const REQUEST_PROMPT_TOKENS: &str = "vllm:request_prompt_tokens";
/// Histogram: generated tokens of a request.
pub const REQUEST_GENERATION_TOKENS: &str = "vllm:request_generation_tokens";
/// Histogram: the `max_tokens` a request asked for.
pub const REQUEST_PARAMS_MAX_TOKENS: &str = "vllm:request_params_max_tokens";
/// Histogram: generated tokens of the longest choice of a prompt.
pub const REQUEST_MAX_NUM_GENERATION_TOKENS: &str = "vllm:request_max_num_generation_tokens";
/// Histogram: the `n` a request asked for.
pub const REQUEST_PARAMS_N: &str = "vllm:request_params_n";
/// Histogram: prompt tokens of a request that were computed rather than found in the cache.
pub const REQUEST_PREFILL_KV_COMPUTED_TOKENS: &str = "vllm:request_prefill_kv_computed_tokens";
/// Histogram: how often a request was preempted.
pub const REQUEST_NUM_PREEMPTIONS: &str = "vllm:request_num_preemptions";
/// Histogram, in spite of its name: tokens computed in one scheduler step.
pub const ITERATION_TOKENS_TOTAL: &str = "vllm:iteration_tokens_total";

/// Names that vLLM has dropped and that consumers of the field still read.
pub mod legacy {
    /// Now [`KV_CACHE_USAGE_PERC`](super::KV_CACHE_USAGE_PERC).
    pub const GPU_CACHE_USAGE_PERC: &str = "vllm:gpu_cache_usage_perc";
    /// Now [`PREFIX_CACHE_QUERIES`](super::PREFIX_CACHE_QUERIES).
    pub const GPU_PREFIX_CACHE_QUERIES: &str = "vllm:gpu_prefix_cache_queries_total";
    /// Now [`PREFIX_CACHE_HITS`](super::PREFIX_CACHE_HITS).
    pub const GPU_PREFIX_CACHE_HITS: &str = "vllm:gpu_prefix_cache_hits_total";
    /// Now [`INTER_TOKEN_LATENCY_SECONDS`](super::INTER_TOKEN_LATENCY_SECONDS).
    pub const TIME_PER_OUTPUT_TOKEN_SECONDS: &str = "vllm:time_per_output_token_seconds";
}

/// The HTTP server's own series, which have neither model nor engine label. They are those of
/// prometheus-fastapi-instrumentator, which vLLM's server uses.
pub mod http {
    /// Label: the route that answered, `none` for a path without one.
    pub const HANDLER: &str = "handler";
    /// Label: the request's method.
    pub const METHOD: &str = "method";
    /// Label: the answer's class of status, such as `2xx`.
    pub const STATUS: &str = "status";
    /// Counter of requests by [`HANDLER`], [`METHOD`] and [`STATUS`].
    pub const REQUESTS: &str = "http_requests_total";
    /// Histogram: seconds from a request's head to the end of its answer, by [`HANDLER`] and [`METHOD`].
    pub const REQUEST_DURATION_SECONDS: &str = "http_request_duration_seconds";
    /// Histogram: the same seconds in finer buckets and without labels.
    pub const REQUEST_DURATION_HIGHR_SECONDS: &str = "http_request_duration_highr_seconds";
    /// Summary of declared lengths of request bodies by [`HANDLER`].
    pub const REQUEST_SIZE_BYTES: &str = "http_request_size_bytes";
    /// Summary of bytes of response bodies by [`HANDLER`].
    pub const RESPONSE_SIZE_BYTES: &str = "http_response_size_bytes";
}
