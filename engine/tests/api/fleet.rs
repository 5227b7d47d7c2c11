//! A worker among others: ranks, headers, HTTP metrics, what is told while it stops.

use hyper::{Method, StatusCode};
use pointsman_engine::worker::EngineHandle;
use serde_json::{Value, json};

use crate::support::{Reply, Worker};

const COMPLETIONS: &str = "/v1/completions";

impl Worker {
    /// Posts a completion with further headers.
    async fn complete(&self, headers: &[(&str, &str)], body: &Value) -> Reply {
        Reply::read(
            self.send(Method::POST, COMPLETIONS, headers, body.to_string())
                .await,
        )
        .await
    }

    /// Cached tokens of a completion on a rank.
    async fn cached(&self, rank: &str, body: &Value) -> u64 {
        let reply = self.complete(&[("X-data-parallel-rank", rank)], body).await;
        assert_eq!(reply.status, StatusCode::OK, "{}", reply.text());
        let usage = &reply.json()["usage"];
        usage["prompt_tokens_details"]["cached_tokens"]
            .as_u64()
            .unwrap()
    }
}

#[tokio::test]
async fn a_rank_has_a_cache_a_page_and_events_of_its_own() {
    let events = json!({
        "enable_kv_cache_events": true,
        "endpoint": "tcp://127.0.0.1:0",
        "replay_endpoint": "tcp://127.0.0.1:0",
    });
    let worker = Worker::start(&[
        "--data-parallel-size",
        "2",
        "--server-dev-mode",
        "--kv-events-config",
        &events.to_string(),
    ])
    .await;
    let body = json!({"prompt": vec![9; 40], "max_tokens": 2, "ignore_eos": true});
    assert_eq!(worker.cached("1", &body).await, 0);
    assert_eq!(worker.cached("0", &body).await, 0, "ranks share no blocks");
    assert_eq!(worker.cached("1", &body).await, 32);
    for (rank, tokens) in [("0", "2"), ("1", "4")] {
        let labels = format!("{{model_name=\"demo\",engine=\"{rank}\"}}");
        let series = format!("vllm:generation_tokens_total{labels}");
        assert_eq!(worker.metric(&series).await, tokens, "rank {rank}");
    }
    let sources = worker.get("/kv_event_sources").await.json();
    let ranks: Vec<&String> = sources.as_object().unwrap().keys().collect();
    assert_eq!(ranks, ["0", "1"]);
    assert_ne!(sources["0"]["endpoint"], sources["1"]["endpoint"]);
    let reset = worker.ask("/reset_prefix_cache", &json!({})).await;
    assert_eq!(reset, json!({"success": true}));
    for rank in ["0", "1"] {
        assert_eq!(worker.cached(rank, &body).await, 0, "all ranks are reset");
    }
}

#[tokio::test]
async fn ranks_that_share_the_model_give_the_tokens_of_one() {
    let body = json!({
        "prompt": "The queue is a promise to", "max_tokens": 40, "temperature": 0, "return_token_ids": true
    });
    let mut answers = Vec::new();
    for ranks in ["1", "2"] {
        let worker = Worker::start(&["--tensor-parallel-size", ranks]).await;
        let prompts = [
            body.clone(),
            json!({"prompt": vec![7; 90], "max_tokens": 5, "temperature": 0}),
        ];
        for body in &prompts {
            let reply = worker.complete(&[], body).await;
            assert_eq!(reply.status, StatusCode::OK, "{}", reply.text());
            answers.push(reply.json()["choices"][0].clone());
        }
    }
    assert_eq!(answers[0]["token_ids"].as_array().unwrap().len(), 40);
    assert_eq!(answers[..2], answers[2..]);
}

#[tokio::test]
async fn groups_of_ranks_that_cannot_be_are_refused() {
    for (flags, expected) in [
        (
            &["--tensor-parallel-size", "3"][..],
            "the model cannot be shared by 3 ranks",
        ),
        (
            &["--tensor-parallel-size", "2", "--data-parallel-size", "2"],
            "a single data-parallel rank",
        ),
    ] {
        let error = Worker::refused(&[&["--backend", "cpu"], flags].concat()).await;
        assert!(error.contains(expected), "{error}");
    }
}

#[tokio::test]
async fn ranks_compute_the_same() {
    let worker = Worker::start(&["--data-parallel-size", "2"]).await;
    let body = json!({"prompt": "The queue", "max_tokens": 24, "temperature": 0});
    let mut texts = Vec::new();
    for rank in ["0", "1"] {
        let reply = worker
            .complete(&[("x-data-parallel-rank", rank)], &body)
            .await;
        texts.push(reply.json()["choices"][0]["text"].clone());
    }
    assert_eq!(texts[0], texts[1]);
}

#[tokio::test]
async fn a_rank_that_is_none_is_refused() {
    let worker = Worker::start(&[]).await;
    let body = json!({"prompt": "x", "max_tokens": 1});
    for (rank, problem) in [
        ("1", "rank 1 is not one of this worker's 1"),
        ("one", "x-data-parallel-rank must be a whole number"),
    ] {
        let reply = worker
            .complete(&[("x-data-parallel-rank", rank)], &body)
            .await;
        assert_eq!(reply.status, StatusCode::BAD_REQUEST);
        let message = reply.json()["error"]["message"].to_string();
        assert!(message.contains(problem), "{message}");
    }
    assert_eq!(
        worker
            .complete(&[("x-data-parallel-rank", "0")], &body)
            .await
            .status,
        StatusCode::OK
    );
}

#[tokio::test]
async fn requests_without_a_rank_go_where_the_fewest_are() {
    let worker = Worker::start(&["--data-parallel-size", "2"]).await;
    let endless =
        json!({"prompt": [5, 6, 7], "max_tokens": 2000, "ignore_eos": true, "stream": true});
    let first = worker.open(COMPLETIONS, &endless).await;
    let second = worker.open(COMPLETIONS, &endless).await;
    for rank in ["0", "1"] {
        let running = format!("vllm:num_requests_running{{model_name=\"demo\",engine=\"{rank}\"}}");
        worker.until_metric(&running, "1").await;
    }
    assert_eq!(worker.get("/load").await.json(), json!({"server_load": 2}));
    drop((first, second));
}

#[tokio::test]
async fn the_request_id_comes_back_where_it_is_wanted() {
    let body = json!({"prompt": "x", "max_tokens": 1});
    let worker = Worker::start(&["--enable-request-id-headers"]).await;
    let named = worker.complete(&[("X-Request-Id", "abc")], &body).await;
    assert_eq!(named.headers["x-request-id"], "abc");
    assert_eq!(named.json()["id"], "cmpl-abc");
    let unnamed = worker.complete(&[], &body).await;
    let id = unnamed.headers["x-request-id"].to_str().unwrap().to_owned();
    assert_eq!(unnamed.json()["id"], format!("cmpl-{id}"));
    let worker = Worker::start(&[]).await;
    let named = worker.complete(&[("X-Request-Id", "abc")], &body).await;
    assert!(!named.headers.contains_key("x-request-id"));
}

#[tokio::test]
async fn whole_answers_carry_the_load_that_was_asked_for() {
    let worker = Worker::start(&[]).await;
    let mut body = json!({"prompt": "x", "max_tokens": 1});
    for (format, load) in [
        (
            "text",
            "TEXT named_metrics.kv_cache_usage_perc=0.0, named_metrics.num_requests_waiting=0.0",
        ),
        (
            "JSON",
            r#"JSON {"named_metrics": {"kv_cache_usage_perc": 0.0, "num_requests_waiting": 0.0}}"#,
        ),
    ] {
        let headers = [("endpoint-load-metrics-format", format)];
        let reply = worker.complete(&headers, &body).await;
        assert_eq!(reply.headers["endpoint-load-metrics"], load);
    }
    let plain = worker.complete(&[], &body).await;
    assert!(!plain.headers.contains_key("endpoint-load-metrics"));
    body["stream"] = json!(true);
    let stream = worker
        .complete(&[("endpoint-load-metrics-format", "text")], &body)
        .await;
    assert!(!stream.headers.contains_key("endpoint-load-metrics"));
}

#[tokio::test]
async fn http_requests_are_counted_until_their_answers_end() {
    let worker = Worker::start(&[]).await;
    let body = json!({"prompt": "x", "max_tokens": 2, "n": 3, "ignore_eos": true});
    let length = worker.complete(&[], &body).await.text().len();
    worker.post(COMPLETIONS, &json!({"prompt": 1})).await;
    worker.get("/nowhere/1").await;
    worker.get("/health").await;
    let endless = json!({"prompt": [5], "max_tokens": 2000, "ignore_eos": true, "stream": true});
    let running = worker.open(COMPLETIONS, &endless).await;
    let by = |status| {
        format!(
            "http_requests_total{{handler=\"{COMPLETIONS}\",method=\"POST\",status=\"{status}\"}}"
        )
    };
    assert_eq!(
        worker.metric(&by("2xx")).await,
        "1",
        "the stream has not ended"
    );
    assert_eq!(worker.metric(&by("4xx")).await, "1");
    let none = "http_requests_total{handler=\"none\",method=\"GET\",status=\"4xx\"}";
    assert_eq!(worker.metric(none).await, "1");
    let bytes = format!("http_response_size_bytes_sum{{handler=\"{COMPLETIONS}\"}}");
    let bytes: usize = worker.metric(&bytes).await.parse().unwrap();
    assert!(
        bytes > length,
        "{bytes} bytes of two answers, {length} of the first"
    );
    let page = worker.get("/metrics").await.text();
    assert!(!page.contains("handler=\"/health\"") && !page.contains("handler=\"/metrics\""));
    let labels = "{model_name=\"demo\",engine=\"0\"}";
    let sum = async |name: &str| worker.metric(&format!("vllm:{name}_sum{labels}")).await;
    assert_eq!(sum("request_params_n").await, "3");
    assert_eq!(sum("request_max_num_generation_tokens").await, "2");
    drop(running);
}

#[tokio::test]
async fn a_whole_answer_keeps_its_length() {
    let worker = Worker::start(&[]).await;
    let reply = worker
        .complete(&[], &json!({"prompt": "x", "max_tokens": 1}))
        .await;
    let length = reply.headers["content-length"].to_str().unwrap();
    assert_eq!(length, reply.text().len().to_string());
}

#[tokio::test]
async fn a_draining_worker_asks_its_clients_to_leave() {
    let mut worker = Worker::start(&[]).await;
    let endless = json!({"prompt": [5], "max_tokens": 2000, "ignore_eos": true, "stream": true});
    let running = worker.open(COMPLETIONS, &endless).await;
    assert!(
        !worker
            .get("/health")
            .await
            .headers
            .contains_key("connection")
    );
    worker.begin_stop();
    worker
        .until_engine("the drain begins", EngineHandle::is_draining)
        .await;
    let health = worker.get("/health").await;
    assert_eq!(health.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(health.headers["connection"], "close");
    drop(running);
}
