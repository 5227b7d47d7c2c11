//! The response direction of one stream: everything goes on at once, and the machine remembers what
//! it saw.
//!
//! Chunks are moved through untouched, except that a model name may be written back. Looking at a
//! chunk costs one search for line starts and the copy of its last few kilobytes.

use std::borrow::Cow;

use pointsman_proto::headers;

use super::{Action, Answer, BodyAnswer, BodyMode, HeaderChange, Modes, Name};
use crate::ext_proc::outcome::Seen;
use crate::ext_proc::sse::EventCounter;
use crate::ext_proc::usage::{ResponseEnds, TokenUsage};
use crate::ext_proc::write_back::WriteBack;

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
    ends: ResponseEnds,
    counter: EventCounter,
    body_bytes: u64,
    first_chunk_us: Option<u64>,
    last_chunk_us: Option<u64>,
    /// Found once, when the response ends.
    usage: Option<TokenUsage>,
    /// What the decision wants to see in the response.
    set_headers: Vec<(Name, String)>,
    echo_served: bool,
    write_back: Option<WriteBack>,
}

impl Default for ResponseSide {
    fn default() -> Self {
        Self {
            mode: Modes::PROTOCOL.response,
            state: State::Expecting,
            status: None,
            ends: ResponseEnds::default(),
            counter: EventCounter::default(),
            body_bytes: 0,
            first_chunk_us: None,
            last_chunk_us: None,
            usage: None,
            set_headers: Vec::new(),
            echo_served: false,
            write_back: None,
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

    /// The usage of a response that ended, or of what there is of one that was cut.
    pub(super) fn usage(&self) -> Option<TokenUsage> {
        self.usage.or_else(|| self.ends.usage())
    }

    pub(super) fn body_bytes(&self) -> u64 {
        self.body_bytes
    }

    pub(super) fn seen(&self) -> Seen {
        let closing_mark = u64::from(self.ends.is_done_marked());
        Seen {
            events: self.counter.events().saturating_sub(closing_mark),
            first_chunk_us: self.first_chunk_us,
            last_chunk_us: self.last_chunk_us,
        }
    }

    /// What the decision wants of the response to come.
    pub(super) fn expect(
        &mut self,
        set_headers: Vec<(Name, String)>,
        echo_served: bool,
        write_back: Option<WriteBack>,
    ) {
        self.set_headers = set_headers;
        self.echo_served = echo_served;
        self.write_back = write_back;
    }

    /// `shown` is the status, whether a content length is stated, and whether nothing follows.
    pub(super) fn on_headers(
        &mut self,
        shown: (Option<u16>, bool, bool),
        served: Option<&str>,
        actions: &mut Vec<Action>,
    ) {
        if self.state != State::Expecting {
            return;
        }
        let (status, has_content_length, end_of_stream) = shown;
        self.status = status;
        let mut change = HeaderChange {
            set: std::mem::take(&mut self.set_headers),
            remove: Vec::new(),
        };
        if let Some(served) = served.filter(|_| self.echo_served) {
            let name = Cow::Borrowed(headers::CONFORMANCE_SERVED_ENDPOINT);
            change.set.push((name, served.to_owned()));
        }
        // A gateway may be told to keep the content length in full duplex; a body of another length
        // under it would break the connection.
        let changes_length = self.writes_back() && !end_of_stream;
        if changes_length && has_content_length {
            change.remove.push(Cow::Borrowed("content-length"));
        }
        actions.push(Action::Answer(Answer::ResponseHeaders(change)));
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
        now_us: u64,
        actions: &mut Vec<Action>,
    ) {
        if self.state == State::Done {
            return;
        }
        if self.state == State::Expecting {
            // Without the headers nobody can say that the length may change.
            self.write_back = None;
        }
        self.watch(&bytes, now_us, actions);
        let usage = if end_of_stream { self.close() } else { None };
        self.state = if end_of_stream {
            State::Done
        } else {
            State::Open
        };
        let answer = match self.mode {
            BodyMode::FullDuplex => {
                let was_empty = bytes.is_empty();
                let bytes = match &mut self.write_back {
                    Some(write_back) => write_back.push(bytes, end_of_stream),
                    None => bytes,
                };
                if bytes.is_empty() && !was_empty && !end_of_stream {
                    // All of it is held back; full duplex owes no answer per message.
                    return;
                }
                BodyAnswer::Chunk {
                    bytes,
                    end_of_stream,
                }
            }
            BodyMode::Buffered | BodyMode::Streamed | BodyMode::None => BodyAnswer::Continue,
        };
        actions.push(Action::Answer(Answer::ResponseBody(answer, usage)));
    }

    pub(super) fn on_trailers(&mut self, actions: &mut Vec<Action>) {
        if self.state == State::Done {
            return;
        }
        if self.mode == BodyMode::FullDuplex
            && let Some(write_back) = &mut self.write_back
        {
            let bytes = write_back.finish();
            if !bytes.is_empty() {
                let answer = BodyAnswer::Chunk {
                    bytes,
                    end_of_stream: false,
                };
                actions.push(Action::Answer(Answer::ResponseBody(answer, None)));
            }
        }
        let usage = self.close();
        actions.push(Action::Answer(Answer::ResponseTrailers(usage)));
        self.state = State::Done;
    }

    fn writes_back(&self) -> bool {
        self.write_back.is_some() && self.mode == BodyMode::FullDuplex
    }

    fn watch(&mut self, bytes: &[u8], now_us: u64, actions: &mut Vec<Action>) {
        if bytes.is_empty() {
            return;
        }
        if self.body_bytes == 0 {
            actions.push(Action::FirstByte);
            self.first_chunk_us = Some(now_us);
        }
        self.last_chunk_us = Some(now_us);
        self.body_bytes += bytes.len() as u64;
        self.ends.push(bytes);
        self.counter.push(bytes);
    }

    fn close(&mut self) -> Option<TokenUsage> {
        self.usage = self.ends.usage();
        self.usage
    }
}
