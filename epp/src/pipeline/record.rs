//! A decision as the record that the log keeps: names in place of positions.

use tracing::{Level, debug, enabled};

use super::choose::Scratch;
use super::exchange::InFlight;
use crate::clock::unix_nanos;
use crate::ext_proc::Refusal;
use crate::fleet::{Matches, Snapshot};
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
        profiles: runs
            .map(|run| profile(run, &scratch.snapshot, &scratch.prefix.matches))
            .collect(),
        refused: refusal.map(ToString::to_string),
        pick_us: exchange
            .shared
            .clock
            .now_us()
            .saturating_sub(exchange.begun_us),
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
    let scores =
        scores.map(|score| format!("{} {}x{:.3}", score.scorer, score.weight, score.value));
    format!(
        "{} {:.3} ({}; {} cached)",
        candidate.endpoint,
        candidate.total,
        scores.collect::<Vec<_>>().join(", "),
        candidate.cached_tokens
    )
}

/// One profile's run over this snapshot. Of a wide fleet only the best candidates are kept.
fn profile(run: &ProfileRun, snapshot: &Snapshot, matches: &Matches) -> ProfileRecord {
    let name = |position: &usize| {
        let member = snapshot.members.get(*position);
        member.map_or_else(String::new, |member| member.spec.name.clone())
    };
    let place_of = |position: &usize| run.candidates.iter().position(|other| other == position);
    let picked: Vec<usize> = run.endpoints.iter().filter_map(place_of).collect();
    let (places, left_out) = kept_candidates(&run.totals, &picked);
    let candidate = |place: usize| {
        let position = run.candidates.get(place)?;
        let member = snapshot.members.get(*position)?;
        let scores = run.scores.iter().map(|scores| ScoreRecord {
            scorer: scores.scorer,
            weight: scores.weight,
            value: scores.values.get(place).copied().unwrap_or_default(),
        });
        Some(CandidateRecord {
            endpoint: member.spec.name.clone(),
            total: run.totals.get(place).copied().unwrap_or_default(),
            cached_tokens: matches.tokens(member.id, member.generation),
            scores: scores.collect(),
        })
    };
    ProfileRecord {
        profile: run.profile.to_string(),
        endpoints: run.endpoints.iter().map(name).collect(),
        reason: run.reason.to_owned(),
        candidates: places.into_iter().filter_map(candidate).collect(),
        left_out,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use smallvec::smallvec;

    use super::*;
    use crate::fleet::{Endpoint, EndpointId, EndpointSpec, Generation, Live};
    use crate::schedule::ScorerScores;

    #[test]
    fn a_record_keeps_each_candidates_own_values() {
        let member = |number: u32| {
            let address = ([10, 0, 0, 1], number as u16).into();
            Arc::new(Endpoint {
                id: EndpointId(number),
                generation: Generation(1),
                spec: EndpointSpec::new(format!("e{number}"), address),
            })
        };
        let snapshot = Snapshot {
            members: (0..4).map(member).collect(),
            live: vec![Live::default(); 4],
            ..Snapshot::default()
        };
        let run = ProfileRun {
            endpoints: smallvec![2],
            candidates: vec![0, 2, 3],
            scores: vec![ScorerScores {
                scorer: "queue-scorer",
                weight: 2.0,
                values: vec![0.25, 0.5, 1.0],
            }],
            totals: vec![0.5, 1.0, 2.0],
            reason: "drawn by weight",
            ..ProfileRun::default()
        };
        let mut matches = Matches::default();
        matches.record(EndpointId(3), Generation(1), 48, 48);
        let record = profile(&run, &snapshot, &matches);
        assert_eq!(record.endpoints, ["e2"]);
        let candidates = record.candidates.iter();
        let told: Vec<String> = candidates.map(words).collect();
        let expected = [
            "e2 1.000 (queue-scorer 2x0.500; 0 cached)",
            "e3 2.000 (queue-scorer 2x1.000; 48 cached)",
            "e0 0.500 (queue-scorer 2x0.250; 0 cached)",
        ];
        assert_eq!(told, expected);
    }
}
