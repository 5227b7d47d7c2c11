//! Clients that leave, queues that fill, workers that stop.

use std::sync::Arc;

use hyper::{Method, StatusCode};
use pointsman_engine::worker::EngineHandle;
use serde_json::{Value, json};

use crate::support::{DEADLINE, Worker};

const COMPLETIONS: &str = "/v1/completions";
const ABORTED: &str =
    "vllm:request_success_total{model_name=\"demo\",engine=\"0\",finished_reason=\"abort\"}";

/// A request that runs for as long as the context lasts.
fn endless(stream: bool) -> Value {
    json!({"prompt": [5, 6, 7], "max_tokens": 2000, "ignore_eos": true, "stream": stream, "seed": 1})
}

#[tokio::test]
async fn a_client_that_leaves_a_stream_frees_its_blocks() {
    let worker = Worker::start(&[]).await;
    let mut events = worker.open(COMPLETIONS, &endless(true)).await;
    assert!(events.next().await.is_some());
    assert!(worker.engine.stats().blocks_used > 0);
    drop(events);
    worker
        .until("blocks are freed", |stats| {
            stats.running == 0 && stats.blocks_used == 0
        })
        .await;
    worker
        .until_engine("the request is gone", EngineHandle::is_idle)
        .await;
    assert!(worker.engine.stats().generated_tokens < 2000);
    assert_eq!(worker.metric(ABORTED).await, "1");
}

#[tokio::test]
async fn a_client_that_leaves_before_its_answer_frees_its_blocks() {
    let worker = Arc::new(Worker::start(&[]).await);
    let client = Arc::clone(&worker);
    let request = tokio::spawn(async move {
        client
            .send(Method::POST, COMPLETIONS, &[], endless(false).to_string())
            .await
    });
    worker
        .until("the request runs", |stats| stats.running == 1)
        .await;
    request.abort();
    worker
        .until("blocks are freed", |stats| {
            stats.running == 0 && stats.blocks_used == 0
        })
        .await;
    worker
        .until_engine("the request is gone", EngineHandle::is_idle)
        .await;
    assert_eq!(worker.metric(ABORTED).await, "1");
}

#[tokio::test]
async fn a_full_queue_is_503_and_the_gauges_show_it() {
    let worker = Worker::start(&["--max-num-seqs", "1", "--max-num-queued-reqs", "1"]).await;
    let running = worker.open(COMPLETIONS, &endless(true)).await;
    worker.until("one runs", |stats| stats.running == 1).await;
    let waiting = worker.open(COMPLETIONS, &endless(true)).await;
    let labels = "{model_name=\"demo\",engine=\"0\"}";
    assert_eq!(
        worker
            .metric(&format!("vllm:num_requests_waiting{labels}"))
            .await,
        "1"
    );
    assert_eq!(
        worker
            .metric(&format!("vllm:num_requests_running{labels}"))
            .await,
        "1"
    );
    assert_eq!(worker.get("/load").await.json(), json!({"server_load": 2}));
    let reply = worker.post(COMPLETIONS, &endless(false)).await;
    assert_eq!(reply.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(reply.headers["retry-after"], "1");
    assert_eq!(reply.json()["error"]["code"], 503);
    let rejected =
        "vllm:admission_rejections_total{model_name=\"demo\",reason=\"max_num_queued_reqs\"}";
    assert_eq!(worker.metric(rejected).await, "1");
    // A request of several choices gets all of its places or none.
    let several = json!({"prompt": "x", "n": 2});
    assert_eq!(
        worker.post(COMPLETIONS, &several).await.status,
        StatusCode::SERVICE_UNAVAILABLE
    );
    drop((running, waiting));
    worker
        .until_engine("the places are free again", EngineHandle::is_idle)
        .await;
    let short = json!({"prompt": "x", "max_tokens": 1});
    assert_eq!(
        worker.post(COMPLETIONS, &short).await.status,
        StatusCode::OK
    );
}

#[tokio::test]
async fn a_draining_worker_finishes_what_runs_and_takes_nothing_new() {
    let mut worker = Worker::start(&[]).await;
    let mut events = worker.open(COMPLETIONS, &endless(true)).await;
    events.next().await.unwrap();
    worker.begin_stop();
    worker
        .until_engine("the drain begins", EngineHandle::is_draining)
        .await;
    let health = worker.get("/health").await;
    assert_eq!(
        (health.status, health.text()),
        (StatusCode::SERVICE_UNAVAILABLE, String::new())
    );
    let reply = worker.post(COMPLETIONS, &json!({"prompt": "x"})).await;
    assert_eq!(reply.status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(reply.headers.contains_key("retry-after"));
    let events = events.all().await;
    assert_eq!(
        events.last().unwrap()["choices"][0]["finish_reason"],
        "length"
    );
    tokio::time::timeout(DEADLINE, worker.stop())
        .await
        .unwrap()
        .unwrap()
        .unwrap();
}

#[tokio::test]
async fn past_the_drain_timeout_requests_are_aborted() {
    let worker = Worker::start(&["--drain-timeout", "0ms"]).await;
    let mut events = worker.open(COMPLETIONS, &endless(true)).await;
    events.next().await.unwrap();
    let served = worker.stop();
    let events = events.all().await;
    assert_eq!(
        events.last().unwrap()["choices"][0]["finish_reason"],
        "abort"
    );
    assert!(events.len() < 2000);
    tokio::time::timeout(DEADLINE, served)
        .await
        .unwrap()
        .unwrap()
        .unwrap();
}
