//! Answers as they grow (server-sent events) or whole: one loop for both endpoints and both forms.
//!
//! Frames are vLLM's: `data: {json}\n\n` for each chunk, `data: [DONE]\n\n` at the end, an error in the middle as
//! `data: {"error": …}` before it. Everything that is there is one frame of the body and so one write: the first chunk
//! with the role goes out together with the first token, never before it, and a reader that fell behind gets the
//! tokens it missed in one piece, still one event each (unless `--stream-interval` joins them).
//!
//! Nearly all events differ from the one before in their text alone. Their JSON is made once, by serde, and taken
//! apart around the text (see [`template`](super::template)); so they are serde's to the byte.

use std::convert::Infallible;

use axum::Json;
use axum::body::Body;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::stream;
use pointsman_proto::openai::{STREAM_DONE, StreamOptions, Usage};
use serde::Serialize;

use super::choice::{Delta, End};
use super::error::ApiError;
use super::generate::Generation;
use super::template::Template;

/// Bytes of one write beyond which no further event is joined to it.
const FRAME_BYTES: usize = 16 << 10;

/// The JSON of one endpoint's answers.
pub(super) trait Answer: Send + 'static {
    /// One event of a stream.
    type Chunk: Serialize + Send;
    /// The whole answer.
    type Whole: Serialize;

    /// Turns what was added to a choice into the events that say so.
    fn chunks(&mut self, index: usize, delta: Delta, events: &mut Vec<Self::Chunk>);
    /// Whether the events of `delta` differ in nothing but its text from those of another such delta of the choice.
    /// Asked for every delta but a choice's first.
    fn only_text(&self, delta: &Delta) -> bool;
    /// Adds a later event of the same choice to an earlier one.
    fn merge(into: &mut Self::Chunk, later: Self::Chunk);
    /// The event without choices that carries the final usage.
    fn usage_chunk(&self) -> Self::Chunk;
    /// Where a chunk carries its usage.
    fn usage_of(chunk: &mut Self::Chunk) -> &mut Option<Usage>;
    /// Adds to a choice of the whole answer.
    fn add(&mut self, index: usize, delta: Delta);
    /// The whole answer, once all choices have ended.
    fn whole(self, usage: Usage) -> Self::Whole;
}

/// Answers with a stream if `options` are given, and whole otherwise.
pub(super) async fn respond<A: Answer>(
    generation: Generation,
    answer: A,
    options: Option<StreamOptions>,
) -> Result<Response, ApiError> {
    match options {
        None => whole(generation, answer).await,
        Some(options) => Ok(streamed(generation, answer, options)),
    }
}

async fn whole<A: Answer>(mut generation: Generation, mut answer: A) -> Result<Response, ApiError> {
    while let Some((index, delta)) = generation.next().await {
        if let Some(End::Failed(error)) = delta.end {
            return Err(ApiError::new(*error));
        }
        answer.add(index, delta);
    }
    Ok(Json(answer.whole(generation.usage())).into_response())
}

/// A stream in the making. The body owns it, so a dropped body drops the generation.
struct Streamed<A: Answer> {
    generation: Generation,
    answer: A,
    options: StreamOptions,
    /// The end was sent.
    done: bool,
    /// Reused between updates.
    events: Vec<A::Chunk>,
    sent: Vec<Sent<A::Chunk>>,
}

/// What was sent of one choice.
struct Sent<C> {
    /// Its first event was.
    opened: bool,
    /// How its events of text alone look, once there was one.
    template: Option<Template>,
    /// An event that waits for more tokens, and how many it has.
    held: Option<(C, u32)>,
}

fn streamed<A: Answer>(generation: Generation, answer: A, options: StreamOptions) -> Response {
    let choices = 0..generation.choices();
    let sent = choices.map(|_| Sent {
        opened: false,
        template: None,
        held: None,
    });
    let state = Streamed {
        sent: sent.collect(),
        generation,
        answer,
        options,
        done: false,
        events: Vec::new(),
    };
    let frames = stream::unfold(state, |mut state| async move {
        let frame = state.next_frame().await?;
        Some((Ok::<_, Infallible>(frame), state))
    });
    let mut response = Body::from_stream(frames).into_response();
    let headers = response.headers_mut();
    let content_type = HeaderValue::from_static("text/event-stream; charset=utf-8");
    headers.insert(header::CONTENT_TYPE, content_type);
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}

impl<A: Answer> Streamed<A> {
    /// The bytes of the next write; none after the end.
    async fn next_frame(&mut self) -> Option<Bytes> {
        let mut frame = Vec::with_capacity(512);
        while frame.is_empty() && !self.done {
            let mut next = self.generation.next().await;
            if next.is_none() {
                self.usage(&mut frame);
                self.finish(&mut frame);
            }
            while let Some((index, delta)) = next {
                self.write(index, delta, &mut frame);
                let full = self.done || frame.len() >= FRAME_BYTES;
                next = if full {
                    None
                } else {
                    self.generation.next_ready()
                };
            }
        }
        (!frame.is_empty()).then(|| Bytes::from(frame))
    }

    fn write(&mut self, index: usize, delta: Delta, frame: &mut Vec<u8>) {
        if let Some(End::Failed(error)) = &delta.end {
            for (held, _) in self.sent.iter_mut().filter_map(|sent| sent.held.take()) {
                write_event(frame, &held);
            }
            write_event(frame, error);
            self.finish(frame);
            return;
        }
        let Some(sent) = self.sent.get_mut(index) else {
            return;
        };
        let opened = std::mem::replace(&mut sent.opened, true);
        let interval = self.generation.stream_interval();
        let continuous = self.options.continuous_usage_stats == Some(true);
        if opened && interval <= 1 && !continuous && self.answer.only_text(&delta) {
            self.write_text(index, delta, frame);
            return;
        }
        let last = delta.end.is_some();
        self.answer.chunks(index, delta, &mut self.events);
        if opened && interval > 1 {
            hold::<A>(&mut sent.held, &mut self.events, interval, last);
        }
        for mut event in self.events.drain(..) {
            if continuous {
                *A::usage_of(&mut event) = Some(self.generation.usage());
            }
            write_event(frame, &event);
        }
    }

    /// Writes an event whose text is all that is new.
    fn write_text(&mut self, index: usize, delta: Delta, frame: &mut Vec<u8>) {
        let Some(sent) = self.sent.get_mut(index) else {
            return;
        };
        if let Some(template) = &sent.template {
            template.write(&delta.text, frame);
            return;
        }
        let probe = Delta {
            text: Template::PLACEHOLDER.to_owned(),
            ..delta.clone()
        };
        self.answer.chunks(index, probe, &mut self.events);
        let mut bytes = Vec::with_capacity(512);
        for event in self.events.drain(..) {
            write_event(&mut bytes, &event);
        }
        if let Some(template) = Template::new(&bytes) {
            sent.template.insert(template).write(&delta.text, frame);
            return;
        }
        // The placeholder is elsewhere in the event as well, in a name that a client chose.
        self.answer.chunks(index, delta, &mut self.events);
        for event in self.events.drain(..) {
            write_event(frame, &event);
        }
    }

    fn usage(&mut self, frame: &mut Vec<u8>) {
        if self.options.include_usage == Some(true) {
            let mut event = self.answer.usage_chunk();
            *A::usage_of(&mut event) = Some(self.generation.usage());
            write_event(frame, &event);
        }
    }

    fn finish(&mut self, frame: &mut Vec<u8>) {
        frame.extend_from_slice(format!("data: {STREAM_DONE}\n\n").as_bytes());
        self.done = true;
    }
}

/// Joins the one event in `events` to what is held, and leaves it there only once it has `interval` tokens or is the
/// last.
fn hold<A: Answer>(
    held: &mut Option<(A::Chunk, u32)>,
    events: &mut Vec<A::Chunk>,
    interval: u32,
    last: bool,
) {
    let mut tokens = 0;
    let mut joined: Option<A::Chunk> = None;
    if let Some((chunk, count)) = held.take() {
        (joined, tokens) = (Some(chunk), count);
    }
    for event in events.drain(..) {
        tokens += 1;
        match &mut joined {
            Some(chunk) => A::merge(chunk, event),
            None => joined = Some(event),
        }
    }
    if tokens >= interval || last {
        events.extend(joined);
    } else {
        *held = joined.map(|chunk| (chunk, tokens));
    }
}

fn write_event(frame: &mut Vec<u8>, event: &impl Serialize) {
    let start = frame.len();
    frame.extend_from_slice(b"data: ");
    match serde_json::to_writer(&mut *frame, event) {
        Ok(()) => frame.extend_from_slice(b"\n\n"),
        // Only a map with keys that are no strings fails to serialise, and no chunk has one.
        Err(_) => frame.truncate(start),
    }
}
