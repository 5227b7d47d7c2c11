//! All metrics of one picker: what is recorded while requests travel, as typed calls.
//!
//! The names are in [`catalogue`](super::catalogue). Recording touches atomics and builds no
//! string; a page is written from them at the moment of a scrape. Label values that clients choose
//! are bounded: after [`MODELS_MAX`] models and [`FAIRNESS_IDS_MAX`] fairness ids, further ones are
//! counted under `other`. What is read off the fleet and the indexes is not here but where it is
//! written ([`pool`](super::pool), [`flow`](super::flow), the pipeline's page), because a gauge that
//! is written at the scrape goes away with what it measured.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::catalogue as names;
use super::cells::{Counter, Gauge, Histogram};
use super::exposition::{Labels, Page, Sample};
use super::family::Family;
use super::groups::{Group, Names, Series};
use super::request_series::{RequestLabels, RequestSeries, Requests, priority_text};

/// Model names with series of their own; the rest share `other`.
pub const MODELS_MAX: usize = 1000;

/// Fairness ids with series of their own; the rest share `other`.
pub const FAIRNESS_IDS_MAX: usize = 1000;

/// Series of one family whose labels grow with models, endpoints or fairness ids; the rest share
/// `other`.
pub const SERIES_MAX: usize = 10_000;

/// Histograms of one such family. Each is some forty lines of the page.
const HISTOGRAMS_MAX: usize = 1000;

/// Series of a family whose labels are words of ours, with room to spare.
const WORDS_MAX: usize = 64;

/// One pick in so many measures each of its plugins: reading the clock twice a plugin costs more
/// than most plugins do.
pub const PLUGIN_SAMPLE: u64 = 64;

/// The series of one set of request labels.
pub type OfRequest = Series<RequestSeries>;

/// Measurements without labels.
#[derive(Debug)]
pub struct ProcessMetrics {
    /// Open ext_proc streams.
    pub streams_in_flight: Gauge,
    /// Seconds to choose an endpoint once the prompt is read.
    pub scheduler_seconds: Histogram,
    /// Seconds from a complete request to its pick.
    pub pick_seconds: Histogram,
    /// Seconds to read a request body.
    pub read_seconds: Histogram,
    /// Seconds to look a prompt up in the prefix indexes.
    pub lookup_seconds: Histogram,
    /// Seconds from a complete request until it is sent on.
    pub request_processing_seconds: Histogram,
    /// Seconds that the picker spent on a response.
    pub response_processing_seconds: Histogram,
    /// Seconds to decide which waiting requests go.
    pub dispatch_cycle_seconds: Histogram,
    pub served_elsewhere_total: Counter,
    pub expired_leases_total: Counter,
    prefix_hit_ratio: Histogram,
    prefix_hit_bytes: Histogram,
    index_lookups: Counter,
    index_hits: Counter,
    index_lookup_seconds: Histogram,
    stream_seconds: Histogram,
}

/// What flow control decided about one request.
#[derive(Clone, Copy, Debug)]
pub struct FlowOutcome<'a> {
    /// The field's word, such as `Dispatched`.
    pub outcome: &'static str,
    pub pool: &'a str,
    pub labels: RequestLabels<'a>,
    /// How long the request was in its queue; `None` where it never came into one.
    pub queue_seconds: Option<f64>,
}

/// A decision about the stages of a request.
#[derive(Clone, Copy, Debug)]
pub struct DisaggDecision<'a> {
    pub plugin_name: &'a str,
    pub plugin_type: &'a str,
    pub model: &'a str,
    /// `decode-only`, `prefill-decode`, `encode-decode` or `encode-prefill-decode`.
    pub decision: &'static str,
}

/// See the module.
#[derive(Debug)]
pub struct Metrics {
    pub process: ProcessMetrics,
    requests: Requests,
    models: Names,
    fairness_ids: Names,
    attempts: Group<Counter>,
    plugins: Group<Histogram>,
    rewrites: Group<Counter>,
    disagg: Group<Counter>,
    pd: Group<Counter>,
    encoder_queries: Group<Counter>,
    encoder_hits: Group<Counter>,
    encoder_ratios: Group<Histogram>,
    flow_requests: Group<Counter>,
    flow_queue: Group<Histogram>,
    flow_enqueue: Group<Histogram>,
    streams: Group<Counter>,
    reloads: Group<Counter>,
    access_log: Group<Counter>,
    without_tokens: Group<Counter>,
    picks: AtomicU64,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    pub fn new() -> Self {
        Self {
            process: ProcessMetrics::new(),
            requests: Requests::default(),
            models: Names::new(MODELS_MAX),
            fairness_ids: Names::new(FAIRNESS_IDS_MAX),
            attempts: counters(&names::SCHEDULER_ATTEMPTS, SERIES_MAX),
            plugins: histograms(&names::PLUGIN_SECONDS),
            rewrites: counters(&names::REWRITE_DECISIONS, SERIES_MAX),
            disagg: counters(&names::DISAGG_DECISIONS, SERIES_MAX),
            pd: counters(&names::PD_DECISIONS, SERIES_MAX),
            encoder_queries: counters(&names::ENCODER_QUERIES, SERIES_MAX),
            encoder_hits: counters(&names::ENCODER_HITS, SERIES_MAX),
            encoder_ratios: histograms(&names::ENCODER_HIT_RATIO),
            flow_requests: counters(&names::FLOW_REQUESTS, SERIES_MAX),
            flow_queue: histograms(&names::FLOW_QUEUE_SECONDS),
            flow_enqueue: histograms(&names::FLOW_ENQUEUE_SECONDS),
            streams: counters(&names::STREAMS_TOTAL, WORDS_MAX),
            reloads: counters(&names::CONFIG_RELOADS, WORDS_MAX),
            access_log: counters(&names::ACCESS_LOG_ENTRIES, WORDS_MAX),
            without_tokens: counters(&names::WITHOUT_TOKENS, WORDS_MAX),
            picks: AtomicU64::new(0),
        }
    }

    /// The series of these labels. To be found once a request and kept.
    pub fn request(&self, labels: &RequestLabels<'_>) -> Arc<OfRequest> {
        self.requests.of(labels, &self.models, &self.fairness_ids)
    }

    /// Counts a scheduling attempt that found no endpoint.
    pub fn attempt_failed(&self, target_model: &str) {
        self.attempt(["failure", target_model, "", "", ""]);
    }

    /// Counts a pick.
    pub fn picked(&self, target_model: &str, endpoint: &str, namespace: &str, port: u16) {
        let port = port.to_string();
        self.attempt(["success", target_model, endpoint, namespace, &port]);
    }

    fn attempt(&self, labels: [&str; 5]) {
        let series = self.attempts.find(&labels).unwrap_or_else(|| {
            let [status, model, endpoint, namespace, port] = labels;
            let model = self.models.admit(model);
            self.attempts
                .with(&[status, model, endpoint, namespace, port])
        });
        series.increment(1);
    }

    /// Whether this pick measures its plugins. To be asked once a pick.
    pub fn measures_plugins(&self) -> bool {
        self.picks
            .fetch_add(1, Relaxed)
            .is_multiple_of(PLUGIN_SAMPLE)
    }

    /// Where the seconds of one plugin go. To be found once a configuration and kept.
    pub fn plugin(
        &self,
        extension_point: &str,
        plugin_type: &str,
        plugin_name: &str,
    ) -> Arc<Series<Histogram>> {
        self.plugins
            .with(&[extension_point, plugin_type, plugin_name])
    }

    /// Counts a rewritten model. Models named by rewrites are an operator's and never `other`.
    pub fn model_rewritten(&self, rewrite: &str, model: &str, target_model: &str) {
        let model = self.models.admit(model);
        self.rewrites
            .with(&[rewrite, model, target_model])
            .increment(1);
    }

    /// Counts a decision about the stages of a request, under the deprecated name, too, where that
    /// knows it.
    pub fn disaggregated(&self, decision: &DisaggDecision<'_>) {
        let values = [
            decision.plugin_name,
            decision.plugin_type,
            self.models.admit(decision.model),
            decision.decision,
        ];
        self.disagg.with(&values).increment(1);
        if matches!(decision.decision, "decode-only" | "prefill-decode") {
            self.pd.with(&values).increment(1);
        }
    }

    /// Takes in a lookup in the index of KV events: leading blocks at the best endpoint, and
    /// seconds.
    pub fn index_lookup(&self, best_blocks: u64, seconds: f64) {
        self.process.index_lookups.increment(1);
        self.process.index_hits.increment(best_blocks);
        self.process.index_lookup_seconds.record(seconds);
    }

    /// Takes in how much of a prompt the picked endpoint was expected to have: a share from 0 to 1,
    /// and bytes.
    pub fn prefix_match(&self, ratio: f64, bytes: f64) {
        self.process.prefix_hit_ratio.record(ratio);
        self.process.prefix_hit_bytes.record(bytes);
    }

    /// Counts media items that were looked up.
    pub fn encoder_lookup(&self, plugin: (&str, &str), modality: &str, items: u64) {
        let (plugin_type, plugin_name) = plugin;
        let series = self
            .encoder_queries
            .with(&[plugin_type, plugin_name, modality]);
        series.increment(items);
    }

    /// Counts media items that an endpoint was expected to have encoded.
    pub fn encoder_hits(&self, plugin: (&str, &str), endpoint: &str, modality: &str, items: u64) {
        let (plugin_type, plugin_name) = plugin;
        let series = self
            .encoder_hits
            .with(&[plugin_type, plugin_name, endpoint, modality]);
        series.increment(items);
    }

    /// Takes in the share of a request's media items that the picked endpoint was expected to have.
    pub fn encoder_hit_ratio(&self, plugin: (&str, &str), ratio: f64) {
        let (plugin_type, plugin_name) = plugin;
        self.encoder_ratios
            .with(&[plugin_type, plugin_name])
            .record(ratio);
    }

    /// Takes in what flow control decided about a request.
    pub fn flow_outcome(&self, decided: &FlowOutcome<'_>) {
        let priority = priority_text(decided.labels.priority);
        let requests = self
            .flow_requests
            .with(&[decided.outcome, &priority, decided.pool]);
        requests.increment(1);
        let Some(seconds) = decided.queue_seconds else {
            return;
        };
        let queue = self.flow_queue.with(&[
            self.fairness_ids.admit(decided.labels.fairness_id),
            &priority,
            decided.outcome,
            decided.pool,
            self.models.admit(decided.labels.model),
            self.models.admit(decided.labels.target_model),
        ]);
        queue.record(seconds);
    }

    /// Takes in how long it took to put a request into its queue. `outcome` is the field's word.
    pub fn flow_enqueued(&self, fairness_id: &str, priority: i32, outcome: &str, seconds: f64) {
        let fairness_id = self.fairness_ids.admit(fairness_id);
        let series = self
            .flow_enqueue
            .with(&[fairness_id, &priority_text(priority), outcome]);
        series.record(seconds);
    }

    /// Takes in an ended ext_proc stream: the name of its gRPC status, such as `OK`, and how long
    /// it was open in seconds.
    pub fn stream_ended(&self, code: &str, seconds: f64) {
        self.streams.with(&[code]).increment(1);
        self.process.stream_seconds.record(seconds);
    }

    /// Counts a changed configuration, `applied` or `refused`.
    pub fn config_reloaded(&self, result: &'static str) {
        self.reloads.with(&[result]).increment(1);
    }

    /// Takes over the count of access-log entries of a kind.
    pub fn access_log_entries_are(&self, kind: &'static str, count: u64) {
        self.access_log.with(&[kind]).set(count);
    }

    /// Counts a prompt that was looked up by its text, for want of token ids.
    pub fn without_tokens(&self, reason: &'static str) {
        self.without_tokens.with(&[reason]).increment(1);
    }

    /// Access-log entries by kind, in the order in which the kinds appeared.
    pub fn access_log_entries(&self) -> Vec<(String, u64)> {
        let all = self.access_log.all();
        let entries = all
            .iter()
            .map(|series| (series.labels.first().to_owned(), series.get()));
        entries.collect()
    }

    /// The mean of the shares given to [`prefix_match`](Self::prefix_match); `None` before the
    /// first.
    pub fn mean_prefix_match(&self) -> Option<f64> {
        let ratios = &self.process.prefix_hit_ratio;
        let count = ratios.count();
        (count > 0).then(|| ratios.sum() / count as f64)
    }

    /// All series in Prometheus' text format.
    pub fn render(&self) -> String {
        let mut page = Page::new();
        self.write(&mut page);
        page.into_text()
    }

    /// Writes all series.
    pub fn write(&self, page: &mut Page) {
        let info = Labels::new(
            names::INFO.labels,
            &[build_commit(), env!("CARGO_PKG_VERSION")],
        );
        page.write(&names::INFO, std::iter::once((&info, Sample::Number(1.0))));
        self.requests.write(page);
        self.process.write(page);
        for (family, group) in self.counter_groups() {
            group.write(family, page, |counter| Some(Sample::Count(counter.get())));
        }
        for (family, group) in self.histogram_groups() {
            group.write(family, page, |histogram| Some(Sample::Histogram(histogram)));
        }
    }

    fn counter_groups(&self) -> [(&'static Family, &Group<Counter>); 11] {
        [
            (&names::SCHEDULER_ATTEMPTS, &self.attempts),
            (&names::REWRITE_DECISIONS, &self.rewrites),
            (&names::DISAGG_DECISIONS, &self.disagg),
            (&names::PD_DECISIONS, &self.pd),
            (&names::ENCODER_QUERIES, &self.encoder_queries),
            (&names::ENCODER_HITS, &self.encoder_hits),
            (&names::FLOW_REQUESTS, &self.flow_requests),
            (&names::STREAMS_TOTAL, &self.streams),
            (&names::CONFIG_RELOADS, &self.reloads),
            (&names::ACCESS_LOG_ENTRIES, &self.access_log),
            (&names::WITHOUT_TOKENS, &self.without_tokens),
        ]
    }

    fn histogram_groups(&self) -> [(&'static Family, &Group<Histogram>); 4] {
        [
            (&names::PLUGIN_SECONDS, &self.plugins),
            (&names::ENCODER_HIT_RATIO, &self.encoder_ratios),
            (&names::FLOW_QUEUE_SECONDS, &self.flow_queue),
            (&names::FLOW_ENQUEUE_SECONDS, &self.flow_enqueue),
        ]
    }
}

impl ProcessMetrics {
    fn new() -> Self {
        let of = |family: &Family| Histogram::new(family.buckets);
        Self {
            streams_in_flight: Gauge::default(),
            scheduler_seconds: of(&names::SCHEDULER_E2E),
            pick_seconds: of(&names::PICK_DURATION),
            read_seconds: of(&names::READ_DURATION),
            lookup_seconds: of(&names::LOOKUP_DURATION),
            request_processing_seconds: of(&names::REQUEST_PROCESSING),
            response_processing_seconds: of(&names::RESPONSE_PROCESSING),
            dispatch_cycle_seconds: of(&names::FLOW_CYCLE_SECONDS),
            served_elsewhere_total: Counter::default(),
            expired_leases_total: Counter::default(),
            prefix_hit_ratio: of(&names::PREFIX_HIT_RATIO),
            prefix_hit_bytes: of(&names::PREFIX_HIT_BYTES),
            index_lookups: Counter::default(),
            index_hits: Counter::default(),
            index_lookup_seconds: of(&names::INDEX_LOOKUP_SECONDS),
            stream_seconds: of(&names::STREAM_SECONDS),
        }
    }

    fn write(&self, page: &mut Page) {
        let streams = Sample::Number(self.streams_in_flight.get() as f64);
        page.single(&names::STREAMS_IN_FLIGHT, streams);
        let histograms = [
            (&names::STREAM_SECONDS, &self.stream_seconds),
            (&names::SCHEDULER_E2E, &self.scheduler_seconds),
            (&names::PICK_DURATION, &self.pick_seconds),
            (&names::READ_DURATION, &self.read_seconds),
            (&names::LOOKUP_DURATION, &self.lookup_seconds),
            (&names::REQUEST_PROCESSING, &self.request_processing_seconds),
            (
                &names::RESPONSE_PROCESSING,
                &self.response_processing_seconds,
            ),
            (&names::FLOW_CYCLE_SECONDS, &self.dispatch_cycle_seconds),
            (&names::PREFIX_HIT_RATIO, &self.prefix_hit_ratio),
            (&names::PREFIX_HIT_BYTES, &self.prefix_hit_bytes),
            (&names::INDEX_LOOKUP_SECONDS, &self.index_lookup_seconds),
        ];
        for (family, histogram) in histograms {
            page.single(family, Sample::Histogram(histogram));
        }
        let counters = [
            (&names::SERVED_ELSEWHERE, &self.served_elsewhere_total),
            (&names::EXPIRED_LEASES, &self.expired_leases_total),
            (&names::INDEX_LOOKUPS, &self.index_lookups),
            // The best endpoint's run of leading blocks is what both count; the field has both.
            (&names::INDEX_HITS, &self.index_hits),
            (&names::INDEX_MAX_HITS, &self.index_hits),
        ];
        for (family, counter) in counters {
            page.single(family, Sample::Count(counter.get()));
        }
    }
}

fn counters(family: &'static Family, max: usize) -> Group<Counter> {
    Group::new(family.labels, max, Counter::default)
}

fn histograms(family: &'static Family) -> Group<Histogram> {
    Group::new(family.labels, HISTOGRAMS_MAX, || {
        Histogram::new(family.buckets)
    })
}

/// The commit that the build was told about, if it was.
fn build_commit() -> &'static str {
    option_env!("POINTSMAN_COMMIT").unwrap_or("unknown")
}

#[cfg(test)]
mod tests;
