//! What holds for all parsers together: no body of any kind makes one panic, and a body of the size
//! limit, or of any depth, is read.

use proptest::prelude::*;

use super::*;

/// Every parser with a path of each of its APIs.
const PATHS: &[&str] = &[
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/responses",
    "/v1/conversations",
    "/v1/chat/completions/render",
    "/v1/completions/render",
    "/v1/responses/render",
    "/v1/images/generations",
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/v1/messages/render",
    "/inference/v1/generate",
    "/generate",
    "/vllm.grpc.engine.VllmEngine/Generate",
    "/vllm.grpc.engine.VllmEngine/Embed",
    "/google.cloud.aiplatform.v1beta1.PredictionService/ChatCompletions",
    "/google.cloud.aiplatform.v1beta1.PredictionService/RawPredict",
    "/google.cloud.aiplatform.v1beta1.PredictionService/StreamRawPredict",
];

fn every_parser() -> Parsers {
    let names: Vec<&str> = PLUGIN_TYPES.iter().map(|plugin| plugin.name).collect();
    Parsers::new(&names).unwrap()
}

fn parse_as(path: &str, body: &[u8]) -> Result<InferenceRequest, ParseError> {
    let line = RequestLine {
        method: "POST",
        path,
        content_type: None,
    };
    every_parser().parse(&line, body)
}

fn framed(message: &[u8]) -> Vec<u8> {
    let mut body = vec![0];
    body.extend_from_slice(&(message.len() as u32).to_be_bytes());
    body.extend_from_slice(message);
    body
}

#[test]
fn every_path_is_read_by_a_parser() {
    for path in PATHS {
        let is_passed = matches!(
            parse_as(path, b"\xff"),
            Ok(InferenceRequest {
                kind: RequestKind::Passthrough,
                ..
            })
        );
        assert!(!is_passed, "{path} passes through");
    }
}

#[test]
fn depth_is_bounded() {
    for field in [
        "messages", "tools", "system", "input", "prompt", "ignored", "features",
    ] {
        let open = "[".repeat(100_000);
        let close = "]".repeat(100_000);
        let body = format!(r#"{{"model":"m","{field}":{open}{close}}}"#);
        for path in PATHS {
            // What is skipped may be of any depth; what is built is refused.
            if let Ok(request) = parse_as(path, body.as_bytes()) {
                assert!(request.prompt.is_none(), "{path} {field}");
            }
        }
    }
}

#[test]
fn errors_are_the_fields() {
    for (body, expected) in [
        (
            "no healthy upstream",
            "error unmarshaling request bodyMap: expected ident at line 1 column 2",
        ),
        (
            r#"{"prompt":"hello world"}"#,
            "model not found in request body",
        ),
    ] {
        let error = parse("POST", "/v1/completions", body.as_bytes()).unwrap_err();
        assert_eq!(error.to_string(), expected);
    }
}

#[test]
fn long_bodies_are_read() {
    let text = "word \\u00e9 ".repeat(1 << 18);
    let body = format!(r#"{{"model":"m","x":["{text}"],"prompt":"{text}"}}"#);
    let request = parse_as("/v1/completions", body.as_bytes()).unwrap();
    let Some(Prompt::Text(prompt)) = request.prompt else {
        panic!("a text")
    };
    assert_eq!(prompt.len(), 8 << 18);
}

/// Fragments of bodies: enough of them in a row now and then make a body of some API.
fn fragment() -> impl Strategy<Value = String> {
    let keys = prop::sample::select(vec![
        "model",
        "messages",
        "role",
        "content",
        "type",
        "text",
        "image_url",
        "url",
        "input",
        "source",
        "data",
        "tools",
        "function",
        "name",
        "arguments",
        "stream",
        "system",
        "prompt",
        "input_ids",
        "token_ids",
        "tool_result",
        "function_call",
        "reasoning",
        "summary",
    ]);
    prop_oneof![
        keys.prop_map(|key| format!("\"{key}\"")),
        prop::sample::select(vec![
            "{",
            "}",
            "[",
            "]",
            ":",
            ",",
            "null",
            "true",
            "1",
            "-1",
            "1e999",
            "\"\\ud800\""
        ])
        .prop_map(str::to_owned),
    ]
}

/// Values that are shaped like bodies, with the names that parsers look for in any place.
fn value() -> impl Strategy<Value = serde_json::Value> {
    let names = vec![
        "model",
        "messages",
        "role",
        "content",
        "type",
        "text",
        "image_url",
        "url",
        "input",
        "source",
        "data",
        "tools",
        "function",
        "name",
        "arguments",
        "user",
        "assistant",
        "input_text",
        "image",
        "tool_use",
        "tool_result",
        "function_call",
        "message",
        "reasoning",
        "thinking",
        "summary",
        "system",
        "instructions",
    ];
    let leaf = prop_oneof![
        prop::sample::select(names.clone()).prop_map(serde_json::Value::from),
        any::<i8>().prop_map(serde_json::Value::from),
        Just(serde_json::Value::Null),
    ];
    leaf.prop_recursive(5, 60, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(serde_json::Value::from),
            prop::collection::hash_map(prop::sample::select(names.clone()), inner, 0..6).prop_map(
                |map| map
                    .into_iter()
                    .map(|(key, value)| (key.to_owned(), value))
                    .collect()
            ),
        ]
    })
}

proptest! {
    #[test]
    fn no_bytes_panic(body in prop::collection::vec(any::<u8>(), 0..200)) {
        for path in PATHS {
            let _ = parse_as(path, &body);
            let _ = parse_as(path, &framed(&body));
        }
    }

    #[test]
    fn no_fragments_panic(fragments in prop::collection::vec(fragment(), 0..40)) {
        let body = fragments.concat();
        for path in PATHS {
            let _ = parse_as(path, body.as_bytes());
        }
    }

    #[test]
    fn no_shape_panics_and_spans_lie_where_the_model_is(mut body in value(), name in "[a-z\"\\\\é]{1,8}") {
        if let Some(fields) = body.as_object_mut() {
            fields.insert("model".to_owned(), serde_json::Value::from(name.clone()));
        }
        let text = body.to_string();
        for path in PATHS {
            let Ok(request) = parse_as(path, text.as_bytes()) else { continue };
            if let Some(span) = request.model_span {
                prop_assert_eq!(&text[span], serde_json::Value::from(name.as_str()).to_string());
                prop_assert_eq!(&request.model, &name);
            }
            if let Some(Prompt::Chat(chat)) = &request.prompt {
                prop_assert!(chat.messages.is_array());
            }
        }
    }

    /// A model's name is found and replaced, and nothing else changes.
    #[test]
    fn a_rewritten_body_asks_for_the_other_model(
        name in "[a-zA-Z0-9/\"\\\\é]{1,20}",
        other in "[a-zA-Z0-9/\"\\\\é]{1,20}",
        cut in 0_usize..100,
    ) {
        let quoted = serde_json::Value::from(name.as_str());
        let body = format!("{{ \"prompt\" : \"hi\" ,\"model\": {quoted}, \"n\": 1.0e0 }}");
        let request = parse_as("/v1/completions", body.as_bytes()).unwrap();
        let (head, tail) = body.as_bytes().split_at(cut % body.len());
        let mut chunks = vec![head.to_vec(), tail.to_vec()];
        rewrite::splice(&mut chunks, request.model_span.clone().unwrap(), &rewrite::json_string(&other)).unwrap();
        let rewritten = parse_as("/v1/completions", &chunks.concat()).unwrap();
        prop_assert_eq!(&rewritten.model, &other);
        let mut back = chunks;
        rewrite::splice(&mut back, rewritten.model_span.unwrap(), &rewrite::json_string(&name)).unwrap();
        prop_assert_eq!(back.concat(), body.into_bytes());
    }
}
