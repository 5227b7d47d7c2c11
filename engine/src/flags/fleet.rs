//! Flags of a worker among others: ranks, traces, what is logged and measured of requests, and health.

use std::time::Duration;

use clap::Args;

use super::{parse_duration, positive};

/// What an operator of many workers sets.
#[derive(Args, Debug, Clone)]
pub struct FleetFlags {
    /// Engines in this process, which share the weights: each has a scheduler, a KV cache and KV events of its own,
    /// and an equal part of the threads. Header X-data-parallel-rank chooses one; other requests go to the one
    /// with the fewest. Limits and KV memory are those of one rank.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = positive().range(1..=64), help_heading = "Compute")]
    pub data_parallel_size: u32,

    /// Ranks that share each layer of the model, and compute every step together: threads on the CPU, each with an equal
    /// part of --threads; GPUs with --backend cuda, and in a simulation.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = positive().range(1..=64), help_heading = "Compute")]
    pub tensor_parallel_size: u32,

    /// Send a span of each request to this OTLP collector over gRPC, such as http://collector:4317. The
    /// environment variables OTEL_EXPORTER_OTLP_TRACES_ENDPOINT and OTEL_EXPORTER_OTLP_ENDPOINT do the same;
    /// OTEL_SERVICE_NAME, OTEL_TRACES_SAMPLER and OTEL_TRACES_SAMPLER_ARG are followed.
    #[arg(long, value_name = "URL", help_heading = "Log and traces")]
    pub otlp_traces_endpoint: Option<String>,

    /// Log one line for each request that ended: its id, session, rank, tokens, times, and how it ended.
    #[arg(long, help_heading = "Log and traces")]
    pub enable_log_requests: bool,

    /// Log one line for each HTTP request but those for health and metrics.
    #[arg(long, help_heading = "Log and traces")]
    pub access_log: bool,

    /// Answer each request with its id in X-Request-Id: the client's own, or a new one.
    #[arg(long, help_heading = "Server")]
    pub enable_request_id_headers: bool,

    /// Show series on /metrics under the names of old vLLMs, too: gpu_cache_usage_perc, gpu_prefix_cache_*,
    /// time_per_output_token_seconds.
    #[arg(long, help_heading = "Server")]
    pub legacy_metric_names: bool,

    /// /health answers 503 when requests are alive and no step ended for so long; 0s for never.
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = parse_duration, help_heading = "Server")]
    pub engine_stall_timeout: Duration,
}
