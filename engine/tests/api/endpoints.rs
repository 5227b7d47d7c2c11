//! The endpoints beside chats and completions: rendering, tokens in and out, dispatch, keys, developer mode.

use hyper::{Method, StatusCode};
use serde_json::{Value, json};

use crate::support::{Reply, Worker};

const GENERATE: &str = "/inference/v1/generate";

fn hello() -> Value {
    json!([{"role": "user", "content": "Hello there, how are the trains today?"}])
}

#[tokio::test]
async fn a_rendered_request_runs_elsewhere_as_it_would_have_here() {
    let worker = Worker::start(&[]).await;
    let chat = json!({"messages": hello(), "max_tokens": 6, "temperature": 0, "ignore_eos": true,
                      "return_token_ids": true, "stop": ["never said"], "priority": 0});
    let rendered = worker.ask("/v1/chat/completions/render", &chat).await;
    let prompt = json!({"messages": hello()});
    let tokens = worker.ask("/tokenize", &prompt).await["tokens"].clone();
    assert_eq!(rendered["token_ids"], tokens);
    assert_eq!(rendered["sampling_params"]["max_tokens"], 6);
    assert_eq!(rendered["sampling_params"]["stop"], json!(["never said"]));
    assert_eq!(rendered["model"], "demo");
    let generated = worker.ask(GENERATE, &rendered).await;
    let answered = worker.ask("/v1/chat/completions", &chat).await;
    assert_eq!(
        generated["choices"][0]["token_ids"], answered["choices"][0]["token_ids"],
        "{generated} {answered}"
    );
    assert_eq!(generated["usage"], {
        let mut usage = answered["usage"].clone();
        // The second of the two finds the first one's blocks.
        usage["prompt_tokens_details"] = generated["usage"]["prompt_tokens_details"].clone();
        usage
    });
}

#[tokio::test]
async fn each_prompt_of_a_completion_is_rendered() {
    let worker = Worker::start(&[]).await;
    let body = json!({"prompt": ["one", "two"], "logprobs": 2, "seed": 7, "cache_salt": "s", "stream": true});
    let rendered = worker.ask("/v1/completions/render", &body).await;
    let [one, two] = rendered.as_array().unwrap().as_slice() else {
        panic!("{rendered}")
    };
    assert_ne!(one["token_ids"], two["token_ids"]);
    for request in [one, two] {
        assert_eq!(request["cache_salt"], "s");
        assert_eq!(request["stream"], true);
        let params = &request["sampling_params"];
        assert_eq!(
            (&params["logprobs"], &params["seed"], &params["max_tokens"]),
            (&json!(2), &json!(7), &json!(16))
        );
    }
    let reply = worker
        .post("/v1/completions/render", &json!({"prompt": "x", "n": 0}))
        .await;
    assert_eq!(reply.json()["error"]["param"], "n");
    assert!(worker.engine.is_idle());
}

#[tokio::test]
async fn tokens_go_in_and_come_out() {
    let worker = Worker::start(&[]).await;
    let params = json!({"max_tokens": 5, "temperature": 0, "ignore_eos": true, "logprobs": 2});
    let body = json!({"request_id": "mine", "token_ids": [10, 11, 12], "sampling_params": params});
    let whole = worker.ask(GENERATE, &body).await;
    assert_eq!(whole["request_id"], "generate-tokens-mine");
    let choice = &whole["choices"][0];
    assert_eq!(choice["token_ids"].as_array().unwrap().len(), 5);
    assert_eq!(
        (&choice["finish_reason"], &choice["text"]),
        (&json!("length"), &Value::Null)
    );
    assert_eq!(whole["usage"]["prompt_tokens"], 3);
    let logprobs = choice["logprobs"]["content"].as_array().unwrap();
    assert_eq!(logprobs.len(), 5);
    for (entry, id) in logprobs.iter().zip(choice["token_ids"].as_array().unwrap()) {
        assert_eq!(
            (&entry["token_id"], &entry["rank"]),
            (id, &json!(1)),
            "greedy"
        );
        let top = entry["top_logprobs"].as_array().unwrap();
        assert_eq!(
            (top.len(), &top[0]["token_id"]),
            (2, id),
            "the sampled token goes first"
        );
        assert_eq!(top[1]["rank"], 2);
    }

    let mut streamed = body.clone();
    streamed["stream"] = json!(true);
    streamed["stream_options"] = json!({"include_usage": true});
    streamed["output_mode"] = json!("text");
    streamed["return_token_ids"] = json!(true);
    let events = worker.open(GENERATE, &streamed).await.all().await;
    let (usage, chunks) = events.split_last().unwrap();
    assert_eq!(usage["usage"]["completion_tokens"], 5);
    assert_eq!(chunks[0]["prompt_token_ids"], json!([10, 11, 12]));
    let ids: Vec<Value> = chunks
        .iter()
        .flat_map(|chunk| chunk["choices"][0]["token_ids"].as_array().unwrap().clone())
        .collect();
    assert_eq!(Value::from(ids), choice["token_ids"]);
    assert!(
        chunks
            .iter()
            .all(|chunk| chunk["choices"][0]["text"].is_string())
    );
}

#[tokio::test]
async fn what_is_wrong_with_tokens_is_named() {
    let worker = Worker::start(&[]).await;
    for (body, param) in [
        (json!({"token_ids": []}), "token_ids"),
        (json!({"sampling_params": {}}), "token_ids"),
        (json!({"token_ids": [1_000_000]}), "token_ids"),
        (json!({"token_ids": [-1]}), "token_ids"),
        (
            json!({"token_ids": [5], "output_mode": "derender"}),
            "output_mode",
        ),
        (
            json!({"token_ids": [5], "sampling_params": {"max_tokens": 0}}),
            "max_tokens",
        ),
        (
            json!({"token_ids": [5], "sampling_params": {"temperature": "hot"}}),
            "temperature",
        ),
        (
            json!({"token_ids": [5], "kv_transfer_params": {"do_remote_prefill": true}}),
            "kv_transfer_params",
        ),
    ] {
        let reply = worker.post(GENERATE, &body).await;
        assert_eq!(
            reply.status,
            StatusCode::BAD_REQUEST,
            "{body} {}",
            reply.text()
        );
        assert_eq!(
            reply.json()["error"]["param"],
            param,
            "{body} {}",
            reply.text()
        );
    }
}

#[tokio::test]
async fn invocations_go_where_the_body_belongs() {
    let worker = Worker::start(&[]).await;
    let chat = json!({"messages": hello(), "max_tokens": 1});
    let completion = json!({"prompt": "x", "max_tokens": 1});
    for (body, object) in [(chat, "chat.completion"), (completion, "text_completion")] {
        assert_eq!(worker.ask("/invocations", &body).await["object"], object);
    }
    let reply = worker.post("/invocations", &json!({"model": "demo"})).await;
    assert_eq!(reply.status, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn a_model_can_be_asked_for_by_name() {
    let worker = Worker::start(&["--served-model-name", "org/model"]).await;
    let card = worker.get("/v1/models/org/model").await.json();
    assert_eq!(
        (&card["id"], &card["object"]),
        (&json!("org/model"), &json!("model"))
    );
    assert_eq!(card["permission"][0]["allow_sampling"], true);
    assert_eq!(
        worker.get("/v1/models/other").await.status,
        StatusCode::NOT_FOUND
    );
}

#[tokio::test]
async fn keys_guard_what_computes_and_nothing_else() {
    let worker = Worker::start(&["--api-key", "first", "second"]).await;
    let body = json!({"prompt": "x", "max_tokens": 1}).to_string();
    let ask = async |key: Option<&str>| {
        let value = key.map(|key| format!("Bearer {key}"));
        let headers: Vec<_> = value
            .iter()
            .map(|value| ("authorization", value.as_str()))
            .collect();
        let response = worker
            .send(Method::POST, "/v1/completions", &headers, body.clone())
            .await;
        Reply::read(response).await
    };
    for key in ["first", "second"] {
        assert_eq!(ask(Some(key)).await.status, StatusCode::OK);
    }
    for key in [None, Some("third"), Some("")] {
        let reply = ask(key).await;
        assert_eq!(reply.status, StatusCode::UNAUTHORIZED);
        assert_eq!(reply.json(), json!({"error": "Unauthorized"}));
    }
    for path in ["/v1/models", "/v1/nothing"] {
        assert_eq!(
            worker.get(path).await.status,
            StatusCode::UNAUTHORIZED,
            "{path}"
        );
    }
    for path in ["/health", "/metrics", "/version", "/load"] {
        assert_eq!(worker.get(path).await.status, StatusCode::OK, "{path}");
    }
}

#[tokio::test]
async fn a_path_says_so_when_the_method_is_wrong() {
    let worker = Worker::start(&[]).await;
    for (method, path) in [
        (Method::GET, "/v1/completions"),
        (Method::DELETE, "/v1/models"),
        (Method::PUT, "/inference/v1/generate"),
    ] {
        let reply = Reply::read(worker.send(method, path, &[], "").await).await;
        assert_eq!(reply.status, StatusCode::METHOD_NOT_ALLOWED, "{path}");
        assert_eq!(reply.json()["error"]["code"], 405, "{path}");
        assert!(reply.headers.contains_key("allow"), "{path}");
    }
}

#[tokio::test]
async fn an_operator_can_abort_everything() {
    let worker = Worker::start(&["--server-dev-mode"]).await;
    let endless =
        json!({"prompt": [5, 6, 7], "max_tokens": 2000, "ignore_eos": true, "stream": true});
    let mut events = worker.open("/v1/completions", &endless).await;
    events.next().await.unwrap();
    let answer = worker.ask("/abort_requests", &json!({})).await;
    assert_eq!(answer, json!({"status": "aborted", "aborted": 1}));
    let events = events.all().await;
    assert_eq!(
        events.last().unwrap()["choices"][0]["finish_reason"],
        "abort"
    );
    let some = json!({"request_ids": ["a"]});
    let reply = worker.post("/abort_requests", &some).await;
    assert_eq!(
        (reply.status.as_u16(), &reply.json()["error"]["param"]),
        (501, &json!("request_ids"))
    );
    let info = worker.get("/server_info").await.json();
    assert_eq!(
        info["vllm_config"]["max_model_len"],
        worker.engine.max_model_len()
    );
}

fn endless() -> Value {
    json!({"prompt": [5, 6, 7], "max_tokens": 2000, "ignore_eos": true, "stream": true, "seed": 1})
}

#[tokio::test]
async fn a_paused_worker_refuses_and_goes_on_afterwards() {
    let worker = Worker::start(&["--server-dev-mode"]).await;
    let mut events = worker.open("/v1/completions", &endless()).await;
    events.next().await.unwrap();
    assert_eq!(
        worker.ask("/pause", &json!({})).await,
        json!({"status": "paused"})
    );
    let events = events.all().await;
    assert_eq!(
        events.last().unwrap()["choices"][0]["finish_reason"],
        "abort"
    );
    assert_eq!(
        worker.get("/is_paused").await.json(),
        json!({"is_paused": true})
    );
    let short = json!({"prompt": "x", "max_tokens": 1});
    for reply in [
        worker.post("/v1/completions", &short).await,
        worker.get("/health").await,
    ] {
        assert_eq!(reply.status, StatusCode::SERVICE_UNAVAILABLE);
    }
    assert_eq!(
        worker.ask("/resume", &json!({})).await,
        json!({"status": "resumed"})
    );
    assert_eq!(worker.get("/health").await.status, StatusCode::OK);
    worker.ask("/v1/completions", &short).await;
}

#[tokio::test]
async fn a_worker_that_keeps_its_requests_goes_on_with_them() {
    let worker = Worker::start(&["--server-dev-mode"]).await;
    let mut events = worker.open("/v1/completions", &endless()).await;
    events.next().await.unwrap();
    worker.ask("/pause?mode=keep", &json!({})).await;
    let still = worker.engine.stats();
    assert_eq!(still.running + still.waiting, 1);
    worker.ask("/resume", &json!({})).await;
    events.next().await.unwrap();
    let reply = worker.post("/pause?mode=never", &json!({})).await;
    assert_eq!(reply.json()["error"]["param"], "mode");
}

#[tokio::test]
async fn a_sleeping_worker_wakes_by_its_tags_and_answers_as_before() {
    let worker = Worker::start(&["--server-dev-mode"]).await;
    let body = json!({"prompt": vec![9; 40], "max_tokens": 8, "temperature": 0, "ignore_eos": true,
                      "return_token_ids": true});
    let before = worker.ask("/v1/completions", &body).await;
    let slept = worker.ask("/sleep?level=1", &json!({})).await;
    assert_eq!(slept, json!({"status": "sleeping", "level": 1}));
    assert_eq!(
        worker.get("/is_sleeping").await.json(),
        json!({"is_sleeping": true})
    );
    assert_eq!(
        worker.get("/health").await.status,
        StatusCode::SERVICE_UNAVAILABLE
    );
    assert_eq!(
        worker.ask("/wake_up?tags=weights", &json!({})).await,
        json!({"status": "sleeping", "tags": ["weights"]})
    );
    assert_eq!(
        worker.ask("/wake_up?tags=kv_cache", &json!({})).await,
        json!({"status": "awake", "tags": ["kv_cache"]})
    );
    assert_eq!(
        worker.get("/is_sleeping").await.json(),
        json!({"is_sleeping": false})
    );
    let after = worker.ask("/v1/completions", &body).await;
    assert_eq!(
        after["choices"][0]["token_ids"],
        before["choices"][0]["token_ids"]
    );
    assert_eq!(after["usage"]["prompt_tokens_details"]["cached_tokens"], 0);
    for (path, param) in [("/sleep?level=3", "level"), ("/wake_up?tags=all", "tags")] {
        assert_eq!(
            worker.post(path, &json!({})).await.json()["error"]["param"],
            param
        );
    }
}

#[tokio::test]
async fn a_request_whose_time_is_over_is_504() {
    let worker = Worker::start(&[]).await;
    let mut body = endless();
    body["stream"] = json!(false);
    let headers = [("x-envoy-expected-rq-timeout-ms", "30")];
    let response = worker
        .send(Method::POST, "/v1/completions", &headers, body.to_string())
        .await;
    let reply = Reply::read(response).await;
    assert_eq!(
        reply.status,
        StatusCode::GATEWAY_TIMEOUT,
        "{}",
        reply.text()
    );
    assert_eq!(reply.json()["error"]["code"], 504);
    worker
        .until("its blocks are free", |stats| stats.blocks_used == 0)
        .await;
}

#[tokio::test]
async fn embeddings_have_length_one_and_agree_in_every_form() {
    let worker = Worker::start(&[]).await;
    let embed = async |body: &Value| worker.ask("/v1/embeddings", body).await;
    let both = embed(&json!({"input": ["A train leaves.", "The signal is red"]})).await;
    let floats = |answer: &Value, index: usize| -> Vec<f64> {
        serde_json::from_value(answer["data"][index]["embedding"].clone()).unwrap()
    };
    let first = floats(&both, 0);
    let length: f64 = first.iter().map(|value| value * value).sum();
    assert!((length - 1.0).abs() < 1e-4, "{length}");
    assert_ne!(first, floats(&both, 1));
    let text = json!({"prompt": "A train leaves."});
    let tokens = worker.ask("/tokenize", &text).await["tokens"].clone();
    let by_ids = embed(&json!({"input": tokens})).await;
    assert_eq!(floats(&by_ids, 0), first);
    assert_eq!(
        by_ids["usage"]["prompt_tokens"],
        by_ids["usage"]["total_tokens"]
    );
    let base64 = embed(&json!({"input": tokens, "encoding_format": "base64"})).await;
    let text = base64["data"][0]["embedding"].as_str().unwrap();
    assert_eq!(text.len(), (first.len() * 4).div_ceil(3) * 4);
    for (body, param) in [
        (json!({"input": []}), "input"),
        (json!({}), "input"),
        (json!({"input": "x", "dimensions": 3}), "dimensions"),
        (
            json!({"input": "x", "encoding_format": "hex"}),
            "encoding_format",
        ),
    ] {
        let reply = worker.post("/v1/embeddings", &body).await;
        assert_eq!(reply.json()["error"]["param"], param, "{}", reply.text());
    }
    assert!(worker.engine.is_idle());
}
