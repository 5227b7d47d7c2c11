//! What a client gets: whole and streamed, chat and completion.

use pointsman_engine::worker::EngineHandle;
use serde_json::{Value, json};

use crate::support::Worker;

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";

fn greedy(max_tokens: u32) -> Value {
    json!({
        "model": "demo",
        "prompt": "The gateway sends the request to",
        "max_tokens": max_tokens,
        "temperature": 0,
        "ignore_eos": true,
    })
}

/// `base` with the fields of `more`.
fn with(base: &Value, more: &Value) -> Value {
    let mut all = base.as_object().unwrap().clone();
    all.extend(more.as_object().unwrap().clone());
    Value::Object(all)
}

/// The streamed text of choice `index` and its last chunk.
fn text_of(events: &[Value], index: u64, text: impl Fn(&Value) -> &Value) -> (String, Value) {
    let choices: Vec<&Value> = events
        .iter()
        .flat_map(|event| event["choices"].as_array().unwrap())
        .filter(|choice| choice["index"] == index)
        .collect();
    let all = choices
        .iter()
        .map(|choice| text(choice).as_str().unwrap_or_default())
        .collect();
    (
        all,
        (*choices.last().expect("the choice has chunks")).clone(),
    )
}

#[tokio::test]
async fn a_chat_is_answered_whole_and_streamed_alike() {
    let worker = Worker::start(&[]).await;
    let body = json!({
        "model": "demo",
        "messages": [{"role": "user", "content": "What does the gateway do?"}],
        "max_tokens": 24,
        "seed": 7,
    });
    let whole = worker.ask(CHAT, &body).await;
    assert_eq!(whole["object"], "chat.completion");
    assert!(whole["id"].as_str().unwrap().starts_with("chatcmpl-"));
    assert_eq!(whole["model"], "demo");
    assert!(whole["created"].as_u64().unwrap() > 1_600_000_000);
    let choice = &whole["choices"][0];
    assert_eq!(choice["message"]["role"], "assistant");
    assert!(["stop", "length"].contains(&choice["finish_reason"].as_str().unwrap()));
    let usage = &whole["usage"];
    let prompt_tokens = usage["prompt_tokens"].as_u64().unwrap();
    let completion_tokens = usage["completion_tokens"].as_u64().unwrap();
    assert!(prompt_tokens > 0 && (1..=24).contains(&completion_tokens));
    assert_eq!(usage["total_tokens"], prompt_tokens + completion_tokens);
    assert_eq!(usage["prompt_tokens_details"]["cached_tokens"], 0);

    let stream = with(
        &body,
        &json!({"stream": true, "stream_options": {"include_usage": true}}),
    );
    let events = worker.open(CHAT, &stream).await.all().await;
    assert_eq!(events[0]["object"], "chat.completion.chunk");
    assert_eq!(
        events[0]["choices"][0]["delta"],
        json!({"role": "assistant", "content": ""})
    );
    let (text, last) = text_of(&events, 0, |choice| &choice["delta"]["content"]);
    assert_eq!(text, choice["message"]["content"]);
    assert_eq!(last["finish_reason"], choice["finish_reason"]);
    let tail = events.last().unwrap();
    assert_eq!(tail["choices"], json!([]));
    assert_eq!(tail["usage"]["completion_tokens"], completion_tokens);
    assert!(events.iter().all(|event| event["id"] == events[0]["id"]));
    // The role, one chunk per token, the usage.
    assert_eq!(events.len() as u64, completion_tokens + 2);
}

#[tokio::test]
async fn a_completion_is_answered_whole_and_streamed_alike() {
    let worker = Worker::start(&[]).await;
    let whole = worker.ask(COMPLETIONS, &greedy(20)).await;
    assert_eq!(whole["object"], "text_completion");
    assert!(whole["id"].as_str().unwrap().starts_with("cmpl-"));
    assert_eq!(whole["choices"][0]["finish_reason"], "length");
    assert_eq!(whole["usage"]["completion_tokens"], 20);
    let more = json!({
        "stream": true,
        "return_token_ids": true,
        "stream_options": {"include_usage": true, "continuous_usage_stats": true},
    });
    let events = worker
        .open(COMPLETIONS, &with(&greedy(20), &more))
        .await
        .all()
        .await;
    let (text, last) = text_of(&events, 0, |choice| &choice["text"]);
    assert_eq!(text, whole["choices"][0]["text"]);
    assert_eq!(last["finish_reason"], "length");
    for (index, event) in events[..20].iter().enumerate() {
        assert_eq!(event["usage"]["completion_tokens"], index as u64 + 1);
        assert_eq!(
            event["choices"][0]["token_ids"].as_array().unwrap().len(),
            1
        );
    }
    assert_eq!(events.len(), 21);
}

#[tokio::test]
async fn a_prompt_seen_before_is_cached_and_a_salt_keeps_it_apart() {
    let worker = Worker::start(&["--block-size", "16"]).await;
    let prompt: Vec<u32> = (300..340).collect();
    let body = json!({"prompt": prompt, "max_tokens": 2, "temperature": 0});
    let cached = |answer: Value| answer["usage"]["prompt_tokens_details"]["cached_tokens"].clone();
    let first = worker.ask(COMPLETIONS, &body).await;
    let second = worker.ask(COMPLETIONS, &body).await;
    assert_eq!(first["choices"][0]["text"], second["choices"][0]["text"]);
    assert_eq!((cached(first), cached(second)), (json!(0), json!(32)));
    let salted = with(&body, &json!({"cache_salt": "tenant"}));
    assert_eq!(cached(worker.ask(COMPLETIONS, &salted).await), 0);
    assert_eq!(cached(worker.ask(COMPLETIONS, &salted).await), 32);
    assert_eq!(
        worker
            .metric("vllm:prefix_cache_hits_total{model_name=\"demo\",engine=\"0\"}")
            .await,
        "64"
    );
    assert_eq!(
        worker
            .metric("vllm:prefix_cache_queries_total{model_name=\"demo\",engine=\"0\"}")
            .await,
        "160"
    );
}

#[tokio::test]
async fn without_prefix_caching_nothing_is_cached() {
    let worker = Worker::start(&["--no-enable-prefix-caching"]).await;
    for _ in 0..2 {
        let answer = worker.ask(COMPLETIONS, &greedy(2)).await;
        assert_eq!(answer["usage"]["prompt_tokens_details"]["cached_tokens"], 0);
    }
}

#[tokio::test]
async fn a_stop_string_ends_the_text_before_itself() {
    let worker = Worker::start(&[]).await;
    let free = worker.ask(COMPLETIONS, &greedy(40)).await;
    let free = free["choices"][0]["text"].as_str().unwrap().to_owned();
    let stop: String = free.chars().skip(9).take(4).collect();
    let until = free.find(&stop).unwrap();
    let body = with(&greedy(40), &json!({"stop": ["never in this text", stop]}));
    let whole = worker.ask(COMPLETIONS, &body).await;
    let choice = &whole["choices"][0];
    assert_eq!(choice["text"], free[..until]);
    assert_eq!(choice["finish_reason"], "stop");
    assert_eq!(choice["stop_reason"], stop);
    assert!(whole["usage"]["completion_tokens"].as_u64().unwrap() < 40);
    let events = worker
        .open(COMPLETIONS, &with(&body, &json!({"stream": true})))
        .await;
    let (text, last) = text_of(&events.all().await, 0, |choice| &choice["text"]);
    assert_eq!(text, free[..until]);
    assert_eq!(
        (&last["finish_reason"], &last["stop_reason"]),
        (&json!("stop"), &json!(stop))
    );
    let included = with(&body, &json!({"include_stop_str_in_output": true}));
    let included = worker.ask(COMPLETIONS, &included).await;
    assert_eq!(included["choices"][0]["text"], free[..until + stop.len()]);
    // The engine hears of it as a stop, not as an abort.
    worker
        .until("all requests end", |stats| stats.running == 0)
        .await;
    let stopped =
        "vllm:request_success_total{model_name=\"demo\",engine=\"0\",finished_reason=\"stop\"}";
    worker
        .until_engine("live requests end", EngineHandle::is_idle)
        .await;
    assert_eq!(worker.metric(stopped).await, "3");
}

#[tokio::test]
async fn a_stop_token_ends_the_answer_and_is_not_in_its_text() {
    let worker = Worker::start(&[]).await;
    let body = with(&greedy(30), &json!({"return_token_ids": true}));
    let free = worker.ask(COMPLETIONS, &body).await;
    let ids: Vec<u64> = free["choices"][0]["token_ids"]
        .as_array()
        .unwrap()
        .iter()
        .map(|id| id.as_u64().unwrap())
        .collect();
    assert_eq!(ids.len(), 30);
    let stop = ids[12];
    let at = ids.iter().position(|id| *id == stop).unwrap();
    let body = with(&body, &json!({"stop_token_ids": [stop]}));
    let answer = worker.ask(COMPLETIONS, &body).await;
    let choice = &answer["choices"][0];
    assert_eq!(
        (&choice["finish_reason"], &choice["stop_reason"]),
        (&json!("stop"), &json!(stop))
    );
    assert_eq!(choice["token_ids"].as_array().unwrap().len(), at + 1);
    let text = worker
        .ask("/detokenize", &json!({"tokens": ids[..at]}))
        .await;
    assert_eq!(choice["text"], text["prompt"]);
}

#[tokio::test]
async fn choices_come_from_seeds_and_a_seed_repeats_itself() {
    let worker = Worker::start(&[]).await;
    let body = json!({
        "prompt": "A cache", "max_tokens": 24, "temperature": 1.5, "ignore_eos": true, "n": 2, "seed": 11,
    });
    let texts = |answer: &Value| -> Vec<String> {
        let choices = answer["choices"].as_array().unwrap();
        choices
            .iter()
            .map(|choice| choice["text"].as_str().unwrap().to_owned())
            .collect()
    };
    let first = worker.ask(COMPLETIONS, &body).await;
    let second = worker.ask(COMPLETIONS, &body).await;
    assert_eq!(texts(&first), texts(&second));
    assert_eq!(texts(&first).len(), 2);
    assert_ne!(texts(&first)[0], texts(&first)[1]);
    assert_eq!(first["usage"]["completion_tokens"], 48);
    let alone = worker
        .ask(COMPLETIONS, &with(&body, &json!({"n": 1, "seed": 12})))
        .await;
    assert_eq!(
        texts(&alone)[0],
        texts(&first)[1],
        "choice 1 has the seed plus 1"
    );
    let events = worker
        .open(COMPLETIONS, &with(&body, &json!({"stream": true})))
        .await
        .all()
        .await;
    for (index, expected) in texts(&first).iter().enumerate() {
        let (text, last) = text_of(&events, index as u64, |choice| &choice["text"]);
        assert_eq!(
            (&text, &last["finish_reason"]),
            (expected, &json!("length"))
        );
    }
}

#[tokio::test]
async fn prompts_may_be_many_and_may_be_echoed() {
    let worker = Worker::start(&[]).await;
    let body = json!({
        "prompt": ["One worker", "Two workers"], "echo": true, "max_tokens": 4, "n": 2, "seed": 1,
        "ignore_eos": true,
    });
    let answer = worker.ask(COMPLETIONS, &body).await;
    let choices = answer["choices"].as_array().unwrap();
    assert_eq!(choices.len(), 4);
    for (index, choice) in choices.iter().enumerate() {
        assert_eq!(choice["index"], index as u64);
        let prompt = ["One worker", "Two workers"][index / 2];
        assert!(
            choice["text"].as_str().unwrap().starts_with(prompt),
            "{choice}"
        );
    }
    assert_eq!(answer["usage"]["completion_tokens"], 16);
    let tokens = worker
        .ask("/tokenize", &json!({"prompt": "One worker"}))
        .await["tokens"]
        .clone();
    let ids = json!({"prompt": [tokens], "echo": true, "max_tokens": 4, "stream": true, "seed": 1});
    let events = worker.open(COMPLETIONS, &ids).await.all().await;
    let (text, _) = text_of(&events, 0, |choice| &choice["text"]);
    assert!(text.starts_with("One worker"), "{text}");
    assert_eq!(
        text.matches("One worker").count(),
        1,
        "the prompt is echoed once"
    );
}

#[tokio::test]
async fn log_probabilities_come_with_each_token() {
    let worker = Worker::start(&[]).await;
    let answer = worker
        .ask(COMPLETIONS, &with(&greedy(5), &json!({"logprobs": 3})))
        .await;
    let logprobs = &answer["choices"][0]["logprobs"];
    for list in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
        assert_eq!(logprobs[list].as_array().unwrap().len(), 5, "{list}");
    }
    let joined: String = logprobs["tokens"]
        .as_array()
        .unwrap()
        .iter()
        .map(|token| token.as_str().unwrap())
        .collect();
    assert_eq!(joined, answer["choices"][0]["text"]);
    let first = &logprobs["token_logprobs"][0];
    assert!(first.as_f64().unwrap() <= 0.0);
    assert!(logprobs["top_logprobs"][0].as_object().unwrap().len() >= 3);
    let chat = json!({
        "messages": [{"role": "user", "content": "Hello"}],
        "max_tokens": 3, "temperature": 0, "ignore_eos": true, "logprobs": true, "top_logprobs": 2,
        "stream": true,
    });
    let events = worker.open(CHAT, &chat).await.all().await;
    let tokens: Vec<&Value> = events
        .iter()
        .filter_map(|event| event["choices"][0]["logprobs"]["content"].as_array())
        .flatten()
        .collect();
    assert_eq!(tokens.len(), 3);
    for token in tokens {
        let top = token["top_logprobs"].as_array().unwrap();
        assert_eq!(top.len(), 2);
        assert_eq!(
            top[0]["logprob"], token["logprob"],
            "a greedy token is the likeliest"
        );
    }
}

#[tokio::test]
async fn the_clients_request_id_names_the_answer() {
    let worker = Worker::start(&[]).await;
    let body = json!({"prompt": "x", "max_tokens": 1, "request_id": "from-body"}).to_string();
    let headers = [("X-Request-Id", "bench-17")];
    let response = worker
        .send(hyper::Method::POST, COMPLETIONS, &headers, body.clone())
        .await;
    let reply = crate::support::Reply::read(response).await;
    assert_eq!(reply.json()["id"], "cmpl-bench-17");
    let response = worker
        .send(hyper::Method::POST, COMPLETIONS, &[], body)
        .await;
    assert_eq!(
        crate::support::Reply::read(response).await.json()["id"],
        "cmpl-from-body"
    );
}

#[tokio::test]
async fn tokenize_and_detokenize_are_each_others_inverse() {
    let worker = Worker::start(&[]).await;
    let text = "Blocks of 16 tokens, 你好 🚂.";
    let answer = worker
        .ask(
            "/tokenize",
            &json!({"prompt": text, "add_special_tokens": false, "return_token_strs": true}),
        )
        .await;
    let tokens = answer["tokens"].as_array().unwrap();
    assert_eq!(answer["count"], tokens.len() as u64);
    assert_eq!(answer["token_strs"].as_array().unwrap().len(), tokens.len());
    assert_eq!(answer["max_model_len"], worker.engine.max_model_len());
    let back = worker.ask("/detokenize", &json!({"tokens": tokens})).await;
    assert_eq!(back["prompt"], text);
    let messages = json!([{"role": "user", "content": text}]);
    let chat = worker
        .ask("/tokenize", &json!({"messages": messages}))
        .await;
    let usage = worker
        .ask(CHAT, &json!({"messages": messages, "max_tokens": 1}))
        .await["usage"]
        .clone();
    assert_eq!(
        chat["count"], usage["prompt_tokens"],
        "what is counted is what is computed"
    );
}

#[tokio::test]
async fn long_prompts_take_the_blocking_pool_and_come_out_the_same() {
    let worker = Worker::start(&[]).await;
    // Beyond what is handled inline, and within the context.
    let prompt = "The endpoint picker reads the queue of each worker. ".repeat(60);
    let tokens = worker.ask("/tokenize", &json!({"prompt": prompt})).await;
    let answer = worker
        .ask(COMPLETIONS, &json!({"prompt": prompt, "max_tokens": 1}))
        .await;
    assert_eq!(answer["usage"]["prompt_tokens"], tokens["count"]);
    assert!(tokens["count"].as_u64().unwrap() > 500);
}
