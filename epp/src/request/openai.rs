//! The OpenAI API: chat completions and completions.
//!
//! One pass of serde over the body. Fields that are only passed on are skipped, optional ones are
//! borrowed as raw JSON and looked at leniently, and only a conversation is built as a tree,
//! because a chat template walks it.

use std::borrow::Cow;
use std::ops::Range;

use pointsman_proto::prompt::{ChatPrompt, Prompt};
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::{InferenceRequest, ParseError, Parser, RequestKind};

/// `POST .../chat/completions`
pub(super) struct ChatCompletions;

impl Parser for ChatCompletions {
    fn path_suffixes(&self) -> &'static [&'static str] {
        &["chat/completions"]
    }

    fn parse(&self, body: &[u8]) -> Result<InferenceRequest, ParseError> {
        let fields: ChatBody<'_> = serde_json::from_slice(body)?;
        let (model, model_span) = model(fields.model, body)?;
        let prompt = fields.messages.filter(Value::is_array).map(|messages| {
            Prompt::Chat(ChatPrompt {
                messages,
                tools: fields
                    .tools
                    .filter(|tools| tools.as_array().is_some_and(|list| !list.is_empty())),
                add_generation_prompt: typed(fields.add_generation_prompt).unwrap_or(true),
                template_kwargs: match fields.chat_template_kwargs {
                    Some(Value::Object(map)) => Some(map),
                    _ => None,
                },
            })
        });
        Ok(InferenceRequest {
            kind: RequestKind::Chat,
            model,
            model_span: Some(model_span),
            stream: typed(fields.stream).unwrap_or(false),
            prompt,
            cache_salt: typed(fields.cache_salt),
            max_tokens: typed(fields.max_completion_tokens).or_else(|| typed(fields.max_tokens)),
        })
    }
}

/// `POST .../completions`
pub(super) struct Completions;

impl Parser for Completions {
    fn path_suffixes(&self) -> &'static [&'static str] {
        &["completions"]
    }

    fn parse(&self, body: &[u8]) -> Result<InferenceRequest, ParseError> {
        let fields: CompletionBody<'_> = serde_json::from_slice(body)?;
        let (model, model_span) = model(fields.model, body)?;
        Ok(InferenceRequest {
            kind: RequestKind::Completion,
            model,
            model_span: Some(model_span),
            stream: typed(fields.stream).unwrap_or(false),
            prompt: fields.prompt.and_then(first_prompt),
            cache_salt: typed(fields.cache_salt),
            max_tokens: typed(fields.max_tokens),
        })
    }
}

#[derive(Deserialize)]
#[serde(expecting = "a JSON object")]
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
    cache_salt: Option<&'a RawValue>,
    #[serde(borrow)]
    max_tokens: Option<&'a RawValue>,
    #[serde(borrow)]
    max_completion_tokens: Option<&'a RawValue>,
}

#[derive(Deserialize)]
#[serde(expecting = "a JSON object")]
struct CompletionBody<'a> {
    #[serde(borrow)]
    model: Option<&'a RawValue>,
    #[serde(borrow)]
    prompt: Option<&'a RawValue>,
    #[serde(borrow)]
    stream: Option<&'a RawValue>,
    #[serde(borrow)]
    cache_salt: Option<&'a RawValue>,
    #[serde(borrow)]
    max_tokens: Option<&'a RawValue>,
}

/// The model name and where its JSON string lies in the body.
fn model(field: Option<&RawValue>, body: &[u8]) -> Result<(String, Range<usize>), ParseError> {
    let raw = field.ok_or(ParseError::ModelMissing)?.get();
    let name: Cow<'_, str> = serde_json::from_str(raw).map_err(|_| ParseError::ModelMissing)?;
    if name.is_empty() {
        return Err(ParseError::ModelMissing);
    }
    // The raw value borrows from the body, so the difference of the addresses is its offset.
    let start = raw.as_ptr() as usize - body.as_ptr() as usize;
    Ok((name.into_owned(), start..start + raw.len()))
}

/// The value if it has the type that the picker expects, and nothing if it has another.
fn typed<'a, T: Deserialize<'a>>(field: Option<&'a RawValue>) -> Option<T> {
    serde_json::from_str(field?.get()).ok()
}

/// A prompt is text, a list of texts, a list of token ids, or a list of such lists.
fn first_prompt(raw: &RawValue) -> Option<Prompt> {
    let json = raw.get();
    if json.starts_with('"') {
        return serde_json::from_str(json).ok().map(Prompt::Text);
    }
    let inside = json.strip_prefix('[')?.trim_ascii_start();
    match inside.as_bytes().first()? {
        b'"' => first_element(json).map(Prompt::Text),
        b'[' => first_element(json).map(Prompt::Tokens),
        b']' => None,
        _ => serde_json::from_str(json).ok().map(Prompt::Tokens),
    }
}

fn first_element<'a, T: Deserialize<'a>>(list: &'a str) -> Option<T> {
    let elements: Vec<&'a RawValue> = serde_json::from_str(list).ok()?;
    typed(elements.first().copied())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn chat(body: &str) -> Result<InferenceRequest, ParseError> {
        ChatCompletions.parse(body.as_bytes())
    }

    fn completion(body: &str) -> Result<InferenceRequest, ParseError> {
        Completions.parse(body.as_bytes())
    }

    #[test]
    fn reads_a_conversation() {
        let request = chat(
            r#"{"model":"m","stream":true,"cache_salt":"s","max_tokens":5,"max_completion_tokens":6,"temperature":0,
            "messages":[{"role":"user","content":"hi"}],"tools":[{"type":"function"}],
            "chat_template_kwargs":{"enable_thinking":false},"add_generation_prompt":false}"#,
        )
        .unwrap();
        assert_eq!((request.model.as_str(), request.stream), ("m", true));
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
            let request = completion(&format!(r#"{{"model":"m","prompt":{prompt}}}"#)).unwrap();
            assert_eq!(request.prompt, expected, "{prompt}");
        }
    }

    #[test]
    fn model_is_needed_and_found_where_it_lies() {
        for body in [
            r#"{"prompt":"hello world"}"#,
            r#"{"model":7}"#,
            r#"{"model":null}"#,
            r#"{"model":""}"#,
        ] {
            assert!(
                matches!(completion(body), Err(ParseError::ModelMissing)),
                "{body}"
            );
        }
        let body = "{ \"model\" :  \"a\\u0062c\" }";
        let request = completion(body).unwrap();
        assert_eq!(request.model, "abc");
        assert_eq!(&body[request.model_span.unwrap()], "\"a\\u0062c\"");
    }

    #[test]
    fn bad_json_is_named_with_its_place() {
        let text = chat("no healthy upstream").unwrap_err().to_string();
        assert!(
            text.starts_with("error unmarshaling request bodyMap: "),
            "{text}"
        );
        assert!(text.contains("line 1 column 2"), "{text}");
        let text = chat("").unwrap_err().to_string();
        assert!(text.contains("EOF"), "{text}");
        assert!(chat("[1]").is_err());
        assert!(
            chat(r#"{"model":"a","model":"b"}"#).is_err(),
            "two models are no model"
        );
        assert!(chat("{\"model\":\"a\"} trailing").is_err());
    }

    #[test]
    fn fields_of_another_type_are_the_workers_to_refuse() {
        let request =
            chat(r#"{"model":"m","messages":"hi","stream":"yes","max_tokens":-1,"cache_salt":3}"#)
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
            let request = completion(&body).unwrap();
            prop_assert_eq!(&request.model, &name);
            prop_assert_eq!(&body[request.model_span.unwrap()], quoted);
        }

        #[test]
        fn no_bytes_panic(body in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = ChatCompletions.parse(&body);
            let _ = Completions.parse(&body);
        }
    }
}
