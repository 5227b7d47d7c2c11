//! Answers as they grow (server-sent events) or whole: one loop for both endpoints and both forms.
//!
//! Frames are vLLM's: `data: {json}\n\n` for each chunk, `data: [DONE]\n\n` at the end, an error in the middle as
//! `data: {"error": …}` before it. Everything one token update causes is one frame of the body and so one write:
//! the first chunk with the role goes out together with the first token, never before it.

use std::convert::Infallible;

use axum::Json;
use axum::body::Body;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::stream;
use pointsman_proto::openai::{ErrorBody, STREAM_DONE, StreamOptions, Usage};
use serde::Serialize;

use super::choice::{Delta, End};
use super::error::ApiError;
use super::generate::Generation;

/// The JSON of one endpoint's answers.
pub(super) trait Answer: Send + 'static {
    /// One event of a stream.
    type Chunk: Serialize + Send;
    /// The whole answer.
    type Whole: Serialize;

    /// Turns what was added to a choice into the events that say so.
    fn chunks(&mut self, index: usize, delta: Delta, events: &mut Vec<Self::Chunk>);
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
        if let Some(End::Failed(reason)) = &delta.end {
            return Err(ApiError::internal(reason.clone()));
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
}

fn streamed<A: Answer>(generation: Generation, answer: A, options: StreamOptions) -> Response {
    let state = Streamed {
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
        if self.done {
            return None;
        }
        let mut frame = Vec::with_capacity(512);
        match self.generation.next().await {
            Some((
                _,
                Delta {
                    end: Some(End::Failed(reason)),
                    ..
                },
            )) => {
                write_event(&mut frame, &ErrorBody::internal(reason));
                self.finish(&mut frame);
            }
            Some((index, delta)) => {
                self.answer.chunks(index, delta, &mut self.events);
                let continuous = self.options.continuous_usage_stats == Some(true);
                for mut event in self.events.drain(..) {
                    if continuous {
                        *A::usage_of(&mut event) = Some(self.generation.usage());
                    }
                    write_event(&mut frame, &event);
                }
            }
            None => {
                if self.options.include_usage == Some(true) {
                    let mut event = self.answer.usage_chunk();
                    *A::usage_of(&mut event) = Some(self.generation.usage());
                    write_event(&mut frame, &event);
                }
                self.finish(&mut frame);
            }
        }
        Some(Bytes::from(frame))
    }

    fn finish(&mut self, frame: &mut Vec<u8>) {
        frame.extend_from_slice(format!("data: {STREAM_DONE}\n\n").as_bytes());
        self.done = true;
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
