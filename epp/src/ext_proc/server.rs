//! The gRPC shell around the machine: one task per stream.
//!
//! The task reads a message, lets the machine advance, and performs the actions in order. While a
//! decision is under way it goes on reading, because the end of the inbound stream is the only sign
//! that the client went away, and it holds the one deadline there is: Envoy applies none in full
//! duplex. Answers go through a channel of [`OUTBOUND_MESSAGES`]; when Envoy reads slowly the task
//! waits there and so stops reading, which is the back-pressure that bounds what one stream can
//! hold.
//!
//! The gRPC status of the inbound stream is not looked at: Envoy resets streams that went well.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::service::ext_proc::v3::external_processor_server::ExternalProcessor;
use envoy_types::pb::envoy::service::ext_proc::v3::{ProcessingRequest, ProcessingResponse};
use futures_util::{Stream, StreamExt};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::decider::{Decider, Exchange};
use super::machine::{Action, Event, Machine};
use super::wire;
use crate::observe::Gauge;

/// Answers that wait for Envoy to read them; the stream's task waits when there are so many.
const OUTBOUND_MESSAGES: usize = 16;

/// Bounds of one stream.
#[derive(Clone, Copy, Debug)]
pub struct StreamLimits {
    /// A request body past this is answered 413.
    pub max_request_body_bytes: usize,
    /// A decision that takes longer is answered 503.
    pub decision_timeout: Duration,
}

/// The ext_proc service.
#[derive(Debug)]
pub struct Processor<D> {
    decider: Arc<D>,
    limits: StreamLimits,
    streams_in_flight: Gauge,
}

impl<D: Decider> Processor<D> {
    pub fn new(decider: Arc<D>, limits: StreamLimits, streams_in_flight: Gauge) -> Self {
        Self {
            decider,
            limits,
            streams_in_flight,
        }
    }
}

#[tonic::async_trait]
impl<D: Decider> ExternalProcessor for Processor<D> {
    type ProcessStream = ReceiverStream<Result<ProcessingResponse, Status>>;

    async fn process(
        &self,
        request: Request<Streaming<ProcessingRequest>>,
    ) -> Result<Response<Self::ProcessStream>, Status> {
        let (sender, receiver) = mpsc::channel(OUTBOUND_MESSAGES);
        let task = StreamTask {
            inbound: request.into_inner(),
            outbound: Some(sender),
            machine: Machine::new(self.limits.max_request_body_bytes),
            actions: Vec::new(),
            exchange: None,
            decider: Arc::clone(&self.decider),
            decision_timeout: self.limits.decision_timeout,
            _counted: Counted::new(self.streams_in_flight.clone()),
        };
        tokio::spawn(task.run());
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

struct StreamTask<I, D: Decider> {
    inbound: I,
    /// `None` once the machine has closed the stream.
    outbound: Option<mpsc::Sender<Result<ProcessingResponse, Status>>>,
    machine: Machine,
    actions: Vec<Action>,
    exchange: Option<D::Exchange>,
    decider: Arc<D>,
    decision_timeout: Duration,
    _counted: Counted,
}

impl<I, D> StreamTask<I, D>
where
    I: Stream<Item = Result<ProcessingRequest, Status>> + Unpin,
    D: Decider,
{
    async fn run(mut self) {
        while self.outbound.is_some() {
            let event = next_event(&mut self.inbound, &mut self.machine).await;
            self.machine.on_event(event, &mut self.actions);
            while self.perform().await == Asked::ToDecide {
                if let Some(event) = self.decide().await {
                    self.machine.on_event(event, &mut self.actions);
                }
            }
        }
    }

    /// Performs the actions gathered so far, except that a decision is left to the caller.
    async fn perform(&mut self) -> Asked {
        let mut asked = Asked::Nothing;
        for action in std::mem::take(&mut self.actions) {
            match action {
                Action::Answer(answer) => self.send(wire::write(answer)).await,
                Action::Decide => asked = Asked::ToDecide,
                Action::CancelDecision => {}
                Action::FirstByte => {
                    if let Some(exchange) = &mut self.exchange {
                        exchange.first_byte();
                    }
                }
                Action::Finished(outcome) => match (self.exchange.take(), &outcome.end) {
                    (Some(exchange), _) => exchange.finish(&outcome),
                    (None, super::End::Refused(refusal)) => self.decider.refused(refusal),
                    (None, _) => {}
                },
                Action::Close => self.outbound = None,
            }
        }
        asked
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
        let exchange = match self.decider.begin(self.machine.intake()) {
            Ok(exchange) => self.exchange.insert(exchange),
            Err(refusal) => return Some(Event::Refused(refusal)),
        };
        let mut pick = pin!(exchange.pick());
        let mut deadline = pin!(tokio::time::sleep(self.decision_timeout));
        loop {
            let event = tokio::select! {
                biased;
                picked = &mut pick => {
                    return Some(picked.map_or_else(Event::Refused, Event::Picked));
                }
                () = &mut deadline => return Some(Event::DecisionTimedOut),
                event = next_event(&mut self.inbound, &mut self.machine) => event,
            };
            self.machine.on_event(event, &mut self.actions);
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
/// the way.
async fn next_event<I>(inbound: &mut I, machine: &mut Machine) -> Event
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
        if let Some(event) = incoming.event {
            return event;
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
