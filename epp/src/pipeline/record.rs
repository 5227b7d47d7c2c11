//! A decision as the record that the log keeps: names in place of positions.

use tracing::{Level, debug, enabled};

use super::choose::Scratch;
use super::exchange::InFlight;
use crate::clock::unix_nanos;
use crate::ext_proc::Refusal;
use crate::observe::decisions::{
    CandidateRecord, DecisionRecord, ProfileRecord, ScoreRecord, kept_candidates,
};
use crate::schedule::ProfileRun;

/// The record of a pick, or of a request that got none.
pub(super) fn of(
    exchange: &InFlight,
    prompt_tokens: u32,
    refusal: Option<&Refusal>,
    scratch: &Scratch,
) -> DecisionRecord {
    let runs = scratch.decision.runs().iter();
    DecisionRecord {
        at_unix_ms: unix_nanos() / 1_000_000,
        request_id: exchange.request_id.clone(),
        pool: exchange.pool.name.to_string(),
        model: exchange.model.to_string(),
        target_model: exchange.target_model.to_string(),
        fairness_id: exchange.fairness_id.to_string(),
        priority: exchange.priority,
        prompt_tokens,
        profiles: runs.map(|run| profile(run, scratch)).collect(),
        refused: refusal.map(ToString::to_string),
        pick_us: exchange.shared.clock.now_us().saturating_sub(exchange.begun_us),
        outcome: None,
    }
}

/// A line for each request, where they are asked for.
pub(super) fn log(exchange: &InFlight, record: &DecisionRecord) {
    if !enabled!(Level::DEBUG) {
        return;
    }
    let picked = exchange.picked.as_ref();
    let expected = picked.map(|picked| &picked.expectation);
    let told = |place: usize| {
        let run = record.profiles.first()?;
        run.candidates.get(place).map(words)
    };
    debug!(
        request_id = record.request_id,
        model = record.model,
        endpoint = picked.map(|picked| picked.endpoint.spec.name.as_str()),
        prompt_tokens = record.prompt_tokens,
        cached_tokens = expected.map(|expected| expected.cached_tokens),
        cached_by = expected.map(super::prefix::Expectation::source),
        believed_blocks = expected.map(super::prefix::Expectation::believed_blocks),
        reason = record.profiles.first().map(|run| run.reason.as_str()),
        scores = told(0),
        runner_up = told(1),
        refused = record.refused.as_deref(),
        "endpoint picked"
    );
}

fn words(candidate: &CandidateRecord) -> String {
    let scores = candidate.scores.iter();
    let scores = scores.map(|score| format!("{} {}x{:.3}", score.scorer, score.weight, score.value));
    format!(
        "{} {:.3} ({}; {} cached)",
        candidate.endpoint,
        candidate.total,
        scores.collect::<Vec<_>>().join(", "),
        candidate.cached_tokens
    )
}

fn profile(run: &ProfileRun, scratch: &Scratch) -> ProfileRecord {
    let name = |position: usize| {
        let member = scratch.snapshot.members.get(position);
        member.map(|member| member.spec.name.clone()).unwrap_or_default()
    };
    // Places among the candidates of the picked positions.
    let picked: Vec<usize> = run
        .endpoints
        .iter()
        .filter_map(|position| run.candidates.iter().position(|other| other == position))
        .collect();
    let (places, left_out) = kept_candidates(&run.totals, &picked);
    let candidates = places.into_iter().filter_map(|place| {
        let position = *run.candidates.get(place)?;
        let member = scratch.snapshot.members.get(position)?;
        let matches = &scratch.prefix.matches;
        Some(CandidateRecord {
            endpoint: name(position),
            total: run.totals.get(place).copied().unwrap_or_default(),
            cached_tokens: matches.tokens(member.id, member.generation),
            scores: run
                .scores
                .iter()
                .map(|scores| ScoreRecord {
                    scorer: scores.scorer,
                    weight: scores.weight,
                    value: scores.values.get(place).copied().unwrap_or_default(),
                })
                .collect(),
        })
    });
    ProfileRecord {
        profile: run.profile.to_string(),
        endpoints: run.endpoints.iter().map(|position| name(*position)).collect(),
        reason: run.reason.to_owned(),
        candidates: candidates.collect(),
        left_out,
    }
}
