//! What machines ask: health, models, metrics, KV events, administration.

use std::time::Duration;

use axum::body::Bytes;
use hyper::StatusCode;
use pointsman_proto::kv_events::{Event, decode};
use serde_json::json;
use zeromq::{DealerSocket, Socket, SocketRecv, SocketSend, ZmqMessage};

use crate::support::{DEADLINE, Worker};

#[tokio::test]
async fn a_healthy_worker_says_what_it_is() {
    let worker = Worker::start(&["--served-model-name", "alias"]).await;
    for path in ["/health", "/ping"] {
        let reply = worker.get(path).await;
        assert_eq!(
            (reply.status, reply.text()),
            (StatusCode::OK, String::new()),
            "{path}"
        );
    }
    let models = worker.get("/v1/models").await.json();
    assert_eq!(models["object"], "list");
    let names: Vec<&str> = models["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|card| card["id"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["demo", "alias"]);
    assert_eq!(
        models["data"][0]["max_model_len"],
        worker.engine.max_model_len()
    );
    assert!(worker.get("/version").await.json()["version"].is_string());
    assert_eq!(worker.get("/load").await.json(), json!({"server_load": 0}));
    let answer = worker
        .ask("/v1/completions", &json!({"model": "alias", "prompt": "x"}))
        .await;
    assert_eq!(answer["model"], "alias");
}

#[tokio::test]
async fn metrics_agree_with_what_clients_were_told() {
    let worker = Worker::start(&[]).await;
    let labels = "{model_name=\"demo\",engine=\"0\"}";
    assert_eq!(
        worker
            .metric(&format!("vllm:generation_tokens_total{labels}"))
            .await,
        "0",
        "the step before the port opened is not counted"
    );
    let mut prompt_tokens = 0;
    let mut generated_tokens = 0;
    for prompt in ["One", "The queue is long", "One"] {
        let body = json!({"prompt": prompt, "max_tokens": 7, "ignore_eos": true});
        let usage = worker.ask("/v1/completions", &body).await["usage"].clone();
        prompt_tokens += usage["prompt_tokens"].as_u64().unwrap();
        generated_tokens += usage["completion_tokens"].as_u64().unwrap();
    }
    for (series, expected) in [
        ("prompt_tokens_total", prompt_tokens),
        ("generation_tokens_total", generated_tokens),
        ("request_generation_tokens_sum", generated_tokens),
        ("request_prompt_tokens_sum", prompt_tokens),
        ("e2e_request_latency_seconds_count", 3),
        ("time_to_first_token_seconds_count", 3),
        ("inter_token_latency_seconds_count", generated_tokens - 3),
        ("num_requests_running", 0),
        ("num_requests_waiting", 0),
        ("kv_cache_usage_perc", 0),
    ] {
        assert_eq!(
            worker.metric(&format!("vllm:{series}{labels}")).await,
            expected.to_string(),
            "{series}"
        );
    }
    let reply = worker.get("/metrics").await;
    assert_eq!(
        reply.headers["content-type"],
        "text/plain; version=0.0.4; charset=utf-8"
    );
}

#[tokio::test]
async fn the_prefix_cache_can_be_reset_in_dev_mode() {
    let worker = Worker::start(&["--server-dev-mode"]).await;
    let body = json!({"prompt": vec![9; 40], "max_tokens": 1});
    let cached = async || {
        let usage = worker.ask("/v1/completions", &body).await["usage"].clone();
        usage["prompt_tokens_details"]["cached_tokens"]
            .as_u64()
            .unwrap()
    };
    assert_eq!((cached().await, cached().await), (0, 32));
    assert_eq!(
        worker.ask("/reset_prefix_cache", &json!({})).await,
        json!({"success": true})
    );
    assert_eq!(cached().await, 0);
}

/// Asks the replay socket for everything until `enough` likes it.
pub(crate) async fn replayed(
    endpoint: &str,
    enough: impl Fn(&[(u64, Vec<Event>)]) -> bool,
) -> Vec<(u64, Vec<Event>)> {
    let mut socket = DealerSocket::new();
    socket.connect(endpoint).await.unwrap();
    let work = async {
        loop {
            let frames = vec![Bytes::new(), Bytes::copy_from_slice(&0_u64.to_be_bytes())];
            socket
                .send(ZmqMessage::try_from(frames).unwrap())
                .await
                .unwrap();
            let mut batches = Vec::new();
            loop {
                let frames = socket.recv().await.unwrap().into_vec();
                let [_, _, sequence, payload] = frames.as_slice() else {
                    panic!("{frames:?}")
                };
                if sequence.as_ref() == [0xff; 8] {
                    break;
                }
                let sequence = u64::from_be_bytes(sequence.as_ref().try_into().unwrap());
                batches.push((sequence, decode(payload).unwrap().batch.events));
            }
            if enough(&batches) {
                return batches;
            }
        }
    };
    tokio::time::timeout(DEADLINE, work)
        .await
        .expect("the events come in time")
}

#[tokio::test]
async fn kv_events_tell_what_was_stored() {
    let config = json!({
        "enable_kv_cache_events": true,
        "endpoint": "tcp://127.0.0.1:0",
        "replay_endpoint": "tcp://127.0.0.1:0",
        "topic": "kv@test@demo",
    });
    let worker = Worker::start(&["--kv-events-config", &config.to_string()]).await;
    let sources = worker.get("/kv_event_sources").await.json();
    assert_eq!(sources["0"]["topic"], "kv@test@demo");
    assert!(!sources["0"]["endpoint"].as_str().unwrap().ends_with(":0"));
    let prompt: Vec<u32> = (400..440).collect();
    worker
        .ask(
            "/v1/completions",
            &json!({"prompt": prompt, "max_tokens": 1}),
        )
        .await;
    let endpoint = sources["0"]["replay_endpoint"].as_str().unwrap();
    let batches = replayed(endpoint, |batches| batches.len() >= 2).await;
    assert_eq!(
        batches[0],
        (0, vec![Event::AllBlocksCleared]),
        "a new worker says so first"
    );
    let (sequence, events) = &batches[1];
    let [Event::BlockStored(stored)] = events.as_slice() else {
        panic!("{events:?}")
    };
    assert_eq!(*sequence, 1);
    assert_eq!(stored.token_ids, prompt[..32]);
    assert_eq!(
        (stored.block_size, stored.block_hashes.len(), stored.parent),
        (16, 2, None)
    );
}

#[tokio::test]
async fn without_kv_events_there_is_no_source() {
    let worker = Worker::start(&[]).await;
    assert_eq!(
        worker.get("/kv_event_sources").await.status,
        StatusCode::NOT_FOUND
    );
}

#[tokio::test]
async fn a_scrape_is_cheap() {
    let worker = Worker::start(&[]).await;
    worker.get("/metrics").await;
    let started = std::time::Instant::now();
    for _ in 0..20 {
        worker.get("/metrics").await;
    }
    // Some 400 lines; the bound leaves room for a busy machine.
    assert!(
        started.elapsed() / 20 < Duration::from_millis(50),
        "{:?}",
        started.elapsed() / 20
    );
}
