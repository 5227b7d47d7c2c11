//! An event of a stream, taken apart around its text.
//!
//! Of the two hundred bytes of an event that carries a token, all but the text are the same for the whole stream. Serde
//! writes the event once, with a placeholder for the text; after that only the text is escaped and written.

/// What stands before and after the text.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Template {
    before: Box<[u8]>,
    after: Box<[u8]>,
}

impl Template {
    /// Stands for the text.
    pub(super) const PLACEHOLDER: &str = "the text goes here: 5cd0e6b1";

    /// The template of an event with the placeholder as its text; none unless the placeholder is in it exactly once.
    pub(super) fn new(event: &[u8]) -> Option<Self> {
        let placeholder = format!("\"{}\"", Self::PLACEHOLDER);
        let mut found = event
            .windows(placeholder.len())
            .enumerate()
            .filter(|(_, window)| *window == placeholder.as_bytes());
        let (start, _) = found.next()?;
        if found.next().is_some() {
            return None;
        }
        let (before, rest) = event.split_at(start);
        Some(Self {
            before: before.into(),
            after: rest.get(placeholder.len()..)?.into(),
        })
    }

    /// Writes the event with `text`.
    pub(super) fn write(&self, text: &str, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&self.before);
        match serde_json::to_writer(&mut *out, text) {
            Ok(()) => out.extend_from_slice(&self.after),
            // Text and a vector never fail.
            Err(_) => out.truncate(start),
        }
    }
}

#[cfg(test)]
mod tests {
    use pointsman_proto::openai::{
        ChatChunk, ChatChunkChoice, ChatDelta, CompletionChoice, CompletionChunk,
    };
    use proptest::prelude::*;

    use super::*;

    fn chat(id: &str, index: u32, text: &str) -> Vec<u8> {
        let chunk = ChatChunk {
            id: id.to_owned(),
            object: ChatChunk::OBJECT.to_owned(),
            created: 1_700_000_000,
            model: "m\"\n".to_owned(),
            choices: vec![ChatChunkChoice {
                index,
                delta: ChatDelta::text(text),
                logprobs: None,
                finish_reason: None,
                stop_reason: None,
                token_ids: None,
            }],
            usage: None,
            prompt_token_ids: None,
        };
        serde_json::to_vec(&chunk).unwrap()
    }

    fn completion(id: &str, index: u32, text: &str) -> Vec<u8> {
        let chunk = CompletionChunk {
            id: id.to_owned(),
            object: "text_completion".to_owned(),
            created: 1_700_000_000,
            model: "m".to_owned(),
            choices: vec![CompletionChoice {
                index,
                text: text.to_owned(),
                logprobs: None,
                finish_reason: None,
                stop_reason: None,
                token_ids: None,
                prompt_logprobs: None,
                prompt_token_ids: None,
            }],
            usage: None,
        };
        serde_json::to_vec(&chunk).unwrap()
    }

    proptest! {
        #[test]
        fn a_filled_template_is_what_serde_writes(
            id in "\\PC{0,20}",
            index in 0_u32..200,
            texts in prop::collection::vec(any::<String>(), 1..5),
        ) {
            for event in [chat, completion] {
                let template = Template::new(&event(&id, index, Template::PLACEHOLDER)).unwrap();
                for text in &texts {
                    let mut written = b"before".to_vec();
                    template.write(text, &mut written);
                    prop_assert_eq!(&written[6..], &event(&id, index, text)[..]);
                }
            }
        }
    }

    #[test]
    fn a_client_that_calls_itself_like_the_placeholder_gets_no_template() {
        assert_eq!(
            Template::new(&chat(Template::PLACEHOLDER, 0, Template::PLACEHOLDER)),
            None
        );
        assert_eq!(Template::new(&chat("id", 0, "other text")), None);
    }
}
