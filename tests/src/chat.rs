//! Request bodies, and texts to put into them.

use pointsman_loadtest::stack::MODEL_NAME;
use serde_json::{Value, json};

/// A chat request under construction: greedy, eight tokens whatever they are, not streamed, unless told otherwise.
///
/// Ignoring the end-of-sequence token makes the length of every answer known beforehand.
#[derive(Clone, Debug)]
pub struct Chat {
    body: Value,
}

impl Default for Chat {
    fn default() -> Self {
        Self::new()
    }
}

impl Chat {
    pub fn new() -> Self {
        Self {
            body: json!({
                "model": MODEL_NAME,
                "messages": [],
                "max_tokens": 8,
                "temperature": 0,
                "ignore_eos": true,
            }),
        }
    }

    /// A chat that begins with this text.
    pub fn with_system(text: &str) -> Self {
        Self::new().message("system", text)
    }

    #[must_use]
    pub fn user(self, text: &str) -> Self {
        self.message("user", text)
    }

    #[must_use]
    pub fn assistant(self, text: &str) -> Self {
        self.message("assistant", text)
    }

    #[must_use]
    pub fn max_tokens(self, tokens: u32) -> Self {
        self.set("max_tokens", tokens)
    }

    /// Asks for server-sent events, with usage in the last but one.
    #[must_use]
    pub fn streaming(self) -> Self {
        self.set("stream", true)
            .set("stream_options", json!({"include_usage": true}))
    }

    /// Sets any field of the body.
    #[must_use]
    pub fn set(mut self, field: &str, value: impl Into<Value>) -> Self {
        self.body[field] = value.into();
        self
    }

    pub fn body(&self) -> &Value {
        &self.body
    }

    fn message(mut self, role: &str, content: &str) -> Self {
        let messages = self.body["messages"]
            .as_array_mut()
            .expect("set in the constructor");
        messages.push(json!({"role": role, "content": content}));
        self
    }
}

/// A text of so many words that shares no prefix with the text of any other topic.
pub fn passage(topic: &str, words: usize) -> String {
    const WORDS: [&str; 13] = [
        "water", "stone", "river", "light", "engine", "signal", "station", "garden", "winter",
        "letter", "bridge", "market", "number",
    ];
    // Steps that depend on the topic, so that two passages differ in their bodies as well as in their first words.
    let step = topic
        .bytes()
        .fold(7_usize, |sum, byte| sum * 31 % 1009 + usize::from(byte));
    let words: Vec<_> = (0..words)
        .map(|word| WORDS[(word * word + word * step) % 13])
        .collect();
    format!("Notes about {topic}. {}", words.join(" "))
}

/// So many bytes of printable text, different everywhere, for bodies that must arrive as they were.
pub fn printable(bytes: usize) -> String {
    let mut state = 0x9e37_79b9_u32;
    let letter = |_| {
        // xorshift32: no period within any body, so that a lost or doubled chunk cannot go unseen.
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        char::from(b'a' + (state % 26) as u8)
    };
    (0..bytes).map(letter).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passages_part_at_the_topic() {
        assert_ne!(passage("one", 50), passage("two", 50));
        assert!(passage("one", 60).starts_with(&passage("one", 50)));
    }

    #[test]
    fn printable_text_has_its_length_and_no_period() {
        let text = printable(1 << 16);
        assert_eq!(text.len(), 1 << 16);
        let (first, rest) = text.split_at(64);
        assert!(!rest.contains(first));
    }
}
