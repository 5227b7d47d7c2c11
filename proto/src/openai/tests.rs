//! What clients send and read, byte for byte where the bytes matter.

use serde_json::{Value, json};

use super::*;
use crate::prompt::{ChatPrompt, Prompt};

fn completion(body: &Value) -> Result<CompletionRequest, serde_json::Error> {
    serde_json::from_str(&body.to_string())
}

fn prompts(prompt: &Value) -> Result<Vec<Prompt>, PromptShapeError> {
    completion(&json!({"prompt": prompt}))
        .expect("a well-formed request")
        .prompt()
}

fn chat(body: Value) -> ChatCompletionRequest {
    serde_json::from_value(body).expect("a well-formed request")
}

#[test]
fn a_prompt_has_four_shapes() {
    let text = |text: &str| Prompt::Text(text.to_owned());
    assert_eq!(prompts(&json!("a")), Ok(vec![text("a")]));
    assert_eq!(prompts(&json!("")), Ok(vec![text("")]));
    assert_eq!(prompts(&json!(["a", "b"])), Ok(vec![text("a"), text("b")]));
    assert_eq!(
        prompts(&json!([1, 2])),
        Ok(vec![Prompt::Tokens(vec![1, 2])])
    );
    assert_eq!(
        prompts(&json!([[1], [2, 3]])),
        Ok(vec![Prompt::Tokens(vec![1]), Prompt::Tokens(vec![2, 3])])
    );
}

#[test]
fn an_empty_prompt_is_refused_by_name() {
    assert_eq!(prompts(&json!(null)), Err(PromptShapeError::NoPrompt));
    assert_eq!(prompts(&json!([])), Err(PromptShapeError::EmptyPrompt));
    let error = prompts(&json!([[1], []])).expect_err("no tokens");
    assert_eq!(error.param(), "prompt[1]");
    assert_eq!(error.to_string(), "prompt[1] must not be empty");
}

#[test]
fn a_mixed_prompt_is_refused_by_the_place() {
    let cases = [
        (json!([1, "a"]), "prompt[1]: "),
        (json!(["a", "b", 1]), "prompt[2]: "),
        (json!([[1], [2, -3]]), "prompt[1]: "),
        (json!([4_294_967_296_u64]), "does not fit 32 bits"),
        (json!({"a": 1}), "expected a string"),
        (json!([1.5]), "expected a string, a token id"),
    ];
    for (prompt, expected) in cases {
        let error = completion(&json!({"prompt": prompt}))
            .expect_err("a mixed prompt")
            .to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn prompts_are_written_as_they_are_read() {
    for prompt in [json!("a"), json!(["a"]), json!([1, 2]), json!([[1], [2]])] {
        let body = json!({"prompt": prompt});
        let request = completion(&body).expect("a well-formed request");
        assert_eq!(serde_json::to_value(request).expect("JSON"), body);
    }
}

#[test]
fn unknown_and_null_fields_are_ignored() {
    let request = chat(json!({
        "messages": [{"role": "user", "content": "hi"}], "frobnicate": {"deep": [1]}, "stream": null,
        "stop": null, "max_tokens": null, "temperature": 0, "stream_options": {"include_usage": true, "new": 1},
    }));
    assert!(!request.is_stream());
    assert_eq!(request.temperature, Some(0.0));
    assert_eq!(request.token_limit(), None);
    let options = request.stream_options.expect("given");
    assert_eq!(options.include_usage, Some(true));
    assert_eq!(options.continuous_usage_stats, None);
}

#[test]
fn numbers_out_of_range_are_left_to_who_knows_the_range() {
    let request = completion(&json!({"max_tokens": -1, "n": 0, "temperature": -3.5, "top_k": -1}))
        .expect("a well-formed request");
    assert_eq!(request.max_tokens, Some(-1));
    assert_eq!(request.n, Some(0));
}

#[test]
fn max_completion_tokens_wins() {
    assert_eq!(chat(json!({"max_tokens": 5})).token_limit(), Some(5));
    let both = chat(json!({"max_tokens": 5, "max_completion_tokens": 7}));
    assert_eq!(both.token_limit(), Some(7));
}

#[test]
fn a_conversation_becomes_one_prompt() {
    let messages = json!([{"role": "user", "content": "hi"}]);
    let plain = chat(json!({"messages": messages, "tools": []}));
    assert_eq!(
        plain.prompt(),
        Ok(vec![Prompt::Chat(ChatPrompt::new(messages.clone()))])
    );
    let full = chat(json!({
        "messages": messages, "tools": [{"type": "function"}], "add_generation_prompt": false,
        "chat_template_kwargs": {"enable_thinking": false},
    }));
    assert_eq!(
        full.prompt(),
        Ok(vec![Prompt::Chat(ChatPrompt {
            messages: messages.clone(),
            tools: Some(json!([{"type": "function"}])),
            add_generation_prompt: false,
            template_kwargs: json!({"enable_thinking": false}).as_object().cloned(),
        })])
    );
    let wrong = chat(json!({"messages": messages, "tools": ["f"]}));
    assert_eq!(wrong.prompt(), Err(PromptShapeError::Tools));
}

#[test]
fn a_bad_message_is_refused_by_its_place() {
    let body = json!({"messages": [{"role": "user"}, {"role": "user"}, {"role": 1}]});
    let error = chat(body).prompt().expect_err("a role that is a number");
    assert_eq!(error.param(), "messages[2].role");
    let missing = chat(json!({})).prompt().expect_err("no messages");
    assert_eq!(missing.param(), "messages");
    let body = ErrorBody::from(&error);
    assert_eq!(body.error.param.as_deref(), Some("messages[2].role"));
    assert_eq!(body.error.code, 400);
}

#[test]
fn stop_is_one_string_or_several() {
    let stop = |stop: Value| {
        completion(&json!({"stop": stop}))
            .expect("well-formed")
            .stop
    };
    assert_eq!(stop(json!("a")).expect("given").as_slice(), ["a"]);
    assert_eq!(
        stop(json!(["a", "b"])).expect("given").as_slice(),
        ["a", "b"]
    );
    assert!(completion(&json!({"stop": 3})).is_err());
}

#[test]
fn a_stream_has_vllms_bytes() {
    let chunk = |delta: ChatDelta, finish_reason: Option<FinishReason>| ChatChunk {
        id: "chatcmpl-1".to_owned(),
        object: ChatChunk::OBJECT.to_owned(),
        created: 7,
        model: "demo".to_owned(),
        choices: vec![ChatChunkChoice {
            index: 0,
            delta,
            logprobs: None,
            finish_reason,
            stop_reason: None,
            token_ids: None,
        }],
        usage: None,
        prompt_token_ids: None,
    };
    let json = |chunk: &ChatChunk| serde_json::to_string(chunk).expect("JSON");
    assert_eq!(
        json(&chunk(ChatDelta::first(), None)),
        r#"{"id":"chatcmpl-1","object":"chat.completion.chunk","created":7,"model":"demo","choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]}"#
    );
    assert_eq!(
        json(&chunk(ChatDelta::text("hi"), Some(FinishReason::Length))),
        r#"{"id":"chatcmpl-1","object":"chat.completion.chunk","created":7,"model":"demo","choices":[{"index":0,"delta":{"content":"hi"},"finish_reason":"length"}]}"#
    );
    let last = ChatChunk {
        choices: Vec::new(),
        usage: Some(Usage::new(10, 3, 8)),
        ..chunk(ChatDelta::default(), None)
    };
    assert_eq!(
        json(&last),
        r#"{"id":"chatcmpl-1","object":"chat.completion.chunk","created":7,"model":"demo","choices":[],"usage":{"prompt_tokens":10,"total_tokens":13,"completion_tokens":3,"prompt_tokens_details":{"cached_tokens":8}}}"#
    );
}

#[test]
fn fields_that_are_template_variables_reach_the_template() {
    let variables = |body: Value| match chat(body).prompt().expect("a chat").remove(0) {
        Prompt::Chat(chat) => Value::from(chat.template_kwargs.unwrap_or_default()),
        other => panic!("{other:?}"),
    };
    let messages = json!([{"role": "user", "content": "hi"}]);
    assert_eq!(variables(json!({"messages": messages})), json!({}));
    assert_eq!(
        variables(json!({
            "messages": messages, "documents": [{"title": "t"}], "reasoning_effort": "none",
            "chat_template_kwargs": {"x": 1},
        })),
        json!({"x": 1, "documents": [{"title": "t"}], "enable_thinking": false, "reasoning_effort": "none"})
    );
    let said = variables(json!({
        "messages": messages, "reasoning_effort": "none", "chat_template_kwargs": {"enable_thinking": true},
    }));
    assert_eq!(said["enable_thinking"], true);
}

#[test]
fn prompt_log_probabilities_are_keyed_by_token_id() {
    let info = PromptTokenLogprob {
        logprob: -0.5,
        rank: Some(1),
        decoded_token: Some("a".to_owned()),
    };
    let logprobs: PromptLogprobs = vec![None, Some([(7, info)].into())];
    let text = serde_json::to_string(&logprobs).expect("JSON");
    assert_eq!(
        text,
        r#"[null,{"7":{"logprob":-0.5,"rank":1,"decoded_token":"a"}}]"#
    );
    assert_eq!(
        serde_json::from_str::<PromptLogprobs>(&text).expect("the same"),
        logprobs
    );
}

#[test]
fn finish_reasons_are_strings_and_strange_ones_are_kept() {
    let read = |text: &str| serde_json::from_value::<FinishReason>(json!(text)).expect("a string");
    assert_eq!(read("stop"), FinishReason::Stop);
    assert_eq!(read("tool_calls"), FinishReason::ToolCalls);
    assert_eq!(
        read("content_filter"),
        FinishReason::Other("content_filter".to_owned())
    );
    for reason in [FinishReason::Abort, FinishReason::Other("x".to_owned())] {
        let text = serde_json::to_value(&reason).expect("JSON");
        assert!(text.is_string(), "{text}");
        assert_eq!(
            serde_json::from_value::<FinishReason>(text).expect("a string"),
            reason
        );
    }
}

#[test]
fn another_workers_answer_is_read() {
    let body = json!({
        "id": "cmpl-1", "object": "text_completion", "created": 1, "model": "m", "system_fingerprint": null,
        "choices": [{"index": 0, "text": "x", "logprobs": null, "finish_reason": "stop", "stop_reason": 2,
                     "prompt_logprobs": null}],
        "usage": {"prompt_tokens": 5, "total_tokens": 6, "completion_tokens": 1, "prompt_tokens_details": null},
        "kv_transfer_params": null,
    });
    let response: CompletionResponse = serde_json::from_value(body).expect("vLLM's answer");
    assert_eq!(response.choices[0].stop_reason, Some(StopReason::Token(2)));
    assert_eq!(response.usage.prompt_tokens_details, None);
}

#[test]
fn errors_have_vllms_shape() {
    assert_eq!(
        serde_json::to_value(ErrorBody::not_found_model("gpt-9")).expect("JSON"),
        json!({"error": {"message": "The model `gpt-9` does not exist.", "type": "NotFoundError",
                         "param": "model", "code": 404}})
    );
    assert_eq!(
        serde_json::to_value(ErrorBody::unavailable("draining")).expect("JSON"),
        json!({"error": {"message": "draining", "type": "ServiceUnavailableError", "param": null, "code": 503}})
    );
}

#[test]
fn tokenize_takes_text_or_a_conversation() {
    let request =
        |body: Value| -> TokenizeRequest { serde_json::from_value(body).expect("well-formed") };
    let text = request(json!({"prompt": "hi"}));
    assert_eq!(text.prompt(), Ok(vec![Prompt::Text("hi".to_owned())]));
    assert!(text.adds_special_tokens());
    let messages = json!([{"role": "user", "content": "hi"}]);
    let conversation = request(json!({"messages": messages}));
    assert_eq!(
        conversation.prompt(),
        Ok(vec![Prompt::Chat(ChatPrompt::new(messages))])
    );
    assert!(!conversation.adds_special_tokens());
    assert_eq!(request(json!({})).prompt(), Err(PromptShapeError::NoPrompt));
}
