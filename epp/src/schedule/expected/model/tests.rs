//! Who costs less, and what is learned of whom.

use super::super::super::fixtures::snapshot;
use super::*;

const GENERATION: Generation = Generation(1);

fn fleet() -> Snapshot {
    snapshot(&[Live::default(); 3])
}

fn estimates(model: &mut FleetExpectation, held: &[(usize, u32)], now_us: u64) -> Vec<Estimate> {
    let fleet = fleet();
    let mut matches = Matches::default();
    for (at, tokens) in held {
        let member = &fleet.members[*at];
        matches.record(member.id, member.generation, *tokens, *tokens);
    }
    let mut out = Estimates::default();
    model.estimate(&fleet, &matches, 8_000, now_us, &mut out);
    (0..3).map(|at| *out.get(at).unwrap()).collect()
}

fn id(at: usize) -> EndpointId {
    fleet().members[at].id
}

/// Endpoint 0 computes at twice the fleet's usual speed and endpoint 1 ten times slower than it; prompts one at a time.
fn taught() -> FleetExpectation {
    let mut model = FleetExpectation::default();
    let mut now = 0;
    for round in 0..60_u32 {
        let prompt = 1_000 + (round * 977) % 9_000;
        for (at, slowness) in [(0, 1), (1, 10)] {
            let placement = model.place((id(at), GENERATION), prompt, 0, now).unwrap();
            let took = u64::from(prompt) * 50 * slowness;
            now += took;
            model.first_token(placement, now, Sighting::AtOnce);
        }
    }
    model
}

#[test]
fn who_holds_more_and_has_less_ahead_costs_less() {
    let mut model = FleetExpectation::default();
    let cold = estimates(&mut model, &[], 0);
    assert!((cold[0].cost_s - cold[1].cost_s).abs() < 1e-9);
    let warm = estimates(&mut model, &[(1, 7_984)], 0);
    assert!(warm[1].own_s < warm[0].own_s / 5.0, "{warm:?}");
    model.place((id(1), GENERATION), 50_000, 0, 0).unwrap();
    let busy = estimates(&mut model, &[(1, 7_984)], 1_000);
    assert!(busy[1].ahead_s > 2.0 && busy[1].cost_s > busy[0].cost_s);
}

#[test]
fn what_is_not_computed_yet_counts_for_less() {
    let fleet = fleet();
    let mut matches = Matches::default();
    let member = &fleet.members[1];
    matches.promise(member.id, member.generation, 7_000);
    matches.record(member.id, member.generation, 1_000, 1_000);
    let own_s = |unconfirmed_discount: f64| {
        let mut model = FleetExpectation::new(ExpectationOptions {
            unconfirmed_discount,
            ..ExpectationOptions::default()
        });
        let mut out = Estimates::default();
        model.estimate(&fleet, &matches, 8_000, 0, &mut out);
        out.get(1).unwrap().own_s
    };
    let rates = Rates::default();
    for (discount, cached) in [(0.0, 7_000), (0.5, 4_000), (1.0, 1_000)] {
        let expected = rates.seconds(PromptWork::of(8_000, cached));
        assert!((own_s(discount) - expected).abs() < 1e-9, "{discount}");
    }
}

#[test]
fn a_slow_endpoint_is_known_and_forgiven() {
    let mut model = taught();
    let now = 3_600_000_000;
    let later = estimates(&mut model, &[], now);
    assert!((later[1].own_s / later[0].own_s - 1.0).abs() < 0.1);
    let mut model = taught();
    let last = model.arrivals.last_us;
    let soon = estimates(&mut model, &[], last + 5_000_000);
    assert!(soon[1].own_s > soon[0].own_s * 4.0, "{soon:?}");
}

#[test]
fn in_a_busy_fleet_work_costs_more_than_waiting() {
    let mut model = FleetExpectation::default();
    // Endpoint 1 holds the prompt and has 0.6 s ahead; the others are idle and would take 0.5 s.
    let mut one = |busy: bool| {
        let mut now = 0;
        if busy {
            for _ in 0..600 {
                now += 60_000;
                let placement = model.place((id(2), GENERATION), 2_000, 0, now).unwrap();
                model.first_token(placement, now + 10_000, Sighting::AtOnce);
            }
        }
        model.rates = Rates::default();
        model.slots.clear();
        model.place((id(1), GENERATION), 9_000, 0, now).unwrap();
        let all = estimates(&mut model, &[(1, 7_984)], now);
        all[1].cost_s < all[0].cost_s
    };
    assert!(!one(false), "an idle endpoint is nearer");
    assert!(one(true), "but work done twice delays the others");
}

#[test]
fn the_work_of_others_is_read_off_the_page() {
    let mut model = taught();
    let mut live = [Live::default(); 3];
    live[2].waiting = 4;
    let fleet = snapshot(&live);
    let mut out = Estimates::default();
    let now = model.arrivals.last_us;
    model.estimate(&fleet, &Matches::default(), 100, now, &mut out);
    assert!(out.get(2).unwrap().ahead_s > 4.0 * 0.1);
    assert!(out.get(0).unwrap().ahead_s < 1e-9);
}

#[test]
fn another_generation_starts_anew_and_late_news_of_the_old_one_are_dropped() {
    let mut model = FleetExpectation::default();
    let old = model.place((id(0), Generation(1)), 90_000, 0, 0).unwrap();
    let new = model.place((id(0), Generation(2)), 10, 0, 5).unwrap();
    assert_eq!(model.place((id(0), Generation(1)), 10, 0, 6), None);
    model.first_token(old, 10, Sighting::AtOnce);
    assert_eq!(model.slots[0].ahead.len(), 1);
    model.ended(new, 20);
    assert_eq!(model.slots[0].ahead.len(), 0);
    assert_eq!(
        model.place((EndpointId(u32::MAX), GENERATION), 1, 0, 0),
        None
    );
}

#[test]
fn a_quiet_hour_does_not_thin_out_the_burst_after_it() {
    let mut arrivals = Arrivals::default();
    let mut burst = |start_us: u64| {
        let picks = (0..100).map(|pick| start_us + pick * 10_000);
        picks.for_each(|at_us| arrivals.add(0.1, at_us));
        arrivals.delayed(4, start_us + 1_000_000)
    };
    let (before, after) = (burst(0), burst(3_600_000_000));
    assert!((after / before - 1.0).abs() < 0.02, "{before} {after}");
}
