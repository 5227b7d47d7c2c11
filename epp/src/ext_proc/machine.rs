//! One ext_proc stream as a pure state machine: an event in, actions out.
//!
//! No socket, clock or task lives here, so every order of messages that Envoy can produce is tried
//! with plain values. The shell (`server.rs`) turns gRPC messages into [`Event`]s, performs the
//! [`Action`]s in order, and owns the time.
//!
//! What the machine guarantees, whatever arrives:
//! - Per direction the answers go out as headers, then body, then trailers, each at most once and
//!   only when Envoy waits for it: Envoy fails the request on anything else (`spurious_message`).
//! - In full duplex nothing of the request is answered before the pick, and the body goes on byte
//!   for byte with the end mark on its last chunk.
//! - What arrives after the end of a direction counts for nothing, so a duplicate end mark (envoy
//!   #46237) is harmless.
//! - Exactly one [`Action::Finished`] per stream. A request is complete when the end of its
//!   response was seen; how the gRPC stream itself ends says nothing (Envoy resets the stream of a
//!   request that went well, and half-closes the stream of a client that went away).
//!
//! | body mode | request | response |
//! |---|---|---|
//! | `FULL_DUPLEX_STREAMED` | held until its end, picked, then sent on as streamed chunks | each chunk sent on at once |
//! | `BUFFERED` | headers answered at once, picked on the body, route set in the body answer | continued |
//! | `STREAMED`, `NONE` | picked on the headers alone: Envoy chooses the host before the body is there | continued |
//!
//! It does not change bodies and never sends `mode_override`, which full duplex ignores.

#[cfg(test)]
mod envoy_model;
mod request_side;
mod response_side;
#[cfg(test)]
mod tests;

use super::head::RequestHead;
use super::refusal::Refusal;
use super::usage::TokenUsage;
use request_side::{RequestSide, Step};
use response_side::ResponseSide;

/// How Envoy shows the body of one direction; it says so in `protocol_config` of the first message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyMode {
    None,
    Streamed,
    Buffered,
    FullDuplex,
}

/// The modes of both directions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Modes {
    pub request: BodyMode,
    pub response: BodyMode,
}

impl Modes {
    /// What the Endpoint Picker Protocol asks of a gateway, and what one that names no modes is
    /// taken to use.
    pub const PROTOCOL: Self = Self {
        request: BodyMode::FullDuplex,
        response: BodyMode::FullDuplex,
    };
}

/// Something that happened on the stream or to the decision.
#[derive(Clone, Debug)]
pub enum Event {
    RequestHeaders {
        head: RequestHead,
        end_of_stream: bool,
    },
    RequestBody {
        bytes: Vec<u8>,
        end_of_stream: bool,
    },
    RequestTrailers,
    /// The decision asked for by [`Action::Decide`] is there.
    Picked(Destination),
    /// The decision asked for by [`Action::Decide`] is that no endpoint gets the request.
    Refused(Refusal),
    /// The decision asked for by [`Action::Decide`] took too long.
    DecisionTimedOut,
    ResponseHeaders {
        status: Option<u16>,
        end_of_stream: bool,
    },
    ResponseBody {
        bytes: Vec<u8>,
        end_of_stream: bool,
    },
    ResponseTrailers,
    /// The gRPC stream is over, for whatever reason.
    StreamEnded,
}

/// What rides along with messages in `metadata_context`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Context {
    /// The endpoint that served the response, where the gateway reports it.
    pub served: Option<String>,
    /// The entries of the subset hint; present but empty means that no endpoint is eligible.
    pub subset: Option<Vec<String>>,
}

/// Where the request goes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Destination {
    /// `ip:port`, or an ordered list `ip:port,ip:port,...`.
    pub endpoints: String,
    /// Score by `ip:port` of every scored candidate; empty unless scores are to be emitted.
    pub scores: Vec<(String, f64)>,
}

/// What the shell does for the machine, in the order given.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    Answer(Answer),
    /// Start to decide on [`Machine::intake`]; its end comes back as an event.
    Decide,
    /// The decision under way is of no use any more.
    CancelDecision,
    /// The first byte of the response body went by.
    FirstByte,
    /// The exchange is over as far as accounting goes; sent once.
    Finished(Outcome),
    /// Close the stream: nothing more will be answered.
    Close,
}

/// One message to Envoy.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    RequestHeaders(RouteChange),
    RequestBody(BodyAnswer, RouteChange),
    RequestTrailers(RouteChange),
    ResponseHeaders,
    ResponseBody(BodyAnswer),
    ResponseTrailers,
    Immediate(Refusal),
}

/// How a body message is answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BodyAnswer {
    /// Leave the body as it is: the only legal answer in `BUFFERED` and `STREAMED`.
    Continue,
    /// Send these bytes on: the only legal answer in `FULL_DUPLEX_STREAMED`.
    Chunk { bytes: Vec<u8>, end_of_stream: bool },
}

/// What an answer changes about the route. The default changes nothing.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RouteChange {
    pub destination: Option<Destination>,
    /// Client copies of routing headers that must not reach an endpoint.
    pub remove: Vec<&'static str>,
}

/// How an exchange went.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    pub end: End,
    /// The response status, where a response was seen.
    pub status: Option<u16>,
    pub served: Option<String>,
    pub usage: Option<TokenUsage>,
    /// Bytes of the response body that went by.
    pub response_bytes: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// The end of the response was seen.
    Completed,
    /// The picker answered in place of an endpoint.
    Refused(Refusal),
    /// The stream ended first: the client went away, or the response was cut.
    Aborted,
    /// The request was routed and the gateway is not configured to show the response.
    Unseen,
}

/// What a decision may look at.
#[derive(Clone, Copy, Debug)]
pub struct Intake<'a> {
    pub head: &'a RequestHead,
    /// The body in the pieces it came in; empty where the pick does not wait for a body.
    pub body: &'a [Vec<u8>],
    pub subset: Option<&'a [String]>,
}

/// The state of one stream.
#[derive(Debug)]
pub struct Machine {
    request: RequestSide,
    response: ResponseSide,
    context: Context,
    finished: bool,
    closed: bool,
}

impl Machine {
    /// A machine that holds at most `max_body_bytes` of a request.
    pub fn new(max_body_bytes: usize) -> Self {
        Self {
            request: RequestSide::new(max_body_bytes),
            response: ResponseSide::default(),
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
    /// back.
    pub fn intake(&self) -> Intake<'_> {
        Intake {
            head: self.request.head(),
            body: self.request.chunks(),
            subset: self.context.subset.as_deref(),
        }
    }

    /// Advances by one event and appends what is to be done about it.
    pub fn on_event(&mut self, event: Event, actions: &mut Vec<Action>) {
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
            Event::Picked(destination) => self.request.on_picked(destination, actions),
            Event::Refused(refusal) if self.request.is_deciding() => self.refuse(refusal, actions),
            Event::DecisionTimedOut if self.request.is_deciding() => {
                actions.push(Action::CancelDecision);
                self.refuse(Refusal::decision_timed_out(), actions);
            }
            // The decision was called off before it came back.
            Event::Refused(_) | Event::DecisionTimedOut => {}
            Event::ResponseHeaders {
                status,
                end_of_stream,
            } => {
                self.abandon_request(actions);
                self.response.on_headers(status, end_of_stream, actions);
                self.finish_if_response_ended(actions);
            }
            Event::ResponseBody {
                bytes,
                end_of_stream,
            } => {
                self.abandon_request(actions);
                self.response.on_body(bytes, end_of_stream, actions);
                self.finish_if_response_ended(actions);
            }
            Event::ResponseTrailers => {
                self.abandon_request(actions);
                self.response.on_trailers(actions);
                self.finish_if_response_ended(actions);
            }
            Event::StreamEnded => self.on_stream_ended(actions),
        }
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

    fn finish_if_response_ended(&mut self, actions: &mut Vec<Action>) {
        if self.response.has_ended() {
            self.finish(End::Completed, actions);
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
        actions.push(Action::Finished(Outcome {
            end,
            status: self.response.status(),
            served: self.context.served.take(),
            usage: self.response.usage(),
            response_bytes: self.response.body_bytes(),
        }));
    }
}
