//! The request direction of one stream: what Envoy sent, what it waits for, and what the pick
//! releases.

use std::borrow::Cow;
use std::sync::Arc;

use pointsman_proto::headers;

use super::{
    Action, Answer, BodyAnswer, BodyMode, Destination, HeaderChange, Modes, Name, RouteChange,
};
use crate::ext_proc::head::RequestHead;
use crate::ext_proc::refusal::Refusal;

/// A chunk below this is appended to the one before it, so that a client that sends its body byte
/// by byte cannot make the list of chunks cost more than the body.
const SMALL_CHUNK_BYTES: usize = 4 * 1024;

/// Small chunks are appended up to this size, which is also what Envoy sends at most by default.
const FULL_CHUNK_BYTES: usize = 64 * 1024;

const CONTENT_LENGTH: &str = "content-length";

/// What the machine does next about the request.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    Wait,
    Decide,
    Refuse(Refusal),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Nothing has come.
    Expecting,
    /// The body is coming and the decision waits for it.
    Receiving,
    /// The decision is under way.
    Deciding,
    /// The route is set; what else comes is answered at once.
    Routed,
    /// Everything is answered, or nothing will be.
    Done,
}

/// What Envoy has sent and waits to have answered.
#[derive(Debug, Default)]
struct Owed {
    headers: bool,
    /// Body messages of `BUFFERED` and `STREAMED`; full duplex owes no answer per message.
    bodies: u32,
    trailers: bool,
}

#[derive(Debug)]
pub(super) struct RequestSide {
    pub(super) mode: BodyMode,
    state: State,
    owed: Owed,
    /// The end mark came, with the headers, a body message or as trailers.
    ended: bool,
    /// It came with a body message, so that the last chunk sent on carries it.
    ended_with_body: bool,
    routed: bool,
    /// Shared with the decision, as are the chunks; nobody else holds them before it is asked for.
    head: Arc<RequestHead>,
    chunks: Arc<Vec<Vec<u8>>>,
    held_bytes: usize,
    max_body_bytes: usize,
}

impl RequestSide {
    pub(super) fn new(max_body_bytes: usize) -> Self {
        Self {
            mode: Modes::PROTOCOL.request,
            state: State::Expecting,
            owed: Owed::default(),
            ended: false,
            ended_with_body: false,
            routed: false,
            head: Arc::default(),
            chunks: Arc::default(),
            held_bytes: 0,
            max_body_bytes,
        }
    }

    pub(super) fn head(&self) -> &Arc<RequestHead> {
        &self.head
    }

    pub(super) fn chunks(&self) -> &Arc<Vec<Vec<u8>>> {
        &self.chunks
    }

    pub(super) fn is_untouched(&self) -> bool {
        self.state == State::Expecting
    }

    pub(super) fn is_deciding(&self) -> bool {
        self.state == State::Deciding
    }

    pub(super) fn is_routed(&self) -> bool {
        self.routed
    }

    /// Whether the next piece of the body would be held for the decision.
    pub(super) fn holds_body(&self) -> bool {
        matches!(self.state, State::Expecting | State::Receiving) && !self.ended
    }

    /// Whether the route is set and nothing is owed, so that the gateway needs the picker no more
    /// for this direction.
    pub(super) fn is_answered(&self) -> bool {
        self.routed && (self.state == State::Done || self.mode == BodyMode::None)
    }

    pub(super) fn on_headers(
        &mut self,
        head: RequestHead,
        end_of_stream: bool,
        actions: &mut Vec<Action>,
    ) -> Step {
        if self.state != State::Expecting {
            return Step::Wait;
        }
        self.head = Arc::new(head);
        self.owed.headers = true;
        if end_of_stream {
            self.ended = true;
            return self.decide();
        }
        match self.mode {
            BodyMode::None | BodyMode::Streamed => self.decide(),
            BodyMode::FullDuplex | BodyMode::Buffered if self.announces_too_much() => {
                Step::Refuse(Refusal::too_large(self.max_body_bytes))
            }
            BodyMode::FullDuplex => {
                self.state = State::Receiving;
                Step::Wait
            }
            BodyMode::Buffered => {
                // Envoy sends the body only after this answer, and holds the headers until the body
                // is answered.
                self.owed.headers = false;
                let change = RouteChange {
                    destination: None,
                    headers: HeaderChange {
                        set: Vec::new(),
                        remove: self.client_copies().collect(),
                    },
                };
                actions.push(Action::Answer(Answer::RequestHeaders(change)));
                self.state = State::Receiving;
                Step::Wait
            }
        }
    }

    pub(super) fn on_body(
        &mut self,
        bytes: Vec<u8>,
        end_of_stream: bool,
        actions: &mut Vec<Action>,
    ) -> Step {
        if self.ended || self.state == State::Done {
            return Step::Wait;
        }
        self.ended = end_of_stream;
        self.ended_with_body = end_of_stream;
        match self.state {
            // A gateway that does not send the headers still gets its body routed.
            State::Expecting | State::Receiving => self.receive(bytes),
            State::Deciding => {
                self.owed.bodies += 1;
                Step::Wait
            }
            State::Routed => {
                let answer = Answer::RequestBody(BodyAnswer::Continue, RouteChange::default());
                actions.push(Action::Answer(answer));
                self.rest_if_ended();
                Step::Wait
            }
            State::Done => Step::Wait,
        }
    }

    pub(super) fn on_trailers(&mut self, actions: &mut Vec<Action>) -> Step {
        if self.ended || self.state == State::Done {
            return Step::Wait;
        }
        self.ended = true;
        match self.state {
            State::Expecting | State::Receiving => {
                self.owed.trailers = true;
                self.decide()
            }
            State::Deciding => {
                self.owed.trailers = true;
                Step::Wait
            }
            State::Routed | State::Done => {
                actions.push(Action::Answer(Answer::RequestTrailers(
                    RouteChange::default(),
                )));
                self.rest_if_ended();
                Step::Wait
            }
        }
    }

    /// Answers everything that waited for the decision, the route change riding on the first
    /// answer.
    pub(super) fn on_picked(&mut self, mut destination: Destination, actions: &mut Vec<Action>) {
        if self.state != State::Deciding {
            return;
        }
        self.routed = true;
        let rewritten = self.rewritten(&mut destination);
        let headers = self.header_change(&mut destination, rewritten.as_deref());
        let mut change = RouteChange {
            destination: Some(destination),
            headers,
        };
        self.head = Arc::default();
        let owed = std::mem::take(&mut self.owed);
        if owed.headers {
            actions.push(Action::Answer(Answer::RequestHeaders(std::mem::take(
                &mut change,
            ))));
        }
        let came = std::mem::take(&mut self.chunks);
        if self.mode == BodyMode::FullDuplex {
            // Not shared any more, unless the decider keeps the body.
            let chunks = rewritten
                .unwrap_or_else(|| Arc::try_unwrap(came).unwrap_or_else(|kept| (*kept).clone()));
            forward(chunks, self.ended_with_body, &mut change, actions);
        } else {
            let mut replacement = rewritten.map(|chunks| chunks.concat());
            for _ in 0..owed.bodies {
                let body = replacement
                    .take()
                    .map_or(BodyAnswer::Continue, BodyAnswer::Replace);
                let answer = Answer::RequestBody(body, std::mem::take(&mut change));
                actions.push(Action::Answer(answer));
            }
        }
        if owed.trailers {
            actions.push(Action::Answer(Answer::RequestTrailers(change)));
        }
        self.state = State::Routed;
        self.rest_if_ended();
    }

    /// The body to send on in place of the one that came. There must be one: in the other modes it
    /// goes past the picker, and a request without a body stays without.
    fn rewritten(&self, destination: &mut Destination) -> Option<Vec<Vec<u8>>> {
        let is_held = match self.mode {
            BodyMode::FullDuplex => self.ended_with_body || self.owed.trailers,
            BodyMode::Buffered => self.owed.bodies > 0,
            BodyMode::Streamed | BodyMode::None => false,
        };
        destination.rewritten_body.take().filter(|_| is_held)
    }

    /// Full duplex drops the content length, unless the gateway is told to keep it, and `BUFFERED`
    /// refuses a body that contradicts it; so a body of another length states its own.
    fn header_change(
        &self,
        destination: &mut Destination,
        rewritten: Option<&[Vec<u8>]>,
    ) -> HeaderChange {
        let mut change = HeaderChange {
            set: std::mem::take(&mut destination.set_headers),
            remove: std::mem::take(&mut destination.remove_headers),
        };
        if let Some(chunks) = rewritten.filter(|_| self.head.contains(CONTENT_LENGTH)) {
            let length: usize = chunks.iter().map(Vec::len).sum();
            change
                .set
                .push((Cow::Borrowed(CONTENT_LENGTH), length.to_string()));
        }
        if self.owed.headers {
            let set = &change.set;
            let copies = self
                .client_copies()
                .filter(|copy| set.iter().all(|(name, _)| name != copy));
            change.remove.extend(copies);
        }
        change
    }

    /// Lets go of the request: nothing more of it will be answered.
    pub(super) fn abandon(&mut self) {
        self.state = State::Done;
        self.chunks = Arc::default();
    }

    fn receive(&mut self, bytes: Vec<u8>) -> Step {
        self.held_bytes += bytes.len();
        if self.held_bytes > self.max_body_bytes {
            return Step::Refuse(Refusal::too_large(self.max_body_bytes));
        }
        self.hold(bytes);
        match self.mode {
            BodyMode::FullDuplex if !self.ended => {
                self.state = State::Receiving;
                Step::Wait
            }
            BodyMode::FullDuplex => self.decide(),
            // The one message of BUFFERED is the whole body even where trailers follow it.
            BodyMode::Buffered | BodyMode::Streamed | BodyMode::None => {
                self.owed.bodies += 1;
                self.decide()
            }
        }
    }

    fn hold(&mut self, bytes: Vec<u8>) {
        let chunks = Arc::make_mut(&mut self.chunks);
        match chunks.last_mut() {
            Some(last)
                if bytes.len() < SMALL_CHUNK_BYTES
                    && last.len() + bytes.len() <= FULL_CHUNK_BYTES =>
            {
                last.extend_from_slice(&bytes);
            }
            _ => chunks.push(bytes),
        }
    }

    fn decide(&mut self) -> Step {
        self.state = State::Deciding;
        Step::Decide
    }

    fn rest_if_ended(&mut self) {
        if self.ended {
            self.state = State::Done;
        }
    }

    fn announces_too_much(&self) -> bool {
        self.head
            .content_length()
            .is_some_and(|bytes| bytes > self.max_body_bytes as u64)
    }

    /// Headers that only the picker may set and that the client sent all the same. The destination
    /// is not among them because it is overwritten, nor the content length because the body keeps
    /// its length.
    fn client_copies(&self) -> impl Iterator<Item = Name> {
        let owned = headers::SYSTEM_OWNED.into_iter();
        let removed =
            owned.filter(|name| !matches!(*name, headers::DESTINATION_ENDPOINT | CONTENT_LENGTH));
        removed
            .filter(|name| self.head.contains(name))
            .map(Cow::Borrowed)
    }
}

/// Sends the chunks on. A body that ends without a byte of its own still needs one chunk to carry
/// the end mark.
fn forward(
    mut chunks: Vec<Vec<u8>>,
    ends_with_body: bool,
    change: &mut RouteChange,
    actions: &mut Vec<Action>,
) {
    chunks.retain(|chunk| !chunk.is_empty());
    let had_body = !chunks.is_empty();
    let last = chunks.len().saturating_sub(1);
    for (index, bytes) in chunks.into_iter().enumerate() {
        let end_of_stream = ends_with_body && index == last;
        let answer = BodyAnswer::Chunk {
            bytes,
            end_of_stream,
        };
        actions.push(Action::Answer(Answer::RequestBody(
            answer,
            std::mem::take(change),
        )));
    }
    if ends_with_body && !had_body {
        let answer = BodyAnswer::Chunk {
            bytes: Vec::new(),
            end_of_stream: true,
        };
        actions.push(Action::Answer(Answer::RequestBody(
            answer,
            std::mem::take(change),
        )));
    }
}
