//! The least that a conversation must be, before any template sees it: a non-empty array of objects
//! with a role.
//!
//! Templates take a missing role for an empty string and render nonsense without a word, so this is
//! checked first. What a message may hold beyond its role is the template's affair.

use std::borrow::Cow;

use serde_json::Value;

/// Why a value is no conversation. The text names the place as OpenAI's errors do.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum MessagesError {
    /// There is no array.
    #[error("messages must be an array")]
    NotAnArray,
    /// There is no message.
    #[error("messages must not be empty")]
    Empty,
    /// A message is no object.
    #[error("messages[{index}] must be an object")]
    NotAnObject {
        /// Position of the message.
        index: usize,
    },
    /// A message has no role, or one that is no string.
    #[error("messages[{index}].role must be a string")]
    NoRole {
        /// Position of the message.
        index: usize,
    },
}

impl MessagesError {
    /// The request field at fault, such as `messages[2].role`.
    pub fn param(&self) -> String {
        match self {
            Self::NotAnArray | Self::Empty => "messages".to_owned(),
            Self::NotAnObject { index } => format!("messages[{index}]"),
            Self::NoRole { index } => format!("messages[{index}].role"),
        }
    }
}

/// Checks that `messages` is a non-empty array of objects, each with a string `role`, and returns
/// the array.
pub fn check_messages(messages: &Value) -> Result<&[Value], MessagesError> {
    let list = messages.as_array().ok_or(MessagesError::NotAnArray)?;
    if list.is_empty() {
        return Err(MessagesError::Empty);
    }
    for (index, message) in list.iter().enumerate() {
        let fields = message
            .as_object()
            .ok_or(MessagesError::NotAnObject { index })?;
        if !fields.get("role").is_some_and(Value::is_string) {
            return Err(MessagesError::NoRole { index });
        }
    }
    Ok(list)
}

/// The conversation with each list of text parts joined into one string, by line feeds, as vLLM
/// does for templates that take content as a string. A list that holds anything but text parts
/// stays as it is.
pub(super) fn join_text_parts(messages: &[Value]) -> Cow<'_, [Value]> {
    let text = |message: &Value| message.get("content").and_then(text_of_parts);
    if !messages.iter().any(|message| text(message).is_some()) {
        return Cow::Borrowed(messages);
    }
    messages
        .iter()
        .map(|message| {
            let mut joined = message.clone();
            if let Some(text) = text(message) {
                joined["content"] = Value::String(text);
            }
            joined
        })
        .collect()
}

fn text_of_parts(content: &Value) -> Option<String> {
    let parts: Option<Vec<&str>> = content
        .as_array()?
        .iter()
        .map(|part| match part {
            Value::String(text) => Some(text.as_str()),
            _ if part.get("type")?.as_str()? == "text" => part.get("text")?.as_str(),
            _ => None,
        })
        .collect();
    Some(parts?.join("\n"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn errors_name_the_message_at_fault() {
        let cases = [
            (json!("hello"), "messages"),
            (json!([]), "messages"),
            (json!([{"role": "user"}, 3]), "messages[1]"),
            (
                json!([{"role": "user"}, {"content": "x"}]),
                "messages[1].role",
            ),
            (json!([{"role": 7}]), "messages[0].role"),
        ];
        for (messages, param) in cases {
            let error = check_messages(&messages).expect_err("no conversation");
            assert_eq!(error.param(), param);
            assert!(error.to_string().starts_with(param), "{error}");
        }
    }

    #[test]
    fn only_lists_of_text_are_joined() {
        let image = json!([{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {}}]);
        let messages = json!([
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"role": "user", "content": ["a", "b"]},
            {"role": "user", "content": image},
            {"role": "user", "content": "plain", "name": "n"},
            {"role": "user"},
        ]);
        let list = messages.as_array().expect("an array");
        assert_eq!(
            Value::from(join_text_parts(list).into_owned()),
            json!([
                {"role": "user", "content": "a\nb"},
                {"role": "user", "content": "a\nb"},
                {"role": "user", "content": image},
                {"role": "user", "content": "plain", "name": "n"},
                {"role": "user"},
            ])
        );
    }
}
