//! An answer put together from the events of its stream, of completions or of a chat. Pure: times are the caller's.
//!
//! It counts tokens by their ids where the server sends them (`return_token_ids`), else an event with text is one
//! token; the usage at the end is what is believed. Of a chat, what a model thinks aloud counts as well: it is a token
//! that was waited for.

use serde::Deserialize;
use thiserror::Error;

use super::sse::EventParser;

/// The longest text of an answer that is kept. A server that goes on is broken.
const TEXT_BYTES_MAX: usize = 8 << 20;

/// Why a stream is no answer.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub(crate) enum StreamError {
    /// It ended before its end, or held what is no event of such a stream.
    #[error("{0}")]
    Broken(String),
    /// It says so itself.
    #[error("the server reports {0}")]
    Server(String),
}

/// The answer so far.
#[derive(Debug, Default)]
pub(crate) struct AnswerStream {
    parser: EventParser,
    pub(crate) text: String,
    pub(crate) token_ids: Vec<u32>,
    /// Events that carried tokens.
    pub(crate) events: usize,
    tokens: u64,
    usage: Option<Usage>,
    finish_reason: Option<String>,
    done: bool,
}

impl AnswerStream {
    /// Takes the next piece. True when it brought tokens.
    pub(crate) fn push(&mut self, piece: &[u8]) -> Result<bool, StreamError> {
        let before = self.events;
        let mut events = Vec::new();
        let pushed = self.parser.push(piece, |event| events.push(event));
        pushed.map_err(|error| broken(error.to_string()))?;
        for event in events {
            self.event(&event)?;
        }
        Ok(self.events > before)
    }

    /// Whether the stream has come to the end that an OpenAI stream must have.
    pub(crate) fn check_whole(&self) -> Result<(), StreamError> {
        if !self.done {
            return Err(broken("the stream ended without [DONE]"));
        }
        if self.finish_reason.is_none() {
            return Err(broken("the stream ended without a finish reason"));
        }
        Ok(())
    }

    /// Tokens of the answer: the server's count, else ours.
    pub(crate) fn answer_tokens(&self) -> u64 {
        let usage = self.usage.as_ref();
        usage.map_or(self.tokens, |usage| usage.completion_tokens)
    }

    pub(crate) fn prompt_tokens(&self) -> Option<u64> {
        self.usage.as_ref().map(|usage| usage.prompt_tokens)
    }

    /// `None` where the server does not say.
    pub(crate) fn cached_tokens(&self) -> Option<u64> {
        let details = self.usage.as_ref()?.prompt_tokens_details.as_ref()?;
        details.cached_tokens
    }

    /// Why the model stopped, in the server's word.
    pub(crate) fn finish_reason(&self) -> Option<&str> {
        self.finish_reason.as_deref()
    }

    fn event(&mut self, data: &str) -> Result<(), StreamError> {
        if self.done {
            return Err(broken(format!("[DONE] is followed by {}", beginning(data))));
        }
        if data == "[DONE]" {
            self.done = true;
            return Ok(());
        }
        let chunk: Chunk = serde_json::from_str(data)
            .map_err(|error| broken(format!("{error} in the event {}", beginning(data))))?;
        if let Some(error) = chunk.error {
            let detail = beginning(&error.to_string()).to_owned();
            return Err(StreamError::Server(detail));
        }
        self.usage = chunk.usage.or(self.usage.take());
        if let Some(choice) = chunk.choices.into_iter().next() {
            self.choice(choice);
        }
        if self.text.len() > TEXT_BYTES_MAX {
            return Err(broken(format!("the answer exceeds {TEXT_BYTES_MAX} bytes")));
        }
        Ok(())
    }

    fn choice(&mut self, choice: Choice) {
        let delta = choice.delta.unwrap_or_default();
        let texts = [choice.text, delta.content];
        let thoughts = [delta.reasoning_content, delta.reasoning];
        let has_text = texts
            .iter()
            .chain(&thoughts)
            .flatten()
            .any(|text| !text.is_empty());
        let ids = choice.token_ids.unwrap_or_default();
        let tokens = if ids.is_empty() {
            usize::from(has_text)
        } else {
            ids.len()
        };
        for text in texts.iter().flatten() {
            self.text.push_str(text);
        }
        self.token_ids.extend_from_slice(&ids);
        self.tokens += tokens as u64;
        self.events += usize::from(tokens > 0);
        self.finish_reason = choice.finish_reason.or(self.finish_reason.take());
    }
}

fn broken(detail: impl Into<String>) -> StreamError {
    StreamError::Broken(detail.into())
}

/// The first 300 bytes or so, for messages.
pub(crate) fn beginning(text: &str) -> &str {
    let mut end = text.len().min(300);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or(text)
}

#[derive(Debug, Deserialize)]
struct Chunk {
    #[serde(default)]
    choices: Vec<Choice>,
    usage: Option<Usage>,
    error: Option<serde_json::Value>,
}

#[derive(Debug, Deserialize)]
struct Choice {
    text: Option<String>,
    delta: Option<Delta>,
    token_ids: Option<Vec<u32>>,
    finish_reason: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
struct Delta {
    content: Option<String>,
    reasoning_content: Option<String>,
    reasoning: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Usage {
    prompt_tokens: u64,
    #[serde(default)]
    completion_tokens: u64,
    prompt_tokens_details: Option<Details>,
}

#[derive(Debug, Deserialize)]
struct Details {
    cached_tokens: Option<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMPLETION: &str = concat!(
        r#"data: {"choices":[{"index":0,"text":"","token_ids":[7,8],"finish_reason":null}]}"#,
        "\n\n",
        r#"data: {"choices":[{"index":0,"text":"ab","token_ids":[9],"finish_reason":"length"}]}"#,
        "\n\n",
        r#"data: {"choices":[],"usage":{"prompt_tokens":40,"completion_tokens":3,"prompt_tokens_details":{"cached_tokens":32}}}"#,
        "\n\ndata: [DONE]\n\n",
    );
    const CHAT: &str = concat!(
        r#"data: {"choices":[{"delta":{"role":"assistant","content":""},"finish_reason":null}]}"#,
        "\n\n",
        r#"data: {"choices":[{"delta":{"reasoning_content":"hm"},"finish_reason":null}]}"#,
        "\n\n",
        r#"data: {"choices":[{"delta":{"content":"yes"},"finish_reason":"stop"}]}"#,
        "\n\ndata: [DONE]\n\n",
    );

    fn read(text: &str) -> Result<AnswerStream, StreamError> {
        let mut stream = AnswerStream::default();
        for piece in text.as_bytes().chunks(11) {
            stream.push(piece)?;
        }
        stream.check_whole()?;
        Ok(stream)
    }

    #[test]
    fn completions_are_counted_by_their_ids() {
        let stream = read(COMPLETION).unwrap();
        assert_eq!(stream.token_ids, [7, 8, 9]);
        assert_eq!((stream.text.as_str(), stream.events), ("ab", 2));
        assert_eq!(
            (stream.answer_tokens(), stream.prompt_tokens()),
            (3, Some(40))
        );
        assert_eq!(stream.cached_tokens(), Some(32));
    }

    #[test]
    fn chats_without_usage_are_counted_by_their_events() {
        let stream = read(CHAT).unwrap();
        assert_eq!((stream.text.as_str(), stream.answer_tokens()), ("yes", 2));
        assert_eq!(
            (stream.prompt_tokens(), stream.cached_tokens()),
            (None, None)
        );
    }

    #[test]
    fn what_breaks_off_or_reports_an_error_is_none() {
        let is_broken = |text: &str| matches!(read(text).unwrap_err(), StreamError::Broken(_));
        for (at, _) in COMPLETION.match_indices("\n\n").take(3) {
            assert!(is_broken(&COMPLETION[..at + 2]));
        }
        assert!(is_broken("data: {\n\n"));
        assert!(is_broken(&format!("{CHAT}data: {{}}\n\n")));
        let error = read("data: {\"error\":{\"message\":\"full\"}}\n\n").unwrap_err();
        assert!(matches!(&error, StreamError::Server(text) if text.contains("full")));
    }
}
