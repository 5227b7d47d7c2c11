//! A rendered conversation cut back to its last message, so that the model goes on with it.
//!
//! A template closes every message; what comes after the last one's content has to go. As in transformers the content
//! is looked for from the end of the text, without the spaces around it, because templates trim.

use serde_json::Value;

use super::PromptError;

/// `text`, up to the end of the last message's content.
pub(super) fn open(mut text: String, messages: &Value) -> Result<String, PromptError> {
    let wrong = |reason| PromptError::NotContinuable { reason };
    let content = messages
        .as_array()
        .and_then(|messages| messages.last()?.get("content"))
        .and_then(last_text)
        .ok_or(wrong("the last message has no text"))?;
    let trimmed = content.trim();
    if trimmed.is_empty() {
        return Err(wrong("the last message is empty"));
    }
    let start = text.rfind(trimmed).ok_or(wrong(
        "the chat template does not write the last message as it is",
    ))?;
    let kept = content.trim_start();
    let whole = text.get(start..).is_some_and(|rest| rest.starts_with(kept));
    text.truncate(start + if whole { kept.len() } else { trimmed.len() });
    Ok(text)
}

/// The content, or the text of the last of its parts that has one.
fn last_text(content: &Value) -> Option<&str> {
    match content {
        Value::String(text) => Some(text),
        Value::Array(parts) => parts.iter().rev().find_map(|part| match part {
            Value::String(text) => Some(text.as_str()),
            part => part.get("text")?.as_str(),
        }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn opened(text: &str, content: &Value) -> Result<String, String> {
        let messages =
            json!([{"role": "user", "content": "x"}, {"role": "assistant", "content": content}]);
        open(text.to_owned(), &messages).map_err(|error| error.to_string())
    }

    #[test]
    fn the_text_ends_with_the_last_message() {
        let text = "<u>Once</u><a>Once upon</a>\n";
        assert_eq!(
            opened(text, &json!("Once upon")).unwrap(),
            "<u>Once</u><a>Once upon"
        );
        assert_eq!(opened("<a>so </a>", &json!(" so ")).unwrap(), "<a>so ");
        assert_eq!(
            opened("<a>so</a>", &json!("so  ")).unwrap(),
            "<a>so",
            "the template trims"
        );
        let parts = json!([{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]);
        assert_eq!(opened("<a>one\ntwo</a>", &parts).unwrap(), "<a>one\ntwo");
    }

    #[test]
    fn what_cannot_be_gone_on_with_is_said() {
        for content in [json!(null), json!(" "), json!([]), json!("not there")] {
            let error = opened("<a>so</a>", &content).unwrap_err();
            assert!(error.starts_with("continue_final_message: "), "{error}");
        }
    }
}
