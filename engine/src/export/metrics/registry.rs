//! Names, buckets and help texts, and the recorder that they are registered in.
//!
//! The names come from [`pointsman_proto::series`]; this file is the only one that says of which kind each is.

use metrics::{Counter, Gauge, Histogram, Key, KeyName, Label, Level, Metadata, Recorder};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusRecorder};
use pointsman_proto::series;

use super::Identity;
use crate::worker::QueueBound;

/// Counter of KV-event batches that were dropped because the publisher was behind.
pub(super) const KV_EVENT_BATCHES_LOST: &str = "pointsman:kv_event_batches_lost_total";

const FIRST_TOKEN_BUCKETS: [f64; 22] = [
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
    20.0, 40.0, 80.0, 160.0, 640.0, 2560.0,
];
const TOKEN_GAP_BUCKETS: [f64; 19] = [
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0,
    40.0, 80.0,
];
const REQUEST_TIME_BUCKETS: [f64; 21] = [
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0,
    480.0, 960.0, 1920.0, 7680.0,
];
const STEP_TOKENS_BUCKETS: [f64; 13] = [
    1.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0,
];
const PREEMPTIONS_BUCKETS: [f64; 7] = [1.0, 2.0, 3.0, 4.0, 5.0, 10.0, 20.0];

/// A recorder that knows the buckets; it is nobody's global one.
pub(super) fn recorder(context_tokens: u32) -> Result<PrometheusRecorder, BuildError> {
    let tokens = one_two_five(f64::from(context_tokens));
    let buckets: [(&str, &[f64]); 14] = [
        (series::TIME_TO_FIRST_TOKEN_SECONDS, &FIRST_TOKEN_BUCKETS),
        (series::INTER_TOKEN_LATENCY_SECONDS, &TOKEN_GAP_BUCKETS),
        (
            series::REQUEST_TIME_PER_OUTPUT_TOKEN_SECONDS,
            &TOKEN_GAP_BUCKETS,
        ),
        (series::E2E_REQUEST_LATENCY_SECONDS, &REQUEST_TIME_BUCKETS),
        (series::REQUEST_QUEUE_TIME_SECONDS, &REQUEST_TIME_BUCKETS),
        (
            series::REQUEST_INFERENCE_TIME_SECONDS,
            &REQUEST_TIME_BUCKETS,
        ),
        (series::REQUEST_PREFILL_TIME_SECONDS, &REQUEST_TIME_BUCKETS),
        (series::REQUEST_DECODE_TIME_SECONDS, &REQUEST_TIME_BUCKETS),
        (series::REQUEST_PROMPT_TOKENS, &tokens),
        (series::REQUEST_GENERATION_TOKENS, &tokens),
        (series::REQUEST_PARAMS_MAX_TOKENS, &tokens),
        (series::REQUEST_PREFILL_KV_COMPUTED_TOKENS, &tokens),
        (series::REQUEST_NUM_PREEMPTIONS, &PREEMPTIONS_BUCKETS),
        (series::ITERATION_TOKENS_TOTAL, &STEP_TOKENS_BUCKETS),
    ];
    let mut builder = PrometheusBuilder::new();
    for (name, bounds) in buckets {
        builder = builder.set_buckets_for_metric(Matcher::Full(name.to_owned()), bounds)?;
    }
    Ok(builder.build_recorder())
}

/// 1, 2, 5, 10, 20, 50, … up to `limit`; at least 1.
fn one_two_five(limit: f64) -> Vec<f64> {
    let mut bounds = vec![1.0];
    let mut decade = 1.0;
    loop {
        for bound in [decade * 2.0, decade * 5.0, decade * 10.0] {
            if bound > limit {
                return bounds;
            }
            bounds.push(bound);
        }
        decade *= 10.0;
    }
}

/// Registers handles under the labels that all series share.
pub(super) struct Registry<'a> {
    recorder: &'a PrometheusRecorder,
    labels: Vec<Label>,
}

impl<'a> Registry<'a> {
    pub(super) fn new(recorder: &'a PrometheusRecorder, model: &str) -> Self {
        let labels = vec![
            Label::new(series::MODEL_NAME, model.to_owned()),
            Label::from_static_parts(series::ENGINE, "0"),
        ];
        Self { recorder, labels }
    }

    fn key(&self, name: &'static str, extra: &[(&'static str, &'static str)]) -> Key {
        let extra = extra
            .iter()
            .map(|(label, value)| Label::from_static_parts(label, value));
        Key::from_parts(
            name,
            self.labels.iter().cloned().chain(extra).collect::<Vec<_>>(),
        )
    }

    pub(super) fn gauge(
        &self,
        name: &'static str,
        extra: &[(&'static str, &'static str)],
    ) -> Gauge {
        self.recorder
            .register_gauge(&self.key(name, extra), &METADATA)
    }

    pub(super) fn counter(
        &self,
        name: &'static str,
        extra: &[(&'static str, &'static str)],
    ) -> Counter {
        self.recorder
            .register_counter(&self.key(name, extra), &METADATA)
    }

    pub(super) fn histogram(&self, name: &'static str) -> Histogram {
        self.recorder
            .register_histogram(&self.key(name, &[]), &METADATA)
    }

    pub(super) fn describe(&self) {
        for (name, kind, help) in DESCRIPTIONS {
            let name = KeyName::from_const_str(name);
            match kind {
                Kind::Gauge => self.recorder.describe_gauge(name, None, help.into()),
                Kind::Counter => self.recorder.describe_counter(name, None, help.into()),
                Kind::Histogram => self.recorder.describe_histogram(name, None, help.into()),
            }
        }
    }

    /// `cache_config_info` is always 1 and says everything in its labels; Python's spelling of booleans is part
    /// of the contract.
    pub(super) fn cache_config(&self, identity: &Identity) {
        let size_tokens = u64::from(identity.blocks) * u64::from(identity.block_size);
        let prefix_caching = if identity.prefix_caching {
            "True"
        } else {
            "False"
        };
        let labels = vec![
            Label::new(series::BLOCK_SIZE, identity.block_size.to_string()),
            Label::new(series::NUM_GPU_BLOCKS, identity.blocks.to_string()),
            Label::new("enable_prefix_caching", prefix_caching),
            Label::new("prefix_caching_hash_algo", "sha256_cbor"),
            Label::new("hash_block_size", identity.block_size.to_string()),
            Label::new("cache_dtype", "auto"),
            Label::new("kv_cache_size_tokens", size_tokens.to_string()),
            Label::new(series::ENGINE, "0"),
        ];
        let key = Key::from_parts(series::CACHE_CONFIG_INFO, labels);
        self.recorder.register_gauge(&key, &METADATA).set(1.0);
    }

    /// No adapters: pickers of the field still look for the series, and read "nothing runs" from it.
    pub(super) fn lora(&self) -> Gauge {
        let labels = vec![
            Label::from_static_parts(series::MAX_LORA, "0"),
            Label::from_static_parts(series::RUNNING_LORA_ADAPTERS, ""),
            Label::from_static_parts(series::WAITING_LORA_ADAPTERS, ""),
        ];
        self.recorder.register_gauge(
            &Key::from_parts(series::LORA_REQUESTS_INFO, labels),
            &METADATA,
        )
    }

    pub(super) fn rejections(&self, model: &str, bound: QueueBound) -> Counter {
        let labels = vec![
            Label::new(series::MODEL_NAME, model.to_owned()),
            Label::from_static_parts(series::REASON, bound.reason()),
        ];
        self.recorder.register_counter(
            &Key::from_parts(series::ADMISSION_REJECTIONS, labels),
            &METADATA,
        )
    }
}

const METADATA: Metadata<'static> =
    Metadata::new("pointsman_engine", Level::INFO, Some(module_path!()));

enum Kind {
    Gauge,
    Counter,
    Histogram,
}

/// Every series of the page, with its help text.
const DESCRIPTIONS: [(&str, Kind, &str); 30] = [
    (
        series::NUM_REQUESTS_RUNNING,
        Kind::Gauge,
        "Requests in the running batch.",
    ),
    (
        series::NUM_REQUESTS_WAITING,
        Kind::Gauge,
        "Requests that wait to be scheduled.",
    ),
    (
        series::NUM_REQUESTS_WAITING_BY_REASON,
        Kind::Gauge,
        "Waiting requests by reason.",
    ),
    (
        series::KV_CACHE_USAGE_PERC,
        Kind::Gauge,
        "Share of KV blocks in use, 0 to 1.",
    ),
    (
        series::CACHE_CONFIG_INFO,
        Kind::Gauge,
        "Always 1; the labels say how the KV cache is cut.",
    ),
    (
        series::LORA_REQUESTS_INFO,
        Kind::Gauge,
        "Adapters that run and wait, in the labels.",
    ),
    (
        series::PREFIX_CACHE_QUERIES,
        Kind::Counter,
        "Prompt tokens looked up in the prefix cache.",
    ),
    (
        series::PREFIX_CACHE_HITS,
        Kind::Counter,
        "Prompt tokens found in the prefix cache.",
    ),
    (
        series::NUM_PREEMPTIONS,
        Kind::Counter,
        "Running requests that lost their blocks.",
    ),
    (
        series::PROMPT_TOKENS,
        Kind::Counter,
        "Prompt tokens processed.",
    ),
    (
        series::PROMPT_TOKENS_BY_SOURCE,
        Kind::Counter,
        "Prompt tokens by where their KV came from.",
    ),
    (
        series::PROMPT_TOKENS_CACHED,
        Kind::Counter,
        "Prompt tokens that were not computed.",
    ),
    (
        series::GENERATION_TOKENS,
        Kind::Counter,
        "Tokens generated.",
    ),
    (
        series::REQUEST_SUCCESS,
        Kind::Counter,
        "Finished requests by reason.",
    ),
    (
        series::ADMISSION_REJECTIONS,
        Kind::Counter,
        "Requests refused because the queue was full.",
    ),
    (
        KV_EVENT_BATCHES_LOST,
        Kind::Counter,
        "KV event batches dropped before they were sent.",
    ),
    (
        series::TIME_TO_FIRST_TOKEN_SECONDS,
        Kind::Histogram,
        "Arrival to first token.",
    ),
    (
        series::INTER_TOKEN_LATENCY_SECONDS,
        Kind::Histogram,
        "One token to the next.",
    ),
    (
        series::REQUEST_TIME_PER_OUTPUT_TOKEN_SECONDS,
        Kind::Histogram,
        "Decode time per token after the first, by request.",
    ),
    (
        series::E2E_REQUEST_LATENCY_SECONDS,
        Kind::Histogram,
        "Arrival to end.",
    ),
    (
        series::REQUEST_QUEUE_TIME_SECONDS,
        Kind::Histogram,
        "Arrival to first scheduled.",
    ),
    (
        series::REQUEST_INFERENCE_TIME_SECONDS,
        Kind::Histogram,
        "First scheduled to last token.",
    ),
    (
        series::REQUEST_PREFILL_TIME_SECONDS,
        Kind::Histogram,
        "First scheduled to first token.",
    ),
    (
        series::REQUEST_DECODE_TIME_SECONDS,
        Kind::Histogram,
        "First token to last token.",
    ),
    (
        series::REQUEST_PROMPT_TOKENS,
        Kind::Histogram,
        "Prompt tokens of a request.",
    ),
    (
        series::REQUEST_GENERATION_TOKENS,
        Kind::Histogram,
        "Generated tokens of a request.",
    ),
    (
        series::REQUEST_PARAMS_MAX_TOKENS,
        Kind::Histogram,
        "The max_tokens of a request.",
    ),
    (
        series::REQUEST_PREFILL_KV_COMPUTED_TOKENS,
        Kind::Histogram,
        "Prompt tokens of a request that were computed.",
    ),
    (
        series::REQUEST_NUM_PREEMPTIONS,
        Kind::Histogram,
        "Preemptions of a request.",
    ),
    (
        series::ITERATION_TOKENS_TOTAL,
        Kind::Histogram,
        "Tokens computed in one step.",
    ),
];
