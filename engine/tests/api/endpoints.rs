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
