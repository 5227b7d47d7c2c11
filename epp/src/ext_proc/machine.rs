//! One ext_proc stream as a pure state machine: an event in, actions out.
//!
//! No socket, clock or task lives here, so every order of messages that Envoy can produce is tried
//! with plain values. The shell (`server.rs`) turns gRPC messages into [`Event`]s, performs the
//! [`Action`]s in order, and owns the time.
//!
//! What the machine guarantees, whatever arrives:
//! - Per direction the answers go out as headers, then body, then trailers, each at most once and
//!   only when Envoy waits for it: Envoy fails the request on anything else (`spurious_message`).
//! - In full duplex nothing of the request is answered before the pick. The body goes on byte for
//!   byte, or wholly replaced by [`Destination::rewritten_body`], with the end mark on its last
//!   chunk.
//! - What arrives after the end of a direction counts for nothing, so a duplicate end mark (envoy
//!   #46237) is harmless.
//! - Exactly one of [`Action::Finished`] and [`Action::Park`] per stream, and nothing after
//!   [`Action::Close`]. A request is complete when the end of its response was seen; how the gRPC
//!   stream itself ends says nothing (Envoy resets the stream of a request that went well, and
//!   half-closes the stream of a client that went away).
//!
//! | body mode | request | response |
//! |---|---|---|
//! | `FULL_DUPLEX_STREAMED` | held until its end, picked, then sent on as streamed chunks | each chunk sent on at once |
//! | `BUFFERED` | headers answered at once, picked on the body, route set in the body answer | continued |
//! | `STREAMED`, `NONE` | picked on the headers alone: Envoy chooses the host before the body is there | continued |
//!
//! In access-log mode ([`Watch`]) the machine parks the exchange and closes with the last answer of
//! the request, the one moment at which a close harms nothing: the response then flows past the
//! picker. Response headers cannot be set and model names not be written back there.
//!
//! It never sends `mode_override`, which full duplex ignores.

#[cfg(test)]
mod envoy_model;
mod request_side;
mod response_side;
#[cfg(test)]
mod tests;
mod values;

use std::sync::Arc;

use super::outcome::{End, EndReason, Measured, Outcome};
use super::refusal::Refusal;
use request_side::{RequestSide, Step};
use response_side::ResponseSide;
pub use values::{
    Action, Answer, BodyAnswer, BodyMode, Context, Destination, Event, HeaderChange, Intake, Modes,
    Name, RouteChange, Watch,
};

/// The state of one stream.
#[derive(Debug)]
pub struct Machine {
    request: RequestSide,
    response: ResponseSide,
    watch: Watch,
    context: Context,
    /// Finished or parked.
    finished: bool,
    closed: bool,
}

impl Machine {
    /// A machine that holds at most `max_body_bytes` of a request.
    pub fn new(max_body_bytes: usize, watch: Watch) -> Self {
        Self {
            request: RequestSide::new(max_body_bytes),
            response: ResponseSide::default(),
            watch,
            context: Context::default(),
            finished: false,
            closed: false,
        }
    }

    /// Takes over the modes of `protocol_config`. Envoy sends it with the first message only, so a
    /// later one is ignored.
    pub fn learn_modes(&mut self, modes: Modes) {
        if self.request.is_untouched() && self.response.is_untouched() {
            self.request.mode = modes.request;
            self.response.mode = modes.response;
        }
    }

    /// Merges what rode along with a message: what a later message says replaces, what it leaves
    /// out stays.
    pub fn learn_context(&mut self, context: Context) {
        if context.served.is_some() {
            self.context.served = context.served;
        }
        if context.subset.is_some() {
            self.context.subset = context.subset;
        }
    }

    /// The request as far as it is here. Complete from [`Action::Decide`] until the decision comes
    /// back. The body is shared, not copied; whoever still holds it when the pick comes back makes
    /// the machine copy it.
    pub fn intake(&self) -> Intake {
        Intake {
            head: Arc::clone(self.request.head()),
            body: Arc::clone(self.request.chunks()),
            subset: self.context.subset.clone(),
            ..Intake::default()
        }
    }

    /// Whether the next bytes of the request's body would be held.
    pub fn holds_body(&self) -> bool {
        !self.closed && self.request.holds_body()
    }

    /// Whether the exchange is to be parked when its request is answered.
    pub fn will_park(&self) -> bool {
        match self.watch {
            Watch::Auto => self.response.mode == BodyMode::None,
            Watch::AccessLog => true,
            Watch::Stream => false,
        }
    }

    /// Whether a refusal can still take the place of the response.
    pub fn can_interrupt(&self) -> bool {
        !self.closed && self.request.is_routed() && self.response.is_untouched()
    }

    /// Advances by one event and appends what is to be done about it. `now_us` is the time of the
    /// event on any one line; only response bodies look at it.
    pub fn on_event(&mut self, event: Event, now_us: u64, actions: &mut Vec<Action>) {
        if self.closed {
            return;
        }
        match event {
            Event::RequestHeaders {
                head,
                end_of_stream,
            } => {
                let step = self.request.on_headers(head, end_of_stream, actions);
                self.follow(step, actions);
            }
            Event::RequestBody {
                bytes,
                end_of_stream,
            } => {
                let step = self.request.on_body(bytes, end_of_stream, actions);
                self.follow(step, actions);
            }
            Event::RequestTrailers => {
                let step = self.request.on_trailers(actions);
                self.follow(step, actions);
            }
            Event::NoMemory if self.request.holds_body() => {
                self.refuse(Refusal::no_memory(), actions);
            }
            Event::NoMemory => {}
            Event::Picked(destination) => self.on_picked(destination, actions),
            Event::Refused(refusal) if self.request.is_deciding() => self.refuse(refusal, actions),
            Event::DecisionTimedOut if self.request.is_deciding() => {
                actions.push(Action::CancelDecision);
                self.refuse(Refusal::decision_timed_out(), actions);
            }
            // The decision was called off before it came back.
            Event::Refused(_) | Event::DecisionTimedOut => {}
            Event::Interrupted(refusal) if self.can_interrupt() => self.refuse(refusal, actions),
            Event::Interrupted(_) => {}
            Event::ResponseHeaders { .. }
            | Event::ResponseBody { .. }
            | Event::ResponseTrailers => {
                self.on_response(event, now_us, actions);
            }
            Event::StreamEnded => self.on_stream_ended(actions),
        }
        self.park_if_answered(actions);
    }

    fn on_response(&mut self, event: Event, now_us: u64, actions: &mut Vec<Action>) {
        self.abandon_request(actions);
        let served = self.context.served.as_deref();
        match event {
            Event::ResponseHeaders {
                status,
                has_content_length,
                end_of_stream,
            } => {
                let shown = (status, has_content_length, end_of_stream);
                self.response.on_headers(shown, served, actions);
            }
            Event::ResponseBody {
                bytes,
                end_of_stream,
            } => self.response.on_body(bytes, end_of_stream, now_us, actions),
            _ => self.response.on_trailers(actions),
        }
        if self.response.has_ended() {
            self.finish(End::Completed, actions);
        }
    }

    fn on_picked(&mut self, mut destination: Destination, actions: &mut Vec<Action>) {
        if !self.request.is_deciding() {
            return;
        }
        self.response.expect(
            std::mem::take(&mut destination.response_headers),
            destination.echo_served,
            destination.model_write_back.take(),
        );
        self.request.on_picked(destination, actions);
    }

    /// In access-log mode the last answer of the request is the last of the stream.
    fn park_if_answered(&mut self, actions: &mut Vec<Action>) {
        let parks = self.will_park() && self.response.is_untouched();
        if self.closed || self.finished || !parks || !self.request.is_answered() {
            return;
        }
        self.finished = true;
        self.closed = true;
        actions.push(Action::Park);
        actions.push(Action::Close);
    }

    fn follow(&mut self, step: Step, actions: &mut Vec<Action>) {
        match step {
            Step::Wait => {}
            Step::Decide => actions.push(Action::Decide),
            Step::Refuse(refusal) => self.refuse(refusal, actions),
        }
    }

    fn refuse(&mut self, refusal: Refusal, actions: &mut Vec<Action>) {
        self.request.abandon();
        actions.push(Action::Answer(Answer::Immediate(refusal.clone())));
        self.finish(End::Refused(refusal), actions);
        self.closed = true;
        actions.push(Action::Close);
    }

    /// A response before the pick is Envoy's own: the request timed out or another filter answered
    /// it. Nothing of the request will go to an endpoint any more.
    fn abandon_request(&mut self, actions: &mut Vec<Action>) {
        if self.request.is_deciding() {
            actions.push(Action::CancelDecision);
        }
        if !self.request.is_routed() {
            self.request.abandon();
        }
    }

    fn on_stream_ended(&mut self, actions: &mut Vec<Action>) {
        if self.request.is_deciding() {
            actions.push(Action::CancelDecision);
        }
        let response_is_hidden =
            self.response.mode == BodyMode::None && self.response.is_untouched();
        let end = if self.request.is_answered() && response_is_hidden {
            End::Unseen
        } else {
            End::Aborted
        };
        self.finish(end, actions);
        self.closed = true;
        actions.push(Action::Close);
    }

    fn finish(&mut self, end: End, actions: &mut Vec<Action>) {
        if self.finished {
            return;
        }
        self.finished = true;
        let was_routed = self.request.is_routed();
        let outcome = Outcome {
            status: self.response.status(),
            served: self.context.served.take(),
            usage: self.response.usage(),
            response_bytes: self.response.body_bytes(),
            measured: Measured::default(),
            seen: self.response.seen(),
            ..Outcome::new(end)
        };
        // A response to a request that was never routed is the gateway's own.
        let is_local = outcome.end == End::Completed && !was_routed;
        let reason = if is_local {
            EndReason::LocalReply
        } else {
            outcome.reason
        };
        actions.push(Action::Finished(Outcome { reason, ..outcome }));
    }
}
