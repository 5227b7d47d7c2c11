//! `anthropic-parser`: messages, and counting their tokens.
//!
//! The conversation becomes the one that a chat template expects, as vLLM converts it, because its
//! workers are what answers this API: the system prompt's blocks are joined without a separator, a
//! thinking becomes `reasoning`, a tool's use a call with its arguments as an object, a tool's
//! result a `tool` message before the rest of its turn. (SGLang converts a little differently; there
//! the prompts part at the first such place.)

use pointsman_proto::prompt::{ChatPrompt, Prompt};
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use super::fields::{self, function_tool, object, object_of, take, take_text, typed};
use super::openai::{model_only, render};
use super::parsers::{Api, ParserType};
use super::{InferenceRequest, ParseError, RequestKind, media};

/// The plugin's type name.
pub(super) const TYPE_NAME: &str = "anthropic-parser";

/// The plugin type.
pub(super) const TYPE: ParserType = ParserType::new(
    TYPE_NAME,
    &[
        Api::json("messages", messages),
        Api::json("messages/count_tokens", count_tokens),
        Api::json("messages/render", render),
    ],
);

/// A block of the system prompt that begins so changes with every request of one well-known client,
/// and workers leave it out.
const BILLING_HEADER: &str = "x-anthropic-billing-header";

fn messages(body: &[u8]) -> Result<InferenceRequest, ParseError> {
    let fields: MessagesBody<'_> = fields::read(body)?;
    let mut request = InferenceRequest::new(RequestKind::Messages);
    request.set_model(fields.model, body);
    request.stream = typed(fields.stream).unwrap_or(false);
    request.cache_salt = typed(fields.cache_salt);
    request.max_tokens = typed(fields.max_tokens);
    if let Some(messages) = conversation(fields.system, fields.messages) {
        request.media = media::of_messages(&messages);
        request.prompt = Some(Prompt::Chat(ChatPrompt {
            messages,
            tools: tools(fields.tools),
            add_generation_prompt: true,
            template_kwargs: object_of(fields.chat_template_kwargs),
        }));
    }
    request.with_model()
}

fn count_tokens(body: &[u8]) -> Result<InferenceRequest, ParseError> {
    model_only(RequestKind::CountTokens, body)
}

#[derive(Deserialize)]
struct MessagesBody<'a> {
    #[serde(borrow)]
    model: Option<&'a RawValue>,
    system: Option<Value>,
    messages: Option<Value>,
    tools: Option<Value>,
    chat_template_kwargs: Option<Value>,
    #[serde(borrow)]
    stream: Option<&'a RawValue>,
    #[serde(borrow)]
    cache_salt: Option<&'a RawValue>,
    #[serde(borrow)]
    max_tokens: Option<&'a RawValue>,
}

fn conversation(system: Option<Value>, given: Option<Value>) -> Option<Value> {
    let Some(Value::Array(given)) = given.filter(|given| *given != Value::Array(Vec::new())) else {
        return None;
    };
    let mut messages = Vec::with_capacity(given.len() + 1);
    if let Some(text) = system.and_then(system_text) {
        messages.push(message("system", Value::String(text)));
    }
    for turn in given {
        let Value::Object(mut turn) = turn else {
            return None;
        };
        let role = take_text(&mut turn, "role")?;
        match take(&mut turn, "content") {
            Value::Array(blocks) => push_turn(&role, blocks, &mut messages)?,
            text @ Value::String(_) => messages.push(message(&role, text)),
            _ => return None,
        }
    }
    Some(Value::Array(messages))
}

fn system_text(system: Value) -> Option<String> {
    match system {
        Value::String(text) => Some(text).filter(|text| !text.is_empty()),
        Value::Array(blocks) => {
            let texts = blocks
                .iter()
                .filter_map(|block| block.get("text")?.as_str());
            Some(
                texts
                    .filter(|text| !text.starts_with(BILLING_HEADER))
                    .collect(),
            )
        }
        _ => None,
    }
}

/// What the blocks of one turn amount to.
#[derive(Default)]
struct Turn {
    parts: Vec<Value>,
    calls: Vec<Value>,
    reasoning: Option<String>,
}

/// Adds a turn of several blocks, which can be several messages. Blocks of unknown kinds are left
/// out, as workers do.
fn push_turn(role: &str, blocks: Vec<Value>, messages: &mut Vec<Value>) -> Option<()> {
    let mut turn = Turn::default();
    for block in blocks {
        let Value::Object(mut block) = block else {
            return None;
        };
        match take_text(&mut block, "type").as_deref() {
            Some("text") => {
                let text = take_text(&mut block, "text").filter(|text| !text.is_empty());
                turn.parts.extend(text.map(text_part));
            }
            Some("image") => turn.parts.extend(image_part(block)),
            Some("thinking") => {
                let thinking = take_text(&mut block, "thinking").unwrap_or_default();
                turn.reasoning.get_or_insert_default().push_str(&thinking);
            }
            Some("tool_use") => turn.calls.push(call(block)),
            Some("tool_result") if role == "user" => push_result(block, messages),
            Some("tool_result") => {
                let (text, _) = result(take(&mut block, "content"));
                turn.parts.push(text_part(format!("Tool result: {text}")));
            }
            _ => {}
        }
    }
    if turn.parts.is_empty() && turn.calls.is_empty() && turn.reasoning.is_none() {
        return Some(());
    }
    messages.push(turn.message(role));
    Some(())
}

impl Turn {
    fn message(self, role: &str) -> Value {
        let mut fields = Map::new();
        fields.insert("role".to_owned(), Value::from(role));
        if let Some(reasoning) = self.reasoning {
            fields.insert("reasoning".to_owned(), Value::String(reasoning));
        }
        if !self.calls.is_empty() {
            fields.insert("tool_calls".to_owned(), Value::Array(self.calls));
        }
        if !self.parts.is_empty() {
            fields.insert("content".to_owned(), flat(self.parts));
        }
        Value::Object(fields)
    }
}

/// One text stands alone; anything else is a list of parts.
fn flat(mut parts: Vec<Value>) -> Value {
    if let [Value::Object(only)] = parts.as_mut_slice()
        && let Some(text) = take_text(only, "text")
    {
        return Value::String(text);
    }
    Value::Array(parts)
}

/// A tool's result is a message of its own, and its images are another, since no template takes
/// images from a tool.
fn push_result(mut block: Map<String, Value>, messages: &mut Vec<Value>) {
    let (text, images) = result(take(&mut block, "content"));
    let id = take_text(&mut block, "tool_use_id").unwrap_or_default();
    messages.push(object([
        ("role", Value::from("tool")),
        ("tool_call_id", Value::String(id)),
        ("content", Value::String(text)),
    ]));
    if !images.is_empty() {
        messages.push(message("user", Value::Array(images)));
    }
}

/// The text of a tool's result, and its images.
fn result(content: Value) -> (String, Vec<Value>) {
    let blocks = match content {
        Value::String(text) => return (text, Vec::new()),
        Value::Array(blocks) => blocks,
        _ => return (String::new(), Vec::new()),
    };
    let (mut texts, mut images) = (Vec::new(), Vec::new());
    for block in blocks {
        let Value::Object(mut block) = block else {
            continue;
        };
        match take_text(&mut block, "type").as_deref() {
            Some("text") => texts.extend(take_text(&mut block, "text")),
            Some("image") => images.extend(image_part(block)),
            _ => {}
        }
    }
    (texts.join("\n"), images)
}

fn text_part(text: String) -> Value {
    object([("type", Value::from("text")), ("text", Value::String(text))])
}

/// `{"source": {"type": "base64", "media_type", "data"}}` or `{"source": {"type": "url", "url"}}`
fn image_part(mut block: Map<String, Value>) -> Option<Value> {
    let Value::Object(mut source) = take(&mut block, "source") else {
        return None;
    };
    let url = if let Some(url) = take_text(&mut source, "url") {
        url
    } else {
        let data = take_text(&mut source, "data")?;
        let media_type = take_text(&mut source, "media_type");
        let media_type = media_type.as_deref().unwrap_or("image/jpeg");
        format!("data:{media_type};base64,{data}")
    };
    Some(object([
        ("type", Value::from("image_url")),
        ("image_url", object([("url", Value::String(url))])),
    ]))
}

fn call(mut block: Map<String, Value>) -> Value {
    let arguments = match take(&mut block, "input") {
        Value::Null => Value::Object(Map::new()),
        input => input,
    };
    let function = object([("name", take(&mut block, "name")), ("arguments", arguments)]);
    object([
        ("id", take(&mut block, "id")),
        ("type", Value::from("function")),
        ("function", function),
    ])
}

fn message(role: &str, content: Value) -> Value {
    object([("role", Value::from(role)), ("content", content)])
}

/// `{name, description, input_schema}` each. Tools without a name are none.
fn tools(tools: Option<Value>) -> Option<Value> {
    let Some(Value::Array(tools)) = tools else {
        return None;
    };
    let functions: Vec<Value> = tools
        .into_iter()
        .filter_map(|tool| {
            let mut tool = object_of(Some(tool))?;
            let name = take_text(&mut tool, "name")?;
            Some(function_tool(
                Value::String(name),
                take(&mut tool, "description"),
                take(&mut tool, "input_schema"),
            ))
        })
        .collect();
    (!functions.is_empty()).then_some(Value::Array(functions))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn request(body: &Value) -> InferenceRequest {
        messages(body.to_string().as_bytes()).unwrap()
    }

    fn prompt(body: &Value) -> Option<ChatPrompt> {
        match request(body).prompt {
            Some(Prompt::Chat(chat)) => Some(chat),
            None => None,
            Some(other) => panic!("{other:?} is no conversation"),
        }
    }

    /// The example of the API's documentation, with everything that a coding agent sends.
    #[test]
    fn an_agents_conversation_becomes_the_templates() {
        let body = json!({
            "model": "qwen", "max_tokens": 64, "stream": true,
            "system": [
                {"type": "text", "text": "x-anthropic-billing-header: cc_version=1"},
                {"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}},
                {"type": "text", "text": " Be kind."},
            ],
            "messages": [
                {"role": "user", "content": [
                    {"type": "text", "text": "weather in SF?"},
                    {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}},
                ]},
                {"role": "assistant", "content": [
                    {"type": "thinking", "thinking": "look it up", "signature": "x"},
                    {"type": "text", "text": "One moment."},
                    {"type": "tool_use", "id": "tu1", "name": "weather", "input": {"city": "SF"}},
                ]},
                {"role": "user", "content": [
                    {"type": "tool_result", "tool_use_id": "tu1", "content": [
                        {"type": "text", "text": "sunny"},
                        {"type": "text", "text": "20 C"},
                        {"type": "image", "source": {"type": "url", "url": "https://a/sky.png"}},
                    ]},
                    {"type": "text", "text": "and tomorrow?"},
                ]},
            ],
            "tools": [{"name": "weather", "description": "w", "input_schema": {"type": "object"}}, {"type": "x"}],
        });
        let expected = json!([
            {"role": "system", "content": "Be brief. Be kind."},
            {"role": "user", "content": [
                {"type": "text", "text": "weather in SF?"},
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
            ]},
            {"role": "assistant", "reasoning": "look it up", "tool_calls": [
                {"id": "tu1", "type": "function", "function": {"name": "weather", "arguments": {"city": "SF"}}},
            ], "content": "One moment."},
            {"role": "tool", "tool_call_id": "tu1", "content": "sunny\n20 C"},
            {"role": "user", "content": [
                {"type": "image_url", "image_url": {"url": "https://a/sky.png"}},
            ]},
            {"role": "user", "content": "and tomorrow?"},
        ]);
        let read = request(&body);
        assert_eq!(
            (read.model.as_str(), read.stream, read.max_tokens),
            ("qwen", true, Some(64))
        );
        assert_eq!(read.media.len(), 2);
        let chat = prompt(&body).unwrap();
        assert_eq!(chat.messages, expected);
        assert_eq!(
            chat.tools,
            Some(json!([{"type": "function", "function":
                {"name": "weather", "description": "w", "parameters": {"type": "object"}}}]))
        );
    }

    #[test]
    fn plain_turns_stay_as_they_are() {
        let body = json!({"model": "m", "system": "s", "messages": [
            {"role": "user", "content": "hi"},
            {"role": "assistant", "content": [{"type": "text", "text": "hello"}]},
            {"role": "assistant", "content": []},
        ]});
        assert_eq!(
            prompt(&body).unwrap().messages,
            json!([
                {"role": "system", "content": "s"},
                {"role": "user", "content": "hi"},
                {"role": "assistant", "content": "hello"},
            ])
        );
    }

    #[test]
    fn one_image_is_one_medium_in_every_api() {
        let block = json!({"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}});
        let body = json!({"model": "m", "messages": [{"role": "user", "content": [block]}]});
        let other = media::of_messages(&json!([{"role": "user", "content": [
            {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
        ]}]));
        assert_eq!(request(&body).media, other);
    }

    #[test]
    fn conversations_without_a_known_shape_are_no_prompt() {
        for messages in [
            json!([]),
            json!("hi"),
            json!(["hi"]),
            json!([{"content": "hi"}]),
            json!([{"role": "user"}]),
            json!([{"role": "user", "content": ["text"]}]),
        ] {
            let body = json!({"model": "m", "messages": messages});
            assert_eq!(prompt(&body), None, "{messages}");
        }
    }

    #[test]
    fn counting_computes_no_prompt_and_a_model_is_needed() {
        let body = br#"{"model":"m","messages":[{"role":"user","content":"hi"}]}"#;
        let counted = count_tokens(body).unwrap();
        assert_eq!(
            (counted.kind, counted.prompt),
            (RequestKind::CountTokens, None)
        );
        for parse in [messages, count_tokens] {
            let error = parse(br#"{"messages":[]}"#).unwrap_err();
            assert!(matches!(error, ParseError::ModelMissing), "{error}");
            let error = parse(b"nonsense").unwrap_err().to_string();
            assert!(
                error.starts_with("error unmarshaling request bodyMap: "),
                "{error}"
            );
        }
    }
}
