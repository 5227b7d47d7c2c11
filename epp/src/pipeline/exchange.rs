//! A request's life, from the moment it is read until its response has gone by.

use std::sync::Arc;

use super::choose::SCRATCH;
use super::intake::now;
use super::policy::Policy;
use super::pool::Pool;
use super::prefix::Expectation;
use super::{Shared, settle};
use crate::ext_proc::usage::TokenUsage;
use crate::ext_proc::{
    Destination, DroppedReason, Exchange, Outcome, Progress, Refusal, RefusalCode, RequestHead,
};
use crate::fleet::{Endpoint, Lease};
use crate::flow::gate::FlowLabels;
use crate::flow::{FlowRefusal, FlowRequest, Permit};
use crate::observe::OfRequest;
use crate::observe::spans::RequestSpan;
use crate::request::InferenceRequest;
use crate::schedule::expected::{Placement, Sighting};
use crate::schedule::latency::Features;
use crate::schedule::{MediaItem, SubsetEntry};

/// What the picker keeps of one request while it is in flight. Dropping it releases the endpoint.
#[derive(Debug)]
pub struct InFlight {
    pub(super) shared: Arc<Shared>,
    pub(super) pool: Arc<Pool>,
    pub(super) policy: Arc<Policy>,
    pub(super) head: Arc<RequestHead>,
    pub(super) request: InferenceRequest,
    pub(super) request_id: String,
    pub(super) is_named_by_client: bool,
    pub(super) subset: Option<Vec<SubsetEntry>>,
    pub(super) slo_ttft_ms: Option<f64>,
    pub(super) slo_tpot_ms: Option<f64>,
    pub(super) media: Vec<MediaItem>,
    pub(super) tie_seed: u64,
    pub(super) begun_us: u64,
    pub(super) body_bytes: u64,
    /// As the client names it.
    pub(super) model: Arc<str>,
    /// As the worker sees it.
    pub(super) target_model: Arc<str>,
    pub(super) fairness_id: Arc<str>,
    pub(super) priority: i32,
    pub(super) series: Arc<OfRequest>,
    /// The body with another model in it.
    pub(super) rewritten: Option<Vec<Vec<u8>>>,
    pub(super) permit: Option<Permit>,
    pub(super) picked: Option<Picked>,
    /// The number of its record in the decision log.
    pub(super) decision: Option<u64>,
    pub(super) first_byte_us: Option<u64>,
    pub(super) span: Option<RequestSpan>,
    pub(super) _running: Running,
}

/// Where a request went, and what was expected there.
#[derive(Debug)]
pub(super) struct Picked {
    pub(super) endpoint: Arc<Endpoint>,
    pub(super) expectation: Expectation,
    pub(super) lease: Lease,
    /// The endpoint that prefills, where it is another one.
    pub(super) prefill: Option<(Expectation, Lease)>,
    pub(super) features: Features,
    /// Its place among the prompts that are still to be computed, where the policy keeps account of them.
    pub(super) placement: Option<Placement>,
    pub(super) prompt_tokens: u32,
    /// Tokens that stay counted once the prompt is prefilled: those of the expected answer.
    pub(super) output_tokens: u32,
    pub(super) at_us: u64,
}

/// Counts a request as running for as long as it is in flight.
#[derive(Debug)]
pub(super) struct Running(Arc<OfRequest>);

impl Running {
    pub(super) fn new(series: Arc<OfRequest>) -> Self {
        series.running.increment();
        Self(series)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.running.decrement();
    }
}

impl Exchange for InFlight {
    async fn pick(&mut self) -> Result<Destination, Refusal> {
        let tokens = self.encode().await;
        self.wait_for_turn().await?;
        let waited_us = self
            .permit
            .as_ref()
            .map_or(0, |permit| permit.waited().as_micros() as u64);
        let chosen_from_us = self.shared.clock.now_us();
        let chosen_from = self.span.is_some().then(now);
        let outcome = SCRATCH.with_borrow_mut(|scratch| self.choose(tokens.as_deref(), scratch));
        let shared = Arc::clone(&self.shared);
        let process = &shared.metrics.process;
        process
            .scheduler_seconds
            .record(shared.seconds_since(chosen_from_us));
        let seconds = shared.seconds_since(self.begun_us + waited_us);
        process.pick_seconds.record(seconds);
        process.request_processing_seconds.record(seconds);
        if outcome.is_err() {
            shared.metrics.attempt_failed(&self.target_model);
        }
        self.trace_pick(chosen_from);
        // The prompt has served its purpose; a long one would stay for as long as its response runs.
        self.request.prompt = None;
        self.rewritten = None;
        self.head = Arc::default();
        outcome
    }

    async fn interrupted(&mut self) -> Refusal {
        match &mut self.permit {
            Some(permit) => refusal(&permit.evicted().await),
            None => std::future::pending().await,
        }
    }

    fn first_byte(&mut self) {
        let now_us = self.shared.clock.now_us();
        self.first_byte_us = Some(now_us);
        let seconds = now_us.saturating_sub(self.begun_us) as f64 / 1e6;
        settle::first_token(self, seconds, Sighting::AtOnce);
    }

    fn attributes(&self, usage: &TokenUsage) -> Vec<(String, String, f64)> {
        if self.policy.attributes.is_empty() {
            return Vec::new();
        }
        self.policy.attributes.evaluate(usage)
    }

    fn progress(&mut self, progress: &Progress) {
        let Some(ttft_us) = progress.ttft_us else {
            return;
        };
        if self.first_byte_us.is_none() {
            self.first_byte_us = Some(self.begun_us + ttft_us);
            settle::first_token(self, ttft_us as f64 / 1e6, Sighting::Afterwards);
        }
    }

    fn finish(self, outcome: &Outcome) {
        settle::finish(self, outcome);
    }
}

impl InFlight {
    /// The prompt's token ids, or nothing, with the reason counted.
    async fn encode(&self) -> Option<Arc<[u32]>> {
        let prompt = self.request.prompt.as_ref()?;
        match self.pool.tokens.encode(&self.target_model, prompt).await {
            Ok(tokens) => Some(tokens),
            Err(unavailable) => {
                self.shared.metrics.without_tokens(unavailable.label());
                tracing::debug!(request_id = self.request_id, reason = %unavailable, "prompt is looked up by its text");
                None
            }
        }
    }

    async fn wait_for_turn(&mut self) -> Result<(), Refusal> {
        let admitted = self.pool.gate.admit(FlowRequest {
            labels: FlowLabels {
                priority: self.priority,
                fairness_id: Arc::clone(&self.fairness_id),
                model: Arc::clone(&self.model),
                target_model: Arc::clone(&self.target_model),
            },
            bytes: self.body_bytes,
            arrived_ms: self.begun_us / 1_000,
            ttl_ms: None,
            deadline_ms: None,
            slo_ttft_ms: self.slo_ttft_ms,
        });
        self.permit = Some(admitted.await.map_err(|refused| refusal(&refused))?);
        Ok(())
    }
}

/// Flow control's refusal as an answer.
fn refusal(refused: &FlowRefusal) -> Refusal {
    let code = match refused.status {
        429 => RefusalCode::ResourceExhausted,
        _ => RefusalCode::ServiceUnavailable,
    };
    let reasons = [
        DroppedReason::RejectedSaturated,
        DroppedReason::RejectedNoEndpoints,
        DroppedReason::RejectedTtlExpired,
        DroppedReason::RejectedContextCancelled,
        DroppedReason::RejectedShuttingDown,
        DroppedReason::Evicted,
        DroppedReason::EvictedQueuePressure,
        DroppedReason::EvictedPriority,
    ];
    let reason = reasons
        .into_iter()
        .find(|reason| reason.value() == refused.reason);
    Refusal {
        dropped_reason: reason,
        ..Refusal::new(code, refused.message)
    }
}
