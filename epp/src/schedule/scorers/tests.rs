//! Every scorer: its formula at known points, its range, and that the order of the candidates does
//! not matter.

use proptest::prelude::*;

use super::super::fixtures::{arbitrary_fleet, request, snapshot};
use super::super::plugin::{Context, Scorer};
use super::prefix_cache;
use super::*;
use crate::config::plugins::Parameters as _;
use crate::fleet::{Live, Matches, Snapshot};

fn scores(scorer: &dyn Scorer, fleet: &Snapshot, matches: &Matches, order: &[usize]) -> Vec<f32> {
    let request = request(128, matches, 0);
    let context = Context {
        snapshot: fleet,
        request: &request,
        now_ms: 0,
    };
    let mut out = vec![0.0; order.len()];
    scorer.score(&context, order, &mut out);
    out
}

fn of_field(scorer: &dyn Scorer, set: impl Fn(&mut Live, u32), values: &[u32]) -> Vec<f32> {
    let live: Vec<Live> = values
        .iter()
        .map(|value| {
            let mut live = Live::default();
            set(&mut live, *value);
            live
        })
        .collect();
    let order: Vec<usize> = (0..values.len()).collect();
    scores(scorer, &snapshot(&live), &Matches::default(), &order)
}

#[test]
fn counts_are_normalised_between_the_least_and_the_most() {
    let queue = QueueScorer::default();
    let waiting = |live: &mut Live, value| live.waiting = value;
    assert_eq!(of_field(&queue, waiting, &[0, 5, 10]), [1.0, 0.5, 0.0]);
    assert_eq!(of_field(&queue, waiting, &[7, 7]), [1.0, 1.0]);
    assert_eq!(of_field(&queue, waiting, &[4]), [1.0]);

    let running = RunningRequestsScorer::default();
    let set = |live: &mut Live, value| live.running = value;
    assert_eq!(of_field(&running, set, &[3, 1, 2]), [0.0, 1.0, 0.5]);
    // What is not asked about does not count.
    assert_eq!(of_field(&running, waiting, &[3, 1]), [1.0, 1.0]);
}

#[test]
fn free_cache_is_better() {
    let set = |live: &mut Live, percent: u32| live.kv_usage = percent as f32 / 100.0;
    let scorer = KvCacheUtilizationScorer::default();
    assert_eq!(of_field(&scorer, set, &[0, 25, 100]), [1.0, 0.75, 0.0]);
}

fn prefix_score(scorer: PrefixCacheScorer, prompt: u32, matched: u32, block_size: u32) -> f32 {
    let fleet = snapshot(&[Live {
        block_size,
        ..Live::default()
    }]);
    let mut matches = Matches::default();
    let member = &fleet.members[0];
    matches.record(member.id, member.generation, matched, matched);
    let request = request(prompt, &matches, 0);
    let context = Context {
        snapshot: &fleet,
        request: &request,
        now_ms: 0,
    };
    let mut out = [0.0];
    scorer.score(&context, &[0], &mut out);
    out[0]
}

#[test]
fn prefix_is_the_share_of_whole_blocks() {
    let scorer = PrefixCacheScorer::default();
    assert!((prefix_score(scorer, 160, 80, 16) - 0.5).abs() < 1e-6);
    // 40 tokens are two whole blocks of 16; both are held.
    assert!((prefix_score(scorer, 40, 32, 16) - 1.0).abs() < 1e-6);
    assert!((prefix_score(scorer, 40, 32, 0) - 0.8).abs() < 1e-6);
    assert!(prefix_score(scorer, 0, 0, 16).abs() < 1e-6);
    assert!(prefix_score(scorer, 15, 0, 16).abs() < 1e-6);
}

#[test]
fn the_length_term_follows_the_documented_examples() {
    let scorer = PrefixCacheScorer::from(&prefix_cache::Parameters {
        match_length_weight: 0.5,
        match_length_scale_tokens: 100,
        ..prefix_cache::Parameters::default()
    });
    assert!((prefix_score(scorer, 10, 5, 1) - 0.251_25).abs() < 1e-6);
    assert!((prefix_score(scorer, 100, 50, 1) - 0.375).abs() < 1e-6);
}

#[test]
fn parameters_out_of_range_are_refused() {
    let bad = |weight, scale| {
        prefix_cache::Parameters {
            match_length_weight: weight,
            match_length_scale_tokens: scale,
            ..prefix_cache::Parameters::default()
        }
        .validate()
    };
    assert!(bad(1.5, 1).is_err());
    assert!(bad(f32::NAN, 1).is_err());
    assert!(bad(0.5, 0).is_err());
    assert!(bad(1.0, 1).is_ok());
}

proptest! {
    #[test]
    fn scores_are_in_range_and_follow_the_candidate(
        (fleet, matches) in arbitrary_fleet(),
        turn in 0_usize..8,
    ) {
        let scorers: [&dyn Scorer; 4] = [
            &QueueScorer::default(),
            &RunningRequestsScorer::default(),
            &KvCacheUtilizationScorer::default(),
            &PrefixCacheScorer::default(),
        ];
        let order: Vec<usize> = (0..fleet.members.len()).collect();
        let mut turned = order.clone();
        turned.rotate_left(turn % order.len());
        for scorer in scorers {
            let straight = scores(scorer, &fleet, &matches, &order);
            let rotated = scores(scorer, &fleet, &matches, &turned);
            for (at, value) in turned.iter().zip(rotated) {
                prop_assert!((0.0..=1.0).contains(&value), "{}: {value}", scorer.type_name());
                prop_assert_eq!(value.to_bits(), straight[*at].to_bits());
            }
        }
    }
}
