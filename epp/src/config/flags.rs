//! The command line, as written. What it means is for [`Settings`](super::settings::Settings) to
//! say.
//!
//! Names, defaults and ports are the field's wherever this picker has the feature. Flags of the
//! field that it does not have stand in [`foreign_flags`](super::foreign_flags), so that a command
//! line made for another picker is either understood or refused by name, never half obeyed.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, Parser};

use super::commands::Command;
use super::foreign_flags::ForeignFlags;
use super::model_server_flags::ModelServerFlags;
use super::settings::{LogFormat, PolicyName, ResponseWatch, TokenizerFolder};
use super::tls::{CipherSuite, TlsVersion};
use super::values;

/// Picks the worker that answers an LLM request soonest.
///
/// epp is an external processor for Envoy. For each request it reads the prompt, looks up which
/// worker already holds its prefix in the KV cache and how busy each worker is, and tells Envoy
/// where to send the request. It speaks the Endpoint Picker Protocol, so any gateway that supports
/// InferencePool can use it.
#[derive(Clone, Debug, Parser)]
#[command(name = "epp", version, max_term_width = 110, after_help = EXAMPLES,
    args_conflicts_with_subcommands = true)]
pub struct Flags {
    #[command(subcommand)]
    pub command: Option<Command>,

    /// A worker, as IP:PORT, for example 127.0.0.1:8000 or [::1]:8000. Repeat for each worker.
    /// `name` is what logs and metrics call it; `kv-events` and `kv-replay` are its ZMQ addresses
    /// (tcp://HOST:PORT), and the worker is asked for them where they are not given.
    #[arg(long = "endpoint", help_heading = "Workers", action = ArgAction::Append,
        value_name = "ADDRESS[,name=NAME][,kv-events=ADDRESS][,kv-replay=ADDRESS]")]
    pub endpoints: Vec<String>,

    /// A YAML or JSON file that lists the workers. It is read again whenever its content changes; a
    /// file that cannot be read leaves the last good list in place.
    #[arg(
        long,
        help_heading = "Workers",
        value_name = "PATH",
        env = "EPP_ENDPOINTS_FILE",
        conflicts_with = "endpoints"
    )]
    pub endpoints_file: Option<PathBuf>,

    /// A YAML file that lists several pools, each with its workers, configuration and tokenizers, for
    /// one process that serves them all. Requests are told apart by their authority.
    #[arg(
        long,
        help_heading = "Workers",
        value_name = "PATH",
        env = "EPP_POOLS_FILE",
        conflicts_with_all = ["endpoints", "endpoints_file", "config_file", "config_text", "policy", "resources_file", "tokenizers"]
    )]
    pub pools_file: Option<PathBuf>,

    /// The shortest time between two readings of a worker's /metrics page. Idle and slow workers
    /// are read less often.
    #[arg(long, help_heading = "Workers", value_name = "DURATION", default_value = "50ms",
        value_parser = values::duration)]
    pub refresh_metrics_interval: Duration,

    /// How old the metrics of an idle worker may be before they count as missing: those are read less
    /// often. For busy ones it is metricsStalenessThreshold of the saturation detector.
    #[arg(long, help_heading = "Workers", value_name = "DURATION", default_value = "2s",
        value_parser = values::duration)]
    pub metrics_staleness_threshold: Duration,

    /// An EndpointPickerConfig, YAML or JSON. It is read again whenever its content changes; one that
    /// is wrong leaves the last good one in place. Without any, the field's default profile runs.
    /// `epp config check` says what is wrong with one.
    #[arg(
        long,
        help_heading = "Picking",
        value_name = "PATH",
        env = "EPP_CONFIG_FILE"
    )]
    pub config_file: Option<PathBuf>,

    /// A policy by name, where no configuration is given. `field-default`: queue 2, KV usage 2, prefix 3, as the field.
    /// `expected-ttft`: the worker where the first token comes soonest, with what that costs those who come after.
    #[arg(
        long,
        help_heading = "Picking",
        value_name = "NAME",
        default_value = "field-default",
        conflicts_with_all = ["config_file", "config_text"],
        env = "EPP_POLICY"
    )]
    pub policy: PolicyName,

    /// The EndpointPickerConfig itself.
    #[arg(
        long,
        help_heading = "Picking",
        value_name = "TEXT",
        conflicts_with = "config_file"
    )]
    pub config_text: Option<String>,

    /// InferenceObjective and InferenceModelRewrite documents. The file is read again whenever its
    /// content changes.
    #[arg(
        long,
        help_heading = "Picking",
        value_name = "PATH",
        env = "EPP_RESOURCES_FILE"
    )]
    pub resources_file: Option<PathBuf>,

    /// Take plugin types that the field calls alpha.
    #[arg(long, help_heading = "Picking", value_name = "BOOL", default_value_t = false,
        num_args = 0..=1, require_equals = true, default_missing_value = "true", action = ArgAction::Set)]
    pub allow_experimental_plugins: bool,

    /// A model folder with tokenizer.json and the chat template. With MODEL= it serves requests for
    /// that model only, without it those for every other model. Without any, what workers hold is
    /// told from earlier picks alone, by the text of the prompts, and their KV events are not used.
    #[arg(long = "tokenizer", help_heading = "Picking", value_name = "[MODEL=]FOLDER", action = ArgAction::Append)]
    pub tokenizers: Vec<TokenizerFolder>,

    /// How many further workers are named after the picked one, for gateways that retry on the next
    /// of a list (override_host). Leave it at 0 for gateways that route to an original destination:
    /// they refuse a list.
    #[arg(
        long,
        help_heading = "Picking",
        value_name = "COUNT",
        default_value_t = 0
    )]
    pub fallback_endpoints: usize,

    /// Ignore the gateway's hint that confines a request to some of the workers.
    #[arg(long, help_heading = "Picking", value_name = "BOOL", default_value_t = false,
        num_args = 0..=1, require_equals = true, default_missing_value = "true", action = ArgAction::Set)]
    pub disable_endpoint_subset_filter: bool,

    /// Tell the gateway the score of every candidate, as dynamic metadata.
    #[arg(long, help_heading = "Picking", value_name = "BOOL", default_value_t = false,
        num_args = 0..=1, require_equals = true, default_missing_value = "true", action = ArgAction::Set)]
    pub emit_endpoint_scores: bool,

    /// How a response is watched. `stream`: its chunks pass through epp. `access-log`: epp leaves after
    /// the pick and hears of the end from Envoy's gRPC access log. `auto`: by access log where the
    /// gateway shows no response bodies (response body mode NONE), as a stream otherwise.
    #[arg(
        long,
        help_heading = "Picking",
        value_name = "WAY",
        default_value = "auto"
    )]
    pub response_watch: ResponseWatch,

    /// How long a request counts as running without a word from the access log.
    #[arg(long, help_heading = "Picking", value_name = "DURATION", default_value = "60s",
        value_parser = values::duration)]
    pub access_log_lease: Duration,

    /// A client that sends this request header with `1` or `true` gets the decision in the response
    /// header x-pointsman-decision. Off by default: it names workers and scores.
    #[arg(long, help_heading = "Picking", value_name = "NAME")]
    pub debug_header: Option<String>,

    /// How many of the last decisions are kept for the status page.
    #[arg(long, help_heading = "Picking", value_name = "COUNT", default_value_t = 256,
        value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub decision_log_size: u32,

    /// The address that every port is opened on.
    #[arg(
        long,
        help_heading = "Ports",
        value_name = "IP",
        default_value = "0.0.0.0",
        env = "EPP_BIND_ADDRESS"
    )]
    pub bind_address: IpAddr,

    /// The port that Envoy calls (ext_proc, gRPC). It answers gRPC health checks, too. 0 takes a
    /// free port; the log names it.
    #[arg(
        long,
        help_heading = "Ports",
        value_name = "PORT",
        default_value_t = 9002,
        env = "EPP_GRPC_PORT"
    )]
    pub grpc_port: u16,

    /// The port for gRPC health checks alone, in clear text.
    #[arg(
        long,
        help_heading = "Ports",
        value_name = "PORT",
        default_value_t = 9003,
        env = "EPP_GRPC_HEALTH_PORT"
    )]
    pub grpc_health_port: u16,

    /// The port for /metrics (Prometheus) and /healthz, in clear text and without authentication.
    #[arg(
        long,
        help_heading = "Ports",
        value_name = "PORT",
        default_value_t = 9090,
        env = "EPP_METRICS_PORT"
    )]
    pub metrics_port: u16,

    /// Speak TLS on the ext_proc port. Say false for an Envoy that connects in clear text.
    #[arg(long, help_heading = "Ports", value_name = "BOOL", default_value_t = true,
        num_args = 0..=1, require_equals = true, default_missing_value = "true", action = ArgAction::Set)]
    pub secure_serving: bool,

    /// The folder of the TLS certificate, with tls.crt and tls.key. Without one the certificate is
    /// self-signed.
    #[arg(long, help_heading = "Ports", value_name = "FOLDER")]
    pub cert_path: Option<PathBuf>,

    /// Follow the certificate's files and serve a renewed one without a restart.
    #[arg(long, help_heading = "Ports", value_name = "BOOL", default_value_t = false,
        num_args = 0..=1, require_equals = true, default_missing_value = "true", action = ArgAction::Set)]
    pub enable_cert_reload: bool,

    /// The oldest TLS version that is spoken: VersionTLS12 or VersionTLS13.
    #[arg(
        long,
        help_heading = "Ports",
        value_name = "VERSION",
        default_value = "VersionTLS12"
    )]
    pub tls_min_version: TlsVersion,

    /// The cipher suites of TLS 1.2 that are spoken, by Go's names, comma-separated. All by default;
    /// those of TLS 1.3 are fixed.
    #[arg(
        long,
        help_heading = "Ports",
        value_name = "NAMES",
        value_delimiter = ','
    )]
    pub tls_cipher_suites: Vec<CipherSuite>,

    /// The largest request body that is taken in, in bytes or with KiB, MiB or GiB. A larger one is
    /// answered 413.
    #[arg(long, help_heading = "Limits", value_name = "SIZE", default_value = "64MiB", value_parser = values::bytes)]
    pub max_request_body_bytes: usize,

    /// How long a request may wait to be picked. After it the client gets 503.
    #[arg(long, help_heading = "Limits", value_name = "DURATION", default_value = "5s",
        value_parser = values::duration)]
    pub decision_timeout: Duration,

    /// Requests in flight at a time on one connection of Envoy, which opens another connection past
    /// it.
    #[arg(long, help_heading = "Limits", value_name = "COUNT", default_value_t = 10_000,
        value_parser = clap::value_parser!(u32).range(1..))]
    pub max_concurrent_streams: u32,

    /// The largest gRPC message taken in. By default the largest request body and 1 MiB, because a
    /// gateway in BUFFERED mode sends a body in one message.
    #[arg(long, help_heading = "Limits", value_name = "SIZE", value_parser = values::bytes)]
    pub grpc_max_recv_msg_size: Option<usize>,

    /// The largest gRPC message sent out. Unlimited by default.
    #[arg(long, help_heading = "Limits", value_name = "SIZE", value_parser = values::bytes)]
    pub grpc_max_send_msg_size: Option<usize>,

    /// How long requests in flight may take to end after SIGTERM or SIGINT.
    #[arg(long, help_heading = "Limits", value_name = "DURATION", default_value = "30s",
        value_parser = values::duration)]
    pub drain_timeout: Duration,

    /// How log lines are written.
    #[arg(
        long,
        visible_alias = "zap-encoder",
        help_heading = "Logging",
        value_name = "FORMAT",
        default_value = "text",
        env = "EPP_LOG_FORMAT"
    )]
    pub log_format: LogFormat,

    /// How much is logged: 0 warnings, 1 to 3 process events, 4 a line for each request, 5 and more
    /// everything. RUST_LOG, where it is set, wins.
    #[arg(
        short = 'v',
        long = "v",
        help_heading = "Logging",
        value_name = "LEVEL",
        default_value_t = 2
    )]
    pub verbosity: u8,

    /// Export spans where OTEL_EXPORTER_OTLP_ENDPOINT or OTEL_EXPORTER_OTLP_TRACES_ENDPOINT names a
    /// collector (OTLP over gRPC).
    #[arg(long, help_heading = "Logging", value_name = "BOOL", default_value_t = true,
        num_args = 0..=1, require_equals = true, default_missing_value = "true", action = ArgAction::Set)]
    pub tracing: bool,

    /// Count and time the ext_proc streams themselves, by their gRPC status.
    #[arg(long, help_heading = "Logging", value_name = "BOOL", default_value_t = false,
        num_args = 0..=1, require_equals = true, default_missing_value = "true", action = ArgAction::Set)]
    pub enable_grpc_stream_metrics: bool,

    #[command(flatten)]
    pub model_server: ModelServerFlags,

    #[command(flatten)]
    pub foreign: ForeignFlags,
}

const EXAMPLES: &str = "\
Examples:
  Two workers on this machine, an Envoy that connects in clear text:
    epp --endpoint 127.0.0.1:8000 --endpoint 127.0.0.1:8001 --secure-serving=false

  Prefix-aware picking; the workers' KV events tell what each one holds:
    epp --endpoints-file workers.yaml --tokenizer /models/qwen3

  The configuration of another picker, checked and then run:
    epp config check picker.yaml
    epp --endpoints-file workers.yaml --config-file picker.yaml

  A list of fallbacks for a gateway with the override_host policy, and a log line for each request:
    epp --endpoints-file workers.yaml --fallback-endpoints 2 -v 4

Flags of other endpoint pickers: those that ask for Kubernetes, leader election or authenticated metrics are \
refused by name. Metric names (--total-queued-requests-metric and its like) and --model-server-metrics-* work and \
are deprecated. --enable-pprof, --health-checking and --refresh-prometheus-metrics-interval are accepted and do \
nothing.

Exit status: 0 after a drain, 1 when a part cannot start, 2 when a flag makes no sense.";
