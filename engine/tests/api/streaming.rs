//! The streaming path: events by themselves and joined, whatever is ready at once.

use serde_json::{Value, json};

use super::support::Worker;

const AT_ONCE: [&str; 2] = ["--sim-speedup", "inf"];

fn body(extra: &Value) -> Value {
    let mut body = json!({
        "model": "demo", "prompt": "The cache is", "max_tokens": 50, "temperature": 0,
        "ignore_eos": true
    });
    for (field, value) in extra.as_object().unwrap() {
        body[field] = value.clone();
    }
    body
}

fn stream(extra: &Value) -> Value {
    let mut body = body(extra);
    body["stream"] = json!(true);
    body
}

fn text(events: &[Value], index: u64) -> String {
    let choices = events
        .iter()
        .flat_map(|event| event["choices"].as_array().unwrap());
    let mine = choices.filter(|choice| choice["index"] == index);
    mine.map(|choice| choice["text"].as_str().unwrap())
        .collect()
}

#[tokio::test]
async fn each_token_is_an_event_even_when_many_are_ready_at_once() {
    let worker = Worker::start_sim(&AT_ONCE).await;
    let whole = worker.ask("/v1/completions", &body(&json!({}))).await;
    let events = worker
        .open("/v1/completions", &stream(&json!({})))
        .await
        .all()
        .await;
    assert_eq!(events.len(), 50);
    assert_eq!(
        text(&events, 0),
        whole["choices"][0]["text"].as_str().unwrap()
    );
    for event in &events[..49] {
        let fields: Vec<_> = event.as_object().unwrap().keys().collect();
        assert_eq!(fields, ["id", "object", "created", "model", "choices"]);
        let fields: Vec<_> = event["choices"][0].as_object().unwrap().keys().collect();
        assert_eq!(fields, ["index", "text", "finish_reason"]);
        assert_eq!(event["id"], events[0]["id"]);
    }
    assert_eq!(events[49]["choices"][0]["finish_reason"], "length");
}

#[tokio::test]
async fn choices_keep_apart_and_each_ends() {
    let worker = Worker::start_sim(&AT_ONCE).await;
    let extra = json!({"n": 3, "temperature": 1, "seed": 5});
    let whole = worker.ask("/v1/completions", &body(&extra)).await;
    let events = worker
        .open("/v1/completions", &stream(&extra))
        .await
        .all()
        .await;
    assert_eq!(events.len(), 150);
    for index in 0..3 {
        let expected = whole["choices"][index as usize]["text"].as_str().unwrap();
        assert_eq!(text(&events, index), expected);
    }
    assert_ne!(text(&events, 0), text(&events, 1));
}

#[tokio::test]
async fn a_stop_string_ends_the_stream_whatever_came_with_it() {
    let worker = Worker::start_sim(&AT_ONCE).await;
    let whole = worker.ask("/v1/completions", &body(&json!({}))).await;
    let whole = whole["choices"][0]["text"].as_str().unwrap();
    let stop: String = whole.chars().skip(whole.len() / 2).take(6).collect();
    let extra = json!({"stop": [stop], "stream_options": {"include_usage": true}});
    let events = worker
        .open("/v1/completions", &stream(&extra))
        .await
        .all()
        .await;
    let before = whole.split(&stop).next().unwrap();
    assert_eq!(text(&events, 0), before);
    let last = &events[events.len() - 2]["choices"][0];
    assert_eq!(
        (&last["finish_reason"], &last["stop_reason"]),
        (&json!("stop"), &json!(stop))
    );
    let used = events.last().unwrap()["usage"]["completion_tokens"]
        .as_u64()
        .unwrap();
    assert!(used < 50, "{used}");
    worker
        .until("the request is gone", |stats| stats.running == 0)
        .await;
}

#[tokio::test]
async fn an_interval_joins_tokens_but_for_the_first() {
    let worker = Worker::start_sim(&["--sim-speedup", "inf", "--stream-interval", "8"]).await;
    let extra = json!({"return_token_ids": true, "logprobs": 1});
    let whole = worker.ask("/v1/completions", &body(&extra)).await;
    let events = worker
        .open("/v1/completions", &stream(&extra))
        .await
        .all()
        .await;
    // 1, then 8 six times, then the last.
    assert_eq!(events.len(), 8);
    assert_eq!(
        text(&events, 0),
        whole["choices"][0]["text"].as_str().unwrap()
    );
    let joined = |list: fn(&Value) -> &Value| -> Vec<Value> {
        let lists = events
            .iter()
            .map(|event| list(&event["choices"][0]).as_array().unwrap());
        lists.flatten().cloned().collect()
    };
    assert_eq!(
        json!(joined(|choice| &choice["token_ids"])),
        whole["choices"][0]["token_ids"]
    );
    let expected = &whole["choices"][0]["logprobs"]["tokens"];
    assert_eq!(
        &json!(joined(|choice| &choice["logprobs"]["tokens"])),
        expected
    );
    assert_eq!(events[7]["choices"][0]["finish_reason"], "length");
}

#[tokio::test]
async fn a_chat_opens_with_the_role_whatever_the_interval() {
    for interval in ["1", "8"] {
        let flags = ["--sim-speedup", "inf", "--stream-interval", interval];
        let worker = Worker::start_sim(&flags).await;
        let chat = json!({
            "model": "demo", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 20,
            "temperature": 0, "ignore_eos": true
        });
        let whole = worker.ask("/v1/chat/completions", &chat).await;
        let mut streamed = chat.clone();
        streamed["stream"] = json!(true);
        streamed["stream_options"] = json!({"continuous_usage_stats": true});
        let events = worker
            .open("/v1/chat/completions", &streamed)
            .await
            .all()
            .await;
        let delta = |event: &Value| event["choices"][0]["delta"].clone();
        assert_eq!(
            delta(&events[0]),
            json!({"role": "assistant", "content": ""})
        );
        let content: String = events
            .iter()
            .map(|event| delta(event)["content"].as_str().unwrap().to_owned())
            .collect();
        assert_eq!(
            content,
            whole["choices"][0]["message"]["content"].as_str().unwrap()
        );
        assert_eq!(events.last().unwrap()["usage"]["completion_tokens"], 20);
        assert_eq!(events.len(), if interval == "1" { 21 } else { 5 });
    }
}

#[tokio::test]
async fn a_model_named_like_the_placeholder_of_texts_gets_its_texts() {
    let name = "the text goes here: 5cd0e6b1";
    let worker = Worker::start_sim(&["--sim-speedup", "inf", "--served-model-name", name]).await;
    let whole = worker.ask("/v1/completions", &body(&json!({}))).await;
    let request = stream(&json!({ "model": name }));
    let events = worker.open("/v1/completions", &request).await.all().await;
    assert_eq!(events[1]["model"], name);
    assert_eq!(
        text(&events, 0),
        whole["choices"][0]["text"].as_str().unwrap()
    );
}
