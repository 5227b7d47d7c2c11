//! Fields that bear on which tokens come, from the request to the answer.

use pointsman_proto::prompt::PromptEncoder;
use serde_json::{Value, json};

use crate::support::Worker;

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";

/// A greedy completion of eight tokens with `more` fields.
fn greedy(more: &Value) -> Value {
    let mut request = json!({
        "prompt": "The gateway sends the request to", "max_tokens": 8, "temperature": 0, "ignore_eos": true,
        "return_token_ids": true,
    });
    let fields = request.as_object_mut().unwrap();
    fields.extend(more.as_object().unwrap().clone());
    request
}

fn ids(answer: &Value) -> Vec<u32> {
    serde_json::from_value(answer["choices"][0]["token_ids"].clone()).unwrap()
}

fn text(answer: &Value) -> String {
    answer["choices"][0]["text"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_bias_makes_a_token_come_or_stay_away() {
    let worker = Worker::start(&[]).await;
    let free = ids(&worker.ask(COMPLETIONS, &greedy(&json!({}))).await);
    let first = free[0];
    let biased = greedy(&json!({"logit_bias": {first.to_string(): -100}}));
    let without = ids(&worker.ask(COMPLETIONS, &biased).await);
    assert!(!without.contains(&first));
    let forced = ids(&worker
        .ask(COMPLETIONS, &greedy(&json!({"logit_bias": {"77": 100}})))
        .await);
    assert_eq!(forced, [77; 8]);
}

#[tokio::test]
async fn only_the_allowed_tokens_come() {
    let worker = Worker::start(&[]).await;
    let body =
        greedy(&json!({"allowed_token_ids": [300, 301, 302], "temperature": 1.5, "seed": 3}));
    let got = ids(&worker.ask(COMPLETIONS, &body).await);
    assert_eq!(got.len(), 8);
    assert!(
        got.iter().all(|token| (300..=302).contains(token)),
        "{got:?}"
    );
}

#[tokio::test]
async fn bad_words_do_not_come() {
    let worker = Worker::start(&[]).await;
    let free = text(&worker.ask(COMPLETIONS, &greedy(&json!({}))).await);
    let word = free.split_whitespace().next().unwrap().to_owned();
    let body = greedy(&json!({"bad_words": [word]}));
    let without = text(&worker.ask(COMPLETIONS, &body).await);
    assert_ne!(without, free);
    assert!(!without.starts_with(&format!(" {word}")), "{without}");
    let list = json!(["the", "a", "an", "cache", "gateway", "worker", "request"]);
    let hot = json!({"temperature": 1.5, "seed": 5, "max_tokens": 60, "bad_words": list});
    let without = text(&worker.ask(COMPLETIONS, &greedy(&hot)).await);
    let with = json!({"temperature": 1.5, "seed": 5, "max_tokens": 60});
    let with = text(&worker.ask(COMPLETIONS, &greedy(&with)).await);
    assert_ne!(with, without);
}

#[tokio::test]
async fn prompt_log_probabilities_do_not_depend_on_the_cache_or_on_chunks() {
    let body = json!({
        "prompt": "The endpoint picker reads the queue of each worker. ".repeat(6),
        "max_tokens": 1, "temperature": 0, "prompt_logprobs": 2,
    });
    let mut seen: Vec<Value> = Vec::new();
    for flags in [
        &["--max-num-batched-tokens", "2048", "--max-num-seqs", "4"],
        &["--max-num-batched-tokens", "17", "--max-num-seqs", "4"],
    ] {
        let worker = Worker::start(flags).await;
        for _ in 0..2 {
            let answer = worker.ask(COMPLETIONS, &body).await;
            let usage = &answer["usage"];
            assert_eq!(
                usage["prompt_tokens_details"]["cached_tokens"], 0,
                "the cache is not read"
            );
            let logprobs = answer["choices"][0]["prompt_logprobs"].clone();
            let places = logprobs.as_array().unwrap();
            assert_eq!(
                places.len() as u64,
                usage["prompt_tokens"].as_u64().unwrap()
            );
            assert_eq!(places[0], Value::Null);
            assert!(
                places[1..]
                    .iter()
                    .all(|place| (2..=3).contains(&place.as_object().unwrap().len()))
            );
            seen.push(logprobs);
        }
    }
    assert!(seen.windows(2).all(|pair| pair[0] == pair[1]));
}

#[tokio::test]
async fn an_echo_has_the_log_probabilities_of_prompt_and_answer() {
    let worker = Worker::start(&[]).await;
    let body = greedy(&json!({"echo": true, "logprobs": 1}));
    let whole = worker.ask(COMPLETIONS, &body).await;
    let choice = &whole["choices"][0];
    let lists = &choice["logprobs"];
    let tokens: Vec<String> = serde_json::from_value(lists["tokens"].clone()).unwrap();
    assert_eq!(tokens.concat(), choice["text"]);
    let count = whole["usage"]["total_tokens"].as_u64().unwrap() as usize;
    for list in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
        assert_eq!(lists[list].as_array().unwrap().len(), count, "{list}");
    }
    assert_eq!(lists["token_logprobs"][0], Value::Null);
    let mut offset = 0;
    for (token, at) in tokens.iter().zip(lists["text_offset"].as_array().unwrap()) {
        assert_eq!(*at, offset);
        offset += token.chars().count() as u64;
    }
    // Scoring alone: the same numbers, and no token of the model's.
    let only = worker
        .ask(
            COMPLETIONS,
            &greedy(&json!({"echo": true, "logprobs": 1, "max_tokens": 0})),
        )
        .await;
    let prompt_tokens = only["usage"]["prompt_tokens"].as_u64().unwrap() as usize;
    assert_eq!(only["usage"]["completion_tokens"], 0);
    assert_eq!(
        only["choices"][0]["text"],
        "The gateway sends the request to"
    );
    let scored = only["choices"][0]["logprobs"]["token_logprobs"]
        .as_array()
        .unwrap();
    assert_eq!(
        scored[..],
        lists["token_logprobs"].as_array().unwrap()[..prompt_tokens]
    );
    assert!(ids(&only).is_empty());
    // Streamed, the pieces are the whole, for each choice.
    let streamed = greedy(&json!({"echo": true, "logprobs": 1, "stream": true, "n": 2}));
    let events = worker.open(COMPLETIONS, &streamed).await.all().await;
    for index in 0..2 {
        let of_choice = events.iter().map(|event| &event["choices"][0]);
        let pieces = of_choice.filter(|choice| choice["index"] == index);
        let lists = pieces.map(|choice| {
            choice["logprobs"]["token_logprobs"]
                .as_array()
                .unwrap()
                .clone()
        });
        assert_eq!(
            Value::from(lists.flatten().collect::<Vec<_>>()),
            whole["choices"][0]["logprobs"]["token_logprobs"]
        );
    }
}

#[tokio::test]
async fn a_prompt_that_is_too_long_may_be_cut() {
    let worker = Worker::start(&["--max-model-len", "64"]).await;
    let ids: Vec<u32> = (100..200).collect();
    let ask = async |more: Value| {
        let mut body =
            json!({"prompt": ids, "max_tokens": 4, "temperature": 0, "return_token_ids": true});
        body.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        let answer = worker.ask(COMPLETIONS, &body).await;
        serde_json::from_value::<Vec<u32>>(answer["choices"][0]["prompt_token_ids"].clone())
            .unwrap()
    };
    assert_eq!(ask(json!({"truncate_prompt_tokens": -1})).await, ids[40..]);
    assert_eq!(ask(json!({"truncate_prompt_tokens": 10})).await, ids[90..]);
    let right = json!({"truncate_prompt_tokens": 10, "truncation_side": "right"});
    assert_eq!(ask(right).await, ids[..10]);
}

#[tokio::test]
async fn a_request_may_bring_its_template_where_the_operator_allows_it() {
    let worker = Worker::start(&["--trust-request-chat-template"]).await;
    let encoder =
        PromptEncoder::load(concat!(env!("CARGO_MANIFEST_DIR"), "/demo-model").as_ref()).unwrap();
    let body = json!({
        "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1, "return_token_ids": true,
        "documents": [{"text": "of caches"}], "chat_template":
        "{{ messages[0].content }} {{ documents[0].text }}{% if reasoning_effort %} {{ reasoning_effort }}{% endif %}",
        "reasoning_effort": "low",
    });
    let answer = worker.ask(CHAT, &body).await;
    let expected = encoder.encode_text("Hello of caches low", false).unwrap();
    assert_eq!(answer["prompt_token_ids"], json!(expected));
    let mut broken = body;
    broken["chat_template"] = json!("{% if %}");
    let reply = worker.post(CHAT, &broken).await;
    assert_eq!(reply.status, 400);
    assert!(reply.text().contains("chat_template"), "{}", reply.text());
}
