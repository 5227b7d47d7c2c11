//! OpenAI's responses and conversations, for `openai-parser`.
//!
//! A response's `instructions` and `input` become the conversation that a chat template expects, by
//! the rules of vLLM's `construct_input_messages`: instructions are the system message; a function
//! call, a reasoning and a text in a row are one assistant message; a function's output is a `tool`
//! message. Arguments of a call are an object, because that is what vLLM hands to a template.
//!
//! A response that goes on from an earlier one (`previous_response_id`, `conversation`, a stored
//! `prompt`) begins with turns that only the worker holds. A prompt without its beginning would be
//! looked up as another prompt, so there is none.

use pointsman_proto::prompt::{ChatPrompt, Prompt};
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use super::fields::{
    self, function_tool, includes_usage, is_given, object, object_of, take, take_text, typed,
};
use super::{InferenceRequest, ParseError, RequestKind, media};

/// `POST .../responses`
pub(super) fn responses(body: &[u8]) -> Result<InferenceRequest, ParseError> {
    responses_of_any_model(body)?.with_model()
}

/// Reads a response that may go without a model, for APIs that name it elsewhere.
pub(super) fn responses_of_any_model(body: &[u8]) -> Result<InferenceRequest, ParseError> {
    let fields: ResponsesBody<'_> = fields::read(body)?;
    let mut request = InferenceRequest::new(RequestKind::Responses);
    request.set_model(fields.model, body);
    request.stream = typed(fields.stream).unwrap_or(false);
    request.stream_options_include_usage = includes_usage(fields.stream_options);
    request.cache_salt = typed(fields.cache_salt);
    request.max_tokens = typed(fields.max_output_tokens);
    let held_by_worker = [
        fields.previous_response_id,
        fields.conversation,
        fields.prompt,
    ];
    let instructions: Option<String> = typed(fields.instructions);
    let conversation = fields
        .input
        .and_then(|input| conversation(instructions, input));
    if let Some((messages, is_continued)) = conversation {
        request.media = media::of_messages(&messages);
        let is_whole = !held_by_worker.into_iter().any(is_given);
        request.prompt = is_whole.then(|| {
            Prompt::Chat(ChatPrompt {
                messages,
                tools: tools(fields.tools),
                add_generation_prompt: !is_continued,
                template_kwargs: object_of(fields.chat_template_kwargs),
            })
        });
    }
    Ok(request)
}

/// `POST .../conversations`: turns for the worker to store. OpenAI's own has no model.
pub(super) fn conversations(body: &[u8]) -> Result<InferenceRequest, ParseError> {
    #[derive(Deserialize)]
    struct ConversationBody<'a> {
        #[serde(borrow)]
        model: Option<&'a RawValue>,
    }
    let fields: ConversationBody<'_> = fields::read(body)?;
    let mut request = InferenceRequest::new(RequestKind::Conversation);
    request.set_model(fields.model, body);
    Ok(request)
}

#[derive(Deserialize)]
struct ResponsesBody<'a> {
    #[serde(borrow)]
    model: Option<&'a RawValue>,
    input: Option<Value>,
    #[serde(borrow)]
    instructions: Option<&'a RawValue>,
    tools: Option<Value>,
    chat_template_kwargs: Option<Value>,
    #[serde(borrow)]
    previous_response_id: Option<&'a RawValue>,
    #[serde(borrow)]
    conversation: Option<&'a RawValue>,
    #[serde(borrow)]
    prompt: Option<&'a RawValue>,
    #[serde(borrow)]
    stream: Option<&'a RawValue>,
    #[serde(borrow)]
    stream_options: Option<&'a RawValue>,
    #[serde(borrow)]
    cache_salt: Option<&'a RawValue>,
    #[serde(borrow)]
    max_output_tokens: Option<&'a RawValue>,
}

/// The messages, and whether the last one is the assistant's and to be gone on with.
fn conversation(instructions: Option<String>, input: Value) -> Option<(Value, bool)> {
    let mut messages = Vec::new();
    if let Some(text) = instructions.filter(|text| !text.is_empty()) {
        messages.push(message("system", Value::String(text)));
    }
    let mut is_continued = false;
    match input {
        Value::String(text) => messages.push(message("user", Value::String(text))),
        Value::Array(items) if !items.is_empty() => {
            for item in items {
                let Value::Object(item) = item else {
                    return None;
                };
                is_continued = is_unfinished(&item);
                push(item, &mut messages)?;
            }
        }
        _ => return None,
    }
    Some((Value::Array(messages), is_continued))
}

/// Adds an item of the input to the conversation; nothing where it has no shape that is known.
fn push(mut item: Map<String, Value>, messages: &mut Vec<Value>) -> Option<()> {
    let kind = take_text(&mut item, "type");
    match kind.as_deref() {
        Some("function_call") => {
            let call = call(&mut item);
            let open = open_assistant(messages, |_| true);
            match open.and_then(|open| {
                open.entry("tool_calls")
                    .or_insert_with(|| Value::Array(Vec::new()))
                    .as_array_mut()
            }) {
                Some(calls) => calls.push(call),
                None => messages.push(object([
                    ("role", Value::from("assistant")),
                    ("tool_calls", Value::Array(vec![call])),
                ])),
            }
        }
        Some("reasoning") => {
            let text = first_text(take(&mut item, "content"))
                .or_else(|| first_text(take(&mut item, "summary")))
                .unwrap_or_default();
            set_or_push(messages, "reasoning", text);
        }
        Some("function_call_output") => messages.push(object([
            ("role", Value::from("tool")),
            ("content", content(take(&mut item, "output"))),
            ("tool_call_id", take(&mut item, "call_id")),
        ])),
        None | Some("message") => {
            let role = take_text(&mut item, "role")?;
            let given = take(&mut item, "content");
            match given {
                // A template takes what the assistant said as one text.
                Value::Array(_) | Value::String(_) if role == "assistant" => {
                    set_or_push(messages, "content", first_text(given)?);
                }
                given => messages.push(message(&role, content(given))),
            }
        }
        // What the worker makes of items of further kinds is unknown here.
        Some(_) => return None,
    }
    Some(())
}

/// The last message, where it is the assistant's and has room.
fn open_assistant(
    messages: &mut [Value],
    has_room: impl Fn(&Map<String, Value>) -> bool,
) -> Option<&mut Map<String, Value>> {
    let last = messages.last_mut()?.as_object_mut()?;
    let is_assistant = last.get("role").and_then(Value::as_str) == Some("assistant");
    (is_assistant && has_room(last)).then_some(last)
}

/// Sets a field of the assistant message that the conversation ends with, or begins another.
fn set_or_push(messages: &mut Vec<Value>, field: &str, text: String) {
    let text = Value::String(text);
    match open_assistant(messages, |last| !last.contains_key(field)) {
        Some(open) => {
            open.insert(field.to_owned(), text);
        }
        None => messages.push(object([("role", Value::from("assistant")), (field, text)])),
    }
}

fn call(item: &mut Map<String, Value>) -> Value {
    let arguments = match take(item, "arguments") {
        Value::String(json) => serde_json::from_str(&json)
            .ok()
            .filter(Value::is_object)
            .unwrap_or(Value::String(json)),
        other => other,
    };
    let function = object([("name", take(item, "name")), ("arguments", arguments)]);
    object([
        ("id", take(item, "call_id")),
        ("type", Value::from("function")),
        ("function", function),
    ])
}

/// A message's content with its parts in the chat API's form.
fn content(content: Value) -> Value {
    match content {
        Value::Array(parts) => Value::Array(parts.into_iter().map(part).collect()),
        other => other,
    }
}

fn part(part: Value) -> Value {
    let Value::Object(mut fields) = part else {
        return part;
    };
    match fields.get("type").and_then(Value::as_str) {
        Some("input_text" | "output_text" | "text") => object([
            ("type", Value::from("text")),
            ("text", take(&mut fields, "text")),
        ]),
        Some("refusal") => object([
            ("type", Value::from("text")),
            ("text", take(&mut fields, "refusal")),
        ]),
        Some("input_image") => match take(&mut fields, "image_url") {
            Value::String(url) => object([
                ("type", Value::from("image_url")),
                ("image_url", object([("url", Value::String(url))])),
            ]),
            _ => Value::Object(fields),
        },
        _ => Value::Object(fields),
    }
}

/// Text, or the text of the first of several parts.
fn first_text(content: Value) -> Option<String> {
    match content {
        Value::String(text) => Some(text),
        Value::Array(parts) => match parts.into_iter().next()? {
            Value::Object(mut part) => take_text(&mut part, "text"),
            _ => None,
        },
        _ => None,
    }
}

/// Whether an item is an answer that broke off, to be gone on with.
fn is_unfinished(item: &Map<String, Value>) -> bool {
    let text = |field: &str| item.get(field).and_then(Value::as_str);
    let is_answer = match text("type") {
        Some("reasoning") => true,
        None | Some("message") => text("role") == Some("assistant"),
        Some(_) => false,
    };
    is_answer && matches!(text("status"), Some("in_progress" | "incomplete"))
}

fn message(role: &str, content: Value) -> Value {
    object([("role", Value::from(role)), ("content", content)])
}

/// The functions among the tools: `{type, name, description, parameters}` each. The worker runs
/// tools of other types itself.
fn tools(tools: Option<Value>) -> Option<Value> {
    let Some(Value::Array(tools)) = tools else {
        return None;
    };
    let functions: Vec<Value> = tools
        .into_iter()
        .filter_map(|tool| match tool {
            Value::Object(mut tool) if tool.get("type")? == "function" => Some(function_tool(
                take(&mut tool, "name"),
                take(&mut tool, "description"),
                take(&mut tool, "parameters"),
            )),
            _ => None,
        })
        .collect();
    (!functions.is_empty()).then_some(Value::Array(functions))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn prompt(body: &Value) -> Option<ChatPrompt> {
        match responses(body.to_string().as_bytes()).unwrap().prompt {
            Some(Prompt::Chat(chat)) => Some(chat),
            None => None,
            Some(other) => panic!("{other:?} is no conversation"),
        }
    }

    fn messages(input: &Value) -> Value {
        let body = json!({"model": "m", "input": input});
        prompt(&body).map(|chat| chat.messages).unwrap_or_default()
    }

    #[test]
    fn a_text_is_a_users_message_after_the_instructions() {
        let request = responses(
            br#"{"model":"m","instructions":"Be brief.","input":"hi","stream":true,"max_output_tokens":9}"#,
        )
        .unwrap();
        assert_eq!((request.stream, request.max_tokens), (true, Some(9)));
        let Some(Prompt::Chat(chat)) = request.prompt else {
            panic!("a conversation")
        };
        assert_eq!(
            chat.messages,
            json!([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}])
        );
        assert!(chat.add_generation_prompt);
    }

    #[test]
    fn calls_reasoning_and_text_in_a_row_are_one_assistant_message() {
        let input = json!([
            {"role": "user", "content": [{"type": "input_text", "text": "weather?"}]},
            {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "look it up"}]},
            {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": "{\"city\":\"SF\"}"},
            {"type": "function_call", "call_id": "c2", "name": "time", "arguments": "not json"},
            {"type": "function_call_output", "call_id": "c1", "output": "sunny"},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Sunny."}]},
            {"role": "assistant", "content": "Really."},
        ]);
        let expected = json!([
            {"role": "user", "content": [{"type": "text", "text": "weather?"}]},
            {"role": "assistant", "reasoning": "look it up", "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": {"city": "SF"}}},
                {"id": "c2", "type": "function", "function": {"name": "time", "arguments": "not json"}},
            ]},
            {"role": "tool", "content": "sunny", "tool_call_id": "c1"},
            {"role": "assistant", "content": "Sunny."},
            {"role": "assistant", "content": "Really."},
        ]);
        assert_eq!(messages(&input), expected);
    }

    #[test]
    fn images_are_counted_and_become_the_chat_apis_parts() {
        let body = br#"{"model":"m","input":[{"role":"user","content":[
            {"type":"input_text","text":"what is it?"},
            {"type":"input_image","image_url":"https://a/cat.png"},
            {"type":"input_image","file_id":"file-1"}]}]}"#;
        let request = responses(body).unwrap();
        assert_eq!(request.media.len(), 1);
        let Some(Prompt::Chat(chat)) = request.prompt else {
            panic!("a conversation")
        };
        assert_eq!(
            chat.messages[0]["content"][1],
            json!({"type": "image_url", "image_url": {"url": "https://a/cat.png"}})
        );
    }

    #[test]
    fn only_functions_are_tools_of_the_template() {
        let body = json!({"model": "m", "input": "hi", "tools": [
            {"type": "web_search"},
            {"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": true},
        ]});
        let expected = json!([
            {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}},
        ]);
        assert_eq!(prompt(&body).unwrap().tools, Some(expected));
        let body = json!({"model": "m", "input": "hi", "tools": [{"type": "web_search"}]});
        assert_eq!(prompt(&body).unwrap().tools, None);
    }

    #[test]
    fn a_prompt_that_the_worker_holds_in_part_is_none() {
        for field in ["previous_response_id", "conversation", "prompt"] {
            let body = json!({"model": "m", "input": "hi", field: "x"});
            assert_eq!(prompt(&body), None, "{field}");
            let body = json!({"model": "m", "input": "hi", field: null});
            assert!(prompt(&body).is_some(), "{field}");
        }
    }

    #[test]
    fn inputs_without_a_known_shape_are_no_prompt() {
        for input in [
            json!([]),
            json!(7),
            json!(["text"]),
            json!([{"content": "no role"}]),
            json!([{"type": "computer_call"}]),
            json!([{"role": "assistant", "content": [{"type": "output_audio"}]}]),
        ] {
            assert_eq!(messages(&input), Value::Null, "{input}");
        }
    }

    #[test]
    fn an_answer_that_broke_off_is_gone_on_with() {
        for (status, opens) in [("incomplete", false), ("completed", true)] {
            let body = json!({"model": "m", "input": [
                {"role": "user", "content": "count"},
                {"role": "assistant", "content": "one, two", "status": status},
            ]});
            assert_eq!(prompt(&body).unwrap().add_generation_prompt, opens);
        }
    }

    #[test]
    fn conversations_are_stored_and_need_no_model() {
        let request = conversations(br#"{"items":[{"role":"user","content":"hi"}]}"#).unwrap();
        assert_eq!(
            (request.kind, request.prompt, request.model.as_str()),
            (RequestKind::Conversation, None, "")
        );
    }
}
