//! Streams of tokens, with the time of each.
//!
//! Prompts are token ids, greedy, past any end of sequence, so that every stream has exactly the length that was asked
//! for. The ids come from a counter: no two prompts share a prefix unless a
//! test wants them to.

use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http::{Method, Request, header};
use http_body_util::{BodyExt, Full};
use serde::Deserialize;
use serde_json::json;
use tokio::sync::watch;

use super::worker::BenchWorker;
use crate::client::sse::EventParser;

/// The longest wait for one more piece of a stream.
const SILENCE_MAX: Duration = Duration::from_mins(30);

/// Ids that the demo model's tokenizer knows, the special ones left out.
const KNOWN: Range<u32> = 64..1024;

/// A prompt that no other prompt begins like.
pub(super) fn prompt(tokens: usize) -> Vec<u32> {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let count = KNOWN.end - KNOWN.start;
    let id = |index: usize| {
        let mixed = (index as u32 ^ number.wrapping_mul(0x9e37_79b9)).wrapping_mul(0x85eb_ca6b);
        KNOWN.start + (mixed >> 12) % count
    };
    (0..tokens).map(id).collect()
}

/// When each token of a stream came.
#[derive(Clone, Debug)]
pub(super) struct Stream {
    pub(super) sent: Instant,
    pub(super) tokens: Vec<Instant>,
}

impl Stream {
    /// Seconds to the first token.
    pub(super) fn first(&self) -> Option<f64> {
        let first = self.tokens.first()?;
        Some(first.duration_since(self.sent).as_secs_f64())
    }

    /// Seconds between neighbouring tokens, where both came within `window`.
    pub(super) fn gaps(&self, window: (Instant, Instant)) -> Vec<f64> {
        let inside = |time: &Instant| (window.0..=window.1).contains(time);
        self.tokens
            .windows(2)
            .filter(|pair| pair.iter().all(inside))
            .map(|pair| pair[1].duration_since(pair[0]).as_secs_f64())
            .collect()
    }
}

/// Tokens a second of streams that ran side by side, over the time when all of them were running.
pub(super) fn common_rate(streams: &[Stream]) -> Option<f64> {
    let start = streams
        .iter()
        .filter_map(|stream| stream.tokens.first())
        .max()?;
    let end = streams
        .iter()
        .filter_map(|stream| stream.tokens.last())
        .min()?;
    let seconds = end.checked_duration_since(*start)?.as_secs_f64();
    let inside = |stream: &Stream| {
        let times = stream.tokens.iter();
        times
            .filter(|time| (start < *time) && (*time <= end))
            .count()
    };
    let tokens: usize = streams.iter().map(inside).sum();
    (seconds > 0.0).then(|| tokens as f64 / seconds)
}

#[derive(Deserialize)]
struct Chunk {
    #[serde(default)]
    choices: Vec<Choice>,
    error: Option<serde_json::Value>,
}

#[derive(Deserialize)]
struct Choice {
    token_ids: Option<Vec<u32>>,
}

/// Streams `max_tokens` tokens after `prompt`. `stop`, when it turns true, ends the stream early, without an error.
pub(super) async fn stream(
    worker: &BenchWorker,
    prompt: &[u32],
    max_tokens: usize,
    mut stop: Option<watch::Receiver<bool>>,
) -> Result<Stream> {
    let body = json!({
        "prompt": prompt, "max_tokens": max_tokens, "temperature": 0.0, "ignore_eos": true,
        "stream": true, "return_token_ids": true,
    });
    let request = Request::builder()
        .method(Method::POST)
        .uri(format!("{}/v1/completions", worker.url))
        .header(header::CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::from(body.to_string())))?;
    let mut times = Stream {
        sent: Instant::now(),
        tokens: Vec::with_capacity(max_tokens),
    };
    let response = worker.http.request(request).await?;
    let status = response.status();
    let mut body = response.into_body();
    if !status.is_success() {
        let answer = body.collect().await?.to_bytes();
        anyhow::bail!("{status}: {}", String::from_utf8_lossy(&answer));
    }
    let mut parser = EventParser::default();
    loop {
        let frame = tokio::select! {
            frame = tokio::time::timeout(SILENCE_MAX, body.frame()) => frame.context("a silent stream")?,
            () = stopped(&mut stop) => return Ok(times),
        };
        let Some(frame) = frame.transpose()? else {
            break;
        };
        let Some(data) = frame.data_ref() else {
            continue;
        };
        let now = Instant::now();
        let mut problem = None;
        parser.push(data, |event| match tokens_of(&event) {
            Ok(count) => times.tokens.extend(std::iter::repeat_n(now, count)),
            Err(error) => problem = Some(error),
        })?;
        if let Some(error) = problem {
            return Err(error);
        }
    }
    ensure!(
        times.tokens.len() == max_tokens,
        "{} tokens of {max_tokens}",
        times.tokens.len()
    );
    Ok(times)
}

/// Returns once `stop` is true; never without one.
async fn stopped(stop: &mut Option<watch::Receiver<bool>>) {
    match stop {
        Some(stop) => {
            if stop.wait_for(|stop| *stop).await.is_err() {
                std::future::pending::<()>().await;
            }
        }
        None => std::future::pending().await,
    }
}

fn tokens_of(event: &str) -> Result<usize> {
    if event == "[DONE]" {
        return Ok(0);
    }
    let chunk: Chunk = serde_json::from_str(event).with_context(|| format!("event {event:?}"))?;
    if let Some(error) = chunk.error {
        anyhow::bail!("the worker failed: {error}");
    }
    let counts = chunk
        .choices
        .iter()
        .map(|choice| choice.token_ids.as_ref().map_or(0, Vec::len));
    Ok(counts.sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_share_no_beginning() {
        let (first, second) = (prompt(20), prompt(20));
        assert_ne!(first[0], second[0]);
        let all = first.iter().chain(&second);
        assert!(all.into_iter().all(|id| KNOWN.contains(id)));
    }

    #[test]
    fn the_common_rate_counts_while_all_run() {
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        let stream = |times: &[u64]| Stream {
            sent: start,
            tokens: times.iter().map(|ms| at(*ms)).collect(),
        };
        let streams = [stream(&[0, 100, 200, 300]), stream(&[100, 200, 300, 400])];
        // Between 100 ms and 300 ms each has two more tokens.
        let rate = common_rate(&streams).unwrap();
        assert!((rate - 20.0).abs() < 1e-9, "{rate}");
        let gaps = streams[0].gaps((at(100), at(300)));
        assert_eq!(gaps.len(), 2);
    }

    #[test]
    fn events_are_counted_by_their_token_ids() {
        assert_eq!(tokens_of("[DONE]").unwrap(), 0);
        assert_eq!(
            tokens_of(r#"{"choices":[{"token_ids":[1,2]}]}"#).unwrap(),
            2
        );
        assert_eq!(tokens_of(r#"{"choices":[]}"#).unwrap(), 0);
        assert!(tokens_of(r#"{"error":{"message":"no"}}"#).is_err());
        assert!(tokens_of("{").is_err());
    }
}
