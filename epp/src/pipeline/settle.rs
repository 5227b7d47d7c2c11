//! The end of an exchange: what is counted, and what the pool learns from it.

use std::time::SystemTime;

use tracing::debug;

use super::exchange::{InFlight, Picked};
use super::intake::now;
use super::prefix::Expectation;
use crate::ext_proc::usage::TokenUsage;
use crate::ext_proc::{End, Outcome};
use crate::observe::decisions::OutcomeRecord;
use crate::observe::request_series::{Latest, Slo};
use crate::observe::spans::{EndAttributes, PickAttributes};
use crate::schedule::expected::Sighting;

/// The first byte of the response came, this many seconds after the request.
pub(super) fn first_token(exchange: &mut InFlight, seconds: f64, sighting: Sighting) {
    exchange
        .series
        .first_token(seconds, exchange.request.stream);
    if exchange
        .slo_ttft_ms
        .is_some_and(|target| seconds * 1e3 > target)
    {
        exchange.series.slo_violated(Slo::Ttft);
    }
    let Some(picked) = &mut exchange.picked else {
        return;
    };
    // Where the answer does not stream, its first byte comes with the last token.
    if let (Some(placement), true) = (picked.placement, exchange.request.stream) {
        let at_us = exchange.begun_us + (seconds * 1e6) as u64;
        let mut expected = exchange.pool.expected.lock();
        expected.first_token(placement, at_us, sighting);
    }
    exchange
        .pool
        .begin_response(&exchange.shared, &picked.expectation);
    // The prompt is computed; what is left is the answer.
    if exchange.request.stream {
        picked.lease.keep_tokens(picked.output_tokens);
        picked.prefill = None;
    }
}

/// Counts, learns and writes down; the exchange releases its endpoint as it goes.
pub(super) fn finish(mut exchange: InFlight, outcome: &Outcome) {
    let now_us = exchange.shared.clock.now_us();
    if let (Some(ttft_us), None) = (outcome.measured.ttft_us, exchange.first_byte_us) {
        exchange.first_byte_us = Some(exchange.begun_us + ttft_us);
        first_token(&mut exchange, ttft_us as f64 / 1e6, Sighting::Afterwards);
    }
    let duration_us = outcome
        .measured
        .duration_us
        .unwrap_or_else(|| now_us.saturating_sub(exchange.begun_us));
    let output_tokens = outcome.usage.map(|usage| usage.completion_tokens);
    exchange
        .series
        .finished(duration_us as f64 / 1e6, output_tokens);
    match &outcome.end {
        End::Refused(refusal) => exchange.series.error(refusal.code.name()),
        End::Aborted => exchange.series.aborted_total.increment(1),
        End::Completed => count_response(&exchange, outcome, duration_us),
        End::Unseen | End::Expired => {}
    }
    learn(&mut exchange, outcome, duration_us);
    note(&mut exchange, outcome, duration_us);
    if let Some(placement) = exchange.picked.as_ref().and_then(|picked| picked.placement) {
        exchange.pool.expected.lock().ended(placement, now_us);
    }
    let (gate, fairness_id) = (exchange.pool.gate.clone(), exchange.fairness_id.clone());
    if let Some(usage) = outcome.usage {
        gate.on_served(&fairness_id, usage.prompt_tokens, usage.completion_tokens);
    }
    drop(exchange);
    // What it held is free before the gate looks.
    gate.wake();
}

fn count_response(exchange: &InFlight, outcome: &Outcome, duration_us: u64) {
    let series = &exchange.series;
    series.response_size.record(outcome.response_bytes as f64);
    if let Some(usage) = outcome.usage {
        series.input_tokens.record(usage.prompt_tokens as f64);
        series.output_tokens.record(usage.completion_tokens as f64);
        if let Some(cached) = usage.cached_tokens {
            series.cached_tokens.record(cached as f64);
        }
        if let Some(tpot) = tpot_seconds(exchange, &usage, duration_us) {
            series.tpot.record(tpot);
            series.latest(Latest::Tpot, tpot);
            if exchange
                .slo_tpot_ms
                .is_some_and(|target| tpot * 1e3 > target)
            {
                series.slo_violated(Slo::Tpot);
            }
        }
    }
    let seen = &outcome.seen;
    if let (Some(first), Some(last), 2..) = (seen.first_chunk_us, seen.last_chunk_us, seen.events) {
        let gaps = (seen.events - 1) as f64;
        series
            .itl
            .record(last.saturating_sub(first) as f64 / 1e6 / gaps);
    }
    match outcome.status {
        Some(500..) => series.error("ModelServerError"),
        Some(400..) => series.error("ModelServerClientError"),
        _ => {}
    }
    if is_served_elsewhere(exchange, outcome) {
        exchange
            .shared
            .metrics
            .process
            .served_elsewhere_total
            .increment(1);
    }
}

/// Seconds for each token after the first, of a streamed answer.
fn tpot_seconds(exchange: &InFlight, usage: &TokenUsage, duration_us: u64) -> Option<f64> {
    let tokens = usage
        .completion_tokens
        .checked_sub(1)
        .filter(|tokens| *tokens > 0)?;
    let first_us = exchange.first_byte_us?.saturating_sub(exchange.begun_us);
    let rest_us = duration_us.checked_sub(first_us)?;
    exchange
        .request
        .stream
        .then(|| rest_us as f64 / 1e6 / tokens as f64)
}

/// Tells the indexes and the latency model what became of the pick.
fn learn(exchange: &mut InFlight, outcome: &Outcome, duration_us: u64) {
    let is_served_here = !is_served_elsewhere(exchange, outcome);
    let Some(picked) = &exchange.picked else {
        return;
    };
    let (pool, shared) = (&exchange.pool, &exchange.shared);
    pool.settle(shared, &picked.expectation, outcome, is_served_here);
    if let Some((prefill, _)) = &picked.prefill {
        pool.settle(shared, prefill, outcome, true);
    }
    let is_good = outcome.end == End::Completed && outcome.status.is_none_or(|status| status < 400);
    if !is_good || !is_served_here {
        return;
    }
    let endpoint = &picked.endpoint;
    if let Some(usage) = outcome.usage
        && let Some(cached) = usage.cached_tokens
    {
        let (id, generation) = (endpoint.id, endpoint.generation);
        pool.shares
            .record(id, generation, usage.prompt_tokens, cached);
    }
    if exchange.policy.predicts {
        observe_latency(exchange, picked, outcome, duration_us);
    }
}

fn observe_latency(exchange: &InFlight, picked: &Picked, outcome: &Outcome, duration_us: u64) {
    let (id, generation) = (picked.endpoint.id, picked.endpoint.generation);
    let since_pick = || {
        let first_us = exchange.first_byte_us?;
        first_us.checked_sub(picked.at_us)
    };
    let ttft_us = outcome.measured.engine_ttft_us.or_else(since_pick);
    let mut model = exchange.pool.latency.lock();
    if let Some(ttft_us) = ttft_us {
        model.observe_ttft(id, generation, &picked.features, ttft_us as f64 / 1e6);
    }
    let tpot = outcome
        .usage
        .and_then(|usage| tpot_seconds(exchange, &usage, duration_us));
    if let Some(tpot) = tpot {
        model.observe_tpot(id, generation, &picked.features, tpot);
    }
}

/// Completes the record of the decision, its span and its log line.
fn note(exchange: &mut InFlight, outcome: &Outcome, duration_us: u64) {
    let ttft_us = exchange
        .first_byte_us
        .map(|first_us| first_us.saturating_sub(exchange.begun_us));
    if let Some(decision) = exchange.decision {
        let record = OutcomeRecord {
            status: outcome.status.unwrap_or_default(),
            ttft_ms: ttft_us.map(|ttft_us| ttft_us as f64 / 1e3),
            duration_ms: duration_us as f64 / 1e3,
            served: outcome.served.clone(),
            cached_tokens: outcome.usage.and_then(|usage| usage.cached_tokens),
        };
        exchange.shared.decisions.complete(decision, record);
    }
    let picked = exchange.picked.as_ref();
    let expected = picked.map(|picked| &picked.expectation);
    debug!(
        request_id = exchange.request_id,
        model = &*exchange.model,
        endpoint = picked.map(|picked| picked.endpoint.spec.name.as_str()),
        served = outcome.served.as_deref(),
        status = outcome.status,
        prompt_tokens = outcome.usage.map(|usage| usage.prompt_tokens),
        completion_tokens = outcome.usage.map(|usage| usage.completion_tokens),
        cached_tokens = outcome.usage.and_then(|usage| usage.cached_tokens),
        expected_cached_tokens = expected.map(|expected| expected.cached_tokens),
        believed_blocks = expected.map(Expectation::believed_blocks),
        duration_ms = duration_us / 1_000,
        end = end_name(&outcome.end),
        reason = outcome.reason.label(),
        "request finished"
    );
    exchange.end_span(outcome);
}

/// Whether the gateway says that it sent the request to another endpoint than the one picked.
fn is_served_elsewhere(exchange: &InFlight, outcome: &Outcome) -> bool {
    let picked = exchange
        .picked
        .as_ref()
        .map(|picked| picked.endpoint.spec.address);
    let served = outcome.served.as_deref();
    let served = served.and_then(|served| served.parse::<std::net::SocketAddr>().ok());
    // A primary port stands for all ranks of its pod.
    served.is_some_and(|served| {
        picked.is_none_or(|picked| served.ip() != picked.ip() || served.port() != picked.port())
    }) && !exchange.policy.scheduler.sends_to_primary_port()
}

fn end_name(end: &End) -> &'static str {
    match end {
        End::Completed => "completed",
        End::Refused(_) => "refused",
        End::Aborted => "aborted",
        End::Unseen => "unseen",
        End::Expired => "expired",
    }
}

impl InFlight {
    /// The span of the pick, under that of the request.
    pub(super) fn trace_pick(&self, from: Option<SystemTime>) {
        let (Some(span), Some(from)) = (&self.span, from) else {
            return;
        };
        let picked = self.picked.as_ref();
        span.orchestration(
            from,
            now(),
            &PickAttributes {
                model: &self.model,
                target_model: &self.target_model,
                endpoint: picked.map_or("", |picked| &picked.endpoint.spec.name),
                prompt_tokens: picked.map_or(0, |picked| picked.prompt_tokens),
                cached_tokens: picked.map_or(0, |picked| picked.expectation.cached_tokens),
                ..PickAttributes::default()
            },
        );
    }

    fn end_span(&mut self, outcome: &Outcome) {
        let Some(span) = self.span.take() else { return };
        let picked = self.picked.as_ref();
        span.end(
            now(),
            &EndAttributes {
                model: &self.model,
                target_model: &self.target_model,
                endpoint: picked.map_or("", |picked| &picked.endpoint.spec.name),
                status: outcome.status.unwrap_or_default(),
                prompt_tokens: outcome.usage.map(|usage| usage.prompt_tokens),
                cached_tokens: outcome.usage.and_then(|usage| usage.cached_tokens),
            },
        );
    }
}
