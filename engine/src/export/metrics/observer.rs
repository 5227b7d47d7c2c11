//! The engine thread's end: each report into the series it concerns.

use super::rank::{RankSeries, Samples};
use crate::scheduler::Finish;
use crate::worker::{Observer, RequestReport, Stats, StepReport};

/// Writes what one rank's engine thread reports. Nothing here waits or takes memory.
#[derive(Debug)]
pub struct MetricsObserver {
    series: RankSeries,
}

impl MetricsObserver {
    pub(super) fn new(series: RankSeries) -> Self {
        Self { series }
    }
}

impl Observer for MetricsObserver {
    fn gauges(&mut self, stats: &Stats) {
        let to = &self.series;
        to.running.set(f64::from(stats.running));
        to.waiting.set(f64::from(stats.waiting));
        let deferred = stats.waiting_deferred.min(stats.waiting);
        to.waiting_for_capacity
            .set(f64::from(stats.waiting - deferred));
        to.waiting_deferred.set(f64::from(deferred));
        to.kv_usage.set(stats.kv_usage());
        to.prefix_queries.absolute(stats.prefix_queries);
        to.prefix_hits.absolute(stats.prefix_hits);
        to.preemptions.absolute(stats.preemptions);
        to.prompt_tokens.absolute(stats.prompt_tokens);
        let cached = stats.prompt_tokens_cached;
        to.prompt_tokens_cached.absolute(cached);
        to.prompt_tokens_found.absolute(cached);
        to.prompt_tokens_cached_device.absolute(cached);
        to.prompt_tokens_cached_host.absolute(0);
        to.prompt_tokens_computed
            .absolute(stats.prompt_tokens.saturating_sub(cached));
        to.generated_tokens.absolute(stats.generated_tokens);
    }

    /// Sets the gauges as well: a client hears of the step next, and must find it on the page.
    fn step(&mut self, report: &StepReport) {
        self.gauges(&report.stats);
        let to = &self.series.samples;
        let step = report.finished_at.saturating_sub(report.started_at);
        to.step.record(step.as_secs_f64());
        to.step_tokens.record(f64::from(report.batched_tokens));
        for wait in &report.first_token_waits {
            to.first_token.record(wait.as_secs_f64());
        }
        for gap in &report.inter_token_gaps {
            to.token_gap.record(gap.as_secs_f64());
            to.token_gap_fine.record(gap.as_secs_f64());
        }
    }

    fn request_finished(&mut self, report: &RequestReport) {
        let finished = &self.series.finished;
        match &report.finish {
            Finish::Stop { .. } => finished.stop.increment(1),
            Finish::Length => finished.length.increment(1),
            // vLLM has no reason of its own for a deadline; the engine ended it, and the answer is incomplete.
            Finish::Abort | Finish::Deadline => finished.abort.increment(1),
            Finish::Error(_) => finished.error.increment(1),
        }
        self.series.samples.record(report);
    }
}

impl Samples {
    /// Phases that a request never reached have no sample.
    fn record(&self, report: &RequestReport) {
        let total = report.finished_at.saturating_sub(report.arrived_at);
        self.total.record(total.as_secs_f64());
        self.prompt_tokens.record(f64::from(report.prompt_tokens));
        self.generated_tokens
            .record(f64::from(report.generated_tokens));
        self.max_tokens.record(f64::from(report.max_tokens));
        self.preemptions.record(f64::from(report.preemptions));
        let phases = report.phases();
        if let Some(queue) = phases.queue {
            self.queue.record(queue.as_secs_f64());
            let computed = report.prompt_tokens.saturating_sub(report.cached_tokens);
            self.computed_tokens.record(f64::from(computed));
        }
        let (Some(prefill), Some(decode)) = (phases.prefill, phases.decode) else {
            return;
        };
        self.prefill.record(prefill.as_secs_f64());
        self.inference.record((prefill + decode).as_secs_f64());
        self.decode.record(decode.as_secs_f64());
        if report.generated_tokens > 1 {
            let tokens = f64::from(report.generated_tokens - 1);
            self.token.record(decode.as_secs_f64() / tokens);
        }
    }
}
