//! Every metric of the picker: its name, labels, buckets and help, with a typed handle that is
//! registered once.
//!
//! Adding a metric is one row in a table below and one call where it happens. `llm_d_epp_*` are the
//! field's names with the field's labels and buckets, so that dashboards go on working;
//! `pointsman_*` are ours, where the field has no name or its buckets are too coarse (its fastest
//! scheduling bucket is 100 µs). Series with a model label are bounded: after [`MODELS_MAX`]
//! models, further ones are counted under `other`. Series per endpoint that are read off the fleet
//! are not here but in [`pool`](super::pool), because a gauge that is written at the scrape goes
//! away with its endpoint.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use dashmap::DashMap;
use metrics::{Counter, Gauge, Histogram, Key, KeyName, Label, Level, Metadata, Recorder, Unit};
use metrics_exporter_prometheus::{
    Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder,
};

/// Model names with series of their own; the rest share `other`.
pub const MODELS_MAX: usize = 1000;

/// Endpoint and model pairs with a series of their own in `scheduler_attempts_total`; the rest
/// share `other`.
pub const ATTEMPT_SERIES_MAX: usize = 10_000;

/// The label value past a bound.
const OTHER: &str = "other";

/// Fairness ids come with flow control; without it every request is of this one.
const DEFAULT_FAIRNESS_ID: &str = "default-flow";

const LATENCY_SECONDS: &[f64] = &[
    0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0,
    10.0, 15.0, 20.0, 30.0, 45.0, 60.0, 120.0, 180.0, 240.0, 300.0, 360.0, 480.0, 600.0, 900.0,
    1200.0, 1800.0, 2700.0, 3600.0,
];
const SCHEDULER_SECONDS: &[f64] = &[
    0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1,
];
const PICK_SECONDS: &[f64] = &[
    5e-6, 1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1, 0.5, 1.0,
    5.0,
];
const TOKENS: &[f64] = &[
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
    32768.0,
    65536.0,
    131_072.0,
    262_144.0,
    524_288.0,
    1_048_576.0,
];
const SIZE_BYTES: &[f64] = &[
    64.0,
    256.0,
    1024.0,
    4096.0,
    16384.0,
    65536.0,
    262_144.0,
    1_048_576.0,
    4_194_304.0,
    16_777_216.0,
    67_108_864.0,
];

/// A set of metrics that share their labels: a struct of handles, their registration and their
/// buckets.
macro_rules! metric_set {
    (
        $(#[$doc:meta])*
        $set:ident {
            $($field:ident: $kind:ident = $name:literal $([$buckets:expr])?, $help:literal;)*
        }
    ) => {
        $(#[$doc])*
        #[derive(Debug)]
        pub struct $set {
            $(#[doc = $help] pub $field: $kind,)*
        }

        impl $set {
            fn register(recorder: &PrometheusRecorder, labels: &[Label]) -> Self {
                Self {
                    $($field: $kind::register(recorder, &Key::from_parts($name, labels.to_vec())),)*
                }
            }

            fn describe(recorder: &PrometheusRecorder) {
                $($kind::describe(recorder, $name, $help);)*
            }

            fn buckets() -> Vec<(&'static str, &'static [f64])> {
                vec![$($(($name, $buckets),)?)*]
            }
        }
    };
}

metric_set! {
    /// Metrics without labels.
    ProcessMetrics {
        streams_in_flight: Gauge = "llm_d_epp_extproc_streams_inflight",
            "Open ext_proc streams, one for each request in flight.";
        scheduler_seconds: Histogram = "llm_d_epp_scheduler_e2e_duration_seconds" [SCHEDULER_SECONDS],
            "Time to choose an endpoint once the prompt is read, in seconds.";
        pick_seconds: Histogram = "pointsman_pick_duration_seconds" [PICK_SECONDS],
            "Time from a complete request to its pick, reading, tokenization and lookup included, in seconds.";
        read_seconds: Histogram = "pointsman_read_duration_seconds" [PICK_SECONDS],
            "Time to read a request body, in seconds.";
        lookup_seconds: Histogram = "pointsman_prefix_lookup_duration_seconds" [PICK_SECONDS],
            "Time to look a prompt up in the prefix indexes, in seconds.";
        served_elsewhere_total: Counter = "pointsman_served_elsewhere_total",
            "Requests that the gateway sent to another endpoint than the first one picked.";
    }
}

metric_set! {
    /// Metrics of one model, with the field's labels model_name, target_model_name, fairness_id and
    /// priority.
    ModelMetrics {
        request_total: Counter = "llm_d_epp_request_total",
            "Requests received.";
        request_running: Gauge = "llm_d_epp_request_running",
            "Requests in flight.";
        request_seconds: Histogram = "llm_d_epp_request_duration_seconds" [LATENCY_SECONDS],
            "Time from a complete request to the end of its response, in seconds.";
        ttft_seconds: Histogram = "llm_d_epp_request_ttft_seconds" [LATENCY_SECONDS],
            "Time from a complete request to the first byte of its response body, in seconds.";
        request_bytes: Histogram = "llm_d_epp_request_size_bytes" [SIZE_BYTES],
            "Size of request bodies, in bytes.";
        response_bytes: Histogram = "llm_d_epp_response_size_bytes" [SIZE_BYTES],
            "Size of response bodies, in bytes.";
        input_tokens: Histogram = "llm_d_epp_request_input_tokens" [TOKENS],
            "Prompt tokens as the worker counted them.";
        output_tokens: Histogram = "llm_d_epp_request_output_tokens" [TOKENS],
            "Generated tokens as the worker counted them.";
        cached_tokens: Histogram = "llm_d_epp_request_cached_tokens" [TOKENS],
            "Prompt tokens that the worker had in its prefix cache.";
        predicted_cached_tokens: Histogram = "pointsman_request_predicted_cached_tokens" [TOKENS],
            "Prompt tokens that the picked endpoint was expected to have in its prefix cache.";
        aborted_total: Counter = "pointsman_request_aborted_total",
            "Requests whose stream ended before their response did.";
    }
}

// Series whose labels are only known when they are counted.
const REQUEST_ERROR_TOTAL: &str = "llm_d_epp_request_error_total";
const ATTEMPTS_TOTAL: &str = "llm_d_epp_scheduler_attempts_total";
const INFO: &str = "llm_d_epp_info";
const WITHOUT_TOKENS_TOTAL: &str = "pointsman_request_without_tokens_total";

/// All metrics of one picker.
pub struct Metrics {
    recorder: PrometheusRecorder,
    handle: PrometheusHandle,
    pub process: ProcessMetrics,
    models: DashMap<Box<str>, Arc<OfModel>>,
    next_model: AtomicUsize,
    attempts: DashMap<(u64, usize), Counter>,
}

/// The metrics of one model and its place in the table.
#[derive(Debug)]
pub struct OfModel {
    /// The label value: the model's name, or `other`.
    name: Box<str>,
    number: usize,
    metrics: ModelMetrics,
}

impl std::ops::Deref for OfModel {
    type Target = ModelMetrics;

    fn deref(&self) -> &ModelMetrics {
        &self.metrics
    }
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Metrics")
            .field("models", &self.models.len())
            .finish_non_exhaustive()
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    pub fn new() -> Self {
        let mut builder = PrometheusBuilder::new();
        for (name, buckets) in ProcessMetrics::buckets()
            .into_iter()
            .chain(ModelMetrics::buckets())
        {
            builder = builder
                .set_buckets_for_metric(Matcher::Full(name.to_owned()), buckets)
                .expect("the bucket tables are not empty");
        }
        let recorder = builder.build_recorder();
        ProcessMetrics::describe(&recorder);
        ModelMetrics::describe(&recorder);
        Counter::describe(
            &recorder,
            REQUEST_ERROR_TOTAL,
            "Requests refused by the picker or failed by the worker.",
        );
        Counter::describe(
            &recorder,
            ATTEMPTS_TOTAL,
            "Scheduling attempts and where they went.",
        );
        Counter::describe(
            &recorder,
            WITHOUT_TOKENS_TOTAL,
            "Prompts looked up by their text, for want of token ids, by reason.",
        );
        Gauge::describe(&recorder, INFO, "The build that runs.");
        let info = [
            Label::new("commit", build_commit()),
            Label::new("build_ref", env!("CARGO_PKG_VERSION")),
        ];
        Gauge::register(&recorder, &Key::from_parts(INFO, info.to_vec())).set(1.0);
        Self {
            handle: recorder.handle(),
            process: ProcessMetrics::register(&recorder, &[]),
            recorder,
            models: DashMap::new(),
            next_model: AtomicUsize::new(0),
            attempts: DashMap::new(),
        }
    }

    /// The metrics of this model, or of `other` once there are [`MODELS_MAX`].
    pub fn model(&self, name: &str) -> Arc<OfModel> {
        if let Some(found) = self.models.get(name) {
            return Arc::clone(&found);
        }
        let name = if self.models.len() < MODELS_MAX {
            name
        } else {
            OTHER
        };
        // Two requests of one new model may come here at once; the entry makes them share.
        let entry = self.models.entry(Box::from(name));
        let made = entry.or_insert_with(|| {
            let metrics = ModelMetrics::register(&self.recorder, &model_labels(name));
            Arc::new(OfModel {
                name: Box::from(name),
                number: self.next_model.fetch_add(1, Relaxed),
                metrics,
            })
        });
        Arc::clone(&made)
    }

    /// Counts a request that ended in an error: the picker's own refusal, or a status of 400 and up
    /// from the worker.
    pub fn count_error(&self, model: &OfModel, error_code: &str) {
        let mut labels = model_labels(&model.name);
        labels.push(Label::new("error_code", error_code.to_owned()));
        Counter::register(
            &self.recorder,
            &Key::from_parts(REQUEST_ERROR_TOTAL, labels),
        )
        .increment(1);
    }

    /// Counts a scheduling attempt that found no endpoint.
    pub fn count_failed_attempt(&self, model: &OfModel) {
        self.attempts
            .entry((u64::MAX, model.number))
            .or_insert_with(|| self.attempt_series("failure", &model.name, "", ""))
            .increment(1);
    }

    /// Counts a pick. `endpoint_key` tells endpoints apart, `name` and `port` are its labels.
    pub fn count_pick(&self, model: &OfModel, endpoint_key: u64, name: &str, port: u16) {
        let key = (endpoint_key, model.number);
        if let Some(counter) = self.attempts.get(&key) {
            counter.increment(1);
            return;
        }
        let series = if self.attempts.len() < ATTEMPT_SERIES_MAX {
            let made = || self.attempt_series("success", &model.name, name, &port.to_string());
            self.attempts.entry(key).or_insert_with(made).clone()
        } else {
            self.attempt_series("success", OTHER, OTHER, "")
        };
        series.increment(1);
    }

    /// Counts a prompt that was looked up by its text, for want of token ids.
    pub fn count_without_tokens(&self, reason: &'static str) {
        let labels = vec![Label::from_static_parts("reason", reason)];
        Counter::register(
            &self.recorder,
            &Key::from_parts(WITHOUT_TOKENS_TOTAL, labels),
        )
        .increment(1);
    }

    /// All series in Prometheus' text format.
    pub fn render(&self) -> String {
        self.handle.render()
    }

    /// Folds recorded histogram values into their buckets. Without it they gather until the next
    /// scrape.
    pub fn run_upkeep(&self) {
        self.handle.run_upkeep();
    }

    fn attempt_series(
        &self,
        status: &'static str,
        model: &str,
        endpoint: &str,
        port: &str,
    ) -> Counter {
        let labels = vec![
            Label::from_static_parts("status", status),
            Label::new("target_model_name", model.to_owned()),
            Label::new("endpoint_name", endpoint.to_owned()),
            Label::from_static_parts("namespace", ""),
            Label::new("port", port.to_owned()),
        ];
        Counter::register(&self.recorder, &Key::from_parts(ATTEMPTS_TOTAL, labels))
    }
}

fn model_labels(model: &str) -> Vec<Label> {
    vec![
        Label::new("model_name", model.to_owned()),
        Label::new("target_model_name", model.to_owned()),
        Label::from_static_parts("fairness_id", DEFAULT_FAIRNESS_ID),
        Label::from_static_parts("priority", "0"),
    ]
}

/// The commit that the build was told about, if it was.
fn build_commit() -> &'static str {
    option_env!("POINTSMAN_COMMIT").unwrap_or("unknown")
}

const METADATA: Metadata<'static> = Metadata::new("pointsman", Level::INFO, None);

/// A kind of metric, registered with a recorder of our own instead of the global one.
trait Registered: Sized {
    fn register(recorder: &PrometheusRecorder, key: &Key) -> Self;
    fn describe(recorder: &PrometheusRecorder, name: &'static str, help: &'static str);
}

impl Registered for Counter {
    fn register(recorder: &PrometheusRecorder, key: &Key) -> Self {
        recorder.register_counter(key, &METADATA)
    }

    fn describe(recorder: &PrometheusRecorder, name: &'static str, help: &'static str) {
        recorder.describe_counter(KeyName::from_const_str(name), None::<Unit>, help.into());
    }
}

impl Registered for Gauge {
    fn register(recorder: &PrometheusRecorder, key: &Key) -> Self {
        recorder.register_gauge(key, &METADATA)
    }

    fn describe(recorder: &PrometheusRecorder, name: &'static str, help: &'static str) {
        recorder.describe_gauge(KeyName::from_const_str(name), None::<Unit>, help.into());
    }
}

impl Registered for Histogram {
    fn register(recorder: &PrometheusRecorder, key: &Key) -> Self {
        recorder.register_histogram(key, &METADATA)
    }

    fn describe(recorder: &PrometheusRecorder, name: &'static str, help: &'static str) {
        recorder.describe_histogram(KeyName::from_const_str(name), None::<Unit>, help.into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_labels_and_buckets_are_the_fields() {
        let metrics = Metrics::new();
        let model = metrics.model("m");
        model.request_total.increment(2);
        model.ttft_seconds.record(0.3);
        metrics.process.scheduler_seconds.record(0.000_15);
        metrics.count_error(&model, "BadRequest");
        metrics.count_pick(&model, 1, "a", 8000);
        let page = metrics.render();
        let labels =
            r#"model_name="m",target_model_name="m",fairness_id="default-flow",priority="0""#;
        for line in [
            format!("llm_d_epp_request_total{{{labels}}} 2"),
            format!("llm_d_epp_request_error_total{{{labels},error_code=\"BadRequest\"}} 1"),
            format!("llm_d_epp_request_ttft_seconds_bucket{{{labels},le=\"0.2\"}} 0"),
            format!("llm_d_epp_request_ttft_seconds_bucket{{{labels},le=\"0.4\"}} 1"),
            r#"llm_d_epp_scheduler_e2e_duration_seconds_bucket{le="0.0002"} 1"#.to_owned(),
            r#"llm_d_epp_scheduler_attempts_total{status="success",target_model_name="m",endpoint_name="a",namespace="",port="8000"} 1"#.to_owned(),
            "# TYPE llm_d_epp_request_total counter".to_owned(),
            "# HELP llm_d_epp_request_total Requests received.".to_owned(),
        ] {
            assert!(page.contains(&line), "{line}\nis missing from\n{page}");
        }
    }

    #[test]
    fn models_are_bounded() {
        let metrics = Metrics::new();
        for number in 0..MODELS_MAX + 10 {
            metrics
                .model(&format!("m{number}"))
                .request_total
                .increment(1);
        }
        let page = metrics.render();
        let series = page
            .lines()
            .filter(|line| line.starts_with("llm_d_epp_request_total{"));
        assert_eq!(series.count(), MODELS_MAX + 1);
        assert!(
            page.lines()
                .any(|line| line.contains("model_name=\"other\"") && line.ends_with(" 10"))
        );
    }

    #[test]
    fn two_pickers_in_one_process_do_not_mix() {
        let (one, other) = (Metrics::new(), Metrics::new());
        one.model("m").request_total.increment(1);
        assert!(one.render().contains("llm_d_epp_request_total{"));
        assert!(!other.render().contains("llm_d_epp_request_total{"));
    }
}
