//! The series of one data-parallel rank, which all carry the labels `model_name` and `engine`.

use pointsman_proto::series;

use super::buckets::TOKEN_GAP_BUCKETS;
use super::cells::{Counter, Gauge, Histogram};
use super::page::{Labels, Page};
use super::samples::{RequestSamples, StepSamples};
use super::{Identity, KV_EVENT_BATCHES_LOST};

/// A rank's gauges and counters.
#[derive(Clone, Debug)]
pub(super) struct RankSeries {
    pub(super) running: Gauge,
    pub(super) waiting: Gauge,
    pub(super) waiting_for_capacity: Gauge,
    pub(super) waiting_deferred: Gauge,
    pub(super) kv_usage: Gauge,
    /// Awake, weights offloaded, all discarded: one of them is 1.
    pub(super) sleep: [Gauge; 3],
    pub(super) prefix_queries: Counter,
    pub(super) prefix_hits: Counter,
    pub(super) preemptions: Counter,
    pub(super) prompt_tokens: Counter,
    pub(super) prompt_tokens_computed: Counter,
    pub(super) prompt_tokens_found: Counter,
    pub(super) prompt_tokens_cached: Counter,
    pub(super) prompt_tokens_cached_device: Counter,
    pub(super) prompt_tokens_cached_host: Counter,
    pub(super) generated_tokens: Counter,
    /// By finish reason.
    pub(super) finished: Finished,
    pub(super) kv_event_batches_lost: Counter,
    pub(super) steps: StepSamples,
    pub(super) requests: RequestSamples,
}

#[derive(Clone, Debug)]
pub(super) struct Finished {
    pub(super) stop: Counter,
    pub(super) length: Counter,
    pub(super) abort: Counter,
    pub(super) error: Counter,
}

/// Registers under the labels of one rank.
pub(super) struct Registrar<'a> {
    page: &'a mut Page,
    labels: Labels,
}

impl Registrar<'_> {
    fn gauge(&mut self, name: &'static str, help: &str) -> Gauge {
        self.page.gauge(name, help, &self.labels)
    }

    fn counter(&mut self, name: &'static str, help: &str) -> Counter {
        self.page.counter(name, help, &self.labels)
    }

    /// Histograms with the same bounds, by name and help.
    pub(super) fn histograms<const N: usize>(
        &mut self,
        bounds: &[f64],
        series: [(&'static str, &str); N],
    ) -> [Histogram; N] {
        series.map(|(name, help)| self.page.histogram(name, help, &self.labels, bounds))
    }

    fn gauges<const N: usize>(
        &mut self,
        name: &'static str,
        help: &str,
        (label, values): (&str, [&str; N]),
    ) -> [Gauge; N] {
        values.map(|value| self.page.gauge(name, help, &self.labels.and(label, value)))
    }

    fn counters<const N: usize>(
        &mut self,
        name: &'static str,
        help: &str,
        (label, values): (&str, [&str; N]),
    ) -> [Counter; N] {
        values.map(|value| {
            let labels = self.labels.and(label, value);
            self.page.counter(name, help, &labels)
        })
    }
}

impl RankSeries {
    /// Puts the series of rank `rank` on the page.
    pub(super) fn new(page: &mut Page, identity: &Identity, rank: u32) -> Self {
        let labels = Labels::default()
            .and(series::MODEL_NAME, &identity.model)
            .and(series::ENGINE, rank);
        let mut on = Registrar { page, labels };
        let gauges = Gauges::new(&mut on);
        let tokens = Tokens::new(&mut on);
        let [stop, length, abort, error, repetition] = on.counters(
            series::REQUEST_SUCCESS,
            "Finished requests by reason.",
            (
                series::FINISHED_REASON,
                ["stop", "length", "abort", "error", "repetition"],
            ),
        );
        // No request ends for repeating itself here, but the series has five reasons.
        repetition.absolute(0);
        let this = Self {
            running: gauges.running,
            waiting: gauges.waiting,
            waiting_for_capacity: gauges.waiting_for_capacity,
            waiting_deferred: gauges.waiting_deferred,
            kv_usage: gauges.kv_usage,
            sleep: gauges.sleep,
            prefix_queries: on.counter(
                series::PREFIX_CACHE_QUERIES,
                "Prompt tokens looked up in the prefix cache.",
            ),
            prefix_hits: on.counter(
                series::PREFIX_CACHE_HITS,
                "Prompt tokens found in the prefix cache.",
            ),
            preemptions: on.counter(
                series::NUM_PREEMPTIONS,
                "Running requests that lost their blocks.",
            ),
            prompt_tokens: tokens.prompt,
            prompt_tokens_computed: tokens.computed,
            prompt_tokens_found: tokens.found,
            prompt_tokens_cached: tokens.cached,
            prompt_tokens_cached_device: tokens.cached_device,
            prompt_tokens_cached_host: tokens.cached_host,
            generated_tokens: tokens.generated,
            finished: Finished {
                stop,
                length,
                abort,
                error,
            },
            kv_event_batches_lost: on.counter(
                KV_EVENT_BATCHES_LOST,
                "KV event batches dropped before they were sent.",
            ),
            steps: StepSamples::new(&mut on),
            requests: RequestSamples::new(&mut on, identity.context_tokens),
        };
        if identity.legacy_names {
            this.legacy(&mut on);
        }
        this
    }

    /// The same numbers under the names that vLLM has dropped and some consumers still read.
    fn legacy(&self, on: &mut Registrar<'_>) {
        let help = "An old name of another series.";
        on.page.put_gauge(
            series::legacy::GPU_CACHE_USAGE_PERC,
            help,
            &on.labels,
            &self.kv_usage,
        );
        for (name, cell) in [
            (
                series::legacy::GPU_PREFIX_CACHE_QUERIES,
                &self.prefix_queries,
            ),
            (series::legacy::GPU_PREFIX_CACHE_HITS, &self.prefix_hits),
        ] {
            on.page.put_counter(name, help, &on.labels, cell);
        }
        on.page.put_histogram(
            series::legacy::TIME_PER_OUTPUT_TOKEN_SECONDS,
            help,
            &on.labels,
            &TOKEN_GAP_BUCKETS,
            &self.steps.token_gap,
        );
    }
}

struct Gauges {
    running: Gauge,
    waiting: Gauge,
    waiting_for_capacity: Gauge,
    waiting_deferred: Gauge,
    kv_usage: Gauge,
    sleep: [Gauge; 3],
}

impl Gauges {
    fn new(on: &mut Registrar<'_>) -> Self {
        let running = on.gauge(
            series::NUM_REQUESTS_RUNNING,
            "Requests in the running batch.",
        );
        let waiting = on.gauge(
            series::NUM_REQUESTS_WAITING,
            "Requests that wait to be scheduled.",
        );
        // Deferred are those that wait for the end of a pause; there are no adapters, grammars or remote KV to wait for.
        let [waiting_for_capacity, waiting_deferred] = on.gauges(
            series::NUM_REQUESTS_WAITING_BY_REASON,
            "Waiting requests by reason.",
            (series::REASON, ["capacity", "deferred"]),
        );
        let kv_usage = on.gauge(
            series::KV_CACHE_USAGE_PERC,
            "Share of KV blocks in use, 0 to 1.",
        );
        let sleep = on.gauges(
            series::ENGINE_SLEEP_STATE,
            "1 for the state the engine is in.",
            (
                series::SLEEP_STATE,
                ["awake", "weights_offloaded", "discard_all"],
            ),
        );
        sleep[0].set(1.0);
        Self {
            running,
            waiting,
            waiting_for_capacity,
            waiting_deferred,
            kv_usage,
            sleep,
        }
    }
}

struct Tokens {
    prompt: Counter,
    computed: Counter,
    found: Counter,
    cached: Counter,
    cached_device: Counter,
    cached_host: Counter,
    generated: Counter,
}

impl Tokens {
    fn new(on: &mut Registrar<'_>) -> Self {
        let prompt = on.counter(series::PROMPT_TOKENS, "Prompt tokens processed.");
        let [computed, found, _transferred] = on.counters(
            series::PROMPT_TOKENS_BY_SOURCE,
            "Prompt tokens by where their KV came from.",
            (
                series::SOURCE,
                ["local_compute", "local_cache_hit", "external_kv_transfer"],
            ),
        );
        let cached = on.counter(
            series::PROMPT_TOKENS_CACHED,
            "Prompt tokens that were not computed.",
        );
        let [cached_device, cached_host] = on.counters(
            series::PROMPT_TOKENS_CACHED_BY_SOURCE,
            "Prompt tokens that were not computed, by the memory their KV lay in.",
            (series::SOURCE, ["device", "host"]),
        );
        let generated = on.counter(series::GENERATION_TOKENS, "Tokens generated.");
        Self {
            prompt,
            computed,
            found,
            cached,
            cached_device,
            cached_host,
            generated,
        }
    }
}
