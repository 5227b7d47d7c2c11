//! The worker's Prometheus page, under vLLM's series names.
//!
//! The gauges are what endpoint pickers steer by, so they are set after every turn of the engine's loop, not
//! sampled by a timer; requests that are submitted but not yet seen by the engine thread are added when the page
//! is written, so that a burst shows at once. Counters that the engine keeps itself are copied, not counted again:
//! the page and [`Stats`] can never disagree.
//!
//! Every handle is registered once, at start-up, in a recorder of its own (no global one, so a process may hold
//! several workers, as tests do); recording is an atomic store. Histogram samples wait in a buffer until
//! [`MetricsPage::upkeep`] or a scrape folds them into buckets, so upkeep has to run even if nobody scrapes.
//!
//! Buckets are vLLM's to the digit, because dashboards and autoscalers add up histograms over workers of both
//! kinds. Its token-latency buckets start at 10 ms, which is coarse for a small model on a fast device.

mod observer;
mod registry;
#[cfg(test)]
mod tests;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use metrics::{Counter, Gauge};
use metrics_exporter_prometheus::{BuildError, PrometheusHandle};
use pointsman_proto::series;

use crate::worker::{QueueBound, Stats};
pub use observer::MetricsObserver;
use registry::{KV_EVENT_BATCHES_LOST, Registry};

/// How often [`MetricsPage::upkeep`] should run.
pub const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);

/// What stands on the page from the start and does not change.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The served model's name, a label of every series.
    pub model: String,
    /// Tokens per KV block.
    pub block_size: u32,
    /// KV blocks, the null block included, as vLLM counts them.
    pub blocks: u32,
    /// Whether prompts are looked up in the prefix cache.
    pub prefix_caching: bool,
    /// The longest context in tokens; the upper bound of the token buckets.
    pub context_tokens: u32,
}

/// The page, and the few series that are not the engine thread's.
#[derive(Debug, Clone)]
pub struct MetricsPage {
    handle: PrometheusHandle,
    waiting: Gauge,
    waiting_for_capacity: Gauge,
    lora: Gauge,
    rejected_for_requests: Counter,
    rejected_for_tokens: Counter,
    kv_event_batches_lost: Counter,
}

impl MetricsPage {
    /// The text of the page. `unseen` is the number of requests that are submitted and not yet in `stats`.
    pub fn render(&self, stats: &Stats, unseen: u32) -> String {
        let waiting = f64::from(stats.waiting.saturating_add(unseen));
        self.waiting.set(waiting);
        self.waiting_for_capacity.set(waiting);
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        self.lora.set(now.as_secs_f64());
        self.handle.render()
    }

    /// Folds waiting histogram samples into their buckets. What is not folded stays in memory.
    pub fn upkeep(&self) {
        self.handle.run_upkeep();
    }

    /// Counts a request that was refused because the queue was full.
    pub fn rejected(&self, bound: QueueBound) {
        match bound {
            QueueBound::Requests => self.rejected_for_requests.increment(1),
            QueueBound::Tokens => self.rejected_for_tokens.increment(1),
        }
    }

    /// The counter of KV-event batches that were dropped unsent.
    pub fn kv_event_batches_lost(&self) -> Counter {
        self.kv_event_batches_lost.clone()
    }
}

/// Registers every series.
///
/// # Errors
/// Only if a list of buckets is empty, which none is.
pub fn build(identity: &Identity) -> Result<(MetricsPage, MetricsObserver), BuildError> {
    let recorder = registry::recorder(identity.context_tokens)?;
    let registry = Registry::new(&recorder, &identity.model);
    registry.describe();
    registry.cache_config(identity);
    let waiting = registry.gauge(series::NUM_REQUESTS_WAITING, &[]);
    let waiting_for_capacity = registry.gauge(
        series::NUM_REQUESTS_WAITING_BY_REASON,
        &[(series::REASON, "capacity")],
    );
    // Nothing is ever deferred here (no adapters, no grammars, no remote KV), but the series has two reasons.
    registry
        .gauge(
            series::NUM_REQUESTS_WAITING_BY_REASON,
            &[(series::REASON, "deferred")],
        )
        .set(0.0);
    let page = MetricsPage {
        handle: recorder.handle(),
        waiting: waiting.clone(),
        waiting_for_capacity: waiting_for_capacity.clone(),
        lora: registry.lora(),
        rejected_for_requests: registry.rejections(&identity.model, QueueBound::Requests),
        rejected_for_tokens: registry.rejections(&identity.model, QueueBound::Tokens),
        kv_event_batches_lost: registry.counter(KV_EVENT_BATCHES_LOST, &[]),
    };
    Ok((
        page,
        MetricsObserver::new(&registry, waiting, waiting_for_capacity),
    ))
}
