//! The model over a fleet: what it says before, while and after it learned.

use proptest::prelude::*;

use super::super::super::fixtures::{request, snapshot};
use super::*;
use crate::fleet::{Live, Matches};

fn features(tokens: f32, batch: f32) -> Features {
    Features {
        tokens_ahead: tokens,
        batch,
    }
}

/// Teaches endpoint `number` a latency of `base + per_token · tokens` milliseconds.
fn teach(model: &mut LatencyModel, number: u32, base: f64, per_token: f64, count: u32) {
    for step in 0..count {
        let tokens = f64::from(step * 13 % 40) * 200.0;
        let seconds = (base + per_token * tokens) / 1_000.0;
        let seen = features(tokens as f32, 1.0);
        assert!(model.observe_ttft(EndpointId(number), Generation(1), &seen, seconds));
        assert!(model.observe_tpot(EndpointId(number), Generation(1), &seen, 0.03));
    }
}

fn predicted(model: &LatencyModel, snapshot: &Snapshot, request: &Request<'_>) -> Predictions {
    let mut out = Predictions::default();
    model.predict(snapshot, request, &mut out);
    out
}

fn ttft(predictions: &Predictions, position: usize) -> f64 {
    f64::from(predictions.get(position).unwrap().ttft_ms)
}

#[test]
fn nothing_is_predicted_before_something_was_seen() {
    let mut model = LatencyModel::default();
    let snapshot = snapshot(&[Live::default(); 2]);
    let matches = Matches::default();
    let request = request(1_000, &matches, 0);
    assert!(predicted(&model, &snapshot, &request).is_empty());
    teach(&mut model, 0, 20.0, 0.1, 100);
    let out = predicted(&model, &snapshot, &request);
    assert!((ttft(&out, 0) - 120.0).abs() < 3.0, "{out:?}");
    let silent = LatencyModel::new(LatencyOptions {
        predict: false,
        ..LatencyOptions::default()
    });
    assert!(predicted(&silent, &snapshot, &request).is_empty());
}

#[test]
fn endpoints_differ_and_an_unseen_one_lies_between() {
    let mut model = LatencyModel::default();
    for _ in 0..20 {
        teach(&mut model, 0, 20.0, 0.1, 10);
        teach(&mut model, 1, 20.0, 0.4, 10);
    }
    let snapshot = snapshot(&[Live::default(); 3]);
    let matches = Matches::default();
    let out = predicted(&model, &snapshot, &request(4_000, &matches, 0));
    let (fast, slow, unseen) = (ttft(&out, 0), ttft(&out, 1), ttft(&out, 2));
    assert!((fast - 420.0).abs() < 60.0, "{out:?}");
    assert!((slow - 1_620.0).abs() < 200.0, "{out:?}");
    assert!(fast < unseen && unseen < slow, "{out:?}");
    let tpot = out.get(0).unwrap().tpot_headroom_ms;
    assert!(tpot.abs() < f32::EPSILON, "not streamed");
}

#[test]
fn what_is_cached_and_what_waits_counts() {
    let mut model = LatencyModel::default();
    teach(&mut model, 0, 20.0, 0.1, 100);
    let busy = Live {
        waiting: 2,
        ..Live::default()
    };
    let snapshot = snapshot(&[Live::default(), Live::default(), busy]);
    let mut matches = Matches::default();
    let cached = &snapshot.members[1];
    matches.record(cached.id, cached.generation, 3_000, 3_000);
    let out = predicted(&model, &snapshot, &request(4_000, &matches, 0));
    assert!(
        (ttft(&out, 0) - ttft(&out, 1) - 300.0).abs() < 20.0,
        "{out:?}"
    );
    assert!(
        (ttft(&out, 2) - ttft(&out, 0) - 800.0).abs() < 50.0,
        "{out:?}"
    );
}

#[test]
fn a_new_generation_starts_over_and_an_old_one_is_not_heard() {
    let mut model = LatencyModel::default();
    teach(&mut model, 0, 20.0, 0.1, 200);
    teach(&mut model, 1, 20.0, 2.0, 20);
    let snapshot = snapshot(&[Live::default(); 2]);
    let matches = Matches::default();
    let request = request(4_000, &matches, 0);
    let before = ttft(&predicted(&model, &snapshot, &request), 1);
    let seen = features(100.0, 1.0);
    assert!(model.observe_ttft(EndpointId(1), Generation(2), &seen, 0.03));
    assert!(!model.observe_ttft(EndpointId(1), Generation(1), &seen, 0.03));
    let after = ttft(&predicted(&model, &snapshot, &request), 1);
    assert!(
        after < before,
        "the snapshot's generation 1 is predicted by the common line"
    );
}

#[test]
fn what_is_known_of_an_endpoint_fades_while_others_are_seen() {
    let mut model = LatencyModel::default();
    teach(&mut model, 0, 20.0, 0.1, 200);
    teach(&mut model, 1, 3_000.0, 0.1, 20);
    let snapshot = snapshot(&[Live::default(); 2]);
    let matches = Matches::default();
    let request = request(100, &matches, 0);
    let avoided = ttft(&predicted(&model, &snapshot, &request), 1);
    assert!(avoided > 1_000.0);
    teach(&mut model, 0, 20.0, 0.1, 4_000);
    let later = predicted(&model, &snapshot, &request);
    assert!(ttft(&later, 1) < 2.0 * ttft(&later, 0), "{later:?}");
}

#[test]
fn headroom_is_what_is_left_of_the_targets() {
    let streaming = LatencyOptions {
        streaming: true,
        slo_buffer_factor: 2.0,
        role_label: "role".to_owned(),
        ..LatencyOptions::default()
    };
    let mut model = LatencyModel::new(streaming);
    teach(&mut model, 0, 20.0, 0.1, 200);
    let mut snapshot = snapshot(&[Live::default(); 2]);
    let mut members = snapshot.members.to_vec();
    let mut prefill = crate::fleet::Endpoint::clone(&members[1]);
    prefill
        .spec
        .labels
        .insert("role".to_owned(), "prefill".to_owned());
    members[1] = std::sync::Arc::new(prefill);
    snapshot.members = members.into();
    let matches = Matches::default();
    let of = |ttft: Option<f64>, tpot: Option<f64>| {
        let mut request = request(1_000, &matches, 0);
        request.slo_ttft_ms = ttft;
        request.slo_tpot_ms = tpot;
        let out = predicted(&model, &snapshot, &request);
        let both = |position| {
            let found: &Prediction = out.get(position).unwrap();
            (
                found.ttft_headroom_ms.round(),
                found.tpot_headroom_ms.round(),
            )
        };
        (both(0), both(1))
    };
    // Predicted are 120 ms and 30 ms; the second endpoint generates nothing.
    assert_eq!(of(Some(200.0), Some(20.0)), ((80.0, 10.0), (80.0, 0.0)));
    assert_eq!(of(Some(100.0), None), ((-20.0, 0.0), (-20.0, 0.0)));
    assert_eq!(of(None, Some(10.0)), ((0.0, -10.0), (0.0, 0.0)));
    assert_eq!(of(None, None), ((-120.0, -30.0), (-120.0, 0.0)));
    assert_eq!(of(Some(f64::NAN), Some(0.0)), of(None, None));
}

#[test]
fn numbers_beyond_the_fleet_are_not_kept() {
    let mut model = LatencyModel::default();
    let beyond = EndpointId(u32::MAX);
    assert!(!model.observe_ttft(beyond, Generation(1), &features(1.0, 1.0), 0.1));
    assert!(model.slots.is_empty());
}

proptest! {
    /// Whatever is observed, in whichever order, predictions are finite, and nothing grows past the
    /// endpoints.
    #[test]
    fn hostile_observations_leave_finite_predictions(
        history in proptest::collection::vec(
            (0_u32..4, 1_u32..4, -1e30_f32..1e30, prop_oneof![
                Just(f64::NAN), Just(0.0), Just(1e30), Just(f64::INFINITY), 0.0..10.0_f64,
            ]),
            0..120,
        ),
        prompt: u32,
    ) {
        let mut model = LatencyModel::new(LatencyOptions {
            streaming: true,
            ..LatencyOptions::default()
        });
        for (number, generation, x, seconds) in history {
            let seen = features(x.abs(), x);
            let (id, generation) = (EndpointId(number), Generation(generation));
            model.observe_ttft(id, generation, &seen, seconds);
            model.observe_tpot(id, generation, &seen, seconds);
        }
        prop_assert!(model.slots.len() <= 4 && model.seen <= 4);
        let live = Live { waiting: u32::MAX, in_flight_tokens: u32::MAX, ..Live::default() };
        let snapshot = snapshot(&[live, Live::default()]);
        let matches = Matches::default();
        let out = predicted(&model, &snapshot, &request(prompt, &matches, 0));
        for position in 0..2 {
            if let Some(found) = out.get(position) {
                prop_assert!(found.ttft_ms.is_finite() && found.tpot_ms.is_finite());
                prop_assert!(found.ttft_headroom_ms.is_finite());
            }
        }
    }
}
