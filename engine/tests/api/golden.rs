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
    let chat = json!({
        "messages": [{"role": "user", "content": "What does a cache do?"}],
        "max_tokens": 4, "temperature": 0, "ignore_eos": true, "request_id": "golden",
    });
    let completion = json!({
        "prompt": "The cache", "max_tokens": 3, "temperature": 0, "ignore_eos": true, "request_id": "golden",
    });
    let stream = json!({"stream": true, "stream_options": {"include_usage": true}});
    let mut cases = Vec::new();
    let mut add = |name, path, base: &Value, more: &[Value]| {
        let mut request = base.as_object().unwrap().clone();
        for more in more {
            request.extend(more.as_object().unwrap().clone());
        }
        cases.push((name, path, Value::Object(request)));
    };
    let ids = json!({"return_token_ids": true});
    let top = json!({"logprobs": true, "top_logprobs": 2});
    add("chat", CHAT, &chat, &[]);
    add("chat streamed", CHAT, &chat, std::slice::from_ref(&stream));
    add(
        "chat with log probabilities and token ids",
        CHAT,
        &chat,
        &[top.clone(), ids.clone()],
    );
    add(
        "chat streamed with log probabilities and token ids",
        CHAT,
        &chat,
        &[top, ids.clone(), stream.clone()],
    );
    add(
        "chat with the prompt's log probabilities",
        CHAT,
        &chat,
        &[json!({"prompt_logprobs": 1, "max_tokens": 1})],
    );
    let said = json!({
        "messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "The cache"}],
        "add_generation_prompt": false, "continue_final_message": true, "echo": true,
    });
    add(
        "chat that goes on with its last message",
        CHAT,
        &chat,
        std::slice::from_ref(&said),
    );
    add("completion", COMPLETIONS, &completion, &[]);
    add(
        "completion streamed",
        COMPLETIONS,
        &completion,
        std::slice::from_ref(&stream),
    );
    add(
        "completion with log probabilities",
        COMPLETIONS,
        &completion,
        &[json!({"logprobs": 2})],
    );
    let by_id =
        json!({"logprobs": 1, "logprob_token_ids": [9, 10], "return_tokens_as_token_ids": true});
    add(
        "completion with log probabilities of chosen tokens by id",
        COMPLETIONS,
        &completion,
        &[by_id],
    );
    let echo = json!({"echo": true, "logprobs": 1});
    add(
        "completion echoed with log probabilities",
        COMPLETIONS,
        &completion,
        std::slice::from_ref(&echo),
    );
    add(
        "completion echoed and streamed with log probabilities",
        COMPLETIONS,
        &completion,
        &[echo.clone(), stream.clone()],
    );
    add(
        "completion that is only its echo",
        COMPLETIONS,
        &completion,
        &[echo, json!({"max_tokens": 0})],
    );
    let two = json!({"prompt_logprobs": 1, "n": 2, "seed": 1, "max_tokens": 1});
    add(
        "completion with the prompt's log probabilities, two choices",
        COMPLETIONS,
        &completion,
        &[two, ids.clone()],
    );
    add(
        "completion streamed with token ids",
        COMPLETIONS,
        &completion,
        &[ids, stream],
    );
    add(
        "completion stopped by a string",
        COMPLETIONS,
        &completion,
        &[json!({"max_tokens": 20, "stop": [".", "e"]})],
    );
    add(
        "completion refused",
        COMPLETIONS,
        &completion,
        &[json!({"logit_bias": {"-1": 1}})],
    );
    cases
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
