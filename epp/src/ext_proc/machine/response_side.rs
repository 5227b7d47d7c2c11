//! The response direction of one stream: everything goes on at once and untouched, and the machine
//! remembers what it saw.

use super::{Action, Answer, BodyAnswer, BodyMode, Modes};
use crate::ext_proc::usage::{ResponseTail, TokenUsage};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Nothing has come.
    Expecting,
    /// The response is coming.
    Open,
    /// The end mark came.
    Done,
}

#[derive(Debug)]
pub(super) struct ResponseSide {
    pub(super) mode: BodyMode,
    state: State,
    status: Option<u16>,
    tail: ResponseTail,
    body_bytes: u64,
}

impl Default for ResponseSide {
    fn default() -> Self {
        Self {
            mode: Modes::PROTOCOL.response,
            state: State::Expecting,
            status: None,
            tail: ResponseTail::default(),
            body_bytes: 0,
        }
    }
}

impl ResponseSide {
    pub(super) fn is_untouched(&self) -> bool {
        self.state == State::Expecting
    }

    /// Whether everything that the gateway will show was seen. Without a body mode that is the
    /// headers.
    pub(super) fn has_ended(&self) -> bool {
        match self.state {
            State::Expecting => false,
            State::Open => self.mode == BodyMode::None,
            State::Done => true,
        }
    }

    pub(super) fn status(&self) -> Option<u16> {
        self.status
    }

    pub(super) fn usage(&self) -> Option<TokenUsage> {
        self.tail.usage()
    }

    pub(super) fn body_bytes(&self) -> u64 {
        self.body_bytes
    }

    pub(super) fn on_headers(
        &mut self,
        status: Option<u16>,
        end_of_stream: bool,
        actions: &mut Vec<Action>,
    ) {
        if self.state != State::Expecting {
            return;
        }
        self.status = status;
        actions.push(Action::Answer(Answer::ResponseHeaders));
        self.state = if end_of_stream {
            State::Done
        } else {
            State::Open
        };
    }

    pub(super) fn on_body(
        &mut self,
        bytes: Vec<u8>,
        end_of_stream: bool,
        actions: &mut Vec<Action>,
    ) {
        if self.state == State::Done {
            return;
        }
        if self.body_bytes == 0 && !bytes.is_empty() {
            actions.push(Action::FirstByte);
        }
        self.body_bytes += bytes.len() as u64;
        self.tail.push(&bytes);
        let answer = match self.mode {
            BodyMode::FullDuplex => BodyAnswer::Chunk {
                bytes,
                end_of_stream,
            },
            BodyMode::Buffered | BodyMode::Streamed | BodyMode::None => BodyAnswer::Continue,
        };
        actions.push(Action::Answer(Answer::ResponseBody(answer)));
        self.state = if end_of_stream {
            State::Done
        } else {
            State::Open
        };
    }

    pub(super) fn on_trailers(&mut self, actions: &mut Vec<Action>) {
        if self.state == State::Done {
            return;
        }
        actions.push(Action::Answer(Answer::ResponseTrailers));
        self.state = State::Done;
    }
}
