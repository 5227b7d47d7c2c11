//! The controller against a plain model that scans a list, and its rules one by one.

mod model;

use std::sync::Arc;

use proptest::prelude::*;
use serde_json::json;

use self::model::Model;
use super::super::fairness::Fairness;
use super::super::ordering::Ordering;
use super::super::settings::BandSettings;
use super::super::usage_limit::UsageLimit;
use super::*;

#[derive(Clone, Debug)]
enum Step {
    Enqueue(Item),
    Look { tenths: u8, endpoints: usize },
    Cancel(usize),
    Placed(usize),
    Finish(usize),
    Advance(u64),
    Reload(bool),
}

fn reading(saturation: f64, endpoints: usize) -> Saturation {
    Saturation {
        effective: saturation,
        endpoints,
        per_request: 0.125,
        per_byte: 0.015_625,
        ..Saturation::EMPTY
    }
}

fn item(ticket: u64, priority: i32, flow: &str) -> Item {
    Item {
        ticket,
        priority,
        fairness_id: Arc::from(flow),
        bytes: 1,
        ttl_ms: None,
        arrived_ms: 0,
        deadline_ms: None,
        slo_ttft_ms: None,
    }
}

fn band(fairness: Fairness, ordering: Ordering, share_ppm: u64) -> BandSettings {
    BandSettings {
        max_bytes: 20,
        max_requests: 6,
        fairness,
        ordering,
        ttl_ms: Some(50),
        share_ppm,
    }
}

/// Two configurations that differ in everything.
fn settings(second: bool, eviction: bool) -> FlowSettings {
    let holdback = json!({"minCeiling": 0.5});
    let (first, other) = (Fairness::RoundRobin, Fairness::GlobalStrict);
    let (usage_limit, default_fairness) = if second {
        let holdback = UsageLimit::make("priority-holdback-policy", &holdback);
        (holdback.unwrap(), other.clone())
    } else {
        (UsageLimit::default(), first.clone())
    };
    FlowSettings {
        max_bytes: Some(30),
        max_requests: Some(if second { 8 } else { 10 }),
        no_endpoint_ttl_ms: Some(80),
        default_band: band(default_fairness, Ordering::Edf, 250_000),
        default_negative_band: BandSettings {
            ttl_ms: None,
            ..band(first, Ordering::SloDeadline, 100_000)
        },
        bands: vec![(2, band(other, Ordering::Fcfs, 0))],
        usage_limit,
        eviction,
    }
}

fn step() -> impl Strategy<Value = Step> {
    let item = (
        -2..=2_i32,
        0..3_u8,
        0..8_u64,
        proptest::option::weighted(0.2, 0..60_u64),
        proptest::option::of(0..300_u64),
        proptest::option::of(0..300_u16),
    );
    let item = item.prop_map(|(priority, flow, bytes, ttl_ms, deadline_ms, slo)| Item {
        bytes,
        ttl_ms,
        deadline_ms,
        slo_ttft_ms: slo.map(f64::from),
        ..item_of(priority, flow)
    });
    prop_oneof![
        8 => item.prop_map(Step::Enqueue),
        4 => (0..12_u8, 0..8_usize).prop_map(|(tenths, endpoints)| Step::Look {
            tenths,
            endpoints: endpoints.min(1),
        }),
        1 => any::<usize>().prop_map(Step::Cancel),
        2 => any::<usize>().prop_map(Step::Placed),
        2 => any::<usize>().prop_map(Step::Finish),
        3 => (0..30_u64).prop_map(Step::Advance),
        1 => any::<bool>().prop_map(Step::Reload),
    ]
}

fn item_of(priority: i32, flow: u8) -> Item {
    item(0, priority, ["a", "b", "c"][usize::from(flow)])
}

/// Both sides after one step: the same decisions and the same state.
struct Pair {
    controller: Controller,
    model: Model,
    now_ms: u64,
    next_ticket: u64,
    stopped: BTreeSet<u64>,
    gone: BTreeSet<u64>,
}

impl Pair {
    fn run(&mut self, step: Step) {
        let mut out = Vec::new();
        let mut expected = Vec::new();
        match step {
            Step::Enqueue(mut item) => {
                item.ticket = self.next_ticket;
                item.arrived_ms = self.now_ms;
                self.next_ticket += 1;
                let known = self.model.enqueue(self.now_ms, item.clone(), &mut expected);
                let queued = self.controller.enqueue(self.now_ms, item, &mut out);
                assert_eq!(queued, known);
            }
            Step::Look { tenths, endpoints } => {
                let reading = reading(f64::from(tenths) / 10.0, endpoints);
                self.controller.on_capacity(self.now_ms, &reading, &mut out);
                self.model.look(self.now_ms, &reading, &mut expected);
                let next = self.controller.next_deadline();
                assert!(next.is_none_or(|next| next > self.now_ms), "{next:?}");
            }
            Step::Cancel(at) => {
                if let Some(ticket) = self.model.nth_waiting(at) {
                    assert!(self.controller.cancel(ticket, self.now_ms));
                    assert!(!self.controller.cancel(ticket, self.now_ms));
                    self.model.cancel(ticket);
                }
            }
            Step::Placed(at) => {
                if let Some(ticket) = self.model.nth_in_flight(at) {
                    self.controller.on_placed(ticket);
                    self.model.placed(ticket);
                }
            }
            Step::Finish(at) => {
                if let Some(ticket) = self.model.nth_in_flight(at) {
                    self.controller.on_finished(ticket, self.now_ms);
                    self.model.finished(ticket);
                }
            }
            Step::Advance(by_ms) => self.now_ms += by_ms,
            Step::Reload(second) => {
                let settings = settings(second, self.model.settings.eviction);
                self.controller.set_settings(self.now_ms, settings.clone());
                self.model.reload(settings);
            }
        }
        self.compare(out, &expected);
    }

    fn compare(&mut self, out: Vec<Decision>, expected: &[Decision]) {
        let mut others = Vec::new();
        for decision in out {
            match decision {
                Decision::Evict { ticket } => {
                    assert!(self.model.settings.eviction);
                    assert!(self.stopped.insert(ticket), "{ticket} is stopped twice");
                    assert!(self.model.is_sheddable_in_flight(ticket));
                }
                Decision::Dispatch { ticket, .. } | Decision::Refuse { ticket, .. } => {
                    assert!(self.gone.insert(ticket), "{ticket} is decided twice");
                    others.push(decision);
                }
            }
        }
        assert_eq!(others, expected);
        let view = self.controller.view(self.now_ms);
        assert_eq!(view.requests as usize, self.model.waiting.len());
        let bytes: u64 = self.model.waiting.iter().map(|one| one.item.bytes).sum();
        assert_eq!(view.bytes, bytes);
        let flows = view.bands.iter().flat_map(|band| &band.flows);
        assert_eq!(flows.map(|flow| flow.bytes).sum::<u64>(), bytes);
        assert_eq!(view.in_flight as usize, self.model.in_flight.len());
    }
}

proptest! {
    #[test]
    fn it_decides_as_a_scanned_list_would(
        steps in proptest::collection::vec(step(), 1..120),
        eviction: bool,
    ) {
        let settings = settings(false, eviction);
        let mut pair = Pair {
            controller: Controller::new(settings.clone(), 1),
            model: Model::new(settings),
            now_ms: 1,
            next_ticket: 1,
            stopped: BTreeSet::new(),
            gone: BTreeSet::new(),
        };
        for step in steps {
            pair.run(step);
        }
        let mut out = Vec::new();
        pair.controller.shut_down(pair.now_ms, &mut out);
        assert_eq!(out.len(), pair.model.waiting.len());
        assert_eq!(pair.controller.waiting(), 0);
        assert_eq!(pair.controller.next_deadline(), None);
    }
}

fn queued(settings: FlowSettings, items: impl IntoIterator<Item = Item>) -> Controller {
    let mut controller = Controller::new(settings, 0);
    let mut out = Vec::new();
    for item in items {
        controller.enqueue(0, item, &mut out).unwrap();
    }
    assert!(out.is_empty());
    controller
}

fn dispatched(controller: &mut Controller, now_ms: u64, reading: &Saturation) -> Vec<u64> {
    let mut out = Vec::new();
    controller.on_capacity(now_ms, reading, &mut out);
    out.iter()
        .filter_map(|decision| match decision {
            Decision::Dispatch { ticket, .. } => Some(*ticket),
            _ => None,
        })
        .collect()
}

#[test]
fn a_burst_fills_the_pool_and_no_more() {
    let items = (0..100).map(|ticket| item(ticket, 0, "a"));
    let mut controller = queued(FlowSettings::default(), items);
    let half_full = Saturation {
        per_byte: 0.0,
        ..reading(0.5, 1)
    };
    assert_eq!(dispatched(&mut controller, 0, &half_full), [0, 1, 2, 3]);
    assert!(dispatched(&mut controller, 0, &half_full).is_empty());
    // Two are counted by the pool from now on, which the reading shows; the others still are not.
    controller.on_placed(0);
    controller.on_placed(1);
    let shown = Saturation {
        effective: 0.75,
        ..half_full
    };
    assert!(dispatched(&mut controller, 0, &shown).is_empty());
    // One ends before it was placed.
    controller.on_finished(2, 0);
    assert_eq!(dispatched(&mut controller, 0, &shown), [4]);
    // Whoever forgets to say that a request is placed holds the others up for a second.
    assert_eq!(controller.next_deadline(), Some(UNPLACED_MS));
    assert_eq!(dispatched(&mut controller, UNPLACED_MS, &shown), [5, 6]);
}

#[test]
fn a_band_with_a_share_gets_it_and_one_without_waits() {
    let mut settings = FlowSettings::default();
    for (priority, share_ppm) in [(-1, 0), (0, 200_000)] {
        let band = BandSettings {
            share_ppm,
            ..BandSettings::default()
        };
        settings.bands.push((priority, band));
    }
    let items = (0..1_200).map(|ticket| item(ticket, [9, 0, -1][ticket as usize % 3], "a"));
    let mut controller = queued(settings, items);
    let mut by_priority = [0; 3];
    let idle = Saturation {
        per_request: 0.001,
        per_byte: 0.0,
        ..reading(0.9, 1)
    };
    let mut now_ms = 0;
    while by_priority[0] < 300 {
        for ticket in dispatched(&mut controller, now_ms, &idle) {
            by_priority[ticket as usize % 3] += 1;
            controller.on_finished(ticket, now_ms);
        }
        now_ms += 1;
    }
    let total: usize = by_priority.iter().sum();
    assert_eq!(by_priority[1], total / 5);
    assert_eq!(by_priority[2], 0);
}

#[test]
fn shares_beyond_the_whole_are_scaled_down() {
    let mut settings = FlowSettings::default();
    settings.default_band.share_ppm = 800_000;
    let items = (0..400).map(|ticket| item(ticket, ticket as i32 % 4, "a"));
    let mut controller = queued(settings, items);
    let open = Saturation {
        per_request: 0.0,
        per_byte: 0.0,
        ..reading(0.0, 1)
    };
    let first: Vec<u64> = dispatched(&mut controller, 0, &open)[..100].to_vec();
    for priority in 0..4 {
        let count = first
            .iter()
            .filter(|ticket| *ticket % 4 == priority)
            .count();
        // Those that have their turn at once go one after the other, so each may be one behind.
        let expected = if priority == 3 { 10..=13 } else { 29..=30 };
        assert!(expected.contains(&count), "priority {priority}: {count}");
    }
}

#[test]
fn program_aware_fairness_serves_who_got_least() {
    let mut settings = FlowSettings::default();
    settings.default_band.fairness =
        Fairness::make("las", "program-aware-fairness", &json!({})).unwrap();
    let ids = ["heavy", "light"];
    let items = (0..6).map(|ticket| item(ticket, 0, ids[ticket as usize / 3]));
    let mut controller = queued(settings.clone(), items);
    controller.on_served(&Arc::from("heavy"), 10, 500, 0);
    let open = reading(0.0, 1);
    assert_eq!(dispatched(&mut controller, 10, &open), [3, 4, 5, 0, 1, 2]);
    let view = controller.view(10);
    let heavy = view.fairness[0].programs.iter();
    let heavy = heavy.clone().find(|program| &*program.id == "heavy");
    assert!((heavy.unwrap().attained_service_tokens - 1_010.0).abs() < 1.0);
    // Other settings keep what the plugin of that name knows.
    controller.set_settings(10, settings);
    assert_eq!(controller.view(10).fairness, view.fairness);
}

#[test]
fn waiting_for_an_endpoint_has_a_bound_of_its_own() {
    let settings = FlowSettings {
        no_endpoint_ttl_ms: Some(300_000),
        ..FlowSettings::default()
    };
    let own = Item {
        ttl_ms: Some(500),
        ..item(2, 0, "a")
    };
    let mut controller = queued(settings, [item(1, 0, "a"), own]);
    let mut out = Vec::new();
    controller.on_capacity(0, &Saturation::EMPTY, &mut out);
    assert_eq!(controller.next_deadline(), Some(500));
    controller.on_capacity(500, &Saturation::EMPTY, &mut out);
    let cause = Cause::ExpiredWithoutEndpoints;
    let refused = Decision::Refuse {
        ticket: 2,
        cause,
        waited_ms: 500,
    };
    assert_eq!(out, [refused]);
    assert_eq!(controller.next_deadline(), Some(300_000));
    // The pool has an endpoint again, a full one: the request has the ordinary bound before it.
    out.clear();
    controller.on_capacity(299_999, &reading(1.0, 1), &mut out);
    assert!(out.is_empty());
    assert_eq!(controller.next_deadline(), Some(359_999));
    controller.on_capacity(359_999, &reading(1.0, 1), &mut out);
    let told = matches!(
        out.as_slice(),
        [Decision::Refuse {
            ticket: 1,
            cause: Cause::Expired,
            ..
        }]
    );
    assert!(told, "{out:?}");
}

#[test]
fn with_eviction_a_waiting_request_stops_sheddable_ones_in_flight() {
    let settings = FlowSettings {
        eviction: true,
        ..FlowSettings::default()
    };
    let items = [item(1, -1, "a"), item(2, -2, "a"), item(3, 0, "a")];
    let mut controller = queued(settings, items);
    let open = reading(0.0, 1);
    assert_eq!(dispatched(&mut controller, 0, &open), [3, 1, 2]);
    let mut out = Vec::new();
    controller.enqueue(5, item(4, 0, "a"), &mut out).unwrap();
    controller.on_capacity(5, &reading(1.0, 1), &mut out);
    controller.on_capacity(5, &reading(1.0, 1), &mut out);
    // One waits, so one is stopped, however often the pool is looked at.
    assert_eq!(out, [Decision::Evict { ticket: 2 }]);
    out.clear();
    controller.enqueue(6, item(5, 0, "a"), &mut out).unwrap();
    controller.on_capacity(6, &reading(1.0, 1), &mut out);
    assert_eq!(out, [Decision::Evict { ticket: 1 }]);
    assert_eq!(controller.view(6).evicted_in_flight, 2);
}

#[test]
fn bands_and_flows_are_bounded() {
    let mut controller = Controller::new(FlowSettings::default(), 0);
    let mut out = Vec::new();
    for number in 0..=BANDS_MAX as u64 {
        let item = item(number, number as i32, "a");
        controller.enqueue(0, item, &mut out).unwrap();
    }
    let view = controller.view(0);
    assert_eq!(view.bands.len(), BANDS_MAX);
    assert_eq!(view.bands[0].requests, 2);
    for number in 0..FLOWS_MAX as u64 + 5 {
        let item = item(1_000 + number, 0, &number.to_string());
        controller.enqueue(0, item, &mut out).unwrap();
    }
    let view = controller.view(0);
    let flows = &view.bands[BANDS_MAX - 1].flows;
    assert_eq!(flows.len(), FLOWS_MAX + 1);
    let other = flows.iter().find(|flow| &*flow.fairness_id == "other");
    assert_eq!(other.unwrap().requests, 6);
}

#[test]
fn bands_that_nobody_uses_are_forgotten() {
    let mut controller = queued(FlowSettings::default(), [item(1, 7, "a")]);
    assert_eq!(dispatched(&mut controller, 0, &reading(0.0, 1)), [1]);
    let mut out = Vec::new();
    controller
        .enqueue(BAND_IDLE_MS - 1, item(2, 3, "a"), &mut out)
        .unwrap();
    assert_eq!(controller.view(0).bands.len(), 2);
    controller
        .enqueue(BAND_IDLE_MS, item(3, 1, "a"), &mut out)
        .unwrap();
    let view = controller.view(0);
    let priorities: Vec<i32> = view.bands.iter().map(|band| band.priority).collect();
    assert_eq!(priorities, [3, 1]);
}

#[test]
fn a_reading_that_is_no_number_counts_as_full() {
    let mut controller = queued(FlowSettings::default(), [item(1, 0, "a")]);
    assert!(dispatched(&mut controller, 0, &reading(f64::NAN, 1)).is_empty());
}
