//! What flow control costs a request: into the queue, out of it, and ended.
//!
//! `cargo bench -p pointsman-epp --bench flow`
//!
//! `turn` keeps 10,000 requests of 1,000 flows waiting and lets one in and one out, under each
//! fairness policy. `empty` is the same on an empty queue: what a request pays while the pool has
//! room. `gate` is `empty` with the shell around it.

use std::sync::Arc;

use criterion::{Criterion, criterion_group, criterion_main};
use pointsman_epp::clock::Clock;
use pointsman_epp::flow::controller::{Controller, Decision, Item};
use pointsman_epp::flow::gate::{FlowLabels, NoEvents};
use pointsman_epp::flow::{Fairness, FlowRequest, FlowSettings, Gate, Saturation};
use serde_json::Value;

const WAITING: u64 = 10_000;
const FLOWS: u64 = 1_000;

const FAIRNESS: [&str; 3] = [
    "global-strict-fairness-policy",
    "round-robin-fairness-policy",
    "program-aware-fairness",
];

/// Room for exactly one.
const ROOM: Saturation = Saturation {
    effective: 0.5,
    endpoints: 1,
    per_request: 1.0,
    ..Saturation::EMPTY
};

struct Load {
    controller: Controller,
    ids: Vec<Arc<str>>,
    ticket: u64,
    out: Vec<Decision>,
}

impl Load {
    fn new(fairness: &str, waiting: u64) -> Self {
        let mut settings = FlowSettings::default();
        settings.default_band.max_requests = WAITING + 1;
        settings.default_band.fairness =
            Fairness::make("bench", fairness, &Value::Null).expect("a policy");
        let mut load = Self {
            controller: Controller::new(settings, 0),
            ids: (0..FLOWS)
                .map(|flow| Arc::from(format!("user-{flow}").as_str()))
                .collect(),
            ticket: 0,
            out: Vec::new(),
        };
        for _ in 0..waiting {
            load.enqueue();
        }
        load
    }

    fn enqueue(&mut self) {
        self.ticket += 1;
        // Flows in an order that no sorted map likes.
        let flow = self.ticket.wrapping_mul(2_654_435_761) % FLOWS;
        let item = Item {
            ticket: self.ticket,
            priority: 0,
            fairness_id: Arc::clone(&self.ids[flow as usize]),
            bytes: 1_000,
            ttl_ms: None,
            arrived_ms: self.ticket,
            deadline_ms: None,
            slo_ttft_ms: None,
        };
        self.controller
            .enqueue(0, item, &mut self.out)
            .expect("room in the queue");
    }

    fn turn(&mut self) {
        self.enqueue();
        self.controller.on_capacity(0, &ROOM, &mut self.out);
        for decision in self.out.drain(..) {
            let Decision::Dispatch { ticket, .. } = decision else {
                continue;
            };
            self.controller.on_placed(ticket);
            self.controller.on_finished(ticket, 0);
        }
    }
}

fn flow(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("flow");
    for fairness in FAIRNESS {
        let mut load = Load::new(fairness, WAITING);
        group.bench_function(format!("turn {fairness}"), |bencher| {
            bencher.iter(|| load.turn());
        });
    }
    let mut load = Load::new(FAIRNESS[0], 0);
    group.bench_function("empty", |bencher| bencher.iter(|| load.turn()));

    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let settings = Some(FlowSettings::default());
    let gate = Gate::new(
        Clock::monotonic(),
        Arc::new(|_| ROOM),
        Arc::new(NoEvents),
        settings,
    );
    let request = FlowRequest {
        labels: FlowLabels {
            priority: 0,
            fairness_id: Arc::from("user"),
            model: Arc::from("model"),
            target_model: Arc::from("model"),
        },
        bytes: 1_000,
        arrived_ms: 1,
        ttl_ms: None,
        deadline_ms: None,
        slo_ttft_ms: None,
    };
    group.bench_function("gate", |bencher| {
        bencher.iter(|| {
            let admitted = runtime.block_on(gate.admit(request.clone()));
            admitted.expect("room in the pool").placed();
        });
    });
    group.finish();
}

criterion_group!(benches, flow);
criterion_main!(benches);
