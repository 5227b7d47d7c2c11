//! A prompt as a stream of bytes, for whoever compares prompts without their token ids.
//!
//! The stream says what the prompt says and in its order, so that a chat that goes on extends the
//! stream of its turns so far, as it extends their tokens. It is what the client wrote, not what
//! the template makes of it: the two agree on where prompts part, and that is all it is for.
//!
//! ```text
//! chat     message*
//! message  F8 role  content  field*        other fields in the client's order, without nulls
//! content  value, or of an array of parts: part*
//! part     F9 text             a text
//!          FA 16 bytes         an image, audio or video: XXH3-128 of its URL or data
//!          value               anything else
//! value    F9 string
//!          FB literal          a number, true, false or null, as JSON writes it
//!          FC value* FF        an array
//!          FD field* FF        an object
//! field    FE key value
//! text     the text alone
//! tokens   each id as u32 LE
//! ```
//!
//! None of the marks occurs in UTF-8, so a byte that moves from one field to another changes the
//! stream. No field has its length in front of it: texts that share a beginning share it here.
//!
//! Tools and template arguments are no part of the stream. A template writes them wherever it likes,
//! mostly first; they are [`write_settings`]'s, and change the prompt as a whole.

use std::fmt::{self, Write as _};

use pointsman_proto::prompt::{ChatPrompt, Prompt};
use serde_json::{Map, Value};
use xxhash_rust::xxh3::xxh3_128;

const MESSAGE: u8 = 0xf8;
const TEXT: u8 = 0xf9;
const MEDIUM: u8 = 0xfa;
const LITERAL: u8 = 0xfb;
const ARRAY: u8 = 0xfc;
const OBJECT: u8 = 0xfd;
const KEY: u8 = 0xfe;
const END: u8 = 0xff;

/// Writes what a prompt as a whole depends on, in pieces.
pub fn write_settings(prompt: &Prompt, write: &mut impl FnMut(&[u8])) {
    let Prompt::Chat(chat) = prompt else {
        let kind: &[u8] = match prompt {
            Prompt::Tokens(_) => b"tokens",
            _ => b"text",
        };
        write(kind);
        return;
    };
    write(b"chat");
    if let Some(tools) = &chat.tools {
        write(&[KEY]);
        write_value(tools, write);
    }
    if let Some(arguments) = &chat.template_kwargs {
        write_object(arguments, write);
    }
}

/// Writes the prompt itself, in pieces.
pub fn write_text(prompt: &Prompt, write: &mut impl FnMut(&[u8])) {
    match prompt {
        Prompt::Chat(chat) => write_messages(chat, write),
        Prompt::Text(text) => write(text.as_bytes()),
        Prompt::Tokens(ids) => {
            for id in ids {
                write(&id.to_le_bytes());
            }
        }
    }
}

fn write_messages(chat: &ChatPrompt, write: &mut impl FnMut(&[u8])) {
    for message in chat.messages.as_array().into_iter().flatten() {
        let Value::Object(fields) = message else {
            // No template takes it, but it is told apart from the others all the same.
            write(&[MESSAGE]);
            write_value(message, write);
            continue;
        };
        write(&[MESSAGE]);
        let role = fields.get("role").and_then(Value::as_str);
        write(role.unwrap_or_default().as_bytes());
        write_content(fields.get("content").unwrap_or(&Value::Null), write);
        let others = fields
            .iter()
            .filter(|(key, value)| *key != "role" && *key != "content" && !value.is_null());
        for (key, value) in others {
            write_field(key, value, write);
        }
    }
}

/// A text is the same whether it stands alone or as the only part.
fn write_content(content: &Value, write: &mut impl FnMut(&[u8])) {
    match content {
        Value::Null => {}
        Value::Array(parts) => {
            for part in parts {
                write_part(part, write);
            }
        }
        other => write_value(other, write),
    }
}

fn write_part(part: &Value, write: &mut impl FnMut(&[u8])) {
    if let Some(text) = part.get("text").and_then(Value::as_str) {
        write(&[TEXT]);
        write(text.as_bytes());
    } else if let Some(medium) = medium(part) {
        write(&[MEDIUM]);
        // Data of a megabyte is some hundred tokens to the model, and one place in the text.
        write(&xxh3_128(medium.as_bytes()).to_le_bytes());
    } else {
        write_value(part, write);
    }
}

/// The URL or data of a part like `{"type": "image_url", "image_url": {"url": "..."}}`.
pub(super) fn medium(part: &Value) -> Option<&str> {
    let field = part.get(part.get("type")?.as_str()?)?;
    let inside = field.get("url").or_else(|| field.get("data"));
    inside.unwrap_or(field).as_str()
}

fn write_field(key: &str, value: &Value, write: &mut impl FnMut(&[u8])) {
    write(&[KEY]);
    write(key.as_bytes());
    write_value(value, write);
}

fn write_value(value: &Value, write: &mut impl FnMut(&[u8])) {
    match value {
        Value::String(text) => {
            write(&[TEXT]);
            write(text.as_bytes());
        }
        Value::Array(values) => {
            write(&[ARRAY]);
            for value in values {
                write_value(value, write);
            }
            write(&[END]);
        }
        Value::Object(fields) => write_object(fields, write),
        literal => {
            write(&[LITERAL]);
            // Its sink takes everything, so it cannot fail.
            let _ = write!(Literal(write), "{literal}");
        }
    }
}

fn write_object(fields: &Map<String, Value>, write: &mut impl FnMut(&[u8])) {
    write(&[OBJECT]);
    for (key, value) in fields {
        write_field(key, value, write);
    }
    write(&[END]);
}

/// Formats straight into the stream.
struct Literal<'a, W>(&'a mut W);

impl<W: FnMut(&[u8])> fmt::Write for Literal<'_, W> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        (self.0)(text.as_bytes());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn text(prompt: &Prompt) -> Vec<u8> {
        let mut bytes = Vec::new();
        write_text(prompt, &mut |piece| bytes.extend_from_slice(piece));
        bytes
    }

    fn settings(chat: ChatPrompt) -> Vec<u8> {
        let mut bytes = Vec::new();
        write_settings(&Prompt::Chat(chat), &mut |piece| {
            bytes.extend_from_slice(piece);
        });
        bytes
    }

    fn chat(messages: Value) -> Vec<u8> {
        text(&Prompt::Chat(ChatPrompt::new(messages)))
    }

    fn user(content: &Value) -> Vec<u8> {
        chat(json!([{"role": "user", "content": content}]))
    }

    #[test]
    fn a_chat_has_these_bytes() {
        let bytes = chat(json!([
            {"role": "system", "content": "Be brief."},
            {"content": [{"type": "text", "text": "What"}, {"type": "image_url", "image_url": {"url": "u"}}],
             "role": "user", "name": "ann"},
            {"role": "assistant", "content": null, "tool_calls": [{"id": 7, "ok": true}]},
        ]));
        let mut expected = b"\xf8system\xf9Be brief.\xf8user\xf9What\xfa".to_vec();
        expected.extend_from_slice(&xxh3_128(b"u").to_le_bytes());
        expected.extend_from_slice(b"\xfename\xf9ann\xf8assistant");
        expected.extend_from_slice(b"\xfetool_calls\xfc\xfd\xfeid\xfb7\xfeok\xfbtrue\xff\xff");
        assert_eq!(bytes, expected);
    }

    #[test]
    fn text_and_ids_are_themselves() {
        assert_eq!(text(&Prompt::Text("hé".to_owned())), "hé".as_bytes());
        assert_eq!(
            text(&Prompt::Tokens(vec![1, 0x0203_0405])),
            [1, 0, 0, 0, 5, 4, 3, 2]
        );
    }

    #[test]
    fn one_text_part_is_its_text() {
        assert_eq!(
            user(&json!("hi")),
            user(&json!([{"type": "text", "text": "hi"}]))
        );
    }

    #[test]
    fn a_byte_that_moves_changes_the_stream() {
        let alike = [
            chat(json!([{"role": "user", "content": "ab"}, {"role": "user", "content": "c"}])),
            chat(json!([{"role": "user", "content": "a"}, {"role": "user", "content": "bc"}])),
            chat(json!([{"role": "usera", "content": "b"}, {"role": "user", "content": "c"}])),
            user(&json!("abc")),
            user(&json!([{"text": "ab"}, {"text": "c"}])),
            user(&json!([{"text": "a"}, {"text": "bc"}])),
            user(&json!([{"type": "image_url", "image_url": {"url": "abc"}}])),
            user(&json!([{"type": "image_url", "image_url": {"url": "abd"}}])),
            user(&json!({"a": "bc"})),
            user(&json!({"ab": "c"})),
            user(&json!([["a"], "bc"])),
            chat(json!([{"role": "user", "content": "a", "name": "bc"}])),
            chat(json!(["abc"])),
        ];
        for (at, one) in alike.iter().enumerate() {
            assert!(!alike[..at].contains(one), "number {at}");
        }
    }

    #[test]
    fn tools_and_arguments_are_settings() {
        let plain = ChatPrompt::new(json!([]));
        let with_tools = ChatPrompt {
            tools: Some(json!([{"type": "function"}])),
            ..plain.clone()
        };
        let with_arguments = ChatPrompt {
            template_kwargs: json!({"enable_thinking": false}).as_object().cloned(),
            ..plain.clone()
        };
        let all = [
            settings(plain),
            settings(with_tools),
            settings(with_arguments),
        ];
        assert!(all[0] != all[1] && all[1] != all[2] && all[0] != all[2]);
    }

    fn contents() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i32>().prop_map(Value::from),
            "[a-cé]{0,6}".prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 12, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map("[a-c]{0,2}", inner, 0..3)
                    .prop_map(|fields| Value::Object(fields.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn a_further_turn_extends_the_stream(
            turns in prop::collection::vec(("[a-z]{0,5}", contents()), 0..6), until in 0_usize..6,
        ) {
            let message = |(role, content): &(String, Value)| json!({"role": role, "content": content});
            let all: Vec<Value> = turns.iter().map(message).collect();
            let before = chat(Value::from(all[..until.min(all.len())].to_vec()));
            prop_assert!(chat(Value::from(all)).starts_with(&before));
        }

        /// Among values, equal streams are equal values.
        #[test]
        fn values_are_told_apart(one in contents(), other in contents()) {
            let bytes = |value: &Value| {
                let mut bytes = Vec::new();
                write_value(value, &mut |piece| bytes.extend_from_slice(piece));
                bytes
            };
            prop_assert_eq!(bytes(&one) == bytes(&other), one == other);
        }
    }
}
