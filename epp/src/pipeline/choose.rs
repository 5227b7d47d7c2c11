//! The pick: index, admitters and scheduler on one snapshot, and the lease on what they chose.

use std::cell::RefCell;
use std::fmt::Write as _;
use std::sync::Arc;

use pointsman_proto::headers;
use tracing::debug;

use super::exchange::{InFlight, Picked};
use super::meter::PluginMeter;
use super::prefix::PrefixScratch;
use super::record;
use crate::ext_proc::{Destination, DroppedReason, Refusal, RefusalCode, RequestHead, WriteBack};
use crate::fleet::{Endpoint, Live, Snapshot};
use crate::observe::decisions::header_value;
use crate::observe::metrics::DisaggDecision;
use crate::schedule::expected::{Estimates, Placement};
use crate::schedule::latency::{Features, Predictions};
use crate::schedule::scheduler::find_eligible;
use crate::schedule::{Context, Decision, Headers, Meter, NoEndpoint, Request};

/// Buffers of one runtime thread.
#[derive(Default)]
pub(super) struct Scratch {
    pub(super) snapshot: Snapshot,
    pub(super) prefix: PrefixScratch,
    pub(super) predictions: Predictions,
    pub(super) estimates: Estimates,
    pub(super) eligible: Vec<usize>,
    pub(super) decision: Decision,
}

thread_local! {
    pub(super) static SCRATCH: RefCell<Scratch> = RefCell::default();
}

impl Headers for RequestHead {
    fn get(&self, name: &str) -> Option<&str> {
        RequestHead::get(self, name)
    }
}

impl InFlight {
    /// Picks, takes the lease and writes the decision down.
    pub(super) fn choose(
        &mut self,
        tokens: Option<&[u32]>,
        scratch: &mut Scratch,
    ) -> Result<Destination, Refusal> {
        let now_ms = self.shared.clock.now_ms();
        let prompt_tokens = self.pool.look_up(
            &self.shared,
            (&self.request, &self.target_model),
            tokens,
            now_ms,
            &mut scratch.prefix,
        );
        self.pool.fleet.snapshot_into(&mut scratch.snapshot);
        let scheduled = self.schedule(prompt_tokens, now_ms, scratch);
        if let Err(refusal) = scheduled {
            self.write_down(prompt_tokens, Some(&refusal), scratch);
            return Err(refusal);
        }
        let picked = self.take(tokens.is_some(), prompt_tokens, now_ms, scratch)?;
        self.picked = Some(picked);
        if let Some(permit) = &self.permit {
            permit.placed();
        }
        let explained = self.write_down(prompt_tokens, None, scratch);
        Ok(self.destination(explained, scratch))
    }

    fn schedule(
        &self,
        prompt_tokens: u32,
        now_ms: u64,
        scratch: &mut Scratch,
    ) -> Result<(), Refusal> {
        let Scratch {
            snapshot,
            prefix,
            predictions,
            estimates,
            eligible,
            decision,
        } = scratch;
        let mut request = Request {
            priority: self.priority,
            headers: &*self.head,
            media: &self.media,
            max_output_tokens: self.request.max_tokens,
            slo_ttft_ms: self.slo_ttft_ms,
            slo_tpot_ms: self.slo_tpot_ms,
            prompt_tokens,
            subset: self.subset.as_deref(),
            tie_seed: self.tie_seed,
            ..Request::new(&self.target_model, &prefix.matches)
        };
        predictions.clear();
        if self.policy.predicts {
            self.pool
                .latency
                .lock()
                .predict(snapshot, &request, predictions);
            request.predictions = Some(predictions);
        }
        estimates.clear();
        if let Some(options) = self.policy.expectation {
            let mut expected = self.pool.expected.lock();
            expected.set_options(options);
            let now_us = self.shared.clock.now_us();
            expected.estimate(snapshot, &prefix.matches, prompt_tokens, now_us, estimates);
            request.estimates = Some(estimates);
        }
        self.admit(&request, snapshot, now_ms, eligible)?;
        let measured = self.shared.metrics.measures_plugins();
        let meter = PluginMeter::new(&self.shared);
        let meter = measured.then_some(&meter as &dyn Meter);
        self.policy
            .scheduler
            .pick_metered(snapshot, &request, now_ms, decision, meter)
            .map_err(|reason| self.nobody(reason))
    }

    fn admit(
        &self,
        request: &Request<'_>,
        snapshot: &Snapshot,
        now_ms: u64,
        eligible: &mut Vec<usize>,
    ) -> Result<(), Refusal> {
        if self.policy.admitters.is_empty() {
            return Ok(());
        }
        let context = Context {
            snapshot,
            request,
            now_ms,
        };
        find_eligible(&context, eligible).map_err(|reason| self.nobody(reason))?;
        for admitter in &self.policy.admitters {
            admitter.admit(&context, eligible).map_err(|reason| {
                Refusal::dropped(
                    RefusalCode::ResourceExhausted,
                    DroppedReason::RejectedSaturated,
                    reason,
                )
            })?;
        }
        Ok(())
    }

    /// Counts the request against the endpoints of the decision.
    fn take(
        &self,
        is_by_tokens: bool,
        prompt_tokens: u32,
        now_ms: u64,
        scratch: &Scratch,
    ) -> Result<Picked, Refusal> {
        let (pool, prefix) = (&self.pool, &scratch.prefix);
        let (winner, live) = member(
            scratch,
            scratch.decision.primary().endpoints.first().copied(),
        )
        .ok_or_else(Refusal::no_endpoints)?;
        let expectation = pool.expect(&winner, &live, is_by_tokens, now_ms, prefix);
        let load = |cached: u32| {
            let uncached = prompt_tokens.saturating_sub(cached);
            let load = &self.policy.load;
            let all = load.load(uncached, prompt_tokens, self.request.max_tokens);
            (all, all - uncached)
        };
        let (tokens, output_tokens) = load(expectation.cached_tokens);
        let prefill = member(scratch, scratch.decision.prefill()).map(|(member, live)| {
            let expectation = pool.expect(&member, &live, is_by_tokens, now_ms, prefix);
            let (tokens, output) = load(expectation.cached_tokens);
            let lease = pool
                .fleet
                .lease(member.id, member.generation, tokens - output);
            (member, expectation, lease)
        });
        // Where another endpoint prefills, this one has only the answer to compute.
        let tokens = if prefill.is_some() {
            output_tokens
        } else {
            tokens
        };
        let prefills = prefill.as_ref();
        let (at, of) = prefills.map_or((&winner, &expectation), |(at, of, _)| (at, of));
        let placement = self.place(at, prompt_tokens, of.cached_tokens);
        let prefill = prefill.map(|(_, expectation, lease)| (expectation, lease));
        self.count(&winner, prompt_tokens, &expectation, scratch);
        Ok(Picked {
            placement,
            features: Features::of(&live, prompt_tokens, expectation.cached_tokens),
            lease: pool.fleet.lease(winner.id, winner.generation, tokens),
            endpoint: winner,
            expectation,
            prefill,
            prompt_tokens,
            output_tokens,
            at_us: self.shared.clock.now_us(),
        })
    }

    /// Has the prompt stand before those that come after it, at the endpoint that prefills it.
    fn place(&self, at: &Endpoint, prompt_tokens: u32, cached_tokens: u32) -> Option<Placement> {
        self.policy.expectation?;
        let who = (at.id, at.generation);
        let now_us = self.shared.clock.now_us();
        let mut expected = self.pool.expected.lock();
        expected.place(who, prompt_tokens, cached_tokens, now_us)
    }

    fn count(
        &self,
        winner: &Endpoint,
        prompt_tokens: u32,
        expectation: &super::prefix::Expectation,
        scratch: &Scratch,
    ) {
        let metrics = &self.shared.metrics;
        let cached = f64::from(expectation.cached_tokens);
        self.series.predicted_cached_tokens.record(cached);
        let address = winner.spec.address;
        metrics.picked(&self.target_model, &winner.spec.name, "", address.port());
        if prompt_tokens > 0 {
            // The field counts bytes as four to a token.
            metrics.prefix_match(cached / f64::from(prompt_tokens), cached * 4.0);
        }
        let handler = self.policy.scheduler.handler();
        if self.policy.scheduler.profiles().len() > 1 {
            metrics.disaggregated(&DisaggDecision {
                plugin_name: handler,
                plugin_type: handler,
                model: &self.target_model,
                decision: scratch.decision.stages.label(),
            });
        }
        let first = scratch.decision.primary().endpoints.first();
        let estimate = first.and_then(|at| scratch.estimates.get(*at));
        let prediction = first.and_then(|at| scratch.predictions.get(*at));
        // One request, one prediction: where both models run, the one that the pick was made with.
        let predicted_ttft_s = match (estimate, prediction) {
            (Some(estimate), _) => Some(estimate.ttft_s()),
            (None, Some(prediction)) => Some(f64::from(prediction.ttft_ms) / 1e3),
            (None, None) => None,
        };
        if let Some(seconds) = predicted_ttft_s {
            self.series.predicted_ttft.record(seconds);
        }
        if let Some(prediction) = prediction {
            let seconds = f64::from(prediction.tpot_ms) / 1e3;
            self.series.predicted_tpot.record(seconds);
        }
    }

    fn nobody(&self, reason: NoEndpoint) -> Refusal {
        debug!(request_id = self.request_id, %reason, "nothing to pick from");
        match reason {
            NoEndpoint::PoolEmpty | NoEndpoint::SubsetExcludesAll => Refusal::no_endpoints(),
            // What the field answers when its scheduler finds nobody among those that there are.
            NoEndpoint::FiltersExcludeAll => Refusal::dropped(
                RefusalCode::ResourceExhausted,
                DroppedReason::RejectedNoEndpoints,
                reason.to_string(),
            ),
            NoEndpoint::UnknownProfile => Refusal::bad_request(reason.to_string()),
        }
    }

    /// Puts the decision into the log; the header's text where the client may see it.
    fn write_down(
        &mut self,
        prompt_tokens: u32,
        refusal: Option<&Refusal>,
        scratch: &Scratch,
    ) -> Option<String> {
        let record = record::of(self, prompt_tokens, refusal, scratch);
        let is_asked = self
            .shared
            .options
            .debug_header
            .as_deref()
            .is_some_and(|name| matches!(self.head.get(name), Some("1" | "true")));
        let explained = is_asked.then(|| header_value(&record));
        record::log(self, &record);
        self.decision = Some(self.shared.decisions.push(record));
        explained
    }

    fn destination(&mut self, explained: Option<String>, scratch: &Scratch) -> Destination {
        let decision = &scratch.decision;
        let mut set_headers: Vec<_> = decision
            .headers
            .iter()
            .map(|(name, value)| ((*name).into(), value.clone()))
            .collect();
        if !self.is_named_by_client {
            set_headers.push((headers::REQUEST_ID.into(), self.request_id.clone()));
        }
        if let Some(span) = &self.span {
            set_headers.push(("traceparent".into(), span.traceparent()));
            let state = span.tracestate();
            if !state.is_empty() {
                set_headers.push(("tracestate".into(), state));
            }
        }
        let mut response_headers = vec![(
            headers::WENT_INTO_RESPONSE_HEADERS.into(),
            "true".to_owned(),
        )];
        let told = decision.response_headers.iter();
        response_headers.extend(told.map(|(name, value)| (name.clone().into(), value.clone())));
        if let Some(explained) = explained {
            response_headers.push((headers::DECISION.into(), explained));
        }
        let is_rewritten = self.rewritten.is_some();
        Destination {
            endpoints: addresses(decision, &scratch.snapshot),
            scores: if self.shared.options.emit_scores {
                scores(decision, &scratch.snapshot)
            } else {
                Vec::new()
            },
            set_headers,
            rewritten_body: self.rewritten.take(),
            response_headers,
            echo_served: self.policy.echo_served,
            model_write_back: is_rewritten
                .then(|| WriteBack::new(&self.target_model, &self.model))
                .flatten(),
            ..Destination::default()
        }
    }
}

fn member(scratch: &Scratch, position: Option<usize>) -> Option<(Arc<Endpoint>, Live)> {
    let position = position?;
    let member = scratch.snapshot.members.get(position)?;
    let live = scratch.snapshot.live.get(position)?;
    Some((Arc::clone(member), *live))
}

fn addresses(decision: &Decision, snapshot: &Snapshot) -> String {
    let mut list = String::new();
    for position in &decision.primary().endpoints {
        if let Some(member) = snapshot.members.get(*position) {
            let mut address = member.spec.address;
            if let Some(port) = decision.port {
                address.set_port(port);
            }
            let separator = if list.is_empty() { "" } else { "," };
            // Writing to a string cannot fail.
            let _ = write!(list, "{separator}{address}");
        }
    }
    list
}

fn scores(decision: &Decision, snapshot: &Snapshot) -> Vec<(String, f64)> {
    let run = decision.primary();
    let scored = run.candidates.iter().zip(&run.totals);
    let scored = scored.filter_map(|(position, total)| {
        let member = snapshot.members.get(*position)?;
        Some((member.spec.address.to_string(), f64::from(*total)))
    });
    scored.collect()
}
