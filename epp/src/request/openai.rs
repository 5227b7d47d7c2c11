//! `openai-parser`: chat completions, completions, embeddings and image generation. (Responses and
//! conversations are `responses.rs`.)
//!
//! vLLM's additions are read where they say what is computed (`cache_salt`, `chat_template_kwargs`,
//! `add_generation_prompt`), and embeddings may be asked for a conversation as well as for text.

use pointsman_proto::prompt::{ChatPrompt, Prompt};
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::fields::{self, first_prompt, includes_usage, object_of, typed};
use super::parsers::{Api, ParserType};
use super::responses::{conversations, responses};
use super::{InferenceRequest, ParseError, RequestKind, media};

/// The plugin's type name.
pub(super) const TYPE_NAME: &str = "openai-parser";

/// The plugin type.
pub(super) const TYPE: ParserType = ParserType::new(
    TYPE_NAME,
    &[
        Api::json("chat/completions", chat),
        Api::json("completions", completion),
        Api::json("embeddings", embedding),
        Api::json("responses", responses),
        Api::json("conversations", conversations),
        Api::json("chat/completions/render", render),
        Api::json("completions/render", render),
        Api::json("responses/render", render),
        Api::json("images/generations", image),
    ],
);

fn chat(body: &[u8]) -> Result<InferenceRequest, ParseError> {
    chat_of_any_model(body)?.with_model()
}

/// Reads a chat completion that may go without a model, for APIs that name it elsewhere.
pub(super) fn chat_of_any_model(body: &[u8]) -> Result<InferenceRequest, ParseError> {
    let fields: ChatBody<'_> = fields::read(body)?;
    let mut request = InferenceRequest::new(RequestKind::Chat);
    request.set_model(fields.model, body);
    request.stream = typed(fields.stream).unwrap_or(false);
    request.stream_options_include_usage = includes_usage(fields.stream_options);
    request.cache_salt = typed(fields.cache_salt);
    request.max_tokens = typed(fields.max_completion_tokens).or_else(|| typed(fields.max_tokens));
    if let Some(messages) = fields.messages.filter(Value::is_array) {
        request.media = media::of_messages(&messages);
        request.prompt = Some(Prompt::Chat(ChatPrompt {
            messages,
            tools: fields.tools.filter(is_filled_list),
            add_generation_prompt: typed(fields.add_generation_prompt).unwrap_or(true),
            template_kwargs: object_of(fields.chat_template_kwargs),
        }));
    }
    Ok(request)
}

fn completion(body: &[u8]) -> Result<InferenceRequest, ParseError> {
    let fields: CompletionBody<'_> = fields::read(body)?;
    let mut request = InferenceRequest::new(RequestKind::Completion);
    request.set_model(fields.model, body);
    request.stream = typed(fields.stream).unwrap_or(false);
    request.stream_options_include_usage = includes_usage(fields.stream_options);
    request.cache_salt = typed(fields.cache_salt);
    request.max_tokens = typed(fields.max_tokens);
    request.prompt = fields.prompt.and_then(first_prompt);
    request.with_model()
}

fn embedding(body: &[u8]) -> Result<InferenceRequest, ParseError> {
    let fields: EmbeddingBody<'_> = fields::read(body)?;
    let mut request = InferenceRequest::new(RequestKind::Embedding);
    request.set_model(fields.model, body);
    request.cache_salt = typed(fields.cache_salt);
    request.prompt = fields.input.and_then(first_prompt);
    if let (None, Some(messages)) = (&request.prompt, fields.messages.filter(Value::is_array)) {
        request.media = media::of_messages(&messages);
        request.prompt = Some(Prompt::Chat(ChatPrompt {
            messages,
            tools: None,
            // Nothing is generated after the conversation.
            add_generation_prompt: typed(fields.add_generation_prompt).unwrap_or(false),
            template_kwargs: object_of(fields.chat_template_kwargs),
        }));
    }
    request.with_model()
}

fn image(body: &[u8]) -> Result<InferenceRequest, ParseError> {
    let fields: ImageBody<'_> = fields::read(body)?;
    let mut request = InferenceRequest::new(RequestKind::Image);
    request.set_model(fields.model, body);
    request.stream = typed(fields.stream).unwrap_or(false);
    request.prompt = typed(fields.prompt).map(Prompt::Text);
    request.with_model()
}

/// A request to render only. The worker computes nothing that a later request could reuse, so its
/// prompt is not looked up, nor remembered as being held by whoever rendered it.
pub(super) fn render(body: &[u8]) -> Result<InferenceRequest, ParseError> {
    model_only(RequestKind::Render, body)
}

/// A request of which only the model matters.
pub(super) fn model_only(kind: RequestKind, body: &[u8]) -> Result<InferenceRequest, ParseError> {
    #[derive(Deserialize)]
    struct ModelBody<'a> {
        #[serde(borrow)]
        model: Option<&'a RawValue>,
    }
    let fields: ModelBody<'_> = fields::read(body)?;
    let mut request = InferenceRequest::new(kind);
    request.set_model(fields.model, body);
    request.with_model()
}

fn is_filled_list(value: &Value) -> bool {
    value.as_array().is_some_and(|list| !list.is_empty())
}

#[derive(Deserialize)]
struct ChatBody<'a> {
    #[serde(borrow)]
    model: Option<&'a RawValue>,
    messages: Option<Value>,
    tools: Option<Value>,
    chat_template_kwargs: Option<Value>,
    #[serde(borrow)]
    add_generation_prompt: Option<&'a RawValue>,
    #[serde(borrow)]
    stream: Option<&'a RawValue>,
    #[serde(borrow)]
    stream_options: Option<&'a RawValue>,
    #[serde(borrow)]
    cache_salt: Option<&'a RawValue>,
    #[serde(borrow)]
    max_tokens: Option<&'a RawValue>,
    #[serde(borrow)]
    max_completion_tokens: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct CompletionBody<'a> {
    #[serde(borrow)]
    model: Option<&'a RawValue>,
    #[serde(borrow)]
    prompt: Option<&'a RawValue>,
    #[serde(borrow)]
    stream: Option<&'a RawValue>,
    #[serde(borrow)]
    stream_options: Option<&'a RawValue>,
    #[serde(borrow)]
    cache_salt: Option<&'a RawValue>,
    #[serde(borrow)]
    max_tokens: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct EmbeddingBody<'a> {
    #[serde(borrow)]
    model: Option<&'a RawValue>,
    #[serde(borrow)]
    input: Option<&'a RawValue>,
    messages: Option<Value>,
    chat_template_kwargs: Option<Value>,
    #[serde(borrow)]
    add_generation_prompt: Option<&'a RawValue>,
    #[serde(borrow)]
    cache_salt: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct ImageBody<'a> {
    #[serde(borrow)]
    model: Option<&'a RawValue>,
    #[serde(borrow)]
    prompt: Option<&'a RawValue>,
    #[serde(borrow)]
    stream: Option<&'a RawValue>,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn reads_a_conversation() {
        let request = chat(
            br#"{"model":"m","stream":true,"cache_salt":"s","max_tokens":5,"max_completion_tokens":6,"temperature":0,
            "stream_options":{"include_usage":true,"continuous_usage_stats":false},
            "messages":[{"role":"user","content":"hi"}],"tools":[{"type":"function"}],
            "chat_template_kwargs":{"enable_thinking":false},"add_generation_prompt":false}"#,
        )
        .unwrap();
        assert_eq!((request.model.as_str(), request.stream), ("m", true));
        assert!(request.stream_options_include_usage);
        assert_eq!(
            (request.cache_salt.as_deref(), request.max_tokens),
            (Some("s"), Some(6))
        );
        let Some(Prompt::Chat(prompt)) = request.prompt else {
            panic!("a conversation")
        };
        assert_eq!(prompt.messages, json!([{"role": "user", "content": "hi"}]));
        assert_eq!(prompt.tools, Some(json!([{"type": "function"}])));
        assert!(!prompt.add_generation_prompt);
        assert_eq!(prompt.template_kwargs.map(|map| map.len()), Some(1));
    }

    #[test]
    fn counts_the_media_of_a_conversation() {
        let request = chat(
            br#"{"model":"m","messages":[{"role":"user","content":[{"type":"text","text":"what is it?"},
            {"type":"image_url","image_url":{"url":"data:image/png;base64,AAAA"}},
            {"type":"input_audio","input_audio":{"data":"UklG","format":"wav"}}]}]}"#,
        )
        .unwrap();
        let modalities: Vec<&str> = request.media.iter().map(|item| item.modality).collect();
        assert_eq!(modalities, ["image", "audio"]);
    }

    #[test]
    fn reads_each_shape_of_prompt() {
        let cases = [
            (r#""text""#, Some(Prompt::Text("text".to_owned()))),
            (
                r#"["first", "second"]"#,
                Some(Prompt::Text("first".to_owned())),
            ),
            ("[1, 2]", Some(Prompt::Tokens(vec![1, 2]))),
            ("[ [3], [4]]", Some(Prompt::Tokens(vec![3]))),
            ("[]", None),
            ("[-1]", None),
            ("7", None),
            ("null", None),
        ];
        for (prompt, expected) in cases {
            let body = format!(r#"{{"model":"m","prompt":{prompt}}}"#);
            assert_eq!(
                completion(body.as_bytes()).unwrap().prompt,
                expected,
                "{prompt}"
            );
            let body = format!(r#"{{"model":"m","input":{prompt}}}"#);
            assert_eq!(
                embedding(body.as_bytes()).unwrap().prompt,
                expected,
                "{prompt}"
            );
        }
    }

    #[test]
    fn embeds_a_conversation_without_opening_an_answer() {
        let request =
            embedding(br#"{"model":"m","messages":[{"role":"user","content":"hi"}]}"#).unwrap();
        let Some(Prompt::Chat(prompt)) = request.prompt else {
            panic!("a conversation")
        };
        assert!(!prompt.add_generation_prompt);
    }

    #[test]
    fn images_are_asked_for_by_text_and_rendering_computes_no_prompt() {
        let request = image(br#"{"model":"sdxl","prompt":"a cat","n":1,"size":"64x64"}"#).unwrap();
        assert_eq!(request.prompt, Some(Prompt::Text("a cat".to_owned())));
        let request = render(br#"{"model":"m","prompt":"text"}"#).unwrap();
        assert_eq!((request.kind, request.prompt), (RequestKind::Render, None));
        assert!(request.model_span.is_some());
    }

    #[test]
    fn model_is_needed_and_found_where_it_lies() {
        for body in [
            r#"{"prompt":"hello world"}"#,
            r#"{"model":7}"#,
            r#"{"model":null}"#,
            r#"{"model":""}"#,
        ] {
            for parse in [chat, completion, embedding, image, render] {
                let error = parse(body.as_bytes()).unwrap_err();
                assert_eq!(
                    error.to_string(),
                    "model not found in request body",
                    "{body}"
                );
            }
        }
        let body = "{ \"model\" :  \"a\\u0062c\" }";
        let request = completion(body.as_bytes()).unwrap();
        assert_eq!(request.model, "abc");
        assert_eq!(&body[request.model_span.unwrap()], "\"a\\u0062c\"");
    }

    #[test]
    fn bad_json_is_named_with_its_place() {
        let chat = |body: &str| chat(body.as_bytes());
        let text = chat("no healthy upstream").unwrap_err().to_string();
        assert!(
            text.starts_with("error unmarshaling request bodyMap: "),
            "{text}"
        );
        assert!(text.contains("line 1 column 2"), "{text}");
        let text = chat("").unwrap_err().to_string();
        assert!(text.contains("EOF"), "{text}");
        let text = chat("[1]").unwrap_err().to_string();
        assert!(text.contains("expected a JSON object at line 1"), "{text}");
        assert!(
            chat(r#"{"model":"a","model":"b"}"#).is_err(),
            "two models are no model"
        );
        assert!(chat("{\"model\":\"a\"} trailing").is_err());
        let positional = br#"["m","prompt",true,null,null,5]"#;
        assert!(
            completion(positional).is_err(),
            "a list is no object, even if it has as many elements as there are fields"
        );
    }

    #[test]
    fn fields_of_another_type_are_the_workers_to_refuse() {
        let request = chat(
            br#"{"model":"m","messages":"hi","stream":"yes","max_tokens":-1,"cache_salt":3,"stream_options":[]}"#,
        )
        .unwrap();
        assert_eq!(request.prompt, None);
        assert_eq!(
            (request.stream, request.max_tokens, request.cache_salt),
            (false, None, None)
        );
    }

    proptest! {
        #[test]
        fn model_span_is_the_name(name in "[a-zA-Z0-9/._\"\\\\é-]{1,40}", pad in "[ \n\t]{0,5}") {
            let quoted = json!(name).to_string();
            let body = format!("{{{pad}\"x\":1,\"model\"{pad}:{pad}{quoted}{pad}}}");
            let request = completion(body.as_bytes()).unwrap();
            prop_assert_eq!(&request.model, &name);
            prop_assert_eq!(&body[request.model_span.unwrap()], quoted);
        }
    }
}
