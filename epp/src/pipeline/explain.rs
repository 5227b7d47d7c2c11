//! A decision in words: what the winner scored, and what the best of the others did.
//!
//! It is what an operator reads to see why a request went where it went, so each scorer shows its
//! weight and its value, which together make the total, and each endpoint the tokens of the prompt
//! that it was expected to have cached, which the prefix scorer's value comes from.

use crate::fleet::{Matches, Snapshot};
use crate::schedule::ProfileRun;

/// Winner and runner-up, each as `name total (scorer weight x value, ...; tokens cached)`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Explained {
    pub(super) winner: String,
    /// Empty where there was nobody else.
    pub(super) runner_up: String,
}

/// Puts a decision over this snapshot into words.
pub(super) fn explain(decision: &ProfileRun, snapshot: &Snapshot, matches: &Matches) -> Explained {
    let won = |place: &usize| decision.candidates.get(*place) == decision.endpoints.first();
    let places = 0..decision.candidates.len();
    let total = |place: &usize| decision.totals.get(*place).copied().unwrap_or_default();
    let others = places.clone().filter(|place| !won(place));
    let runner_up = others.max_by(|one, other| total(one).total_cmp(&total(other)));
    let told = |place| told(decision, snapshot, matches, place);
    Explained {
        winner: places.clone().find(won).map(told).unwrap_or_default(),
        runner_up: runner_up.map(told).unwrap_or_default(),
    }
}

fn told(decision: &ProfileRun, snapshot: &Snapshot, matches: &Matches, place: usize) -> String {
    let member = decision
        .candidates
        .get(place)
        .and_then(|position| snapshot.members.get(*position));
    let name = member.map_or("", |member| member.spec.name.as_str());
    let cached = member.map_or(0, |member| matches.tokens(member.id, member.generation));
    let total = decision.totals.get(place).copied().unwrap_or_default();
    let values = decision.scores.iter().map(|scores| {
        let value = scores.values.get(place).copied().unwrap_or_default();
        format!("{} {}x{value:.3}", scores.scorer, scores.weight)
    });
    format!(
        "{name} {total:.3} ({}; {cached} cached)",
        values.collect::<Vec<_>>().join(", ")
    )
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use smallvec::smallvec;

    use super::*;
    use crate::fleet::{Endpoint, EndpointId, EndpointSpec, Generation, Live};
    use crate::schedule::ScorerScores;

    fn snapshot(names: &[&str]) -> Snapshot {
        let member = |(number, name): (u8, &&str)| {
            Arc::new(Endpoint {
                id: EndpointId(u32::from(number)),
                generation: Generation(1),
                spec: EndpointSpec::new(*name, ([10, 0, 0, number], 8000).into()),
            })
        };
        Snapshot {
            members: (0..).zip(names).map(member).collect(),
            live: vec![Live::default(); names.len()],
            ..Snapshot::default()
        }
    }

    #[test]
    fn names_winner_and_runner_up_with_every_value() {
        let decision = ProfileRun {
            endpoints: smallvec![2],
            candidates: vec![0, 2, 3],
            scores: vec![ScorerScores {
                scorer: "queue-scorer",
                weight: 2.0,
                values: vec![0.25, 1.0, 0.5],
            }],
            totals: vec![0.5, 2.0, 1.0],
            reason: "highest score",
            ..ProfileRun::default()
        };
        let mut matches = Matches::default();
        matches.record(EndpointId(2), Generation(1), 48, 48);
        let explained = explain(&decision, &snapshot(&["a", "b", "c", "d"]), &matches);
        assert_eq!(
            explained.winner,
            "c 2.000 (queue-scorer 2x1.000; 48 cached)"
        );
        assert_eq!(
            explained.runner_up,
            "d 1.000 (queue-scorer 2x0.500; 0 cached)"
        );
    }

    #[test]
    fn nobody_else_is_an_empty_word() {
        let decision = ProfileRun {
            endpoints: smallvec![0],
            candidates: vec![0],
            totals: vec![1.0],
            ..ProfileRun::default()
        };
        let explained = explain(&decision, &snapshot(&["a"]), &Matches::default());
        assert_eq!(
            (explained.winner.as_str(), explained.runner_up.as_str()),
            ("a 1.000 (; 0 cached)", "")
        );
    }
}
