//! A decision as a record of plain values, for the decision log.

use crate::fleet::{Matches, Snapshot};
use crate::observe::decisions::{CandidateRecord, ProfileRecord, ScoreRecord, kept_candidates};
use crate::schedule::Decision;

/// What one profile picked over this snapshot. Of a wide fleet only the best candidates are kept.
pub(super) fn profile_record(
    profile: &str,
    decision: &Decision,
    snapshot: &Snapshot,
    matches: &Matches,
) -> ProfileRecord {
    let is_picked = |place: &usize| {
        let position = decision.candidates.get(*place);
        position.is_some_and(|position| decision.endpoints.contains(position))
    };
    let picked: Vec<usize> = (0..decision.candidates.len()).filter(is_picked).collect();
    let (places, left_out) = kept_candidates(&decision.totals, &picked);
    let name = |position: &usize| {
        let member = snapshot.members.get(*position);
        member.map_or_else(String::new, |member| member.spec.name.clone())
    };
    let candidate = |place: usize| {
        let position = decision.candidates.get(place)?;
        let member = snapshot.members.get(*position)?;
        let scores = decision.scores.iter().map(|scores| ScoreRecord {
            scorer: scores.scorer,
            weight: scores.weight,
            value: scores.values.get(place).copied().unwrap_or_default(),
        });
        Some(CandidateRecord {
            endpoint: member.spec.name.clone(),
            total: decision.totals.get(place).copied().unwrap_or_default(),
            cached_tokens: matches.tokens(member.id, member.generation),
            scores: scores.collect(),
        })
    };
    ProfileRecord {
        profile: profile.to_owned(),
        endpoints: decision.endpoints.iter().map(name).collect(),
        reason: decision.reason.to_owned(),
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
            Arc::new(Endpoint {
                id: EndpointId(number),
                generation: Generation(1),
                spec: EndpointSpec::new(
                    format!("e{number}"),
                    ([10, 0, 0, 1], number as u16).into(),
                ),
            })
        };
        let snapshot = Snapshot {
            members: (0..4).map(member).collect(),
            live: vec![Live::default(); 4],
            ..Snapshot::default()
        };
        let decision = Decision {
            endpoints: smallvec![2],
            candidates: vec![0, 2, 3],
            scores: vec![ScorerScores {
                scorer: "queue-scorer",
                weight: 2.0,
                values: vec![0.25, 0.5, 1.0],
            }],
            totals: vec![0.5, 1.0, 2.0],
            reason: "drawn by weight",
        };
        let mut matches = Matches::default();
        matches.record(EndpointId(3), Generation(1), 48, 48);
        let record = profile_record("default", &decision, &snapshot, &matches);
        assert_eq!(record.endpoints, ["e2"]);
        let told: Vec<(&str, f32, u32, f32)> = record
            .candidates
            .iter()
            .map(|one| {
                let value = one.scores.first().unwrap().value;
                (one.endpoint.as_str(), one.total, one.cached_tokens, value)
            })
            .collect();
        assert_eq!(
            told,
            [
                ("e2", 1.0, 0, 0.5),
                ("e3", 2.0, 48, 1.0),
                ("e0", 0.5, 0, 0.25)
            ]
        );
    }
}
