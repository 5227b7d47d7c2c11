//! The cost model against machines of known speed.

use super::*;

fn decode(rows: u64, context: u64) -> Load {
    Load {
        decode_rows: rows,
        decode_context: context,
        ..Load::default()
    }
}

/// A machine that is exactly what the model believes in.
fn seconds(load: Load) -> f64 {
    0.01 + 0.0005 * load.decode_rows as f64
        + 2e-7 * load.decode_context as f64
        + 0.001 * load.prompt_tokens as f64
        + 3e-7 * load.prompt_pairs as f64
}

fn trained() -> CostModel {
    let mut model = CostModel::default();
    for round in 0..400_u64 {
        let load = decode(1 + round % 7, 100 + 37 * round % 4000);
        model.observe(load, seconds(load));
        let mut mixed = load;
        mixed.add_prompt(
            (round as usize * 97) % 8000,
            10 + (round as usize * 13) % 200,
        );
        model.observe(mixed, seconds(mixed));
    }
    model
}

fn close(left: f64, right: f64, relative: f64) -> bool {
    (left - right).abs() <= relative * right.abs()
}

#[test]
fn costs_are_learned_from_steps() {
    let model = trained();
    for (rows, context) in [(1, 200), (6, 3000)] {
        let load = decode(rows, context);
        let predicted = model.decode_seconds(load);
        assert!(close(predicted, seconds(load), 0.03), "{predicted}");
    }
    let cost = model.prompt_cost().unwrap();
    assert!(close(cost.token, 0.001, 0.1), "{cost:?}");
    assert!(close(cost.pair, 3e-7, 0.1), "{cost:?}");
}

#[test]
fn what_a_part_reads_however_short_is_told_from_its_pairs() {
    let mut model = CostModel::default();
    let seconds = |load: Load| seconds(load) + 2e-6 * load.prompt_context as f64;
    for round in 0..400_u64 {
        let load = decode(4, 500);
        model.observe(load, seconds(load));
        let mut mixed = load;
        mixed.add_prompt(round as usize * 40, 1 + (round as usize * 13) % 30);
        model.observe(mixed, seconds(mixed));
    }
    let cost = model.prompt_cost().unwrap();
    assert!(close(cost.context, 2e-6, 0.1), "{cost:?}");
    for (start, count) in [(100, 30), (15_000, 2), (15_000, 20)] {
        let exact = 0.001 * count as f64 + 3e-7 * pairs(start, count) as f64 + 2e-6 * start as f64;
        let predicted = cost.seconds(start, count);
        assert!(close(predicted, exact, 0.05), "{start} {count} {predicted}");
    }
}

#[test]
fn one_stalled_step_changes_little_and_many_are_believed() {
    let mut model = trained();
    let load = decode(4, 1000);
    let before = model.decode_seconds(load);
    model.observe(load, 100.0 * seconds(load));
    assert!(close(model.decode_seconds(load), before, 0.05));
    for _ in 0..300 {
        model.observe(load, 10.0 * seconds(load));
    }
    assert!(close(model.decode_seconds(load), 10.0 * seconds(load), 0.1));
}

#[test]
fn what_the_latest_steps_do_not_tell_stays() {
    let mut model = trained();
    let before = model.prompt_cost().unwrap();
    for _ in 0..10_000 {
        let load = decode(4, 1000);
        model.observe(load, seconds(load));
    }
    let after = model.prompt_cost().unwrap();
    assert!(close(after.token, before.token, 1e-9));
    // One size of prompt chunks for a long time: the sum is right, and the parts do not wander off.
    for _ in 0..2_000 {
        let mut load = decode(4, 1000);
        load.add_prompt(1000, 32);
        model.observe(load, seconds(load));
    }
    let after = model.prompt_cost().unwrap();
    assert!(close(after.token, before.token, 0.2), "{after:?}");
}

#[test]
fn decodes_alone_are_asked_for_at_first_and_now_and_then() {
    let mut model = CostModel::default();
    let load = decode(1, 10);
    for _ in 0..DECODES_MIN {
        assert!(model.wants_decodes_alone());
        model.observe(load, 0.01);
    }
    assert!(!model.wants_decodes_alone());
    let mut mixed = load;
    mixed.add_prompt(0, 16);
    for _ in 0..MIXED_MAX {
        assert!(!model.wants_decodes_alone());
        model.observe(mixed, 0.02);
    }
    assert!(model.wants_decodes_alone());
    model.observe(load, 0.01);
    assert!(!model.wants_decodes_alone());
}

#[test]
fn times_that_are_no_times_are_passed_over() {
    let mut model = CostModel::default();
    for seconds in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        model.observe(decode(1, 1), seconds);
    }
    assert_eq!(model.decode.seen, 0);
}

#[test]
fn tokens_within_a_time_are_the_most_that_fit() {
    let costs = [
        (0.001, 3e-7, 0.0),
        (0.001, 0.0, 0.0),
        (0.0, 3e-7, 5e-7),
        (2e-5, 3e-9, 1e-8),
    ];
    for (token, pair, context) in costs {
        let cost = PromptCost {
            token,
            pair,
            context,
        };
        for start in [0, 100, 16_000] {
            for seconds in [0.01, 0.1, 1.0] {
                let count = cost.tokens_within(seconds, start);
                assert!(cost.seconds(start, count) <= seconds * 1.000_001);
                assert!(cost.seconds(start, count + 1) > seconds * 0.999_999);
            }
        }
        assert_eq!(cost.tokens_within(0.0, 0), 0);
        assert_eq!(cost.tokens_within(-1.0, 0), 0);
    }
    let free = PromptCost::default();
    assert_eq!(free.tokens_within(1.0, 5), usize::MAX);
}
