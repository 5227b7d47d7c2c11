//! The scheduler over one profile.

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
    let decision = Scheduler::field_default()
        .pick(&snapshot, &request(64, &matches, 1), 1)
        .unwrap();
    let run = decision.primary();
    // queue 2·1 + usage 2·0.5 + prefix 3·0 against queue 2·0 + usage 2·1 + prefix 3·0.5.
    assert_eq!(run.totals, vec![3.0, 3.5]);
    assert_eq!(run.endpoints.as_slice(), [1]);
    let names: Vec<_> = run.scores.iter().map(|scores| scores.scorer).collect();
    assert_eq!(
        names,
        [
            "queue-scorer",
            "kv-cache-utilization-scorer",
            "prefix-cache-scorer"
        ]
    );
    assert_eq!(run.scores[2].values, vec![0.0, 0.5]);
    assert_eq!(decision.stages.label(), "decode-only");
}

#[test]
fn nothing_to_pick_from_says_why() {
    let matches = Matches::default();
    let scheduler = Scheduler::field_default();
    let of =
        |snapshot: &Snapshot, request: &Request<'_>| scheduler.pick(snapshot, request, 1).err();
    assert_eq!(
        of(&snapshot(&[]), &request(1, &matches, 1)),
        Some(NoEndpoint::PoolEmpty)
    );

    let one = snapshot(&[answering(0, 0.0)]);
    let elsewhere = [SubsetEntry::parse("192.0.2.1:1").unwrap()];
    for subset in [&elsewhere[..], &[]] {
        let mut request = request(1, &matches, 1);
        request.subset = Some(subset);
        assert_eq!(of(&one, &request), Some(NoEndpoint::SubsetExcludesAll));
    }
}

#[derive(Debug)]
struct Nobody;

impl super::super::plugin::Filter for Nobody {
    fn type_name(&self) -> &'static str {
        "nobody"
    }

    fn filter(&self, _: &Context<'_>, candidates: &mut Vec<usize>) {
        candidates.clear();
    }
}

#[test]
fn a_filter_that_removes_everything_is_named() {
    let matches = Matches::default();
    let profile = Profile::field_default().with_filter(Arc::new(Nobody));
    let mut decision = Decision::default();
    let fleet = snapshot(&[answering(0, 0.0)]);
    let picked =
        Scheduler::single(profile).pick_into(&fleet, &request(1, &matches, 1), 1, &mut decision);
    assert_eq!(picked, Err(NoEndpoint::FiltersExcludeAll));
    assert_eq!(decision.runs()[0].reason, "nobody");
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
    let decision = Scheduler::field_default()
        .pick(&fleet, &request, 1)
        .unwrap();
    assert_eq!(decision.primary().candidates, vec![1]);
    assert_eq!(decision.primary().endpoints.as_slice(), [1]);
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
    let profile = Profile::field_default().with_scorer(Arc::new(Wild), 10.0);
    let fleet = snapshot(&[answering(0, 0.0); 3]);
    let decision = Scheduler::single(profile)
        .pick(&fleet, &request(0, &matches, 1), 1)
        .unwrap();
    assert_eq!(decision.primary().scores[3].values, vec![0.0, 1.0, 0.0]);
    assert_eq!(decision.primary().endpoints.as_slice(), [1]);
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
        let scheduler = Scheduler::field_default().with_fallback_endpoints(2);
        let decision = scheduler.pick(&fleet, &request, 100).unwrap();
        let run = decision.primary();
        prop_assert_eq!(run.endpoints.len(), run.candidates.len().min(3));

        let mut members = fleet.members.to_vec();
        let mut live = fleet.live.clone();
        let turn = turn % members.len();
        members.rotate_left(turn);
        live.rotate_left(turn);
        let rotated = Snapshot { members: members.into(), live, ..Snapshot::default() };
        let again = scheduler.pick(&rotated, &request, 100).unwrap();
        let names = |snapshot: &Snapshot, decision: &Decision| -> Vec<String> {
            let name = |at: &usize| snapshot.members[*at].spec.name.clone();
            decision.primary().endpoints.iter().map(name).collect()
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
        let scheduler = Scheduler::field_default();
        let mut reused = Decision::default();
        scheduler.pick_into(&first, &request, 100, &mut reused).unwrap();
        scheduler.pick_into(&second, &request, 100, &mut reused).unwrap();
        let fresh = scheduler.pick(&second, &request, 100).unwrap();
        prop_assert_eq!(reused.runs(), fresh.runs());
    }
}
