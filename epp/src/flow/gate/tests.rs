//! The gate with time standing still: the clock and tokio's time are moved by hand, together.

use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use tokio::task::JoinHandle;

use super::super::outcome::Outcome;
use super::*;
use crate::clock::ManualClock;

/// Writes down what it is told.
#[derive(Debug, Default)]
struct Recorder {
    told: Mutex<Vec<String>>,
}

impl FlowEvents for Recorder {
    fn queued(&self, request: &FlowLabels, bytes: u64, _: Duration) {
        let line = format!("queued {} {bytes}", request.fairness_id);
        self.told.lock().push(line);
    }

    fn dispatched(&self, request: &FlowLabels, _: u64, queued: bool, waited: Duration) {
        let id = &request.fairness_id;
        let line = format!("dispatched {id} {queued} {waited:?}");
        self.told.lock().push(line);
    }

    fn refused(
        &self,
        request: &FlowLabels,
        _: u64,
        queued: bool,
        outcome: Outcome,
        waited: Duration,
    ) {
        let (id, outcome) = (&request.fairness_id, outcome.label());
        let line = format!("refused {id} {queued} {outcome} {waited:?}");
        self.told.lock().push(line);
    }

    fn evicted_in_flight(&self, priority: i32) {
        self.told.lock().push(format!("evicted {priority}"));
    }
}

struct Rig {
    gate: Gate,
    hand: ManualClock,
    level: Arc<Mutex<Saturation>>,
    recorder: Arc<Recorder>,
    timer: JoinHandle<()>,
}

fn level(effective: f64) -> Saturation {
    Saturation {
        effective,
        endpoints: 1,
        per_request: 0.5,
        ..Saturation::EMPTY
    }
}

fn rig(settings: Option<FlowSettings>) -> Rig {
    let (clock, hand) = Clock::manual();
    let shared = Arc::new(Mutex::new(level(1.0)));
    let read = Arc::clone(&shared);
    let recorder = Arc::new(Recorder::default());
    let events = Arc::clone(&recorder) as Arc<dyn FlowEvents>;
    let gate = Gate::new(clock, Arc::new(move |_| *read.lock()), events, settings);
    Rig {
        timer: tokio::spawn(gate.timer()),
        gate,
        hand,
        level: shared,
        recorder,
    }
}

fn request(priority: i32, fairness_id: &str) -> FlowRequest {
    FlowRequest {
        labels: FlowLabels {
            priority,
            fairness_id: Arc::from(fairness_id),
            model: Arc::from("model"),
            target_model: Arc::from("model"),
        },
        bytes: 10,
        arrived_ms: 1,
        ttl_ms: None,
        deadline_ms: None,
        slo_ttft_ms: None,
    }
}

impl Rig {
    /// A request at the gate in a task of its own, once it waits or is through.
    async fn send(
        &self,
        priority: i32,
        fairness_id: &str,
    ) -> JoinHandle<Result<Permit, FlowRefusal>> {
        let gate = self.gate.clone();
        let request = request(priority, fairness_id);
        let task = tokio::spawn(async move { gate.admit(request).await });
        tokio::task::yield_now().await;
        task
    }

    async fn advance(&self, by_ms: u64) {
        self.hand.advance_ms(by_ms);
        tokio::time::advance(Duration::from_millis(by_ms)).await;
        for _ in 0..4 {
            tokio::task::yield_now().await;
        }
    }

    fn set_level(&self, effective: f64) {
        *self.level.lock() = level(effective);
        self.gate.wake();
    }

    fn told(&self) -> Vec<String> {
        std::mem::take(&mut self.recorder.told.lock())
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_waits_for_room_and_goes_when_it_is_woken() {
    let rig = rig(Some(FlowSettings::default()));
    let task = rig.send(0, "a").await;
    assert_eq!(rig.gate.view().requests, 1);
    rig.advance(40).await;
    assert!(!task.is_finished());
    rig.set_level(0.0);
    let permit = task.await.unwrap().unwrap();
    assert_eq!(permit.waited(), Duration::from_millis(40));
    assert_eq!(rig.told(), ["queued a 10", "dispatched a true 40ms"]);
    // The next one finds room and never waits.
    let next = rig.gate.admit(request(0, "b")).await.unwrap();
    assert_eq!(rig.told(), ["dispatched b false 0ns"]);
    assert_eq!(rig.gate.view().in_flight, 2);
    drop((permit, next));
    assert_eq!(rig.gate.view().in_flight, 0);
}

#[tokio::test(start_paused = true)]
async fn a_burst_goes_only_as_far_as_the_reading_has_room() {
    let rig = rig(Some(FlowSettings::default()));
    *rig.level.lock() = level(0.0);
    let mut permits = Vec::new();
    for _ in 0..2 {
        permits.push(rig.gate.admit(request(0, "a")).await.unwrap());
    }
    let third = rig.send(0, "a").await;
    rig.set_level(0.0);
    tokio::task::yield_now().await;
    assert!(!third.is_finished());
    // Placed, the first two are the reading's own business.
    permits[0].placed();
    drop(third.await.unwrap().unwrap());
}

#[tokio::test(start_paused = true)]
async fn whoever_forgets_to_place_a_permit_holds_others_up_for_a_second_only() {
    let rig = rig(Some(FlowSettings::default()));
    *rig.level.lock() = level(0.5);
    let forgotten = rig.gate.admit(request(0, "a")).await.unwrap();
    let next = rig.send(0, "a").await;
    rig.advance(999).await;
    assert!(!next.is_finished());
    rig.advance(1).await;
    drop(next.await.unwrap().unwrap());
    drop(forgotten);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_goes_away_leaves_the_queue() {
    let rig = rig(Some(FlowSettings::default()));
    let task = rig.send(0, "a").await;
    task.abort();
    assert!(task.await.unwrap_err().is_cancelled());
    assert_eq!(rig.gate.view().requests, 0);
    assert_eq!(
        rig.told(),
        ["queued a 10", "refused a true EvictedContextCancelled 0ns"]
    );
}

#[tokio::test(start_paused = true)]
async fn a_permit_that_nobody_takes_comes_back() {
    let rig = rig(Some(FlowSettings::default()));
    let task = rig.send(0, "a").await;
    // The verdict is on its way when the client goes.
    rig.set_level(0.0);
    assert_eq!(rig.gate.view().in_flight, 1);
    task.abort();
    assert!(task.await.unwrap_err().is_cancelled());
    assert_eq!(rig.gate.view().in_flight, 0);
    assert_eq!(rig.gate.view().outcomes[&Outcome::Dispatched], 1);
}

#[tokio::test(start_paused = true)]
async fn the_timer_refuses_what_waited_too_long() {
    let rig = rig(Some(FlowSettings::default()));
    let first = rig.send(0, "a").await;
    rig.advance(30_000).await;
    let second = rig.send(0, "b").await;
    rig.advance(29_999).await;
    assert!(!first.is_finished());
    rig.advance(1).await;
    let refusal = first.await.unwrap().unwrap_err();
    assert_eq!(
        (refusal.outcome, refusal.status),
        (Outcome::EvictedTtl, 429)
    );
    assert!(!second.is_finished());
    // The pool runs empty: the second has the other bound before it.
    *rig.level.lock() = Saturation::EMPTY;
    rig.gate.wake();
    rig.advance(59_999).await;
    assert!(!second.is_finished());
    rig.advance(1).await;
    let refusal = second.await.unwrap().unwrap_err();
    assert_eq!(refusal.reason, "rejected-no-endpoints");
    assert_eq!(refusal.status, 503);
}

#[tokio::test(start_paused = true)]
async fn a_sooner_deadline_is_not_missed_behind_a_later_one() {
    let rig = rig(Some(FlowSettings::default()));
    let later = rig.send(0, "a").await;
    rig.advance(10).await;
    let gate = rig.gate.clone();
    let sooner = FlowRequest {
        ttl_ms: Some(5),
        ..request(0, "b")
    };
    let sooner = tokio::spawn(async move { gate.admit(sooner).await });
    tokio::task::yield_now().await;
    rig.advance(5).await;
    assert!(sooner.await.unwrap().is_err());
    assert!(!later.is_finished());
}

#[tokio::test(start_paused = true)]
async fn shutting_down_refuses_those_that_wait_and_those_that_come() {
    let rig = rig(Some(FlowSettings::default()));
    let waits = rig.send(0, "a").await;
    rig.gate.shut_down();
    let waited = waits.await.unwrap().unwrap_err();
    let came = rig.gate.admit(request(0, "b")).await.unwrap_err();
    assert_eq!(waited.outcome, Outcome::EvictedOther);
    assert_eq!(came.outcome, Outcome::RejectedOther);
    for refusal in [waited, came] {
        assert_eq!(refusal.status, 503);
        assert_eq!(refusal.reason, "rejected-shutting-down");
    }
}

#[tokio::test(start_paused = true)]
async fn other_settings_lose_nobody() {
    let rig = rig(Some(FlowSettings::default()));
    let first = rig.send(0, "a").await;
    let second = rig.send(5, "b").await;
    let none = FlowSettings {
        max_requests: Some(0),
        ..FlowSettings::default()
    };
    rig.gate.set_settings(Some(none));
    assert_eq!(rig.gate.view().requests, 2);
    let full = rig.gate.admit(request(9, "c")).await.unwrap_err();
    assert_eq!(full.reason, "rejected-saturated");
    rig.told();
    // Switched off, everybody goes, the most urgent first.
    rig.gate.set_settings(None);
    let (first, second) = (first.await.unwrap(), second.await.unwrap());
    assert_eq!(
        rig.told(),
        ["dispatched b true 0ns", "dispatched a true 0ns"]
    );
    assert!(!rig.gate.view().flow_control);
    drop((first, second));
    rig.gate.set_settings(Some(FlowSettings::default()));
    assert_eq!(rig.gate.view().in_flight, 0);
}

#[tokio::test(start_paused = true)]
async fn without_flow_control_only_sheddable_requests_are_refused() {
    let rig = rig(None);
    let refusal = rig.gate.admit(request(-1, "a")).await.unwrap_err();
    let message = "system saturated, sheddable request dropped";
    assert_eq!(refusal.to_string(), message);
    assert_eq!(refusal.status, 429);
    let permit = rig.gate.admit(request(0, "a")).await.unwrap();
    permit.placed();
    assert_eq!(rig.gate.view().in_flight, 0);
}

#[tokio::test(start_paused = true)]
async fn a_sheddable_request_in_flight_is_stopped_for_one_that_waits() {
    let rig = rig(Some(FlowSettings {
        eviction: true,
        ..FlowSettings::default()
    }));
    *rig.level.lock() = level(0.5);
    let mut sheddable = rig.gate.admit(request(-1, "batch")).await.unwrap();
    sheddable.placed();
    rig.set_level(1.0);
    let urgent = rig.send(3, "chat").await;
    let refusal = sheddable.evicted().await;
    assert_eq!((refusal.status, refusal.reason), (429, "evicted-priority"));
    assert_eq!(refusal.message, "request evicted by flow control");
    assert!(rig.told().contains(&"evicted -1".to_owned()));
    *rig.level.lock() = level(0.5);
    drop(sheddable);
    drop(urgent.await.unwrap().unwrap());
}

#[tokio::test(start_paused = true)]
async fn the_timer_ends_with_the_gate() {
    let Rig { gate, timer, .. } = rig(Some(FlowSettings::default()));
    tokio::task::yield_now().await;
    drop(gate);
    timer.await.unwrap();
}

/// Tasks on several threads against a pool that counts what is placed, as the fleet does.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn under_contention_the_pool_is_never_overfilled_and_nobody_is_forgotten() {
    const PLACES: u64 = 4;
    const TASKS: u64 = 16;
    const ROUNDS: u64 = 100;
    let placed = Arc::new(AtomicU64::new(0));
    let running = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&placed);
    let read = move |_| Saturation {
        effective: counted.load(Ordering::Relaxed) as f64 / PLACES as f64,
        endpoints: 1,
        per_request: 1.0 / PLACES as f64,
        ..Saturation::EMPTY
    };
    let settings = Some(FlowSettings::default());
    let gate = Gate::new(
        Clock::monotonic(),
        Arc::new(read),
        Arc::new(NoEvents),
        settings,
    );
    let timer = tokio::spawn(gate.timer());
    let tasks = (0..TASKS).map(|number| {
        let (gate, placed, running) = (gate.clone(), Arc::clone(&placed), Arc::clone(&running));
        tokio::spawn(async move {
            for round in 0..ROUNDS {
                let request = request(number as i32 % 3, "a");
                if (number + round) % 7 == 0 {
                    // A client that goes away, waiting or just let through.
                    let gone = futures_util::future::select(
                        Box::pin(gate.admit(request)),
                        Box::pin(tokio::task::yield_now()),
                    );
                    drop(gone.await);
                    continue;
                }
                let permit = gate.admit(request).await.unwrap();
                assert!(running.fetch_add(1, Ordering::SeqCst) < PLACES);
                placed.fetch_add(1, Ordering::Relaxed);
                permit.placed();
                tokio::task::yield_now().await;
                running.fetch_sub(1, Ordering::SeqCst);
                placed.fetch_sub(1, Ordering::Relaxed);
                drop(permit);
            }
        })
    });
    let all = futures_util::future::join_all(tasks);
    for task in tokio::time::timeout(Duration::from_mins(1), all)
        .await
        .unwrap()
    {
        task.unwrap();
    }
    let view = gate.view();
    assert_eq!((view.requests, view.in_flight), (0, 0));
    drop(gate);
    timer.await.unwrap();
}
