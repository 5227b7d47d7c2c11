//! Flow control's events, into the metrics of the process.

use std::sync::Arc;
use std::time::Duration;

use crate::flow::gate::FlowLabels;
use crate::flow::{FlowEvents, Outcome};
use crate::observe::Metrics;
use crate::observe::metrics::FlowOutcome;
use crate::observe::request_series::RequestLabels;

/// The events of one pool's gate.
#[derive(Debug)]
pub struct FlowMetrics {
    pub metrics: Arc<Metrics>,
    /// The pool's name.
    pub pool: Arc<str>,
}

impl FlowMetrics {
    fn decided(&self, request: &FlowLabels, outcome: Outcome, queued: bool, waited: Duration) {
        self.metrics.flow_outcome(&FlowOutcome {
            outcome: outcome.label(),
            pool: &self.pool,
            labels: RequestLabels {
                model: &request.model,
                target_model: &request.target_model,
                fairness_id: &request.fairness_id,
                priority: request.priority,
            },
            queue_seconds: queued.then_some(waited.as_secs_f64()),
        });
    }
}

impl FlowEvents for FlowMetrics {
    fn queued(&self, request: &FlowLabels, _: u64, took: Duration) {
        let (id, priority) = (&request.fairness_id, request.priority);
        let outcome = Outcome::Dispatched.label();
        self.metrics
            .flow_enqueued(id, priority, outcome, took.as_secs_f64());
    }

    fn dispatched(&self, request: &FlowLabels, _: u64, queued: bool, waited: Duration) {
        self.decided(request, Outcome::Dispatched, queued, waited);
    }

    fn refused(
        &self,
        request: &FlowLabels,
        _: u64,
        queued: bool,
        outcome: Outcome,
        waited: Duration,
    ) {
        self.decided(request, outcome, queued, waited);
    }

    fn cycle(&self, took: Duration) {
        let cycles = &self.metrics.process.dispatch_cycle_seconds;
        cycles.record(took.as_secs_f64());
    }
}
