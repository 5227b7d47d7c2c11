//! The engine thread's end: each report into the handles it concerns.

use metrics::{Counter, Gauge, Histogram};
use pointsman_proto::series;

use super::registry::Registry;
use crate::scheduler::Finish;
use crate::worker::{Observer, RequestReport, Stats, StepReport};

/// Handles of everything the engine thread reports. Recording is an atomic store or a push into a buffer.
#[derive(Debug)]
pub struct MetricsObserver {
    running: Gauge,
    waiting: Gauge,
    waiting_for_capacity: Gauge,
    kv_usage: Gauge,
    prefix_queries: Counter,
    prefix_hits: Counter,
    preemptions: Counter,
    prompt_tokens: Counter,
    prompt_tokens_computed: Counter,
    prompt_tokens_found: Counter,
    prompt_tokens_cached: Counter,
    generated_tokens: Counter,
    finished: FinishedCounters,
    first_token: Histogram,
    token_gap: Histogram,
    step_tokens: Histogram,
    request: RequestHistograms,
}

#[derive(Debug)]
struct FinishedCounters {
    stop: Counter,
    length: Counter,
    abort: Counter,
    error: Counter,
}

#[derive(Debug)]
struct RequestHistograms {
    total: Histogram,
    queue: Histogram,
    prefill: Histogram,
    decode: Histogram,
    inference: Histogram,
    token: Histogram,
    prompt_tokens: Histogram,
    generated_tokens: Histogram,
    max_tokens: Histogram,
    computed_tokens: Histogram,
    preemptions: Histogram,
}

impl MetricsObserver {
    /// The waiting gauges are the page's, too.
    pub(super) fn new(
        registry: &Registry<'_>,
        waiting: Gauge,
        waiting_for_capacity: Gauge,
    ) -> Self {
        let source =
            |source| registry.counter(series::PROMPT_TOKENS_BY_SOURCE, &[(series::SOURCE, source)]);
        let finished = |reason| {
            registry.counter(
                series::REQUEST_SUCCESS,
                &[(series::FINISHED_REASON, reason)],
            )
        };
        source("external_kv_transfer").absolute(0);
        Self {
            running: registry.gauge(series::NUM_REQUESTS_RUNNING, &[]),
            waiting,
            waiting_for_capacity,
            kv_usage: registry.gauge(series::KV_CACHE_USAGE_PERC, &[]),
            prefix_queries: registry.counter(series::PREFIX_CACHE_QUERIES, &[]),
            prefix_hits: registry.counter(series::PREFIX_CACHE_HITS, &[]),
            preemptions: registry.counter(series::NUM_PREEMPTIONS, &[]),
            prompt_tokens: registry.counter(series::PROMPT_TOKENS, &[]),
            prompt_tokens_computed: source("local_compute"),
            prompt_tokens_found: source("local_cache_hit"),
            prompt_tokens_cached: registry.counter(series::PROMPT_TOKENS_CACHED, &[]),
            generated_tokens: registry.counter(series::GENERATION_TOKENS, &[]),
            finished: FinishedCounters {
                stop: finished("stop"),
                length: finished("length"),
                abort: finished("abort"),
                error: finished("error"),
            },
            first_token: registry.histogram(series::TIME_TO_FIRST_TOKEN_SECONDS),
            token_gap: registry.histogram(series::INTER_TOKEN_LATENCY_SECONDS),
            step_tokens: registry.histogram(series::ITERATION_TOKENS_TOTAL),
            request: RequestHistograms {
                total: registry.histogram(series::E2E_REQUEST_LATENCY_SECONDS),
                queue: registry.histogram(series::REQUEST_QUEUE_TIME_SECONDS),
                prefill: registry.histogram(series::REQUEST_PREFILL_TIME_SECONDS),
                decode: registry.histogram(series::REQUEST_DECODE_TIME_SECONDS),
                inference: registry.histogram(series::REQUEST_INFERENCE_TIME_SECONDS),
                token: registry.histogram(series::REQUEST_TIME_PER_OUTPUT_TOKEN_SECONDS),
                prompt_tokens: registry.histogram(series::REQUEST_PROMPT_TOKENS),
                generated_tokens: registry.histogram(series::REQUEST_GENERATION_TOKENS),
                max_tokens: registry.histogram(series::REQUEST_PARAMS_MAX_TOKENS),
                computed_tokens: registry.histogram(series::REQUEST_PREFILL_KV_COMPUTED_TOKENS),
                preemptions: registry.histogram(series::REQUEST_NUM_PREEMPTIONS),
            },
        }
    }
}

impl Observer for MetricsObserver {
    fn gauges(&mut self, stats: &Stats) {
        self.running.set(f64::from(stats.running));
        self.waiting.set(f64::from(stats.waiting));
        self.waiting_for_capacity.set(f64::from(stats.waiting));
        self.kv_usage.set(stats.kv_usage());
        self.prefix_queries.absolute(stats.prefix_queries);
        self.prefix_hits.absolute(stats.prefix_hits);
        self.preemptions.absolute(stats.preemptions);
        self.prompt_tokens.absolute(stats.prompt_tokens);
        self.prompt_tokens_cached
            .absolute(stats.prompt_tokens_cached);
        self.prompt_tokens_found
            .absolute(stats.prompt_tokens_cached);
        let computed = stats
            .prompt_tokens
            .saturating_sub(stats.prompt_tokens_cached);
        self.prompt_tokens_computed.absolute(computed);
        self.generated_tokens.absolute(stats.generated_tokens);
    }

    /// Sets the gauges as well: a client hears of the step next, and must find it on the page.
    fn step(&mut self, report: &StepReport) {
        self.gauges(&report.stats);
        self.step_tokens.record(f64::from(report.batched_tokens));
        for wait in &report.first_token_waits {
            self.first_token.record(wait.as_secs_f64());
        }
        for gap in &report.inter_token_gaps {
            self.token_gap.record(gap.as_secs_f64());
        }
    }

    fn request_finished(&mut self, report: &RequestReport) {
        match &report.finish {
            Finish::Stop { .. } => self.finished.stop.increment(1),
            Finish::Length => self.finished.length.increment(1),
            // vLLM has no reason of its own for a deadline; the engine ended it, and the answer is incomplete.
            Finish::Abort | Finish::Deadline => self.finished.abort.increment(1),
            Finish::Error(_) => self.finished.error.increment(1),
        }
        self.request.record(report);
    }
}

impl RequestHistograms {
    /// Phases that a request never reached have no sample.
    fn record(&self, report: &RequestReport) {
        self.total.record(
            report
                .finished_at
                .saturating_sub(report.arrived_at)
                .as_secs_f64(),
        );
        self.prompt_tokens.record(f64::from(report.prompt_tokens));
        self.generated_tokens
            .record(f64::from(report.generated_tokens));
        self.max_tokens.record(f64::from(report.max_tokens));
        self.preemptions.record(f64::from(report.preemptions));
        let Some(scheduled) = report.scheduled_at else {
            return;
        };
        self.queue
            .record(scheduled.saturating_sub(report.arrived_at).as_secs_f64());
        let computed = report.prompt_tokens.saturating_sub(report.cached_tokens);
        self.computed_tokens.record(f64::from(computed));
        let (Some(first), Some(last)) = (report.first_token_at, report.last_token_at) else {
            return;
        };
        self.prefill
            .record(first.saturating_sub(scheduled).as_secs_f64());
        self.inference
            .record(last.saturating_sub(scheduled).as_secs_f64());
        let decode = last.saturating_sub(first).as_secs_f64();
        self.decode.record(decode);
        if report.generated_tokens > 1 {
            self.token
                .record(decode / f64::from(report.generated_tokens - 1));
        }
    }
}
