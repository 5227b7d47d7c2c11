//! The pickers: who wins, how ties fall, and how often a random one chooses whom.

use proptest::prelude::*;

use super::super::fixtures::{arbitrary_fleet, request, snapshot};
use super::super::plugin::Picker;
use super::*;
use crate::fleet::{Live, Matches, Snapshot};

fn picked(
    picker: &dyn Picker,
    fleet: &Snapshot,
    totals: &[f32],
    count: usize,
    seed: u64,
) -> (Vec<usize>, &'static str) {
    let matches = Matches::default();
    let request = request(0, &matches, seed);
    let context = Context {
        snapshot: fleet,
        request: &request,
        now_ms: 0,
    };
    let candidates: Vec<usize> = (0..totals.len()).collect();
    let mut chosen = SmallVec::new();
    let reason = picker.pick(&context, &candidates, totals, count, &mut chosen);
    (chosen.to_vec(), reason)
}

fn in_flight(counts: &[u32]) -> Snapshot {
    let live: Vec<Live> = counts
        .iter()
        .map(|count| Live {
            in_flight_requests: *count,
            ..Live::default()
        })
        .collect();
    snapshot(&live)
}

/// How often each of the fleet's endpoints came first in 4,000 seeds.
fn wins(picker: &dyn Picker, fleet: &Snapshot, totals: &[f32]) -> Vec<u32> {
    let mut wins = vec![0; totals.len()];
    for seed in 0..4_000 {
        let (chosen, _) = picked(picker, fleet, totals, 1, seed);
        wins[chosen[0]] += 1;
    }
    wins
}

#[test]
fn the_highest_score_wins_and_the_rest_follow() {
    let picker = MaxScorePicker::default();
    let fleet = in_flight(&[0, 0, 0]);
    let (chosen, reason) = picked(&picker, &fleet, &[0.2, 0.9, 0.5], 3, 7);
    assert_eq!(chosen, [1, 2, 0]);
    assert_eq!(reason, "highest score");
    let (_, reason) = picked(&picker, &in_flight(&[0]), &[0.2], 3, 7);
    assert_eq!(reason, "only candidate");
}

#[test]
fn ties_go_to_fewer_requests_in_flight_and_then_to_the_draw() {
    let picker = MaxScorePicker::default();
    let (chosen, reason) = picked(&picker, &in_flight(&[3, 1, 2]), &[0.5; 3], 3, 7);
    assert_eq!(chosen, [1, 2, 0]);
    assert_eq!(reason, "equal scores, fewest requests in flight");

    let tied = in_flight(&[1, 1, 1, 9]);
    let (_, reason) = picked(&picker, &tied, &[0.5; 4], 1, 7);
    assert_eq!(reason, "equal scores and requests in flight, drawn");
    let wins = wins(&picker, &tied, &[0.5; 4]);
    assert_eq!(wins[3], 0);
    for count in &wins[..3] {
        assert!((1_200..1_470).contains(count), "{wins:?}");
    }
}

#[test]
fn random_is_even_and_weighted_follows_the_scores() {
    let fleet = in_flight(&[0, 5]);
    let even = wins(&RandomPicker::default(), &fleet, &[0.9, 0.0]);
    assert!((1_850..2_150).contains(&even[0]), "{even:?}");
    let weighted = wins(&WeightedRandomPicker::default(), &fleet, &[3.0, 1.0]);
    assert!((2_850..3_150).contains(&weighted[0]), "{weighted:?}");
    let zero = wins(&WeightedRandomPicker::default(), &fleet, &[1.0, 0.0]);
    assert_eq!(zero, [4_000, 0]);
    let all_zero = wins(&WeightedRandomPicker::default(), &fleet, &[0.0, 0.0]);
    assert!((1_850..2_150).contains(&all_zero[0]), "{all_zero:?}");
}

#[test]
fn the_number_of_endpoints_is_configurable() {
    let of = |text: &str| -> Result<Parameters, _> { serde_json::from_str(text) };
    assert_eq!(of(r#"{"maxNumOfEndpoints": 3}"#).unwrap().endpoints(), 3);
    assert_eq!(of("{}").unwrap().endpoints(), 1);
    assert_eq!(of(r#"{"maxNumOfEndpoints": -1}"#).unwrap().endpoints(), 1);
    assert!(of(r#"{"maxEndpoints": 3}"#).is_err());
}

proptest! {
    #[test]
    fn distinct_candidates_and_never_more_than_asked(
        (fleet, _) in arbitrary_fleet(),
        seed: u64,
        count in 1_usize..6,
    ) {
        let totals: Vec<f32> = fleet.live.iter().map(|live| live.kv_usage).collect();
        let pickers: [&dyn Picker; 3] = [
            &MaxScorePicker::default(),
            &RandomPicker::default(),
            &WeightedRandomPicker::default(),
        ];
        for picker in pickers {
            let (mut chosen, _) = picked(picker, &fleet, &totals, count, seed);
            prop_assert_eq!(chosen.len(), count.min(totals.len()));
            chosen.sort_unstable();
            chosen.dedup();
            prop_assert_eq!(chosen.len(), count.min(totals.len()));
        }
    }
}
