//! One request through the rooms, in order: the only file that knows them all.
//!
//! `request` reads the body, `tokens` turns the prompt into ids, `index` says who holds its prefix,
//! `flow` admits it, `schedule` picks, and `fleet` counts it against the pick until its response
//! has gone by. Each step that can fail without harm does so by name: without token ids, which is
//! counted, the prompt's text is looked up among earlier picks instead.
//!
//! Everything that grows with the fleet lives in buffers of the runtime's threads, so that a
//! request allocates nothing proportional to it.

mod event_indexes;
mod explain;
pub mod page;
mod prefix;
mod record;
mod status;

use std::borrow::Cow;
use std::cell::RefCell;
use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use pointsman_proto::headers;
use tracing::{Level, debug, enabled};

pub use self::event_indexes::EventIndexes;
use self::explain::explain;
use self::prefix::{Expectation, PrefixScratch};
use self::record::profile_record;
use crate::clock::{self, Clock};
use crate::ext_proc::{Decider, Destination, End, Exchange, Intake, Outcome, Refusal};
use crate::fleet::{Endpoint, Fleet, Lease, Live, Snapshot};
use crate::flow::{self, UtilizationDetector};
use crate::index::PrefixIndex;
use crate::index::approximate::ApproximateIndex;
use crate::observe::decisions::{DecisionLog, DecisionRecord, OutcomeRecord};
use crate::observe::request_series::DEFAULT_FAIRNESS_ID;
use crate::observe::{Gauge, Metrics, OfRequest, RequestLabels};
use crate::request::{self, InferenceRequest, ParseError};
use crate::schedule::{self, Decision, NoEndpoint, Profile, SubsetEntry};
use crate::tokens::Tokens;

/// Priorities come with objectives, which need Kubernetes; without them every request has the
/// field's default.
const DEFAULT_PRIORITY: i32 = 0;

/// Prefix matches are counted in tokens; the field's histogram has bytes, four to a token as its own
/// estimate does.
const BYTES_PER_TOKEN: f64 = 4.0;

/// The rooms of one pool and what its operator chose.
#[derive(Debug)]
pub struct Parts {
    pub fleet: Arc<Fleet>,
    pub index: Arc<PrefixIndex>,
    pub approximate: Arc<ApproximateIndex>,
    pub tokens: Tokens,
    pub profile: Profile,
    pub detector: UtilizationDetector,
    pub metrics: Arc<Metrics>,
    pub clock: Clock,
    pub options: Options,
}

/// What the operator chose.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Whether the gateway may confine a request to some endpoints.
    pub use_subset_hint: bool,
    /// Whether the gateway is told the score of every candidate.
    pub emit_scores: bool,
    /// Where random choices start. One seed and one order of requests give one sequence of picks.
    pub seed: u64,
}

/// The pipeline; clones walk the same rooms.
#[derive(Clone, Debug)]
pub struct Pipeline {
    parts: Arc<Parts>,
    requests: Arc<AtomicU64>,
    decisions: Arc<DecisionLog>,
}

/// What the picker keeps of one request while it is in flight. Dropping it releases the endpoint.
#[derive(Debug)]
pub struct InFlight {
    parts: Arc<Parts>,
    request: InferenceRequest,
    request_id: String,
    subset: Option<Vec<SubsetEntry>>,
    tie_seed: u64,
    begun_us: u64,
    model: Arc<OfRequest>,
    picked: Option<Picked>,
    decisions: Arc<DecisionLog>,
    /// The number of its decision in the log.
    decision: Option<u64>,
    ttft_us: Option<u64>,
    _running: Running,
}

#[derive(Debug)]
struct Picked {
    endpoint: Arc<Endpoint>,
    expectation: Expectation,
    _lease: Lease,
}

impl Pipeline {
    pub fn new(parts: Parts) -> Self {
        Self {
            parts: Arc::new(parts),
            requests: Arc::default(),
            decisions: Arc::default(),
        }
    }

    /// The latest picks and why they were made.
    pub fn decisions(&self) -> &Arc<DecisionLog> {
        &self.decisions
    }

    /// The rooms, for whoever reads their state.
    pub fn parts(&self) -> &Parts {
        &self.parts
    }
}

impl Decider for Pipeline {
    type Exchange = InFlight;

    fn begin(&self, intake: Intake<'_>) -> Result<InFlight, Refusal> {
        let begun_us = self.parts.clock.now_us();
        let body = joined(intake.body);
        let request =
            read(&intake, &body).map_err(|error| Refusal::bad_request(error.to_string()))?;
        let metrics = &self.parts.metrics;
        let model = metrics.request(&RequestLabels::of_model(&request.model));
        model.total.increment(1);
        model.request_size.record(body.len() as f64);
        metrics
            .process
            .read_seconds
            .record(self.parts.seconds_since(begun_us));
        let hint = intake.subset.filter(|_| self.parts.options.use_subset_hint);
        Ok(InFlight {
            request_id: intake
                .head
                .get(headers::REQUEST_ID)
                .unwrap_or_default()
                .to_owned(),
            subset: hint.map(|entries| {
                entries
                    .iter()
                    .filter_map(|entry| SubsetEntry::parse(entry))
                    .collect()
            }),
            tie_seed: mixed(
                self.parts
                    .options
                    .seed
                    .wrapping_add(self.requests.fetch_add(1, Relaxed)),
            ),
            begun_us,
            _running: Running::new(model.running.clone()),
            model,
            picked: None,
            decisions: Arc::clone(&self.decisions),
            decision: None,
            ttft_us: None,
            request,
            parts: Arc::clone(&self.parts),
        })
    }

    fn refused(&self, refusal: &Refusal) {
        let model = self.parts.metrics.request(&RequestLabels::of_model(""));
        model.total.increment(1);
        model.error(refusal.code.name());
        debug!(
            code = refusal.code.name(),
            message = refusal.message,
            "request refused unread"
        );
    }
}

impl Exchange for InFlight {
    async fn pick(&mut self) -> Result<Destination, Refusal> {
        let tokens = self.encode().await;
        let chosen_from_us = self.parts.clock.now_us();
        let outcome = SCRATCH.with_borrow_mut(|scratch| self.choose(tokens.as_deref(), scratch));
        let process = &self.parts.metrics.process;
        process
            .scheduler_seconds
            .record(self.parts.seconds_since(chosen_from_us));
        process
            .pick_seconds
            .record(self.parts.seconds_since(self.begun_us));
        if let Err(refusal) = &outcome {
            self.parts.metrics.attempt_failed(&self.request.model);
            let refused = DecisionRecord {
                refused: Some(refusal.message.clone()),
                ..self.record(0)
            };
            self.decision = Some(self.decisions.push(refused));
        }
        // The prompt has served its purpose; a long one would stay for as long as its response runs.
        self.request.prompt = None;
        outcome
    }

    fn first_byte(&mut self) {
        let ttft_us = self.parts.clock.now_us().saturating_sub(self.begun_us);
        self.ttft_us = Some(ttft_us);
        self.model
            .first_token(ttft_us as f64 / 1e6, self.request.stream);
        if let Some(picked) = &self.picked {
            self.parts.begin_response(&picked.expectation);
        }
    }

    fn finish(self, outcome: &Outcome) {
        let output_tokens = outcome.usage.map(|usage| usage.completion_tokens);
        self.model
            .finished(self.parts.seconds_since(self.begun_us), output_tokens);
        match &outcome.end {
            End::Refused(refusal) => self.model.error(refusal.code.name()),
            End::Aborted => self.model.aborted_total.increment(1),
            End::Completed => self.count_response(outcome),
            End::Unseen => {}
        }
        if let Some(picked) = &self.picked {
            let is_served_here = !self.is_served_elsewhere(outcome);
            self.parts
                .settle(&picked.expectation, outcome, is_served_here);
        }
        self.complete_record(outcome);
        self.log_end(outcome);
    }
}

impl InFlight {
    /// The prompt's token ids, or nothing, with the reason counted.
    async fn encode(&self) -> Option<Arc<[u32]>> {
        let prompt = self.request.prompt.as_ref()?;
        match self.parts.tokens.encode(&self.request.model, prompt).await {
            Ok(tokens) => Some(tokens),
            Err(unavailable) => {
                self.parts.metrics.without_tokens(unavailable.label());
                debug!(request_id = self.request_id, reason = %unavailable, "prompt is looked up by its text");
                None
            }
        }
    }

    /// Index, flow and schedule on one snapshot; takes the lease.
    fn choose(
        &mut self,
        tokens: Option<&[u32]>,
        scratch: &mut Scratch,
    ) -> Result<Destination, Refusal> {
        let parts = Arc::clone(&self.parts);
        let now_ms = parts.clock.now_ms();
        let prompt_tokens = parts.look_up(&self.request, tokens, now_ms, &mut scratch.prefix);
        parts.fleet.snapshot_into(&mut scratch.snapshot);
        let saturation = flow::saturation(&scratch.snapshot, now_ms, &parts.detector);
        flow::admit(DEFAULT_PRIORITY, saturation)
            .map_err(|flow::Refused::Saturated| Refusal::saturated())?;
        let request = schedule::Request {
            prompt_tokens,
            subset: self.subset.as_deref(),
            tie_seed: self.tie_seed,
            ..schedule::Request::new(&self.request.model, &scratch.prefix.matches)
        };
        schedule::pick_into(
            &parts.profile,
            &scratch.snapshot,
            &request,
            now_ms,
            &mut scratch.decision,
        )
        .map_err(|reason| self.nobody(reason))?;
        let (winner, live) = winner(scratch).ok_or_else(Refusal::no_endpoints)?;
        let expectation = parts.expect(&winner, &live, tokens.is_some(), now_ms, &scratch.prefix);
        self.model
            .predicted_cached_tokens
            .record(f64::from(expectation.cached_tokens));
        self.log_pick(&winner, prompt_tokens, &expectation, scratch);
        self.keep_record(prompt_tokens, &expectation, scratch);
        parts.metrics.picked(
            &self.request.model,
            &winner.spec.name,
            "",
            winner.spec.address.port(),
        );
        let lease = parts
            .fleet
            .lease(winner.id, winner.generation, prompt_tokens);
        self.picked = Some(Picked {
            endpoint: winner,
            expectation,
            _lease: lease,
        });
        Ok(destination(
            &scratch.decision,
            &scratch.snapshot,
            parts.options.emit_scores,
        ))
    }

    /// What is known of the request before anybody is picked.
    fn record(&self, prompt_tokens: u32) -> DecisionRecord {
        DecisionRecord {
            at_unix_ms: clock::unix_nanos() / 1_000_000,
            request_id: self.request_id.clone(),
            model: self.request.model.clone(),
            target_model: self.request.model.clone(),
            fairness_id: DEFAULT_FAIRNESS_ID.to_owned(),
            priority: DEFAULT_PRIORITY,
            prompt_tokens,
            pick_us: self.parts.clock.now_us().saturating_sub(self.begun_us),
            ..DecisionRecord::default()
        }
    }

    fn keep_record(&mut self, prompt_tokens: u32, expectation: &Expectation, scratch: &Scratch) {
        if prompt_tokens > 0 {
            let cached = f64::from(expectation.cached_tokens);
            let ratio = cached / f64::from(prompt_tokens);
            self.parts
                .metrics
                .prefix_match(ratio, cached * BYTES_PER_TOKEN);
        }
        let matches = &scratch.prefix.matches;
        let profile = profile_record("default", &scratch.decision, &scratch.snapshot, matches);
        let record = DecisionRecord {
            profiles: vec![profile],
            ..self.record(prompt_tokens)
        };
        self.decision = Some(self.decisions.push(record));
    }

    fn complete_record(&self, outcome: &Outcome) {
        let Some(id) = self.decision else {
            return;
        };
        let duration_us = self.parts.clock.now_us().saturating_sub(self.begun_us);
        let ended = OutcomeRecord {
            status: outcome.status.unwrap_or_default(),
            ttft_ms: self.ttft_us.map(|ttft_us| ttft_us as f64 / 1e3),
            duration_ms: duration_us as f64 / 1e3,
            served: outcome.served.clone(),
            cached_tokens: outcome.usage.and_then(|usage| usage.cached_tokens),
        };
        self.decisions.complete(id, ended);
    }

    fn nobody(&self, reason: NoEndpoint) -> Refusal {
        debug!(request_id = self.request_id, %reason, "nothing to pick from");
        Refusal::no_endpoints()
    }

    fn count_response(&self, outcome: &Outcome) {
        self.model
            .response_size
            .record(outcome.response_bytes as f64);
        if let Some(usage) = outcome.usage {
            self.model.input_tokens.record(usage.prompt_tokens as f64);
            self.model
                .output_tokens
                .record(usage.completion_tokens as f64);
            if let Some(cached) = usage.cached_tokens {
                self.model.cached_tokens.record(cached as f64);
            }
        }
        match outcome.status {
            Some(500..) => self.model.error("ModelServerError"),
            Some(400..) => self.model.error("ModelServerClientError"),
            _ => {}
        }
        if self.is_served_elsewhere(outcome) {
            self.parts
                .metrics
                .process
                .served_elsewhere_total
                .increment(1);
        }
    }

    /// Whether the gateway says that it sent the request to another endpoint than the one picked.
    fn is_served_elsewhere(&self, outcome: &Outcome) -> bool {
        let picked = self
            .picked
            .as_ref()
            .map(|picked| picked.endpoint.spec.address);
        let served = outcome
            .served
            .as_deref()
            .and_then(|served| served.parse().ok());
        served.is_some() && served != picked
    }

    fn log_pick(
        &self,
        winner: &Endpoint,
        prompt_tokens: u32,
        expectation: &Expectation,
        scratch: &Scratch,
    ) {
        if !enabled!(Level::DEBUG) {
            return;
        }
        let decision = &scratch.decision;
        let explained = explain(decision, &scratch.snapshot, &scratch.prefix.matches);
        debug!(
            request_id = self.request_id,
            model = self.request.model,
            endpoint = winner.spec.name,
            prompt_tokens,
            cached_tokens = expectation.cached_tokens,
            cached_by = expectation.source(),
            believed_blocks = expectation.believed_blocks(),
            candidates = decision.candidates.len(),
            reason = decision.reason,
            scores = explained.winner,
            runner_up = explained.runner_up,
            "endpoint picked"
        );
    }

    fn log_end(&self, outcome: &Outcome) {
        let picked = self.picked.as_ref();
        let expected = picked.map(|picked| &picked.expectation);
        let picked = picked.map(|picked| picked.endpoint.spec.name.as_str());
        debug!(
            request_id = self.request_id,
            model = self.request.model,
            endpoint = picked.unwrap_or_default(),
            served = outcome.served.as_deref().unwrap_or_default(),
            status = outcome.status,
            prompt_tokens = outcome.usage.map(|usage| usage.prompt_tokens),
            completion_tokens = outcome.usage.map(|usage| usage.completion_tokens),
            cached_tokens = outcome.usage.and_then(|usage| usage.cached_tokens),
            expected_cached_tokens = expected.map(|expected| expected.cached_tokens),
            believed_blocks = expected.map(Expectation::believed_blocks),
            duration_ms = self.parts.clock.now_us().saturating_sub(self.begun_us) / 1_000,
            end = end_name(&outcome.end),
            "request finished"
        );
    }
}

impl Parts {
    fn seconds_since(&self, from_us: u64) -> f64 {
        self.clock.now_us().saturating_sub(from_us) as f64 / 1e6
    }
}

/// Buffers of one runtime thread.
#[derive(Default)]
struct Scratch {
    snapshot: Snapshot,
    prefix: PrefixScratch,
    decision: Decision,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Counts a request as running for as long as it is in flight.
#[derive(Debug)]
struct Running(Gauge);

impl Running {
    fn new(gauge: Gauge) -> Self {
        gauge.increment();
        Self(gauge)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.decrement();
    }
}

/// A body that came in one piece is read where it lies; only one in several pieces is joined for
/// reading.
fn joined(chunks: &[Vec<u8>]) -> Cow<'_, [u8]> {
    match chunks {
        [] => Cow::Borrowed(&[]),
        [one] => Cow::Borrowed(one),
        several => Cow::Owned(several.concat()),
    }
}

/// A request whose body is not shown (a GET, or a gateway that sends headers only) is picked
/// without being understood.
fn read(intake: &Intake<'_>, body: &[u8]) -> Result<InferenceRequest, ParseError> {
    if intake.body.is_empty() {
        return Ok(InferenceRequest::passthrough());
    }
    request::parse(intake.head.method(), intake.head.path(), body)
}

/// The endpoint that a decision puts first, and its signals.
fn winner(scratch: &Scratch) -> Option<(Arc<Endpoint>, Live)> {
    let position = *scratch.decision.endpoints.first()?;
    let member = scratch.snapshot.members.get(position)?;
    let live = scratch.snapshot.live.get(position)?;
    Some((Arc::clone(member), *live))
}

fn destination(decision: &Decision, snapshot: &Snapshot, emit_scores: bool) -> Destination {
    let mut endpoints = String::new();
    for position in &decision.endpoints {
        if let Some(member) = snapshot.members.get(*position) {
            let separator = if endpoints.is_empty() { "" } else { "," };
            // Writing to a string cannot fail.
            let _ = write!(endpoints, "{separator}{}", member.spec.address);
        }
    }
    let scored = decision
        .candidates
        .iter()
        .zip(&decision.totals)
        .filter(|_| emit_scores);
    let scores = scored.filter_map(|(position, total)| {
        let member = snapshot.members.get(*position)?;
        Some((member.spec.address.to_string(), f64::from(*total)))
    });
    Destination {
        endpoints,
        scores: scores.collect(),
    }
}

fn end_name(end: &End) -> &'static str {
    match end {
        End::Completed => "completed",
        End::Refused(_) => "refused",
        End::Aborted => "aborted",
        End::Unseen => "unseen",
    }
}

/// SplitMix64: neighbouring numbers become unrelated ones.
fn mixed(number: u64) -> u64 {
    let mut mixed = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}
