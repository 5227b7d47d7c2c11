//! What stands behind a [`Gate`](super::Gate): the lock, the channels of those that wait, and the
//! timer.
//!
//! Every step is the same: under the lock, ask the controller and turn its decisions into
//! deliveries; then, outside of it, send them. A permit that nobody takes any more comes back
//! through its own drop, which takes the lock again.

use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use rustc_hash::FxHashMap;
use smallvec::SmallVec;
use tokio::sync::{Notify, oneshot};

use super::super::admission;
use super::super::controller::{Controller, Decision, Item};
use super::super::eviction::EvictionFilter;
use super::super::outcome::{Cause, FlowRefusal};
use super::super::settings::FlowSettings;
use super::super::view::FlowView;
use super::{FlowEvents, FlowLabels, FlowRequest, Permit, ReadSaturation};
use crate::clock::Clock;

type Verdict = Result<Permit, FlowRefusal>;
type Deliveries = SmallVec<[Delivery; 4]>;

pub(super) struct Shell {
    clock: Clock,
    read: ReadSaturation,
    events: Arc<dyn FlowEvents>,
    state: Mutex<State>,
    next_ticket: AtomicU64,
    /// Requests that wait, for [`wake`](Shell::wake) to look at without the lock.
    waiting: AtomicU64,
    /// Whether somebody is about to take the lock and look.
    woken: AtomicBool,
    /// Tells the timer that the next deadline is another one.
    rearm: Arc<Notify>,
}

struct State {
    controller: Controller,
    /// Whether flow control is on.
    on: bool,
    shut_down: bool,
    waiters: FxHashMap<u64, Waiter>,
    evictions: FxHashMap<u64, Eviction>,
    /// Reused by every step.
    decisions: Vec<Decision>,
    /// What the timer sleeps until.
    armed_ms: Option<u64>,
}

struct Waiter {
    verdict: oneshot::Sender<Verdict>,
    labels: FlowLabels,
    bytes: u64,
    entered_us: u64,
}

/// How a sheddable request in flight is reached.
struct Eviction {
    priority: i32,
    stop: oneshot::Sender<FlowRefusal>,
}

/// Something to be sent outside of the lock.
enum Delivery {
    Dispatched(Waiter, Permit),
    Refused(Waiter, Cause),
    Evicted(Eviction),
}

/// What became of a request at once.
pub(super) enum Entered {
    Admitted(Permit),
    Refused(FlowRefusal),
    Waiting {
        ticket: u64,
        verdict: oneshot::Receiver<Verdict>,
    },
}

impl Shell {
    pub(super) fn new(
        clock: Clock,
        read: ReadSaturation,
        events: Arc<dyn FlowEvents>,
        settings: Option<FlowSettings>,
    ) -> Self {
        let now_ms = clock.now_ms();
        let on = settings.is_some();
        let state = State {
            controller: Controller::new(settings.unwrap_or_default(), now_ms),
            on,
            shut_down: false,
            waiters: FxHashMap::default(),
            evictions: FxHashMap::default(),
            decisions: Vec::new(),
            armed_ms: None,
        };
        Self {
            clock,
            read,
            events,
            state: Mutex::new(state),
            next_ticket: AtomicU64::new(1),
            waiting: AtomicU64::new(0),
            woken: AtomicBool::new(false),
            rearm: Arc::new(Notify::new()),
        }
    }

    /// Queues a request and looks whether it goes at once.
    pub(super) fn enter(self: &Arc<Self>, request: FlowRequest) -> Entered {
        let entered_us = self.clock.now_us();
        let FlowRequest { labels, bytes, .. } = request;
        let mut state = self.state.lock();
        if state.shut_down {
            drop(state);
            return self.refuse_at_once(&labels, bytes, Cause::ShuttingDown);
        }
        if !state.on {
            drop(state);
            return self.enter_without_queue(labels.priority);
        }
        let ticket = self.next_ticket.fetch_add(1, Ordering::Relaxed);
        let item = Item {
            ticket,
            priority: labels.priority,
            fairness_id: Arc::clone(&labels.fairness_id),
            bytes,
            ttl_ms: request.ttl_ms,
            arrived_ms: request.arrived_ms,
            deadline_ms: request.deadline_ms,
            slo_ttft_ms: request.slo_ttft_ms,
        };
        let now_ms = entered_us / 1_000;
        let held = &mut *state;
        let queued = held.controller.enqueue(now_ms, item, &mut held.decisions);
        if let Err(cause) = queued {
            self.send_all(state);
            return self.refuse_at_once(&labels, bytes, cause);
        }
        let took_us = self.clock.now_us().saturating_sub(entered_us);
        self.look(&mut state);
        let own = state.decisions.iter().position(|decision| {
            matches!(decision,
                Decision::Dispatch { ticket: of, .. } | Decision::Refuse { ticket: of, .. }
                if *of == ticket)
        });
        let own = own.map(|at| state.decisions.remove(at));
        let Some(decision) = own else {
            let (sender, verdict) = oneshot::channel();
            let waiter = Waiter {
                verdict: sender,
                labels: labels.clone(),
                bytes,
                entered_us,
            };
            state.waiters.insert(ticket, waiter);
            self.send_all(state);
            let took = Duration::from_micros(took_us);
            self.events.queued(&labels, bytes, took);
            return Entered::Waiting { ticket, verdict };
        };
        if let Decision::Refuse { cause, .. } = decision {
            self.send_all(state);
            return self.refuse_at_once(&labels, bytes, cause);
        }
        let permit = self.permit(&mut state, ticket, &labels, Duration::ZERO);
        self.send_all(state);
        self.events
            .dispatched(&labels, bytes, false, Duration::ZERO);
        Entered::Admitted(permit)
    }

    pub(super) fn wake(self: &Arc<Self>) {
        // What the caller changed is visible before the count is read, and the count of a request
        // that begins to wait is visible before that one reads the pool: one of the two sees the
        // other.
        fence(Ordering::SeqCst);
        if self.waiting.load(Ordering::SeqCst) == 0 || self.woken.swap(true, Ordering::SeqCst) {
            return;
        }
        let mut state = self.state.lock();
        self.woken.store(false, Ordering::SeqCst);
        self.look(&mut state);
        self.send_all(state);
    }

    pub(super) fn cancel(self: &Arc<Self>, ticket: u64) {
        let mut state = self.state.lock();
        let now_us = self.clock.now_us();
        let Some(waiter) = state.waiters.remove(&ticket) else {
            return;
        };
        state.controller.cancel(ticket, now_us / 1_000);
        self.send_all(state);
        self.tell_refused(&waiter, Cause::Cancelled, now_us);
    }

    pub(super) fn placed(self: &Arc<Self>, ticket: u64) {
        self.state.lock().controller.on_placed(ticket);
        self.wake();
    }

    pub(super) fn finish(self: &Arc<Self>, ticket: u64) {
        let mut state = self.state.lock();
        state.evictions.remove(&ticket);
        let now_ms = self.clock.now_ms();
        state.controller.on_finished(ticket, now_ms);
        drop(state);
        self.wake();
    }

    pub(super) fn on_served(&self, fairness_id: &Arc<str>, input: u64, output: u64) {
        let now_ms = self.clock.now_ms();
        let mut state = self.state.lock();
        state
            .controller
            .on_served(fairness_id, input, output, now_ms);
    }

    pub(super) fn set_settings(self: &Arc<Self>, settings: Option<FlowSettings>) {
        let mut state = self.state.lock();
        let now_ms = self.clock.now_ms();
        state.on = settings.is_some();
        if let Some(settings) = settings {
            state.controller.set_settings(now_ms, settings);
            self.look(&mut state);
        } else {
            let held = &mut *state;
            held.controller.release_all(now_ms, &mut held.decisions);
        }
        self.send_all(state);
    }

    pub(super) fn shut_down(self: &Arc<Self>) {
        let mut state = self.state.lock();
        let now_ms = self.clock.now_ms();
        state.shut_down = true;
        let held = &mut *state;
        held.controller.shut_down(now_ms, &mut held.decisions);
        self.send_all(state);
    }

    pub(super) fn view(&self) -> FlowView {
        let state = self.state.lock();
        let view = state.controller.view(self.clock.now_ms());
        FlowView {
            flow_control: state.on,
            ..view
        }
    }

    fn refuse_at_once(&self, labels: &FlowLabels, bytes: u64, cause: Cause) -> Entered {
        let refusal = FlowRefusal::from(cause);
        self.events
            .refused(labels, bytes, false, refusal.outcome, Duration::ZERO);
        Entered::Refused(refusal)
    }

    /// The rule without flow control.
    fn enter_without_queue(&self, priority: i32) -> Entered {
        let reading = (self.read)(self.clock.now_ms());
        match admission::admit(priority, reading.effective) {
            Ok(()) => Entered::Admitted(Permit {
                held: None,
                evicted: None,
                waited: Duration::ZERO,
            }),
            Err(admission::Refused::Saturated) => Entered::Refused(Cause::Sheddable.into()),
        }
    }

    /// Reads the pool and lets the controller decide.
    fn look(&self, state: &mut State) {
        if !state.on {
            return;
        }
        self.waiting
            .store(state.controller.waiting(), Ordering::SeqCst);
        fence(Ordering::SeqCst);
        let began_us = self.clock.now_us();
        let now_ms = began_us / 1_000;
        let reading = (self.read)(now_ms);
        state
            .controller
            .on_capacity(now_ms, &reading, &mut state.decisions);
        let took_us = self.clock.now_us().saturating_sub(began_us);
        self.events.cycle(Duration::from_micros(took_us));
    }

    fn permit(
        self: &Arc<Self>,
        state: &mut State,
        ticket: u64,
        labels: &FlowLabels,
        waited: Duration,
    ) -> Permit {
        let evicted = EvictionFilter::default().accepts(labels.priority).then(|| {
            let (stop, evicted) = oneshot::channel();
            let priority = labels.priority;
            state.evictions.insert(ticket, Eviction { priority, stop });
            evicted
        });
        Permit {
            held: Some((Arc::clone(self), ticket)),
            evicted,
            waited,
        }
    }

    /// Ends a step: rearms the timer, lets the lock go and sends what was decided.
    fn send_all(self: &Arc<Self>, mut state: MutexGuard<'_, State>) {
        let now_us = self.clock.now_us();
        let mut decisions = std::mem::take(&mut state.decisions);
        let mut deliveries = Deliveries::new();
        for decision in decisions.drain(..) {
            let delivery = match decision {
                Decision::Dispatch { ticket, .. } => match state.waiters.remove(&ticket) {
                    Some(waiter) => {
                        let waited_us = now_us.saturating_sub(waiter.entered_us);
                        let waited = Duration::from_micros(waited_us);
                        let permit = self.permit(&mut state, ticket, &waiter.labels, waited);
                        Some(Delivery::Dispatched(waiter, permit))
                    }
                    None => None,
                },
                Decision::Refuse { ticket, cause, .. } => state
                    .waiters
                    .remove(&ticket)
                    .map(|waiter| Delivery::Refused(waiter, cause)),
                Decision::Evict { ticket } => {
                    state.evictions.remove(&ticket).map(Delivery::Evicted)
                }
            };
            deliveries.extend(delivery);
        }
        state.decisions = decisions;
        self.waiting
            .store(state.controller.waiting(), Ordering::SeqCst);
        let deadline_ms = state.controller.next_deadline();
        let earlier = match (deadline_ms, state.armed_ms) {
            (Some(deadline_ms), Some(armed_ms)) => deadline_ms < armed_ms,
            (deadline_ms, None) => deadline_ms.is_some(),
            (None, Some(_)) => false,
        };
        if earlier {
            state.armed_ms = deadline_ms;
            self.rearm.notify_one();
        }
        drop(state);
        for delivery in deliveries {
            self.deliver(delivery, now_us);
        }
    }

    fn deliver(&self, delivery: Delivery, now_us: u64) {
        match delivery {
            Delivery::Dispatched(waiter, permit) => {
                self.events
                    .dispatched(&waiter.labels, waiter.bytes, true, permit.waited);
                // Nobody takes it any more: the permit comes back and is dropped.
                let _ = waiter.verdict.send(Ok(permit));
            }
            Delivery::Refused(waiter, cause) => {
                self.tell_refused(&waiter, cause, now_us);
                let _ = waiter.verdict.send(Err(cause.into()));
            }
            Delivery::Evicted(eviction) => {
                self.events.evicted_in_flight(eviction.priority);
                let _ = eviction.stop.send(Cause::Priority.into());
            }
        }
    }

    fn tell_refused(&self, waiter: &Waiter, cause: Cause, now_us: u64) {
        let waited = Duration::from_micros(now_us.saturating_sub(waiter.entered_us));
        let outcome = FlowRefusal::from(cause).outcome;
        self.events
            .refused(&waiter.labels, waiter.bytes, true, outcome, waited);
    }

    /// How long the timer sleeps; `None` = until it is rearmed.
    fn arm(&self) -> Option<Duration> {
        let mut state = self.state.lock();
        state.armed_ms = state.controller.next_deadline();
        let armed_us = state.armed_ms?.saturating_mul(1_000);
        Some(Duration::from_micros(
            armed_us.saturating_sub(self.clock.now_us()),
        ))
    }

    fn on_deadline(self: &Arc<Self>) {
        let mut state = self.state.lock();
        self.look(&mut state);
        self.send_all(state);
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        self.rearm.notify_one();
    }
}

/// See [`Gate::timer`](super::Gate::timer). It holds the gate only while it acts.
pub(super) fn timer(shell: &Arc<Shell>) -> impl Future<Output = ()> + Send + 'static + use<> {
    let gate: Weak<Shell> = Arc::downgrade(shell);
    let rearm = Arc::clone(&shell.rearm);
    async move {
        loop {
            let Some(sleep) = gate.upgrade().map(|shell| shell.arm()) else {
                return;
            };
            let Some(sleep) = sleep else {
                rearm.notified().await;
                continue;
            };
            tokio::select! {
                () = rearm.notified() => {}
                () = tokio::time::sleep(sleep) => {
                    if let Some(shell) = gate.upgrade() {
                        shell.on_deadline();
                    }
                }
            }
        }
    }
}
