//! Thousands of requests that nobody meant: none of them may be a 500, hang, or leave anything behind.
//!
//! A request begins as a good one and is then bent: fields of the whole table of names get values of any type, fields
//! go missing, the bytes are cut, changed or not UTF-8. Whatever comes back has a status that blames the request (or
//! is a good answer) and an error body of the one form. `HOSTILE_REQUESTS=100000` asks for more of them than the
//! default, which takes some seconds.

use hyper::{Method, StatusCode};
use pointsman_engine::worker::EngineHandle;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use proptest::test_runner::{Config, TestRunner};
use serde_json::{Value, json};

use crate::support::{Reply, Worker};

/// The fields of all requests; those that a request type does not know must not matter to it.
const FIELDS: &[&str] = &[
    "model",
    "messages",
    "prompt",
    "input",
    "token_ids",
    "tokens",
    "sampling_params",
    "tools",
    "tool_choice",
    "add_generation_prompt",
    "continue_final_message",
    "chat_template",
    "chat_template_kwargs",
    "documents",
    "max_completion_tokens",
    "max_tokens",
    "min_tokens",
    "logprobs",
    "top_logprobs",
    "prompt_logprobs",
    "logprob_token_ids",
    "response_format",
    "structured_outputs",
    "n",
    "best_of",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "length_penalty",
    "logit_bias",
    "allowed_token_ids",
    "bad_words",
    "seed",
    "stop",
    "stop_token_ids",
    "include_stop_str_in_output",
    "ignore_eos",
    "skip_special_tokens",
    "spaces_between_special_tokens",
    "truncate_prompt_tokens",
    "truncation_side",
    "stream",
    "stream_options",
    "priority",
    "cache_salt",
    "request_id",
    "session_id",
    "return_token_ids",
    "return_tokens_as_token_ids",
    "return_token_strs",
    "user",
    "echo",
    "suffix",
    "add_special_tokens",
    "encoding_format",
    "endianness",
    "embed_dtype",
    "dimensions",
    "use_activation",
    "normalize",
    "output_mode",
    "kv_transfer_params",
    "vllm_xargs",
    "reasoning_effort",
    "include_reasoning",
    "modalities",
    "audio",
    "use_beam_search",
    "thinking_token_budget",
    "repetition_detection",
    "guided_json",
    "request_ids",
    "role",
    "content",
    "include_usage",
    "continuous_usage_stats",
];

/// A path and a good request for it. The context is 64 tokens, so that no answer is long.
fn good_requests() -> Vec<(&'static str, Value)> {
    let messages = json!([{"role": "user", "content": "Hello"}]);
    let chat = json!({"model": "demo", "messages": messages, "max_tokens": 3});
    let completion = json!({"model": "demo", "prompt": "Hello", "max_tokens": 3});
    vec![
        ("/v1/chat/completions", chat.clone()),
        (
            "/v1/chat/completions",
            json!({"messages": messages, "stream": true}),
        ),
        ("/v1/chat/completions/render", chat),
        ("/v1/completions", completion.clone()),
        (
            "/v1/completions",
            json!({"prompt": [[5, 6], [7]], "stream": true, "max_tokens": 2}),
        ),
        ("/v1/completions/render", completion),
        (
            "/v1/embeddings",
            json!({"model": "demo", "input": ["Hello", "there"]}),
        ),
        (
            "/inference/v1/generate",
            json!({"token_ids": [5, 6], "sampling_params": {"max_tokens": 3}}),
        ),
        (
            "/inference/v1/generate",
            json!({"token_ids": [5, 6], "stream": true, "output_mode": "text"}),
        ),
        ("/invocations", json!({"prompt": "Hello", "max_tokens": 2})),
        (
            "/tokenize",
            json!({"prompt": "Hello", "return_token_strs": true}),
        ),
        ("/tokenize", json!({"messages": messages})),
        ("/detokenize", json!({"tokens": [5, 6, 7]})),
        ("/abort_requests", json!({})),
    ]
}

/// Values that fields may have by mistake or malice.
fn values() -> impl Strategy<Value = Value> {
    let numbers = [
        -1_i64,
        0,
        1,
        2,
        3,
        20,
        21,
        128,
        129,
        2048,
        i64::from(u32::MAX),
        i64::MAX,
        i64::MIN,
    ];
    let texts = [
        "",
        "a",
        "auto",
        "none",
        "required",
        "json_object",
        "user",
        "\u{0}",
        "🚂\u{301}",
        "../../x",
        "-1",
        "1e9",
    ];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        select(numbers.to_vec()).prop_map(Value::from),
        any::<f32>().prop_map(Value::from),
        select(vec![0.0, 0.5, 1.0, 1e-9, 1e300, -0.5]).prop_map(Value::from),
        Just(json!(u64::MAX)),
        select(texts.to_vec()).prop_map(Value::from),
        ".{0,12}".prop_map(Value::from),
        Just(Value::from("word ".repeat(2000))),
        Just(deep(100)),
        Just(deep(200)),
    ];
    leaf.prop_recursive(3, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((key(), inner), 0..4)
                .prop_map(|entries| Value::Object(entries.into_iter().collect())),
        ]
    })
}

/// Lists in lists.
fn deep(levels: usize) -> Value {
    (0..levels).fold(Value::Null, |inner, _| Value::Array(vec![inner]))
}

fn key() -> impl Strategy<Value = String> {
    prop_oneof![
        3 => select(FIELDS.to_vec()).prop_map(str::to_owned),
        1 => select(vec!["type", "text", "function", "name", "5", "999999", "-1", ""]).prop_map(str::to_owned),
    ]
}

/// One way to bend a request.
#[derive(Clone, Debug)]
enum Bend {
    Set(String, Value),
    /// In the object or list that a field of the request holds.
    SetInside(Index, String, Value),
    Remove(Index),
}

impl Bend {
    fn apply(&self, body: &mut Value) {
        let Value::Object(fields) = body else { return };
        match self {
            Self::Set(name, value) => {
                fields.insert(name.clone(), value.clone());
            }
            Self::SetInside(field, name, value) if !fields.is_empty() => {
                let position = field.index(fields.len());
                let mut inside = fields.values_mut().nth(position);
                if let Some(Value::Array(list)) = inside {
                    inside = list.first_mut();
                }
                match inside {
                    Some(Value::Object(fields)) => {
                        fields.insert(name.clone(), value.clone());
                    }
                    Some(other) => *other = value.clone(),
                    None => {}
                }
            }
            Self::Remove(field) if !fields.is_empty() => {
                let name = fields.keys().nth(field.index(fields.len())).cloned();
                name.map(|name| fields.remove(&name));
            }
            Self::SetInside(..) | Self::Remove(_) => {}
        }
    }
}

fn bends() -> impl Strategy<Value = Vec<Bend>> {
    let bend = prop_oneof![
        6 => (key(), values()).prop_map(|(name, value)| Bend::Set(name, value)),
        2 => (any::<Index>(), key(), values()).prop_map(|(at, name, value)| Bend::SetInside(at, name, value)),
        1 => any::<Index>().prop_map(Bend::Remove),
    ];
    prop::collection::vec(bend, 1..4)
}

/// What happens to the bytes afterwards; mostly nothing.
#[derive(Clone, Debug)]
enum Damage {
    None,
    Cut(Index),
    Byte(Index, u8),
    Repeat,
}

impl Damage {
    fn apply(&self, bytes: &mut Vec<u8>) {
        match self {
            Self::None => {}
            Self::Cut(at) => bytes.truncate(at.index(bytes.len())),
            Self::Byte(at, byte) => {
                let at = at.index(bytes.len());
                bytes[at] = *byte;
            }
            Self::Repeat => bytes.extend_from_within(..),
        }
    }
}

fn damages() -> impl Strategy<Value = Damage> {
    prop_oneof![
        8 => Just(Damage::None),
        1 => any::<Index>().prop_map(Damage::Cut),
        1 => (any::<Index>(), any::<u8>()).prop_map(|(at, byte)| Damage::Byte(at, byte)),
        1 => Just(Damage::Repeat),
    ]
}

fn headers() -> impl Strategy<Value = Vec<(&'static str, &'static str)>> {
    let header = select(vec![
        ("x-request-id", "a/b c"),
        ("x-request-id", ""),
        ("x-vllm-priority", "high"),
        ("x-vllm-priority", "99999999999999999999"),
        ("x-vllm-priority", "-3"),
        ("x-data-parallel-rank", "7"),
        ("x-data-parallel-rank", "one"),
        ("x-envoy-expected-rq-timeout-ms", "never"),
        ("x-envoy-expected-rq-timeout-ms", "99999999999999999"),
        ("traceparent", "00-zz"),
        ("content-type", "text/plain"),
        ("endpoint-load-metrics-format", "xml"),
    ]);
    prop_oneof![3 => Just(Vec::new()), 1 => prop::collection::vec(header, 1..3)]
}

/// Statuses that blame the request or are no blame at all.
fn is_expected(status: StatusCode) -> bool {
    matches!(status.as_u16(), 200 | 400 | 404 | 413 | 422 | 501)
}

async fn check(
    worker: &Worker,
    path: &str,
    headers: &[(&str, &str)],
    body: Vec<u8>,
) -> Result<(), TestCaseError> {
    let reply = Reply::read(worker.send(Method::POST, path, headers, body).await).await;
    let text = reply.text();
    prop_assert!(is_expected(reply.status), "{} {}", reply.status, text);
    if reply.status == StatusCode::OK {
        prop_assert!(!text.contains("\"InternalServerError\""), "{text}");
        if text.starts_with("data: ") {
            prop_assert!(text.ends_with("data: [DONE]\n\n"), "{text}");
        }
        return Ok(());
    }
    let error = &reply.json()["error"];
    prop_assert_eq!(&error["code"], &json!(reply.status.as_u16()));
    for name in ["message", "type"] {
        prop_assert!(
            error[name].as_str().is_some_and(|text| !text.is_empty()),
            "{}",
            text
        );
    }
    Ok(())
}

#[test]
fn no_request_is_a_500_or_leaves_anything_behind() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let flags = ["--max-model-len", "64", "--server-dev-mode"];
    let worker = runtime.block_on(Worker::start(&flags));
    let cases = std::env::var("HOSTILE_REQUESTS").map_or(1500, |count| count.parse().unwrap());
    let mut runner = TestRunner::new(Config {
        cases,
        failure_persistence: None,
        ..Config::default()
    });
    let requests = (select(good_requests()), bends(), damages(), headers());
    let outcome = runner.run(&requests, |((path, mut body), bends, damage, headers)| {
        for bend in &bends {
            bend.apply(&mut body);
        }
        let mut bytes = body.to_string().into_bytes();
        damage.apply(&mut bytes);
        runtime.block_on(check(&worker, path, &headers, bytes))
    });
    outcome.unwrap_or_else(|failure| panic!("{failure}"));
    runtime.block_on(async {
        worker
            .until_engine("nothing is alive", EngineHandle::is_idle)
            .await;
        worker
            .until("nothing is held", |stats| {
                stats.running == 0 && stats.waiting == 0 && stats.blocks_used == 0
            })
            .await;
        assert_eq!(worker.get("/health").await.status, StatusCode::OK);
    });
}

#[tokio::test]
async fn every_good_request_is_good() {
    let worker = Worker::start(&["--max-model-len", "64", "--server-dev-mode"]).await;
    for (path, body) in good_requests() {
        let reply = worker.post(path, &body).await;
        assert_eq!(reply.status, StatusCode::OK, "{path} {}", reply.text());
    }
}
