//! The answers of each shape, whole, against files that were read through once.
//!
//! `golden/answers.json` holds for each case the request and what a client gets. `UPDATE_GOLDEN=1` writes it anew; what
//! changes then is a change of the wire format, or of the demo model.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde_json::{Map, Value, json};

use crate::support::Worker;

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";

/// Log probabilities come from f32 sums whose order depends on the processor's widest instructions.
const TOLERANCE: f64 = 1e-3;

/// The cases: a name, the path and the request.
fn cases() -> Vec<(&'static str, &'static str, Value)> {
    let chats = chats().into_iter().map(|(name, body)| (name, CHAT, body));
    let completions = completions()
        .into_iter()
        .map(|(name, body)| (name, COMPLETIONS, body));
    chats.chain(completions).collect()
}

fn chats() -> Vec<(&'static str, Value)> {
    let base = json!({
        "messages": [{"role": "user", "content": "What does a cache do?"}],
        "max_tokens": 4, "temperature": 0, "ignore_eos": true, "request_id": "golden",
    });
    let (stream, ids) = (streamed(), json!({"return_token_ids": true}));
    let top = json!({"logprobs": true, "top_logprobs": 2});
    let said = json!({
        "messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "The cache"}],
        "add_generation_prompt": false, "continue_final_message": true, "echo": true,
    });
    let of_prompt = json!({"prompt_logprobs": 1, "max_tokens": 1});
    vec![
        ("chat", with(&base, &[])),
        ("chat streamed", with(&base, &[&stream])),
        (
            "chat with log probabilities and token ids",
            with(&base, &[&top, &ids]),
        ),
        (
            "chat streamed with log probabilities and token ids",
            with(&base, &[&top, &ids, &stream]),
        ),
        (
            "chat with the prompt's log probabilities",
            with(&base, &[&of_prompt]),
        ),
        (
            "chat that goes on with its last message",
            with(&base, &[&said]),
        ),
    ]
}

fn completions() -> Vec<(&'static str, Value)> {
    let base = json!({
        "prompt": "The cache", "max_tokens": 3, "temperature": 0, "ignore_eos": true, "request_id": "golden",
    });
    let (stream, ids) = (streamed(), json!({"return_token_ids": true}));
    let by_id =
        json!({"logprobs": 1, "logprob_token_ids": [9, 10], "return_tokens_as_token_ids": true});
    let echo = json!({"echo": true, "logprobs": 1});
    let two = json!({"prompt_logprobs": 1, "n": 2, "seed": 1, "max_tokens": 1});
    let stop = json!({"max_tokens": 20, "stop": [".", "e"]});
    vec![
        ("completion", with(&base, &[])),
        ("completion streamed", with(&base, &[&stream])),
        (
            "completion with log probabilities",
            with(&base, &[&json!({"logprobs": 2})]),
        ),
        (
            "completion with log probabilities of chosen tokens by id",
            with(&base, &[&by_id]),
        ),
        (
            "completion echoed with log probabilities",
            with(&base, &[&echo]),
        ),
        (
            "completion echoed and streamed with log probabilities",
            with(&base, &[&echo, &stream]),
        ),
        (
            "completion that is only its echo",
            with(&base, &[&echo, &json!({"max_tokens": 0})]),
        ),
        (
            "completion with the prompt's log probabilities, two choices",
            with(&base, &[&two, &ids]),
        ),
        (
            "completion streamed with token ids",
            with(&base, &[&ids, &stream]),
        ),
        ("completion stopped by a string", with(&base, &[&stop])),
        (
            "completion refused",
            with(&base, &[&json!({"logit_bias": {"-1": 1}})]),
        ),
    ]
}

fn streamed() -> Value {
    json!({"stream": true, "stream_options": {"include_usage": true}})
}

/// `base` with the fields of each of `more`, the later ones on top.
fn with(base: &Value, more: &[&Value]) -> Value {
    let mut request = base.as_object().unwrap().clone();
    for more in more {
        request.extend(more.as_object().unwrap().clone());
    }
    Value::Object(request)
}

async fn answer(worker: &Worker, path: &str, request: &Value) -> Value {
    let mut answer = if request["stream"] == true {
        Value::from(worker.open(path, request).await.all().await)
    } else {
        worker.post(path, request).await.json()
    };
    forget_time(&mut answer);
    answer
}

/// Sets each `created` to 0.
fn forget_time(value: &mut Value) {
    match value {
        Value::Array(list) => list.iter_mut().for_each(forget_time),
        Value::Object(map) => {
            if let Some(created) = map.get_mut("created") {
                assert!(created.as_u64().unwrap() > 1_600_000_000);
                *created = json!(0);
            }
            map.values_mut().for_each(forget_time);
        }
        _ => {}
    }
}

/// Whether the two are the same, but for small differences between numbers that are not whole.
fn alike(got: &Value, expected: &Value) -> bool {
    match (got, expected) {
        (Value::Array(a), Value::Array(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| alike(a, b))
        }
        (Value::Object(a), Value::Object(b)) => {
            let same_keys = a.keys().eq(b.keys());
            same_keys && a.iter().all(|(key, value)| alike(value, &b[key]))
        }
        (Value::Number(a), Value::Number(b)) if a.is_f64() && b.is_f64() => {
            (a.as_f64().unwrap() - b.as_f64().unwrap()).abs() < TOLERANCE
        }
        _ => got == expected,
    }
}

#[tokio::test]
async fn answers_have_the_shapes_on_record() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/answers.json");
    let worker = Worker::start(&[]).await;
    let mut answers = Map::new();
    for (name, path, request) in cases() {
        let answer = answer(&worker, path, &request).await;
        let case = json!({"path": path, "request": request, "answer": answer});
        answers.insert(name.to_owned(), case);
    }
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        let text = serde_json::to_string_pretty(&answers).unwrap();
        std::fs::write(&path, text + "\n").unwrap();
        return;
    }
    let text = std::fs::read_to_string(&path).unwrap();
    let expected: BTreeMap<String, Value> = serde_json::from_str(&text).unwrap();
    assert_eq!(
        answers.len(),
        expected.len(),
        "the cases are not those of the file"
    );
    for (name, got) in &answers {
        assert!(
            alike(got, &expected[name]),
            "{name}: {got:#}\ninstead of {:#}",
            expected[name]
        );
    }
}
