//! Bodies in both directions: chunk by chunk as they are produced, and byte for byte what was sent.

use anyhow::{Context, Result};
use bytes::Bytes;
use futures_util::future::try_join_all;
use http::{HeaderMap, HeaderValue, Method};
use pointsman_loadtest::stack::{MODEL_NAME, Stack, StackOptions, Template, Watch};
use pointsman_tests::chat::{Chat, printable};
use pointsman_tests::client::{Client, Outgoing};
use pointsman_tests::exposition::Exposition;
use pointsman_tests::upstream::Upstream;
use pointsman_tests::witness::{Witness, epp_series};
use serde_json::json;

const BODY_BYTES: usize = 5 << 20;
const CHUNK_BYTES: usize = 61_007;
const REQUESTS_IN_FLIGHT: usize = 1_100;

/// No clock can decide this test: the upstream sends a piece only when the client has read the one before it.
#[tokio::test]
async fn each_piece_passes_before_the_next_is_produced() -> Result<()> {
    let templates = [Template::OverrideHost, Template::OriginalDst];
    let gateways = templates
        .into_iter()
        .flat_map(|template| [Watch::AccessLog, Watch::Stream].map(|watch| (template, watch)));
    for (template, watch) in gateways {
        let (upstream, pieces) = Upstream::stepped().await?;
        let options = StackOptions::new().workers(0).endpoint(upstream.address());
        let stack = Stack::start(options.template(template).watch(watch)).await?;
        let chat = Chat::new().user("One at a time.").streaming();
        let request = stack.post_chat(&chat);
        let mut response = request.send().await?;
        for number in 0..50 {
            let piece = format!("data: {{\"piece\":{number}}}\n\n");
            pieces.send(Bytes::from(piece.clone())).await?;
            let chunk = response
                .chunk()
                .await?
                .context("the response ended early")?;
            assert_eq!(chunk, piece, "{template:?} {watch:?}");
        }
        drop(pieces);
        assert_eq!(response.chunk().await?, None, "{template:?} {watch:?}");
    }
    Ok(())
}

/// The worker's own part: the client holds the first token while most of the answer is not computed.
#[tokio::test]
async fn a_worker_streams_while_it_computes() -> Result<()> {
    const TOKENS: u32 = 1_500;
    let stack = Stack::start(StackOptions::new()).await?;
    let chat = Chat::new()
        .user("A long answer, please.")
        .max_tokens(TOKENS)
        .streaming();
    let request = stack.post_chat(&chat);
    let mut response = request.send().await?;
    assert_eq!(
        response.header("content-type"),
        "text/event-stream; charset=utf-8"
    );
    response.event().await?;
    let page = Exposition::scrape(stack.workers()[0].address()).await?;
    let generated = page
        .sum("vllm:generation_tokens_total", &[])
        .context("no token counter")?;
    assert!(
        generated < f64::from(TOKENS),
        "the first token came after the last was computed"
    );
    let events = response.events().await?;
    let reads = events.last().context("a stream of one event")?.read;
    // Tokens that come faster than anybody reads may share a read; all in a few reads would be buffering.
    assert!(
        reads > 50 && events.len() > reads / 2,
        "{} events in {reads} reads",
        events.len()
    );
    assert_eq!(
        events.last().map(|event| event.data.as_str()),
        Some("[DONE]")
    );
    Ok(())
}

/// A body that epp must hold, read and hand on, with the bulk in a field that epp reads over.
fn large_body() -> Bytes {
    let body = json!({
        "model": MODEL_NAME,
        "prompt": "Summarise the attachment.",
        "attachment": printable(BODY_BYTES),
    });
    Bytes::from(body.to_string())
}

fn in_chunks(body: &Bytes) -> Vec<Bytes> {
    (0..body.len())
        .step_by(CHUNK_BYTES)
        .map(|start| body.slice(start..body.len().min(start + CHUNK_BYTES)))
        .collect()
}

/// Sends `request` to an echo, and compares what the echo got and what came back with `body`.
async fn assert_identical(request: Outgoing, echo: &Upstream, body: &Bytes) -> Result<()> {
    let seen_before = echo.requests().len();
    let response = request.send().await?;
    assert_eq!(response.status, 200);
    // Compared as booleans: the message of assert_eq! would be ten megabytes long.
    let returned = response.bytes().await?;
    assert!(
        returned == *body,
        "sent {} bytes, the client got {} other ones",
        body.len(),
        returned.len()
    );
    let received = echo.requests().split_off(seen_before);
    assert_eq!(received.len(), 1, "the echo was asked once");
    let received = &received[0].body;
    assert!(
        received == body,
        "sent {} bytes, the echo got {} other ones",
        body.len(),
        received.len()
    );
    Ok(())
}

#[tokio::test]
async fn five_megabytes_pass_unchanged_in_both_directions() -> Result<()> {
    let body = large_body();
    for template in [Template::OverrideHost, Template::OriginalDst] {
        let echo = Upstream::echo().await?;
        let options = StackOptions::new().workers(0).endpoint(echo.address());
        let stack = Stack::start(options.template(template)).await?;
        let mut clients = vec![Client::http1(stack.listener())];
        if template == Template::OriginalDst {
            // The other template takes HTTP/1 only; its comment on codec_type says why.
            clients.push(Client::http2(stack.listener()));
        }
        for client in clients {
            let request = client.post("/v1/completions");
            assert_identical(request.body(body.clone()), &echo, &body).await?;
            let request = client.post("/v1/completions");
            assert_identical(request.chunks(in_chunks(&body)), &echo, &body).await?;
        }
    }
    Ok(())
}

/// A prompt of five megabytes cannot be placed by its tokens in time. It is passed on all the same, and unchanged.
#[tokio::test]
async fn a_prompt_too_long_to_encode_still_passes() -> Result<()> {
    let prompt = json!({"model": MODEL_NAME, "prompt": printable(BODY_BYTES)}).to_string();
    let body = Bytes::from(prompt);
    let echo = Upstream::echo().await?;
    let stack = Stack::start(StackOptions::new().workers(0).endpoint(echo.address())).await?;
    let request = stack.client().post("/v1/completions").body(body.clone());
    assert_identical(request, &echo, &body).await
}

/// Envoy asks epp about the trailers and holds the request until epp answers; and a gateway that repeats the body for
/// their sake (envoy #46095) would show here.
#[tokio::test]
async fn a_request_with_trailers_arrives_whole_and_once() -> Result<()> {
    let mut trailers = HeaderMap::new();
    trailers.insert("x-checksum", HeaderValue::from_static("abc"));
    for template in [Template::OverrideHost, Template::OriginalDst] {
        let echo = Upstream::echo().await?;
        let options = StackOptions::new().workers(0).endpoint(echo.address());
        let stack = Stack::start(options.template(template)).await?;
        let client = match template {
            Template::OriginalDst => Client::http2(stack.listener()),
            _ => Client::http1(stack.listener()),
        };
        for bytes in [40, BODY_BYTES] {
            let body = json!({"model": MODEL_NAME, "prompt": "x", "attachment": printable(bytes)});
            let body = Bytes::from(body.to_string());
            let request = client
                .post("/v1/completions")
                .header("trailer", "x-checksum");
            let request = request.chunks_and_trailers(in_chunks(&body), trailers.clone());
            assert_identical(request, &echo, &body).await?;
        }
    }
    Ok(())
}

#[tokio::test]
async fn requests_without_a_body_pass() -> Result<()> {
    let stack = Stack::start(StackOptions::new()).await?;
    let response = stack.client().get("/v1/models").send().await?;
    assert_eq!(response.status, 200);
    assert_eq!(response.json().await?["data"][0]["id"], MODEL_NAME);
    let response = stack
        .client()
        .request(Method::HEAD, "/v1/models")
        .send()
        .await?;
    assert_eq!(response.status, 200);
    assert_eq!(response.bytes().await?.len(), 0);
    assert_eq!(stack.client().get("/health").send().await?.status, 200);
    Ok(())
}

/// Above the 1,024 at which Envoy's default limits on connections, requests and gRPC streams would refuse.
#[tokio::test]
async fn eleven_hundred_requests_are_in_flight_at_once() -> Result<()> {
    let (upstream, gate) = Upstream::gated().await?;
    // The costlier way to watch: every request holds a stream of epp for as long as it runs.
    let options = StackOptions::new().workers(0).watch(Watch::Stream);
    let stack = Stack::start(options.endpoint(upstream.address())).await?;
    let chat = Chat::new().user("All at once.");
    let requests = (0..REQUESTS_IN_FLIGHT).map(|_| {
        let request = stack.post_chat(&chat);
        tokio::spawn(async move {
            let response = request.send().await?;
            let status = response.status;
            response.bytes().await?;
            anyhow::Ok(status)
        })
    });
    let requests: Vec<_> = requests.collect();
    gate.arrived(REQUESTS_IN_FLIGHT).await;
    // The gate is shut, so whatever the gauge says is in flight at this moment.
    stack
        .epp_gauge_is(epp_series::STREAMS_IN_FLIGHT, REQUESTS_IN_FLIGHT as f64)
        .await;
    stack
        .epp_gauge_is(epp_series::REQUESTS_IN_FLIGHT, REQUESTS_IN_FLIGHT as f64)
        .await;
    gate.open();
    for status in try_join_all(requests).await? {
        assert_eq!(status?, 200);
    }
    stack.nothing_in_flight().await;
    Ok(())
}
