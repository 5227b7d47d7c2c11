//! The engine thread's end: each report into the series it concerns.

use super::rank::RankSeries;
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
        let host = stats.prompt_tokens_cached_host;
        to.prompt_tokens_cached_host.absolute(host);
        to.prompt_tokens_cached_device
            .absolute(cached.saturating_sub(host));
        to.prompt_tokens_computed
            .absolute(stats.prompt_tokens.saturating_sub(cached));
        to.generated_tokens.absolute(stats.generated_tokens);
    }

    /// Sets the gauges as well: a client hears of the step next, and must find it on the page.
    fn step(&mut self, report: &StepReport) {
        self.gauges(&report.stats);
        self.series.steps.record(report);
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
        self.series.requests.record(report);
    }
}
