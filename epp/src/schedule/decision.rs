//! One decision: runs a profile over a snapshot and keeps what it saw.
//!
//! The decision holds every scorer's value for every candidate, because it is read by more than the
//! proxy: metrics, the status page, the decision log and the simulator all explain picks from it.
//! Its buffers are reusable through [`pick_into`], so that a busy caller allocates nothing that
//! grows with the fleet.

use smallvec::SmallVec;

use super::plugin::{Context, Request};
use super::profile::Profile;
use crate::fleet::Snapshot;

/// What was picked, and why.
#[derive(Clone, PartialEq, Default, Debug)]
pub struct Decision {
    /// Positions in the snapshot, best first. Never empty after a successful pick.
    pub endpoints: SmallVec<[usize; 4]>,
    /// Positions that came through the filters.
    pub candidates: Vec<usize>,
    /// One entry per scorer, in the profile's order.
    pub scores: Vec<ScorerScores>,
    /// Weighted sums, in the order of `candidates`.
    pub totals: Vec<f32>,
    /// Why the first endpoint won, in a few words.
    pub reason: &'static str,
}

/// One scorer's values.
#[derive(Clone, PartialEq, Default, Debug)]
pub struct ScorerScores {
    /// The scorer's type name.
    pub scorer: &'static str,
    pub weight: f32,
    /// 0 to 1, before the weight, in the order of the decision's candidates.
    pub values: Vec<f32>,
}

/// Why nothing could be picked. All three are answered with 503.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum NoEndpoint {
    #[error("the pool has no endpoints")]
    PoolEmpty,
    #[error("the subset hint allows none of the pool's endpoints")]
    SubsetExcludesAll,
    #[error("the profile's filters removed every endpoint")]
    FiltersExcludeAll,
}

/// Picks endpoints for a request.
pub fn pick(
    profile: &Profile,
    snapshot: &Snapshot,
    request: &Request<'_>,
    now_ms: u64,
) -> Result<Decision, NoEndpoint> {
    let mut decision = Decision::default();
    pick_into(profile, snapshot, request, now_ms, &mut decision)?;
    Ok(decision)
}

/// Picks endpoints for a request into a reused decision. After an error `decision` holds no
/// endpoints.
pub fn pick_into(
    profile: &Profile,
    snapshot: &Snapshot,
    request: &Request<'_>,
    now_ms: u64,
    decision: &mut Decision,
) -> Result<(), NoEndpoint> {
    let context = Context {
        snapshot,
        request,
        now_ms,
    };
    decision.endpoints.clear();
    choose_candidates(profile, &context, &mut decision.candidates)?;
    score(profile, &context, decision);
    decision.reason = profile.picker.pick(
        &context,
        &decision.candidates,
        &decision.totals,
        profile.endpoints(),
        &mut decision.endpoints,
    );
    Ok(())
}

fn choose_candidates(
    profile: &Profile,
    context: &Context<'_>,
    candidates: &mut Vec<usize>,
) -> Result<(), NoEndpoint> {
    candidates.clear();
    candidates.extend(
        0..context
            .snapshot
            .members
            .len()
            .min(context.snapshot.live.len()),
    );
    if candidates.is_empty() {
        return Err(NoEndpoint::PoolEmpty);
    }
    if let Some(subset) = context.request.subset {
        candidates.retain(|position| {
            let address = context.member(*position).spec.address;
            subset.iter().any(|entry| entry.allows(address))
        });
        if candidates.is_empty() {
            return Err(NoEndpoint::SubsetExcludesAll);
        }
    }
    for filter in &profile.filters {
        filter.filter(context, candidates);
        if candidates.is_empty() {
            return Err(NoEndpoint::FiltersExcludeAll);
        }
    }
    Ok(())
}

fn score(profile: &Profile, context: &Context<'_>, decision: &mut Decision) {
    let Decision {
        candidates,
        scores,
        totals,
        ..
    } = decision;
    totals.clear();
    totals.resize(candidates.len(), 0.0);
    scores.resize_with(profile.scorers.len(), ScorerScores::default);
    for (weighted, out) in profile.scorers.iter().zip(scores) {
        out.scorer = weighted.scorer.type_name();
        out.weight = weighted.weight;
        out.values.clear();
        out.values.resize(candidates.len(), 0.0);
        weighted.scorer.score(context, candidates, &mut out.values);
        for (value, total) in out.values.iter_mut().zip(totals.iter_mut()) {
            *value = clamp(*value);
            *total += *value * weighted.weight;
        }
    }
}

fn clamp(value: f32) -> f32 {
    if value.is_nan() {
        0.0
    } else {
        value.clamp(0.0, 1.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::fixtures::{arbitrary_fleet, request, snapshot};
    use super::super::plugin::Scorer;
    use super::super::subset::SubsetEntry;
    use super::*;
    use crate::fleet::{Live, Matches};

    fn answering(waiting: u32, kv_usage: f32) -> Live {
        Live {
            waiting,
            kv_usage,
            block_size: 16,
            scraped_at_ms: 1,
            healthy: true,
            ..Live::default()
        }
    }

    #[test]
    fn the_field_default_adds_weighted_scores() {
        let snapshot = snapshot(&[answering(0, 0.5), answering(10, 0.0)]);
        let mut matches = Matches::default();
        let second = &snapshot.members[1];
        matches.record(second.id, second.generation, 32, 32);
        let decision = pick(
            &Profile::field_default(),
            &snapshot,
            &request(64, &matches, 1),
            1,
        )
        .unwrap();
        // queue 2·1 + usage 2·0.5 + prefix 3·0 against queue 2·0 + usage 2·1 + prefix 3·0.5.
        assert_eq!(decision.totals, vec![3.0, 3.5]);
        assert_eq!(decision.endpoints.as_slice(), [1]);
        let names: Vec<_> = decision.scores.iter().map(|scores| scores.scorer).collect();
        assert_eq!(
            names,
            [
                "queue-scorer",
                "kv-cache-utilization-scorer",
                "prefix-cache-scorer"
            ]
        );
        assert_eq!(decision.scores[2].values, vec![0.0, 0.5]);
    }

    #[test]
    fn nothing_to_pick_from_says_why() {
        let matches = Matches::default();
        let profile = Profile::field_default();
        let empty = pick(&profile, &snapshot(&[]), &request(1, &matches, 1), 1);
        assert_eq!(empty, Err(NoEndpoint::PoolEmpty));

        let one = snapshot(&[answering(0, 0.0)]);
        let elsewhere = [SubsetEntry::parse("192.0.2.1:1").unwrap()];
        for subset in [&elsewhere[..], &[]] {
            let mut request = request(1, &matches, 1);
            request.subset = Some(subset);
            let outside = pick(&profile, &one, &request, 1);
            assert_eq!(outside, Err(NoEndpoint::SubsetExcludesAll));
        }
    }

    #[test]
    fn the_subset_hint_narrows_by_port() {
        let matches = Matches::default();
        let fleet = snapshot(&[answering(0, 0.0), answering(9, 0.9)]);
        let only = [SubsetEntry {
            ip: fleet.members[1].spec.address.ip(),
            port: Some(fleet.members[1].spec.address.port()),
        }];
        let mut request = request(1, &matches, 1);
        request.subset = Some(&only);
        let decision = pick(&Profile::field_default(), &fleet, &request, 1).unwrap();
        assert_eq!(decision.candidates, vec![1]);
        assert_eq!(decision.endpoints.as_slice(), [1]);
    }

    #[derive(Debug)]
    struct Wild;

    impl Scorer for Wild {
        fn type_name(&self) -> &'static str {
            "wild"
        }

        fn score(&self, _: &Context<'_>, _: &[usize], scores: &mut [f32]) {
            scores.copy_from_slice(&[f32::NAN, 7.0, -3.0]);
        }
    }

    #[test]
    fn scores_are_clamped() {
        let matches = Matches::default();
        let profile = Profile::field_default().with_scorer(Box::new(Wild), 10.0);
        let fleet = snapshot(&[answering(0, 0.0); 3]);
        let decision = pick(&profile, &fleet, &request(0, &matches, 1), 1).unwrap();
        assert_eq!(decision.scores[3].values, vec![0.0, 1.0, 0.0]);
        assert_eq!(decision.endpoints.as_slice(), [1]);
    }

    proptest! {
        /// The order in which discovery lists the endpoints does not change which one is picked.
        #[test]
        fn a_decision_does_not_depend_on_the_order(
            (fleet, matches) in arbitrary_fleet(),
            seed: u64,
            turn in 0_usize..8,
        ) {
            let request = request(128, &matches, seed);
            let profile = Profile::field_default().with_fallback_endpoints(2);
            let decision = pick(&profile, &fleet, &request, 100).unwrap();
            prop_assert_eq!(decision.endpoints.len(), decision.candidates.len().min(3));

            let mut members = fleet.members.to_vec();
            let mut live = fleet.live.clone();
            let turn = turn % members.len();
            members.rotate_left(turn);
            live.rotate_left(turn);
            let rotated = Snapshot { members: members.into(), live, ..Snapshot::default() };
            let again = pick(&profile, &rotated, &request, 100).unwrap();
            let names = |snapshot: &Snapshot, decision: &Decision| -> Vec<String> {
                let name = |at: &usize| snapshot.members[*at].spec.name.clone();
                decision.endpoints.iter().map(name).collect()
            };
            prop_assert_eq!(names(&fleet, &decision), names(&rotated, &again));
        }

        /// A reused decision is the same as a fresh one.
        #[test]
        fn a_reused_decision_holds_nothing_of_the_one_before(
            (first, matches) in arbitrary_fleet(),
            (second, _) in arbitrary_fleet(),
            seed: u64,
        ) {
            let request = request(128, &matches, seed);
            let profile = Profile::field_default();
            let mut reused = Decision::default();
            pick_into(&profile, &first, &request, 100, &mut reused).unwrap();
            pick_into(&profile, &second, &request, 100, &mut reused).unwrap();
            prop_assert_eq!(reused, pick(&profile, &second, &request, 100).unwrap());
        }
    }
}
