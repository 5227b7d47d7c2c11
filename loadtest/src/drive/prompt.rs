//! Prompts as they are sent: token ids, or the messages of a chat.
//!
//! Token ids are exact: the server counts as many as the plan says, and two prompts share exactly the planned prefix.
//! A chat is made of common words, about one token each, so its lengths depend on the server's tokenizer and template;
//! what is equal in the plan is equal text.
//!
//! A follow-up contains what was really said: the prompt before, the answer that came, and then its own part. Where the
//! answer before failed, or the server told no token ids, the planned answer stands in.

use serde::Serialize;

use crate::client::{Message, Role};
use crate::workload::tokens::{Vocabulary, id_at, write_ids};
use crate::workload::{PlannedRequest, Segment};

/// Which endpoint is asked, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Form {
    /// `/v1/completions` with token ids.
    Tokens,
    /// `/v1/chat/completions` with text.
    Chat,
}

impl Form {
    pub fn name(self) -> &'static str {
        match self {
            Self::Tokens => "tokens",
            Self::Chat => "chat",
        }
    }

    pub(super) fn path(self) -> &'static str {
        match self {
            Self::Tokens => "/v1/completions",
            Self::Chat => "/v1/chat/completions",
        }
    }
}

/// A prompt, and after its answer all that was said so far.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Said {
    Tokens(Vec<u32>),
    Chat(Vec<Message>),
}

/// What came back, as far as the next prompt needs it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Heard<'a> {
    pub(super) text: &'a str,
    pub(super) token_ids: &'a [u32],
}

impl Said {
    /// The prompt of `request`. `before` is what its predecessor said and heard, of `planned_before` segments.
    pub(super) fn prompt(
        form: Form,
        vocabulary: Vocabulary,
        request: &PlannedRequest,
        before: Option<(&Said, usize)>,
    ) -> Said {
        let planned = request.prompt.as_slice();
        let fresh = before.and_then(|(_, segments)| planned.get(segments..));
        match (form, before) {
            (Form::Tokens, Some((Said::Tokens(before), _))) => {
                let mut ids = before.clone();
                let mut own = Vec::new();
                write_ids(fresh.unwrap_or_default(), vocabulary, &mut own);
                ids.append(&mut own);
                Said::Tokens(ids)
            }
            (Form::Chat, Some((Said::Chat(before), _))) => {
                let mut messages = before.clone();
                messages.push(Message::new(Role::User, text(fresh.unwrap_or_default())));
                Said::Chat(messages)
            }
            (Form::Tokens, _) => {
                let mut ids = Vec::new();
                write_ids(planned, vocabulary, &mut ids);
                Said::Tokens(ids)
            }
            (Form::Chat, _) => Said::Chat(messages(planned)),
        }
    }

    /// Adds the answer: the real one, or where there is none the planned one.
    pub(super) fn hear(
        &mut self,
        heard: Option<Heard<'_>>,
        planned: Segment,
        vocabulary: Vocabulary,
    ) {
        match self {
            Said::Tokens(ids) => match heard {
                Some(heard) if !heard.token_ids.is_empty() => {
                    ids.extend_from_slice(heard.token_ids);
                }
                _ => ids
                    .extend((0..planned.tokens).map(|index| id_at(planned.id, index, vocabulary))),
            },
            Said::Chat(messages) => {
                let answer = heard.map_or_else(|| text(&[planned]), |heard| heard.text.to_owned());
                messages.push(Message::new(Role::Assistant, answer));
            }
        }
    }

    /// The body of the request. Written straight from the ids: a long prompt must not take long to send.
    pub(super) fn body(
        &self,
        model: &str,
        max_tokens: u32,
        exact: bool,
    ) -> serde_json::Result<Vec<u8>> {
        let (prompt, messages) = match self {
            Said::Tokens(ids) => (Some(ids.as_slice()), None),
            Said::Chat(messages) => (None, Some(messages.as_slice())),
        };
        serde_json::to_vec(&Body {
            model,
            prompt,
            return_token_ids: prompt.map(|_| true),
            messages,
            max_tokens,
            min_tokens: exact.then_some(max_tokens),
            ignore_eos: exact.then_some(true),
            temperature: 0.0,
            stream: true,
            stream_options: StreamOptions {
                include_usage: true,
            },
        })
    }
}

/// A request of either endpoint.
#[derive(Serialize)]
struct Body<'a> {
    model: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt: Option<&'a [u32]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    return_token_ids: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    messages: Option<&'a [Message]>,
    max_tokens: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    min_tokens: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ignore_eos: Option<bool>,
    temperature: f32,
    stream: bool,
    stream_options: StreamOptions,
}

#[derive(Serialize)]
struct StreamOptions {
    include_usage: bool,
}

/// The first segment is what the product says, the others are what its user says.
fn messages(planned: &[Segment]) -> Vec<Message> {
    match planned {
        [system, rest @ ..] if !rest.is_empty() => vec![
            Message::new(Role::System, text(&[*system])),
            Message::new(Role::User, text(rest)),
        ],
        _ => vec![Message::new(Role::User, text(planned))],
    }
}

/// Words that are one token each, with the space before them, in about every vocabulary made from English text, and in
/// the small one of `engine/demo-model` as well.
const WORDS: [&str; 64] = [
    "about", "after", "again", "all", "also", "and", "answer", "are", "back", "because", "before",
    "begin", "best", "between", "block", "can", "check", "context", "control", "current", "each",
    "end", "enough", "every", "example", "few", "first", "for", "from", "full", "good", "have",
    "how", "into", "keep", "know", "last", "long", "look", "many", "memory", "model", "more",
    "much", "need", "next", "number", "only", "other", "over", "part", "question", "read", "same",
    "share", "should", "small", "story", "system", "that", "time", "use", "when", "work",
];

fn text(segments: &[Segment]) -> String {
    let vocabulary = Vocabulary {
        first: 0,
        count: WORDS.len() as u32,
    };
    let words = segments.iter().flat_map(|segment| {
        let number = move |index| id_at(segment.id, index, vocabulary) as usize;
        (0..segment.tokens).map(move |index| WORDS.get(number(index)).copied().unwrap_or("the"))
    });
    let mut text = String::new();
    for word in words {
        if !text.is_empty() {
            text.push(' ');
        }
        text.push_str(word);
    }
    text
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::{Value, json};

    use super::*;

    const VOCABULARY: Vocabulary = Vocabulary {
        first: 100,
        count: 900,
    };

    fn request(prompt: &[(u64, u32)]) -> PlannedRequest {
        let of = |&(id, tokens): &(u64, u32)| Segment { id, tokens };
        PlannedRequest {
            at: Duration::ZERO,
            prompt: prompt.iter().map(of).collect(),
            answer: Segment { id: 99, tokens: 4 },
            session: 0,
            tenant: 0,
            after: None,
        }
    }

    #[test]
    fn a_follow_up_contains_what_was_really_answered() {
        let (first, next) = (
            request(&[(1, 10), (2, 5)]),
            request(&[(1, 10), (2, 5), (99, 4), (3, 6)]),
        );
        let mut said = Said::prompt(Form::Tokens, VOCABULARY, &first, None);
        let heard = Heard {
            text: "",
            token_ids: &[7, 8],
        };
        said.hear(Some(heard), first.answer, VOCABULARY);
        let Said::Tokens(ids) = Said::prompt(Form::Tokens, VOCABULARY, &next, Some((&said, 3)))
        else {
            panic!("no ids");
        };
        assert_eq!((ids.len(), &ids[15..17]), (23, [7, 8].as_slice()));
        // Without ids the planned answer stands in, as if the whole prompt had been written from the plan.
        let mut unheard = Said::prompt(Form::Tokens, VOCABULARY, &first, None);
        unheard.hear(None, first.answer, VOCABULARY);
        let planned = Said::prompt(Form::Tokens, VOCABULARY, &next, None);
        assert_eq!(
            Said::prompt(Form::Tokens, VOCABULARY, &next, Some((&unheard, 3))),
            planned
        );
    }

    #[test]
    fn a_chat_grows_by_its_answer_and_the_next_message() {
        let (first, next) = (
            request(&[(1, 10), (2, 5)]),
            request(&[(1, 10), (2, 5), (99, 4), (3, 6)]),
        );
        let mut said = Said::prompt(Form::Chat, VOCABULARY, &first, None);
        said.hear(
            Some(Heard {
                text: "Yes.",
                token_ids: &[],
            }),
            first.answer,
            VOCABULARY,
        );
        let Said::Chat(messages) = Said::prompt(Form::Chat, VOCABULARY, &next, Some((&said, 3)))
        else {
            panic!("no chat");
        };
        let roles: Vec<Role> = messages.iter().map(|message| message.role).collect();
        assert_eq!(
            roles,
            [Role::System, Role::User, Role::Assistant, Role::User]
        );
        assert_eq!(messages[2].content, "Yes.");
        assert_eq!(messages[3].content.split(' ').count(), 6);
    }

    #[test]
    fn exact_lengths_are_asked_for_in_vllms_words() {
        let said = Said::prompt(Form::Tokens, VOCABULARY, &request(&[(1, 3)]), None);
        let body = |exact| -> Value {
            serde_json::from_slice(&said.body("m", 7, exact).unwrap()).unwrap()
        };
        let exact = body(true);
        assert_eq!(
            (&exact["max_tokens"], &exact["min_tokens"]),
            (&json!(7), &json!(7))
        );
        assert_eq!(exact["ignore_eos"], json!(true));
        assert_eq!(exact["prompt"].as_array().unwrap().len(), 3);
        assert!(body(false).get("ignore_eos").is_none() && body(false).get("messages").is_none());
    }
}
