//! What a client is told when it is wrong: status, field, and words that help.

use hyper::{Method, StatusCode};
use serde_json::{Value, json};

use crate::support::{Reply, Worker};

const COMPLETIONS: &str = "/v1/completions";

/// Checks the shape of an error and returns its message.
fn message(reply: &Reply, status: u16, param: Option<&str>) -> String {
    let body = reply.json();
    let error = &body["error"];
    let context = format!("{body}");
    assert_eq!(reply.status.as_u16(), status, "{context}");
    assert_eq!(error["code"], status, "{context}");
    assert_eq!(
        error["param"],
        param.map_or(Value::Null, Value::from),
        "{context}"
    );
    assert!(!error["type"].as_str().unwrap().is_empty(), "{context}");
    error["message"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn fields_that_are_wrong_are_named() {
    let worker = Worker::start(&[]).await;
    for (body, param) in [
        (json!({}), "prompt"),
        (json!({"prompt": []}), "prompt"),
        (json!({"prompt": [[1], []]}), "prompt[1]"),
        (json!({"prompt": "x", "max_tokens": 0}), "max_tokens"),
        (json!({"prompt": "x", "max_tokens": "many"}), "max_tokens"),
        (
            json!({"prompt": "x", "max_tokens": 1_000_000}),
            "max_tokens",
        ),
        (json!({"prompt": "x", "temperature": -1}), "temperature"),
        (json!({"prompt": "x", "n": 0}), "n"),
        (json!({"prompt": "x", "stop": [""]}), "stop"),
        (json!({"prompt": "x", "best_of": 2}), "best_of"),
        (
            json!({"prompt": "x", "logit_bias": {"99999": 5}}),
            "logit_bias",
        ),
        (json!({"prompt": "x", "bad_words": [""]}), "bad_words"),
        (
            json!({"prompt": "x", "allowed_token_ids": []}),
            "allowed_token_ids",
        ),
        (json!({"prompt": "x", "suffix": "y"}), "suffix"),
        (
            json!({"prompt": "x", "response_format": {"type": "json_object"}}),
            "response_format",
        ),
        (
            json!({"prompt": "x", "prompt_logprobs": 1, "stream": true}),
            "prompt_logprobs",
        ),
        (
            json!({"prompt": "x", "stream_options": {"include_usage": true}}),
            "stream_options",
        ),
        (json!({"prompt": "x", "cache_salt": "a/b"}), "cache_salt"),
        (
            json!({"prompt": "x", "truncate_prompt_tokens": 0}),
            "truncate_prompt_tokens",
        ),
    ] {
        let reply = worker.post(COMPLETIONS, &body).await;
        let message = message(&reply, 400, Some(param));
        assert!(message.contains(param), "{message}");
    }
    assert!(worker.engine.is_idle());
}

#[tokio::test]
async fn chats_that_are_wrong_are_named() {
    let worker = Worker::start(&[]).await;
    let hello = json!([{"role": "user", "content": "Hello"}]);
    for (body, param) in [
        (json!({"messages": []}), "messages"),
        (json!({"messages": [{"content": "x"}]}), "messages[0].role"),
        (
            json!({"messages": hello, "tool_choice": "required"}),
            "tool_choice",
        ),
        (
            json!({"messages": hello, "top_logprobs": 2}),
            "top_logprobs",
        ),
        (
            json!({"messages": hello, "chat_template": "{{ messages }}"}),
            "chat_template",
        ),
        (
            json!({"messages": hello, "continue_final_message": true}),
            "continue_final_message",
        ),
        (
            json!({"messages": hello, "structured_outputs": {"regex": "a"}}),
            "structured_outputs",
        ),
    ] {
        let reply = worker.post("/v1/chat/completions", &body).await;
        message(&reply, 400, Some(param));
    }
    // The template refuses in its own words.
    let body = json!({"messages": [{"role": "oracle", "content": "x"}]});
    let reply = worker.post("/v1/chat/completions", &body).await;
    assert!(message(&reply, 400, None).contains("oracle"));
}

#[tokio::test]
async fn broken_json_is_placed() {
    let worker = Worker::start(&[]).await;
    let response = worker
        .send(
            Method::POST,
            COMPLETIONS,
            &[],
            "{\"prompt\": \"x\",\n oops}",
        )
        .await;
    let text = message(&Reply::read(response).await, 400, None);
    assert!(text.contains("line 2 column 2"), "{text}");
}

#[tokio::test]
async fn unknown_models_and_places_are_404() {
    let worker = Worker::start(&[]).await;
    let reply = worker
        .post(COMPLETIONS, &json!({"model": "gpt-5", "prompt": "x"}))
        .await;
    assert_eq!(
        message(&reply, 404, Some("model")),
        "The model `gpt-5` does not exist."
    );
    assert!(message(&worker.get("/v1/nothing").await, 404, None).contains("/v1/nothing"));
    let reply = worker.post("/reset_prefix_cache", &json!({})).await;
    assert_eq!(reply.status, StatusCode::NOT_FOUND, "only in dev mode");
}

#[tokio::test]
async fn a_prompt_beyond_the_context_is_told_the_numbers() {
    let worker = Worker::start(&["--max-model-len", "64"]).await;
    let reply = worker
        .post(
            COMPLETIONS,
            &json!({"prompt": vec![5; 64], "max_tokens": 1}),
        )
        .await;
    let text = message(&reply, 400, None);
    assert!(text.contains("64"), "{text}");
    let reply = worker
        .post(
            COMPLETIONS,
            &json!({"prompt": vec![5; 60], "max_tokens": 5}),
        )
        .await;
    let text = message(&reply, 400, Some("max_tokens"));
    assert!(text.contains("5 > 64 - 60"), "{text}");
    // A default limit is lowered to what there is room for.
    let body = json!({"prompt": vec![5; 60], "ignore_eos": true});
    assert_eq!(
        worker.ask(COMPLETIONS, &body).await["usage"]["completion_tokens"],
        4
    );
    let reply = worker
        .post(COMPLETIONS, &json!({"prompt": [1_000_000]}))
        .await;
    assert!(message(&reply, 400, None).contains("1000000"));
}

#[tokio::test]
async fn a_body_beyond_the_limit_is_413() {
    let worker = Worker::start(&["--max-request-body-bytes", "1KiB"]).await;
    let body = json!({"prompt": "x".repeat(2000)});
    assert!(message(&worker.post(COMPLETIONS, &body).await, 413, None).contains("1024"));
}
