//! Envoy's side of the protocol, as far as it judges answers: a plain checker that panics where
//! Envoy would fail the request.

use std::collections::VecDeque;

use crate::ext_proc::machine::{Answer, BodyAnswer, BodyMode, Modes, Name, RouteChange};

#[derive(Debug, PartialEq)]
enum Awaited {
    Body,
    Trailers,
}

#[derive(Debug)]
struct Direction {
    mode: BodyMode,
    headers_sent: bool,
    headers_answered: bool,
    /// Whether a body follows the headers; where none does, a chunk would be one too many.
    has_body: bool,
    awaited: VecDeque<Awaited>,
    trailers_sent: bool,
    trailers_answered: bool,
    forwarded: Vec<u8>,
    ends_forwarded: u32,
}

impl Direction {
    fn new(mode: BodyMode) -> Self {
        Self {
            mode,
            headers_sent: false,
            headers_answered: false,
            has_body: true,
            awaited: VecDeque::new(),
            trailers_sent: false,
            trailers_answered: false,
            forwarded: Vec::new(),
            ends_forwarded: 0,
        }
    }

    fn send_headers(&mut self, end_of_stream: bool) {
        self.headers_sent = true;
        self.has_body = !end_of_stream;
    }

    fn send_body(&mut self) {
        if self.mode != BodyMode::FullDuplex {
            self.awaited.push_back(Awaited::Body);
        }
    }

    fn send_trailers(&mut self) {
        self.trailers_sent = true;
        if self.mode != BodyMode::FullDuplex {
            self.awaited.push_back(Awaited::Trailers);
        }
    }

    fn judge_headers(&mut self) {
        assert!(
            self.headers_sent && !self.headers_answered,
            "spurious headers answer"
        );
        self.headers_answered = true;
    }

    fn judge_body(&mut self, answer: &BodyAnswer) {
        assert!(
            !self.headers_sent || self.headers_answered,
            "body answered before headers"
        );
        assert!(self.has_body, "an answer to a body that is not there");
        match (self.mode, answer) {
            (
                BodyMode::FullDuplex,
                BodyAnswer::Chunk {
                    bytes,
                    end_of_stream,
                },
            ) => {
                assert_eq!(self.ends_forwarded, 0, "a chunk after the end mark");
                assert!(!self.trailers_answered, "a chunk after the trailers");
                self.forwarded.extend_from_slice(bytes);
                self.ends_forwarded += u32::from(*end_of_stream);
            }
            (BodyMode::FullDuplex, BodyAnswer::Continue) => panic!("normal answer in full duplex"),
            (_, BodyAnswer::Chunk { .. }) => panic!("streamed answer outside full duplex"),
            (mode, BodyAnswer::Replace(_)) if mode != BodyMode::Buffered => {
                panic!("a whole body outside of BUFFERED")
            }
            (_, BodyAnswer::Continue | BodyAnswer::Replace(_)) => {
                if let BodyAnswer::Replace(bytes) = answer {
                    self.forwarded.extend_from_slice(bytes);
                }
                assert_eq!(
                    self.awaited.pop_front(),
                    Some(Awaited::Body),
                    "spurious body answer"
                );
            }
        }
    }

    fn judge_trailers(&mut self) {
        assert!(
            self.trailers_sent && !self.trailers_answered,
            "spurious trailers answer"
        );
        assert!(
            !self.headers_sent || self.headers_answered,
            "trailers answered before headers"
        );
        if self.mode != BodyMode::FullDuplex {
            assert_eq!(
                self.awaited.pop_front(),
                Some(Awaited::Trailers),
                "trailers too early"
            );
        }
        self.trailers_answered = true;
        self.ends_forwarded += 1;
    }

    fn waits(&self) -> bool {
        (self.headers_sent && !self.headers_answered)
            || !self.awaited.is_empty()
            || (self.trailers_sent && !self.trailers_answered)
    }
}

/// What Envoy has sent and accepted on one stream.
#[derive(Debug)]
pub(super) struct EnvoyModel {
    request: Direction,
    response: Direction,
    pub(super) destination: Option<String>,
    pub(super) removed: Vec<Name>,
    pub(super) set: Vec<(Name, String)>,
    pub(super) refused_with: Option<u16>,
}

impl EnvoyModel {
    pub(super) fn new(modes: Modes) -> Self {
        Self {
            request: Direction::new(modes.request),
            response: Direction::new(modes.response),
            destination: None,
            removed: Vec::new(),
            set: Vec::new(),
            refused_with: None,
        }
    }

    pub(super) fn sends(&mut self, event: &super::Event) {
        match event {
            super::Event::RequestHeaders { end_of_stream, .. } => {
                self.request.send_headers(*end_of_stream);
            }
            super::Event::RequestBody { .. } => self.request.send_body(),
            super::Event::RequestTrailers => self.request.send_trailers(),
            super::Event::ResponseHeaders { end_of_stream, .. } => {
                self.response.send_headers(*end_of_stream);
            }
            super::Event::ResponseBody { .. } => self.response.send_body(),
            super::Event::ResponseTrailers => self.response.send_trailers(),
            _ => {}
        }
    }

    /// Panics where Envoy would answer 500 with `spurious_message` or its like.
    pub(super) fn judges(&mut self, answer: &Answer) {
        assert_eq!(
            self.refused_with, None,
            "an answer after an immediate response"
        );
        match answer {
            Answer::RequestHeaders(change) => {
                self.request.judge_headers();
                self.apply(change);
            }
            Answer::RequestBody(body, change) => {
                self.request.judge_body(body);
                self.apply(change);
            }
            Answer::RequestTrailers(change) => {
                self.request.judge_trailers();
                self.apply(change);
            }
            Answer::ResponseHeaders(_) => self.response.judge_headers(),
            Answer::ResponseBody(body, _) => self.response.judge_body(body),
            Answer::ResponseTrailers(_) => self.response.judge_trailers(),
            Answer::Immediate(refusal) => self.refused_with = Some(refusal.code.http_status()),
        }
    }

    pub(super) fn request_waits(&self) -> bool {
        self.request.waits()
    }

    pub(super) fn response_waits(&self) -> bool {
        self.response.waits()
    }

    pub(super) fn request_forwarded(&self) -> (&[u8], u32) {
        (&self.request.forwarded, self.request.ends_forwarded)
    }

    pub(super) fn response_forwarded(&self) -> (&[u8], u32) {
        (&self.response.forwarded, self.response.ends_forwarded)
    }

    fn apply(&mut self, change: &RouteChange) {
        if let Some(destination) = &change.destination {
            assert_eq!(self.destination, None, "the route is set once");
            self.destination = Some(destination.endpoints.clone());
        }
        self.removed.extend(change.headers.remove.iter().cloned());
        self.set.extend(change.headers.set.iter().cloned());
    }
}
