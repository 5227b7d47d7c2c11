//! The load: so many requests a second, sent when their time has come and not when the one before is answered.
//!
//! Each request has an intended start, and its latency counts from there. A server that stalls is therefore charged
//! with all that its stall delays, which a client that waits for answers before it sends on would hide (coordinated
//! omission). The timer is good to a millisecond, in all variants alike.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use http::{Request, header};
use http_body_util::{BodyExt, Full};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use super::prompts::Prompts;
use crate::client::HttpClient;

/// Requests that wait for their end at once. One that would be above it is not sent and counts as failed.
const IN_FLIGHT_MAX: usize = 2048;
const REQUEST_TIMEOUT: Duration = Duration::from_secs(20);
/// How a whole answer ends. An answer without it was cut off.
const DONE: &[u8] = b"data: [DONE]\n\n";

/// One answered request, measured from its intended start.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sample {
    /// To the first piece of the body.
    pub(super) first: Duration,
    /// To the end of the body.
    pub(super) whole: Duration,
}

/// What became of a run.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    pub(super) samples: Vec<Sample>,
    pub(super) failed: usize,
    /// Why the first of those failed.
    pub(super) error: Option<String>,
}

/// Sends `rate` requests a second for `duration`, and returns when all have ended.
pub(super) async fn open_loop(
    http: &HttpClient,
    url: &str,
    prompts: &mut Prompts,
    rate: f64,
    duration: Duration,
) -> Outcome {
    let mut outcome = Outcome::default();
    let mut running = JoinSet::new();
    let began = Instant::now();
    for due in schedule(rate, duration) {
        let intended = began + due;
        let body = prompts.next_body();
        sleep_until(intended).await;
        while let Some(ended) = running.try_join_next() {
            outcome.count(flatten(ended));
        }
        if running.len() < IN_FLIGHT_MAX {
            running.spawn(send(http.clone(), url.to_owned(), body, intended));
        } else {
            outcome.count(Err(anyhow::anyhow!("{IN_FLIGHT_MAX} requests in flight")));
        }
    }
    while let Some(ended) = running.join_next().await {
        outcome.count(flatten(ended));
    }
    outcome
}

impl Outcome {
    fn count(&mut self, ended: Result<Sample>) {
        match ended {
            Ok(sample) => self.samples.push(sample),
            Err(error) => {
                self.failed += 1;
                self.error.get_or_insert_with(|| format!("{error:#}"));
            }
        }
    }
}

/// The intended starts, from the begin of a run.
fn schedule(rate: f64, duration: Duration) -> impl Iterator<Item = Duration> {
    let requests = (rate * duration.as_secs_f64()).round().max(1.0) as u32;
    (0..requests).map(move |request| Duration::from_secs_f64(f64::from(request) / rate))
}

fn flatten(ended: Result<Result<Sample>, tokio::task::JoinError>) -> Result<Sample> {
    ended.context("the request's task failed")?
}

async fn send(http: HttpClient, url: String, body: Bytes, intended: Instant) -> Result<Sample> {
    let request = Request::post(url)
        .header(header::CONTENT_TYPE, "application/json")
        .body(Full::new(body))?;
    let exchange = exchange(&http, request, intended);
    match timeout(REQUEST_TIMEOUT, exchange).await {
        Ok(sample) => sample,
        Err(_elapsed) => bail!("no whole answer within {REQUEST_TIMEOUT:?}"),
    }
}

async fn exchange(
    http: &HttpClient,
    request: Request<Full<Bytes>>,
    intended: Instant,
) -> Result<Sample> {
    let response = http.request(request).await.context("request failed")?;
    let status = response.status();
    ensure!(status == 200, "status {status}");
    let mut body = response.into_body();
    let mut first = None;
    let mut last = Bytes::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.context("answer broke off")?;
        if let Ok(data) = frame.into_data()
            && !data.is_empty()
        {
            first.get_or_insert_with(|| intended.elapsed());
            last = data;
        }
    }
    ensure!(last.ends_with(DONE), "answer without its end");
    Ok(Sample {
        first: first.context("empty answer")?,
        whole: intended.elapsed(),
    })
}

#[cfg(test)]
mod tests {
    use super::super::upstream::{ReplyShape, Upstreams};
    use super::*;

    #[test]
    fn requests_are_due_at_even_steps() {
        let due: Vec<_> = schedule(4.0, Duration::from_secs(1)).collect();
        assert_eq!(due, [0, 250, 500, 750].map(Duration::from_millis));
        assert_eq!(schedule(0.1, Duration::from_secs(1)).count(), 1);
    }

    #[tokio::test]
    async fn every_request_is_answered_and_measured() {
        let shape = ReplyShape {
            chunks: 4,
            pause: Duration::from_millis(1),
        };
        let upstreams = Upstreams::start(1, shape).await.unwrap();
        let url = format!("http://{}/v1/chat/completions", upstreams.addresses()[0]);
        let (http, mut prompts) = (HttpClient::new(), Prompts::new(500, 0));
        let second = Duration::from_secs(1);
        let outcome = open_loop(&http, &url, &mut prompts, 40.0, second).await;
        assert_eq!((outcome.samples.len(), outcome.failed), (40, 0));
        assert!(outcome.samples.iter().all(|one| one.first <= one.whole));
    }

    #[tokio::test]
    async fn what_is_no_whole_answer_is_a_failure() {
        let shape = ReplyShape {
            chunks: 1,
            pause: Duration::ZERO,
        };
        let upstreams = Upstreams::start(1, shape).await.unwrap();
        let url = format!("http://{}/nowhere", upstreams.addresses()[0]);
        let (http, mut prompts) = (HttpClient::new(), Prompts::new(500, 0));
        let second = Duration::from_secs(1);
        let outcome = open_loop(&http, &url, &mut prompts, 2.0, second).await;
        assert_eq!((outcome.samples.len(), outcome.failed), (0, 2));
        assert_eq!(outcome.error.as_deref(), Some("status 404 Not Found"));
    }
}
