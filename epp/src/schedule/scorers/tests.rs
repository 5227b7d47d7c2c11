//! Every scorer: its formula at known points, its range, and that the order of the candidates does
//! not matter.

use proptest::prelude::*;

use serde_json::{Value, json};

use super::super::fixtures::{Setting, arbitrary_setting, request, snapshot};
use super::super::plugin::{Context, Scorer};
use super::prefix_cache;
use super::*;
use crate::config::plugins::Parameters as _;
use crate::fleet::{Live, Matches, Snapshot};

/// What a fresh scorer says of all endpoints in their order.
pub(super) fn scored(
    maker: &Maker<dyn Scorer>,
    parameters: &Value,
    fleet: &Snapshot,
    matches: &Matches,
    prompt_tokens: u32,
) -> Vec<f32> {
    let scorer = (maker.make)(parameters).unwrap();
    assert_eq!(scorer.type_name(), maker.plugin.name);
    let order: Vec<usize> = (0..fleet.members.len()).collect();
    scores(&*scorer, fleet, matches, prompt_tokens, &order)
}

/// Scores in thousandths.
pub(super) fn rounded(scores: &[f32]) -> Vec<i32> {
    let thousandths = |score: &f32| (score * 1000.0).round() as i32;
    scores.iter().map(thousandths).collect()
}

fn scores(
    scorer: &dyn Scorer,
    fleet: &Snapshot,
    matches: &Matches,
    prompt_tokens: u32,
    order: &[usize],
) -> Vec<f32> {
    let request = request(prompt_tokens, matches, 0);
    let context = Context {
        snapshot: fleet,
        request: &request,
        now_ms: 0,
    };
    let mut out = vec![9.0; order.len()];
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
    scores(scorer, &snapshot(&live), &Matches::default(), 128, &order)
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
    tiered_score(scorer, prompt, (matched, matched), block_size)
}

fn tiered_score(
    scorer: PrefixCacheScorer,
    prompt: u32,
    (matched, on_gpu): (u32, u32),
    block_size: u32,
) -> f32 {
    let fleet = snapshot(&[Live {
        block_size,
        ..Live::default()
    }]);
    let mut matches = Matches::default();
    let member = &fleet.members[0];
    matches.record(member.id, member.generation, matched, on_gpu);
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
fn tokens_that_have_to_be_fetched_count_less() {
    let scorer = PrefixCacheScorer::default();
    let half_on_gpu = tiered_score(scorer, 64, (64, 32), 16);
    assert!((half_on_gpu - 0.9).abs() < 1e-6);
    assert!((tiered_score(scorer, 64, (64, 0), 16) - 0.8).abs() < 1e-6);
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
    assert!(bad(0.0, 0).is_ok());
    assert!(bad(1.0, 1).is_ok());
}

/// Each scorer without parameters, and those that say nothing then with some.
fn scorers() -> Vec<Box<dyn Scorer>> {
    let with: [(&str, Value); 9] = [
        (
            "active-request-scorer",
            json!({"idleThreshold": 1, "maxBusyScore": 0.5}),
        ),
        ("context-length-aware", json!({"enableFiltering": true})),
        (
            "endpoint-attribute-scorer",
            json!({
                "attributeKey": "waiting",
                "algorithm": {"type": "linear_lower_is_better"},
            }),
        ),
        (
            "endpoint-attribute-scorer",
            json!({
                "attributeKey": "inFlightTokens",
                "algorithm": {
                    "type": "linear_higher_is_better",
                    "normalization": {"fixedRange": {"min": 5, "max": 15}},
                },
            }),
        ),
        (
            "header-label-affinity-scorer",
            json!({"headerName": "x-wanted-zone", "labelKey": "topology.kubernetes.io/zone"}),
        ),
        ("no-hit-lru-scorer", json!({"lruSize": 2})),
        (
            "prefix-cache-scorer",
            json!({"matchLengthWeight": 0.5, "matchLengthScaleTokens": 100}),
        ),
        ("session-affinity-scorer", json!({"strategy": "session_id"})),
        ("token-load-scorer", json!({"queueThresholdTokens": 50})),
    ];
    let mut scorers: Vec<_> = MAKERS
        .iter()
        .map(|maker| (maker.make)(&Value::Null).unwrap())
        .collect();
    scorers.extend(with.iter().map(|(name, parameters)| {
        let named = |maker: &&Maker<dyn Scorer>| maker.plugin.name == *name;
        (MAKERS.iter().find(named).unwrap().make)(parameters).unwrap()
    }));
    scorers
}

fn said(scorer: &dyn Scorer, setting: &Setting, order: &[usize]) -> Vec<f32> {
    // What is in the buffer before must not show.
    let mut out = vec![9.0; order.len()];
    setting.with(|context| scorer.score(context, order, &mut out));
    out
}

proptest! {
    #[test]
    fn scores_are_in_range_and_follow_the_candidate(
        setting in arbitrary_setting(),
        picks in proptest::collection::vec(any::<prop::sample::Index>(), 0..6),
        order in Just((0..8).collect::<Vec<usize>>()).prop_shuffle(),
    ) {
        let count = setting.fleet.members.len();
        let order: Vec<usize> = order.into_iter().filter(|at| *at < count).collect();
        let straight: Vec<usize> = (0..count).collect();
        for scorer in scorers() {
            for pick in &picks {
                setting.with(|context| scorer.picked(context, &[pick.index(count)]));
            }
            let expected = said(&*scorer, &setting, &straight);
            let shuffled = said(&*scorer, &setting, &order);
            for (at, value) in order.iter().zip(shuffled) {
                prop_assert!((0.0..=1.0).contains(&value), "{}: {value}", scorer.type_name());
                prop_assert_eq!(value.to_bits(), expected[*at].to_bits(), "{}", scorer.type_name());
            }
            prop_assert!(said(&*scorer, &setting, &[]).is_empty());
        }
    }
}
