//! The worker with a simulated backend, and its faults on demand.

use std::time::{Duration, Instant};

use hyper::{Method, StatusCode};
use serde_json::{Value, json};

use super::support::{Reply, Worker};

/// Waits for nothing.
const AT_ONCE: [&str; 2] = ["--sim-speedup", "inf"];

fn completion(max_tokens: u32) -> Value {
    json!({
        "model": "demo", "prompt": "The gateway sends each request to the worker that has its prefix. ".repeat(2),
        "max_tokens": max_tokens, "temperature": 0, "ignore_eos": true
    })
}

fn streamed(max_tokens: u32) -> Value {
    let mut body = completion(max_tokens);
    body["stream"] = json!(true);
    body
}

async fn set(worker: &Worker, plan: Value) {
    let shown = worker.ask("/sim/faults", &plan).await;
    for (field, value) in plan.as_object().unwrap() {
        if !value.is_object() {
            assert_eq!(&shown[field], value);
        }
    }
}

#[tokio::test]
async fn a_simulated_worker_answers_with_words_and_the_same_ones_again() {
    let worker = Worker::start_sim(&AT_ONCE).await;
    let first = worker.ask("/v1/completions", &completion(40)).await;
    let text = first["choices"][0]["text"].as_str().unwrap();
    assert!(text.len() > 80, "{text}");
    assert!(
        text.chars().all(|c| c == ' ' || c.is_ascii_alphabetic()),
        "{text}"
    );
    assert_eq!(first["choices"][0]["finish_reason"], "length");
    let again = worker.ask("/v1/completions", &completion(40)).await;
    assert_eq!(again["choices"], first["choices"]);
    let details = &again["usage"]["prompt_tokens_details"];
    assert!(
        details["cached_tokens"].as_u64().unwrap() >= 16,
        "the prefix cache is the real one"
    );
    let models = worker.get("/v1/models").await.json();
    assert_eq!(
        models["data"][0]["max_model_len"], 131_072,
        "the simulated model's context"
    );
}

/// The engine thread says it right after the start.
async fn blocks_of(worker: &Worker) -> u32 {
    worker
        .until("the engine has spoken", |stats| stats.blocks_total > 0)
        .await;
    worker.engine.stats().blocks_total
}

#[tokio::test]
async fn its_memory_is_the_simulated_gpus() {
    let worker = Worker::start_sim(&AT_ONCE).await;
    let blocks = blocks_of(&worker).await;
    // 0.9 of 80 GiB less 15 GiB of weights, in blocks of 2 MiB.
    assert!((28_000..30_000).contains(&blocks), "{blocks}");
    let big = [
        "--sim-model",
        "qwen3-32b",
        "--sim-gpu",
        "h200",
        "--sim-speedup",
        "inf",
    ];
    let worker = Worker::start_sim(&big).await;
    let blocks = blocks_of(&worker).await;
    assert!((14_000..17_000).contains(&blocks), "{blocks}");
}

#[tokio::test]
async fn answers_take_the_time_of_the_model_divided_by_the_speedup() {
    let worker = Worker::start_sim(&["--sim-speedup", "4"]).await;
    let before = Instant::now();
    worker.ask("/v1/completions", &completion(50)).await;
    let took = before.elapsed();
    // 50 steps of some 7.5 ms.
    assert!(took > Duration::from_millis(85), "{took:?}");
}

#[tokio::test]
async fn answers_end_by_themselves_when_told_how_long_they_are() {
    let worker = Worker::start_sim(&["--sim-speedup", "inf", "--sim-output-tokens", "20"]).await;
    let mut body = completion(500);
    body["ignore_eos"] = json!(false);
    let answer = worker.ask("/v1/completions", &body).await;
    assert_eq!(answer["choices"][0]["finish_reason"], "stop");
    assert_eq!(answer["usage"]["completion_tokens"], 20);
}

#[tokio::test]
async fn ten_simulated_workers_share_a_machine() {
    let mut workers = Vec::new();
    for _ in 0..10 {
        workers.push(Worker::start_sim(&["--sim-speedup", "10"]).await);
    }
    let body = completion(20);
    let answers = workers
        .iter()
        .map(|worker| worker.ask("/v1/completions", &body));
    let answers = futures_util::future::join_all(answers).await;
    assert!(
        answers
            .iter()
            .all(|answer| answer["choices"] == answers[0]["choices"])
    );
}

#[tokio::test]
async fn there_are_no_faults_on_a_real_backend() {
    let worker = Worker::start(&[]).await;
    assert_eq!(
        worker.get("/sim/faults").await.status,
        StatusCode::NOT_FOUND
    );
}

#[tokio::test]
async fn faults_are_shown_set_and_checked() {
    let worker = Worker::start_sim(&["--sim-faults", r#"{"seed": 7, "slow_steps": 2.0}"#]).await;
    let shown = worker.get("/sim/faults").await.json();
    assert_eq!(
        (&shown["seed"], &shown["slow_steps"]),
        (&json!(7), &json!(2.0))
    );
    set(&worker, json!({"metrics_delay_ms": 1})).await;
    let shown = worker.get("/sim/faults").await.json();
    assert_eq!(
        (&shown["seed"], &shown["slow_steps"]),
        (&json!(0), &json!(1.0))
    );
    let refused = worker.post("/sim/faults", &json!({"refuze": {}})).await;
    assert_eq!(refused.status, StatusCode::BAD_REQUEST);
    assert!(refused.text().contains("refuze"), "{}", refused.text());
}

#[tokio::test]
async fn refused_requests_get_a_503_and_others_do_not() {
    let worker = Worker::start_sim(&AT_ONCE).await;
    set(&worker, json!({"seed": 1, "refuse": {"probability": 0.5}})).await;
    let mut refused = 0;
    for _ in 0..40 {
        let reply = worker.post("/v1/completions", &completion(1)).await;
        if reply.status == StatusCode::SERVICE_UNAVAILABLE {
            assert_eq!(reply.headers["retry-after"], "1");
            refused += 1;
        } else {
            assert_eq!(reply.status, StatusCode::OK);
        }
    }
    assert!((10..30).contains(&refused), "{refused} of 40");
    assert_eq!(worker.get("/v1/models").await.status, StatusCode::OK);
}

#[tokio::test]
async fn a_disconnected_client_gets_no_answer_at_all() {
    let worker = Worker::start_sim(&AT_ONCE).await;
    set(
        &worker,
        json!({"refuse": {"probability": 1, "how": "disconnect"}}),
    )
    .await;
    let body = completion(1).to_string();
    assert!(
        worker
            .try_send(Method::POST, "/v1/completions", body)
            .await
            .is_err()
    );
    set(&worker, json!({})).await;
    worker.ask("/v1/completions", &completion(1)).await;
}

#[tokio::test]
async fn a_stream_dies_after_its_events() {
    let worker = Worker::start_sim(&AT_ONCE).await;
    set(&worker, json!({"die": {"after_events": 5}})).await;
    let mut events = worker.open("/v1/completions", &streamed(100)).await;
    let mut seen = 0;
    let broken = loop {
        match events.try_next().await {
            Some(Ok(_)) => seen += 1,
            Some(Err(())) => break true,
            None => break false,
        }
    };
    assert_eq!((seen, broken), (5, true));
    worker
        .until("the request is gone", |stats| stats.running == 0)
        .await;
    set(&worker, json!({})).await;
    let events = worker
        .open("/v1/completions", &streamed(100))
        .await
        .all()
        .await;
    assert_eq!(events.len(), 100);
}

#[tokio::test]
async fn the_metrics_page_can_be_late_and_stale() {
    let worker = Worker::start_sim(&AT_ONCE).await;
    set(
        &worker,
        json!({"metrics_delay_ms": 60, "metrics_frozen": true}),
    )
    .await;
    let series = "vllm:generation_tokens_total{model_name=\"demo\",engine=\"0\"}";
    let before = Instant::now();
    assert_eq!(worker.metric(series).await, "0");
    assert!(before.elapsed() >= Duration::from_millis(60));
    worker.ask("/v1/completions", &completion(3)).await;
    assert_eq!(worker.metric(series).await, "0");
    set(&worker, json!({})).await;
    assert_eq!(worker.metric(series).await, "3");
}

#[tokio::test]
async fn health_flaps() {
    let worker = Worker::start_sim(&AT_ONCE).await;
    set(&worker, json!({"unhealthy_every": 2})).await;
    let mut seen = Vec::new();
    for _ in 0..4 {
        seen.push(worker.get("/health").await.status.as_u16());
    }
    assert_eq!(seen, [200, 503, 200, 503]);
}

#[tokio::test]
async fn a_model_that_does_not_fit_is_refused_at_the_start() {
    let error = Worker::refused(&["--backend", "sim", "--sim-model", "llama-3.1-70b"]).await;
    assert!(
        error.contains("llama-3.1-70b has 131 GiB of weights"),
        "{error}"
    );
}

#[tokio::test]
async fn constraints_of_a_request_hold() {
    let worker = Worker::start_sim(&AT_ONCE).await;
    let mut body = completion(5);
    body["logprobs"] = json!(2);
    let reply = Reply::read(
        worker
            .send(Method::POST, "/v1/completions", &[], body.to_string())
            .await,
    )
    .await;
    assert_eq!(reply.status, StatusCode::OK, "{}", reply.text());
    let logprobs = &reply.json()["choices"][0]["logprobs"];
    let values = logprobs["token_logprobs"].as_array().unwrap();
    assert_eq!(values.len(), 5);
    assert!(values.iter().all(|value| value.as_f64().unwrap() < 0.0));
    assert_eq!(logprobs["top_logprobs"][0].as_object().unwrap().len(), 2);
}

#[tokio::test]
async fn simulated_ranks_answer_alike_and_share_their_faults() {
    let flags = ["--sim-speedup", "inf", "--data-parallel-size", "2"];
    let worker = Worker::start_sim(&flags).await;
    let mut answers = Vec::new();
    for rank in ["0", "1"] {
        let headers = [("x-data-parallel-rank", rank)];
        let body = completion(20).to_string();
        let reply = worker.send(Method::POST, "/v1/completions", &headers, body);
        answers.push(Reply::read(reply.await).await.json());
    }
    assert_eq!(answers[0]["choices"], answers[1]["choices"]);
    assert_eq!(
        answers[1]["usage"]["prompt_tokens_details"]["cached_tokens"],
        0
    );
}
