//! The command line, with vLLM's names where vLLM has a flag for it.
//!
//! What is typed is checked here, value by value; what several values mean together (do the blocks fit, is the
//! context longer than the model's) is checked where it is known, at start-up. Nothing else in the crate reads
//! flags or the environment, but for the log filter.

mod fleet;

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, ValueEnum};

use crate::export::kv_events::KvEventsConfig;
use crate::kv::HashAlgorithm;
pub use fleet::FleetFlags;

mod sim;

pub use sim::SimFlags;

const EXAMPLES: &str = "\
Examples:
  Serve a model folder on port 8000 of loopback:
      engine --model ./engine/demo-model

  Serve it to a cluster, with KV events for a prefix-aware endpoint picker:
      engine --model /models/llama --served-model-name llama --host 0.0.0.0 \\
             --kv-events-config '{\"enable_kv_cache_events\":true,\"endpoint\":\"tcp://*:5557\",\\
                                  \"replay_endpoint\":\"tcp://*:5558\",\"topic\":\"kv@10.0.0.7@llama\"}'

  Try it:
      curl http://127.0.0.1:8000/v1/chat/completions -H 'content-type: application/json' \\
           -d '{\"model\":\"llama\",\"messages\":[{\"role\":\"user\",\"content\":\"Hello\"}]}'";

/// OpenAI-compatible inference worker with continuous batching and a paged, prefix-shared KV cache.
#[derive(Parser, Debug, Clone)]
#[command(name = "engine", version, after_help = EXAMPLES, max_term_width = 100)]
pub struct Flags {
    /// Model folder in Hugging Face form: config.json, *.safetensors, tokenizer.json.
    #[arg(long, value_name = "DIR", help_heading = "Model")]
    pub model: PathBuf,

    /// Names clients may call the model by; the first one labels the metrics [default: the value of --model].
    #[arg(long, value_name = "NAME", num_args = 1.., help_heading = "Model")]
    pub served_model_name: Vec<String>,

    /// Longest context in tokens, prompt and answer together [default: the model's].
    #[arg(long, value_name = "TOKENS", value_parser = positive(), help_heading = "Model")]
    pub max_model_len: Option<u32>,

    /// Refuse weights that no SHA256SUMS or manifest.json beside them vouches for. Where there is one, it is always
    /// checked.
    #[arg(long, help_heading = "Model")]
    pub require_verified_weights: bool,

    /// What computes: `auto` is the CPU, and says what else is there.
    #[arg(long, value_enum, default_value_t = BackendName::Auto, help_heading = "Compute")]
    pub backend: BackendName,

    /// Threads of the CPU backend, shared out among the ranks [default: one for each core].
    #[arg(long, value_name = "N", value_parser = positive(), help_heading = "Compute")]
    pub threads: Option<u32>,

    /// Weights in fewer bits than the model's: `int8` takes half the memory of bf16, and so about half the time of a
    /// token on the CPU, for answers that are not quite the model's.
    #[arg(long, value_enum, help_heading = "Compute")]
    pub quantization: Option<QuantizationName>,

    /// Seed of requests that bring none.
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = "Compute")]
    pub seed: u64,

    /// Tokens per KV block. Only full blocks are shared between prompts.
    #[arg(long, value_name = "TOKENS", default_value_t = 16, value_parser = positive(), help_heading = "KV cache")]
    pub block_size: u32,

    /// Type of the keys and values in memory: `bfloat16` takes half the memory of `float32`, for answers that are not
    /// quite the model's. `auto` is `float32`.
    #[arg(long, value_enum, default_value_t = KvCacheDtype::Auto, help_heading = "KV cache")]
    pub kv_cache_dtype: KvCacheDtype,

    /// Number of KV blocks, whatever the memory [default: as many as fit].
    #[arg(long, value_name = "BLOCKS", value_parser = positive(), help_heading = "KV cache")]
    pub num_gpu_blocks_override: Option<u32>,

    /// Memory for KV blocks: bytes, or with a unit such as 512MiB or 4GiB [default: room for --max-num-seqs full
    /// contexts, at most 1GiB].
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes, help_heading = "KV cache")]
    pub kv_cache_memory_bytes: Option<u64>,

    /// Share of a GPU's memory for weights, steps and KV blocks together: above 0, at most 1.
    #[arg(long, value_name = "SHARE", default_value_t = 0.9, value_parser = parse_share, help_heading = "KV cache")]
    pub gpu_memory_utilization: f64,

    /// Look prompts up among the blocks of earlier ones. It is on by default.
    #[arg(
        long,
        overrides_with = "no_enable_prefix_caching",
        help_heading = "KV cache"
    )]
    pub enable_prefix_caching: bool,

    /// Compute every prompt from its first token.
    #[arg(long, help_heading = "KV cache")]
    pub no_enable_prefix_caching: bool,

    /// How blocks are named: `siphash` (fast; safe among strangers while its seed is secret), vLLM's `sha256_cbor`
    /// and `sha256` (safe with any seed), `xxhash_cbor` and `xxhash` (for callers who trust one another).
    #[arg(
        long,
        value_enum,
        value_name = "NAME",
        default_value_t = HashAlgorithm::default(),
        help_heading = "KV cache"
    )]
    pub prefix_caching_hash_algo: HashAlgorithm,

    /// Root of the block hashes. Workers that are to name equal blocks equally need the same one. The
    /// environment variable PYTHONHASHSEED does the same, as for vLLM [default: vLLM's for sha256 and
    /// sha256_cbor, a random one for the others].
    #[arg(
        long,
        env = "PYTHONHASHSEED",
        hide_env = true,
        value_name = "TEXT",
        help_heading = "KV cache"
    )]
    pub block_hash_seed: Option<String>,

    /// Host memory for blocks that the KV cache has no more room for, from where a later prompt gets them back: a
    /// number of GiB, or bytes with a unit such as 512MiB. 0 is none.
    #[arg(long, value_name = "GIB", default_value = "0", value_parser = parse_gib, help_heading = "KV cache")]
    pub kv_offloading_size: u64,

    /// Requests that run at once.
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = positive(), help_heading = "Scheduling")]
    pub max_num_seqs: u32,

    /// Tokens computed per step. Smaller steps keep the gaps between tokens short while long prompts come in;
    /// larger ones get through prompts sooner.
    #[arg(long, value_name = "TOKENS", default_value_t = 2048, value_parser = positive(), help_heading = "Scheduling")]
    pub max_num_batched_tokens: u32,

    /// Requests that may wait; one more is answered 503 with Retry-After.
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = positive(), help_heading = "Scheduling")]
    pub max_num_queued_reqs: u32,

    /// Prompt tokens that may wait; while so many do, one more request is answered 503 with Retry-After. About the
    /// time to the first token that is still acceptable, times the prompt tokens computed per second [default: no
    /// such bound].
    #[arg(long, value_name = "TOKENS", value_parser = clap::value_parser!(u64).range(1..), help_heading = "Scheduling")]
    pub max_num_queued_tokens: Option<u64>,

    /// Who goes first: order of arrival, or the requests' priorities. Under `fcfs` a priority other than 0 is
    /// answered 400.
    #[arg(long, value_enum, default_value_t = SchedulingPolicy::Fcfs, help_heading = "Scheduling")]
    pub scheduling_policy: SchedulingPolicy,

    /// While other requests are alive, tokens of one prompt per step at most; 0 is no such limit.
    #[arg(
        long,
        value_name = "TOKENS",
        default_value_t = 0,
        help_heading = "Scheduling"
    )]
    pub long_prefill_token_threshold: u32,

    /// While requests generate, steps with prompts may take this many times as long as steps without: the gap
    /// between two tokens grows by no more when a long prompt comes in. 0 is no such limit.
    #[arg(
        long,
        value_name = "FACTOR",
        default_value_t = 2.5,
        help_heading = "Scheduling"
    )]
    pub max_decode_slowdown: f64,

    /// KV events as a JSON object: enable_kv_cache_events, publisher (zmq|null), endpoint, replay_endpoint,
    /// topic, buffer_steps, hwm, max_queue_size. Addresses of this machine and wildcards are bound, others
    /// connected to. Events are off by default.
    #[arg(long, value_name = "JSON", value_parser = parse_kv_events, help_heading = "KV events")]
    pub kv_events_config: Option<KvEventsConfig>,

    /// Shape of an event on the wire: `map` since vLLM 0.24, `array` for older consumers.
    #[arg(long, value_enum, default_value_t = EventForm::Map, help_heading = "KV events")]
    pub kv_events_form: EventForm,

    /// Name blocks in KV events by integers of 64 bits; `false` sends their whole digests as bytes. The environment
    /// variable VLLM_KV_EVENTS_USE_INT_BLOCK_HASHES does the same.
    #[arg(
        long,
        env = "VLLM_KV_EVENTS_USE_INT_BLOCK_HASHES",
        hide_env = true,
        value_name = "BOOL",
        default_value = "true",
        value_parser = parse_bool,
        action = clap::ArgAction::Set,
        help_heading = "KV events"
    )]
    pub kv_events_int_block_hashes: bool,

    /// Address to listen on.
    #[arg(
        long,
        value_name = "ADDRESS",
        default_value = "127.0.0.1",
        help_heading = "Server"
    )]
    pub host: IpAddr,

    /// Port to listen on; 0 takes a free one and logs it.
    #[arg(
        long,
        value_name = "PORT",
        default_value_t = 8000,
        help_heading = "Server"
    )]
    pub port: u16,

    /// Largest request body: bytes, or with a unit. A larger one is answered 413.
    #[arg(long, value_name = "BYTES", default_value = "32MiB", value_parser = parse_bytes, help_heading = "Server")]
    pub max_request_body_bytes: u64,

    /// How long running requests may go on after SIGTERM or SIGINT, such as 500ms, 30s or 5m. A second signal
    /// exits at once.
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = parse_duration, help_heading = "Server")]
    pub drain_timeout: Duration,

    /// Serve what changes the worker's state: /reset_prefix_cache, /abort_requests and the like. Not for an address
    /// that strangers can reach. The environment variable VLLM_SERVER_DEV_MODE=1 does the same.
    #[arg(
        long,
        env = "VLLM_SERVER_DEV_MODE",
        hide_env = true,
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_value = "false",
        default_missing_value = "true",
        value_parser = parse_bool,
        hide_default_value = true,
        action = clap::ArgAction::Set,
        help_heading = "Server"
    )]
    pub server_dev_mode: bool,

    /// Tokens whose log probabilities a request may have listed beside the sampled one; -1 allows the whole
    /// vocabulary.
    #[arg(
        long,
        value_name = "N",
        default_value_t = 20,
        allow_negative_numbers = true,
        value_parser = clap::value_parser!(i64).range(-1..=i64::from(u32::MAX)),
        help_heading = "Answers"
    )]
    pub max_logprobs: i64,

    /// Render a chat by the chat_template that its request brings. A template is a program, and may take long.
    #[arg(long, help_heading = "Answers")]
    pub trust_request_chat_template: bool,

    /// Streams carry their usage so far on each chunk and a last chunk with the whole, whether asked to or not.
    #[arg(long, help_heading = "Answers")]
    pub enable_force_include_usage: bool,

    /// Log probabilities name tokens as `token_id:7` unless the request says otherwise.
    #[arg(long, help_heading = "Answers")]
    pub return_tokens_as_token_ids: bool,

    /// Keys of which requests to /v1, /v2, /inference and /invocations must bear one, as `Authorization: Bearer
    /// KEY`; others are answered 401. The environment variable VLLM_API_KEY holds one key.
    #[arg(
        long,
        env = "VLLM_API_KEY",
        hide_env = true,
        hide_env_values = true,
        value_name = "KEY",
        num_args = 1..,
        value_parser = clap::builder::NonEmptyStringValueParser::new(),
        help_heading = "Server"
    )]
    pub api_key: Vec<String>,

    /// Form of the log on standard error. RUST_LOG sets its filter, such as `debug` or `pointsman_engine=trace`.
    #[arg(long, value_enum, default_value_t = LogFormat::Text, help_heading = "Log and traces")]
    pub log_format: LogFormat,

    /// Tokens in one event of a stream: 1 sends each as it comes, more send fewer and larger events. The first
    /// token is never held back.
    #[arg(long, value_name = "TOKENS", default_value_t = 1, value_parser = positive(), help_heading = "Server")]
    pub stream_interval: u32,

    /// The flags of `--backend sim`.
    #[command(flatten)]
    pub sim: SimFlags,
    /// What matters in a fleet.
    #[command(flatten)]
    pub fleet: FleetFlags,
}

/// What `--quantization` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum QuantizationName {
    /// 8-bit integers, one scale for each output; activations stay f32.
    Int8,
}

/// The values of `--kv-cache-dtype`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum KvCacheDtype {
    /// `float32`.
    Auto,
    /// Half the memory, rounded.
    Bfloat16,
    /// As computed.
    Float32,
}

/// The values of `--backend`.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum BackendName {
    /// The CPU, with a word on what other devices there are.
    Auto,
    /// The CPU.
    Cpu,
    /// The first NVIDIA GPU.
    Cuda,
    /// No device: the time that a GPU would take, on the wall clock, and tokens without meaning.
    Sim,
}

/// The values of `--scheduling-policy`.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum SchedulingPolicy {
    /// Order of arrival.
    Fcfs,
    /// Lower priority values first, then order of arrival.
    Priority,
}

/// The values of `--kv-events-form`.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventForm {
    /// Maps with a `type` key.
    Map,
    /// Arrays with the tag first.
    Array,
}

/// The values of `--log-format`.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// One line of text per event.
    Text,
    /// One JSON object per event.
    Json,
}

impl ValueEnum for HashAlgorithm {
    fn value_variants<'a>() -> &'a [Self] {
        &Self::ALL
    }

    fn to_possible_value(&self) -> Option<clap::builder::PossibleValue> {
        Some(clap::builder::PossibleValue::new(self.name()))
    }
}

impl Flags {
    /// The names clients may use; never empty, the first is the model's own.
    pub fn model_names(&self) -> Vec<String> {
        if self.served_model_name.is_empty() {
            vec![self.model.display().to_string()]
        } else {
            self.served_model_name.clone()
        }
    }

    /// Whether prompts are looked up in the prefix cache.
    pub fn prefix_caching(&self) -> bool {
        !self.no_enable_prefix_caching
    }
}

fn positive() -> clap::builder::RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(1..)
}

fn parse_kv_events(json: &str) -> Result<KvEventsConfig, String> {
    KvEventsConfig::parse(json).map_err(|error| error.to_string())
}

fn parse_bool(text: &str) -> Result<bool, String> {
    match text.to_ascii_lowercase().as_str() {
        "1" | "true" | "yes" | "on" => Ok(true),
        "0" | "false" | "no" | "off" | "" => Ok(false),
        _ => Err("expected true or false".to_owned()),
    }
}

fn parse_share(text: &str) -> Result<f64, String> {
    let share = text
        .parse()
        .ok()
        .filter(|share| 0.0 < *share && *share <= 1.0);
    share.ok_or_else(|| "expected a number above 0 and at most 1".to_owned())
}

/// A number and an optional unit; `K`, `M`, `G` with or without `iB` count in steps of 1024.
fn parse_bytes(text: &str) -> Result<u64, String> {
    let (number, unit) = split_number(text);
    let number: u64 = number
        .parse()
        .map_err(|_| "expected a number of bytes".to_owned())?;
    let shift = match unit {
        "" | "B" => 0,
        "K" | "Ki" | "KiB" => 10,
        "M" | "Mi" | "MiB" => 20,
        "G" | "Gi" | "GiB" => 30,
        _ => return Err(format!("unit {unit:?} is not one of KiB, MiB, GiB")),
    };
    number
        .checked_mul(1 << shift)
        .ok_or_else(|| "too large".to_owned())
}

/// GiB where no unit is given, which is vLLM's unit and may have a fraction; otherwise bytes.
fn parse_gib(text: &str) -> Result<u64, String> {
    let Ok(gib) = text.parse::<f64>() else {
        return parse_bytes(text);
    };
    if !(0.0..=1e9).contains(&gib) {
        return Err("expected a number of GiB, or bytes with a unit".to_owned());
    }
    Ok((gib * f64::from(1 << 30)) as u64)
}

/// A number and a unit of `ms`, `s`, `m` or `h`.
fn parse_duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = split_number(text);
    let number: u64 = number
        .parse()
        .map_err(|_| "expected a time such as 30s".to_owned())?;
    let unit_ms = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err(format!("unit {unit:?} is not one of ms, s, m, h")),
    };
    number
        .checked_mul(unit_ms)
        .map(Duration::from_millis)
        .ok_or_else(|| "too long".to_owned())
}

fn split_number(text: &str) -> (&str, &str) {
    let end = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    text.split_at(end)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definition_is_consistent() {
        Flags::command().debug_assert();
    }

    #[test]
    fn defaults_are_vllms() {
        let flags = Flags::parse_from(["engine", "--model", "m"]);
        assert_eq!((flags.block_size, flags.max_num_seqs), (16, 128));
        assert_eq!(flags.max_num_batched_tokens, 2048);
        assert_eq!(flags.model_names(), ["m"]);
        assert!(flags.prefix_caching());
        assert!(!flags.server_dev_mode);
        assert_eq!(flags.drain_timeout, Duration::from_secs(30));
        assert_eq!(flags.max_request_body_bytes, 32 << 20);
    }

    #[test]
    fn the_names_of_vllms_hashes_are_known() {
        let parse =
            |flags: &[&str]| Flags::try_parse_from(["engine", "--model", "m"].iter().chain(flags));
        let algorithm = |name| {
            let flags = parse(&["--prefix-caching-hash-algo", name]).unwrap();
            flags.prefix_caching_hash_algo
        };
        for known in HashAlgorithm::ALL {
            assert_eq!(algorithm(known.name()), known);
        }
        assert_eq!(algorithm("sha256_cbor"), HashAlgorithm::Sha256Cbor);
        assert!(parse(&["--prefix-caching-hash-algo", "md5"]).is_err());
        assert!(parse(&[]).unwrap().kv_events_int_block_hashes);
        let bytes = parse(&["--kv-events-int-block-hashes", "0"]).unwrap();
        assert!(!bytes.kv_events_int_block_hashes);
    }

    #[test]
    fn flags_that_say_no_win_when_last() {
        let parse = |flags: &[&str]| {
            Flags::parse_from(["engine", "--model", "m"].iter().chain(flags)).prefix_caching()
        };
        assert!(!parse(&["--no-enable-prefix-caching"]));
        assert!(parse(&["--enable-prefix-caching"]));
        assert!(Flags::parse_from(["engine", "--model", "m", "--server-dev-mode"]).server_dev_mode);
    }

    #[test]
    fn units_are_read() {
        assert_eq!(parse_bytes("512MiB"), Ok(512 << 20));
        assert_eq!(parse_bytes("1000"), Ok(1000));
        assert_eq!(parse_bytes("2G"), Ok(2 << 30));
        assert!(parse_bytes("1.5G").is_err());
        assert!(parse_bytes("99999999999G").is_err());
        assert_eq!(parse_gib("0"), Ok(0));
        assert_eq!(parse_gib("1.5"), Ok(3 << 29));
        assert_eq!(parse_gib("64MiB"), Ok(64 << 20));
        assert!(parse_gib("-1").is_err() && parse_gib("NaN").is_err() && parse_gib("4T").is_err());
        assert_eq!(parse_duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_duration("2m"), Ok(Duration::from_mins(2)));
        assert!(parse_duration("30").is_err());
        assert!(parse_duration("s").is_err());
    }
}
