//! One stream, from its first message to its last.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::service::ext_proc::v3::{ProcessingRequest, ProcessingResponse};
use futures_util::{Stream, StreamExt};
use tokio::sync::mpsc;
use tonic::{Code, Status};

use super::Parts;
use crate::ext_proc::authority::PoolHint;
use crate::ext_proc::decider::{Decider, Exchange};
use crate::ext_proc::held::Share;
use crate::ext_proc::leases::OpenLease;
use crate::ext_proc::machine::{Action, Answer, Event, Machine};
use crate::ext_proc::outcome::{End, Outcome};
use crate::ext_proc::wire;
use crate::observe::Gauge;

pub(super) struct StreamTask<I, D: Decider> {
    inbound: I,
    /// `None` once the machine has closed the stream.
    outbound: Option<mpsc::Sender<Result<ProcessingResponse, Status>>>,
    machine: Machine,
    actions: Vec<Action>,
    exchange: Option<D::Exchange>,
    /// The token that went out with the pick, until the exchange is parked.
    lease: Option<OpenLease<D::Exchange>>,
    parts: Arc<Parts<D>>,
    held: Share,
    pool: Arc<PoolHint>,
    code: Code,
    begun_us: u64,
    _counted: Counted,
}

impl<I, D> StreamTask<I, D>
where
    I: Stream<Item = Result<ProcessingRequest, Status>> + Unpin,
    D: Decider,
{
    pub(super) fn new(
        inbound: I,
        outbound: mpsc::Sender<Result<ProcessingResponse, Status>>,
        parts: Arc<Parts<D>>,
        held: Share,
        pool: Arc<PoolHint>,
    ) -> Self {
        Self {
            inbound,
            outbound: Some(outbound),
            machine: Machine::new(parts.limits.max_request_body_bytes, parts.watch),
            actions: Vec::new(),
            exchange: None,
            lease: None,
            held,
            pool,
            code: Code::Ok,
            begun_us: parts.clock.now_us(),
            _counted: Counted::new(parts.streams_in_flight.clone()),
            parts,
        }
    }

    pub(super) async fn run(mut self) {
        while self.outbound.is_some() {
            let event = self.next().await;
            self.advance(event);
            while self.perform().await == Asked::ToDecide {
                if let Some(event) = self.decide().await {
                    self.advance(event);
                }
            }
            if !self.machine.holds_body() {
                self.held.release();
            }
        }
        if let Some(ended) = &self.parts.stream_ended {
            let lasted_us = self.parts.clock.now_us().saturating_sub(self.begun_us);
            ended(self.code, Duration::from_micros(lasted_us));
        }
    }

    fn advance(&mut self, event: Event) {
        let now_us = self.parts.clock.now_us();
        self.machine.on_event(event, now_us, &mut self.actions);
    }

    /// What comes next: a message, or the end of an exchange that waits for its response.
    async fn next(&mut self) -> Event {
        let can_interrupt = self.machine.can_interrupt();
        let message = next_event(&mut self.inbound, &mut self.machine, &mut self.held);
        match &mut self.exchange {
            Some(exchange) if can_interrupt => tokio::select! {
                biased;
                event = message => event,
                refusal = exchange.interrupted() => Event::Interrupted(refusal),
            },
            _ => message.await,
        }
    }

    /// Performs the actions gathered so far, except that a decision is left to the caller.
    async fn perform(&mut self) -> Asked {
        let mut asked = Asked::Nothing;
        let mut actions = std::mem::take(&mut self.actions);
        for action in actions.drain(..) {
            match action {
                Action::Answer(answer) => {
                    let message = self.written(answer);
                    self.send(message).await;
                }
                Action::Decide => asked = Asked::ToDecide,
                Action::CancelDecision => {}
                Action::FirstByte => {
                    if let Some(exchange) = &mut self.exchange {
                        exchange.first_byte();
                    }
                }
                Action::Finished(outcome) => self.finish(&outcome),
                Action::Park => self.park(),
                Action::Close => self.outbound = None,
            }
        }
        // The buffer serves every chunk of the response.
        self.actions = actions;
        asked
    }

    /// The message for an answer, with the numbers that the exchange computes from usage.
    fn written(&self, answer: Answer) -> ProcessingResponse {
        let usage = match &answer {
            Answer::ResponseBody(_, usage) | Answer::ResponseTrailers(usage) => *usage,
            _ => None,
        };
        let mut message = wire::write(answer);
        if let (Some(usage), Some(exchange)) = (usage, &self.exchange) {
            wire::add_numbers(&mut message, exchange.attributes(&usage));
        }
        message
    }

    fn finish(&mut self, outcome: &Outcome) {
        if outcome.end == End::Aborted {
            self.code = Code::Cancelled;
        }
        // A token that went out on a stream that watched its response has nothing to release.
        self.lease = None;
        match (self.exchange.take(), &outcome.end) {
            (Some(exchange), _) => exchange.finish(outcome),
            (None, End::Refused(refusal)) => self.parts.decider.refused(refusal),
            (None, _) => {}
        }
    }

    fn park(&mut self) {
        match (self.exchange.take(), self.lease.take()) {
            (Some(exchange), Some(lease)) => lease.park(exchange),
            (Some(exchange), None) => exchange.finish(&Outcome::new(End::Unseen)),
            (None, _) => {}
        }
    }

    /// A failed send means that Envoy is gone, which the inbound stream is about to say, too.
    async fn send(&mut self, message: ProcessingResponse) {
        if let Some(outbound) = &self.outbound {
            let _ = outbound.send(Ok(message)).await;
        }
    }

    /// Waits for the decision, the deadline or the end of the stream, whichever is first, and feeds
    /// the machine with what arrives meanwhile. `None` when the machine called the decision off;
    /// its actions are then for the caller to perform, once the pick is dropped.
    async fn decide(&mut self) -> Option<Event> {
        let mut intake = self.machine.intake();
        intake.pool = Arc::clone(&self.pool);
        let exchange = &mut self.exchange;
        let decider = &self.parts.decider;
        let decided = async {
            let begun = decider.begin(intake).await?;
            exchange.insert(begun).pick().await
        };
        let waits = decider.may_wait();
        let mut decided = pin!(decided);
        let mut deadline = pin!(tokio::time::sleep(self.parts.limits.decision_timeout));
        loop {
            let message = next_event(&mut self.inbound, &mut self.machine, &mut self.held);
            let event = tokio::select! {
                biased;
                decided = &mut decided => match decided {
                    Ok(mut destination) => {
                        if self.machine.will_park() {
                            let lease = self.parts.leases.open();
                            destination.token = Some(lease.token());
                            self.lease = Some(lease);
                        }
                        return Some(Event::Picked(destination));
                    }
                    Err(refusal) => return Some(Event::Refused(refusal)),
                },
                () = &mut deadline, if !waits => return Some(Event::DecisionTimedOut),
                event = message => event,
            };
            let now_us = self.parts.clock.now_us();
            self.machine.on_event(event, now_us, &mut self.actions);
            if self.actions.contains(&Action::CancelDecision) {
                return None;
            }
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    Nothing,
    ToDecide,
}

/// The next event of the stream. What carries no event of its own (modes, context) is learned on
/// the way. Dropping it loses nothing: a message is taken and learned in one step.
async fn next_event<I>(inbound: &mut I, machine: &mut Machine, held: &mut Share) -> Event
where
    I: Stream<Item = Result<ProcessingRequest, Status>> + Unpin,
{
    loop {
        let Some(Ok(message)) = inbound.next().await else {
            return Event::StreamEnded;
        };
        let incoming = wire::read(message);
        if let Some(modes) = incoming.modes {
            machine.learn_modes(modes);
        }
        machine.learn_context(incoming.context);
        match incoming.event {
            Some(Event::RequestBody { bytes, .. })
                if machine.holds_body() && !held.grow(bytes.len()) =>
            {
                return Event::NoMemory;
            }
            Some(event) => return event,
            None => {}
        }
    }
}

/// Counts a stream for as long as it lives.
struct Counted(Gauge);

impl Counted {
    fn new(gauge: Gauge) -> Self {
        gauge.increment();
        Self(gauge)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.decrement();
    }
}
