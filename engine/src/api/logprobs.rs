//! Log probabilities in the shapes that answers have them.
//!
//! A chat has an object for each token, a completion four parallel lists, and a prompt, where it is not echoed, a map
//! from token ids for each place. All name tokens by their text, or as `token_id:7` where the text of single tokens
//! would be ambiguous.

use std::collections::BTreeMap;
use std::sync::Arc;

use pointsman_proto::openai::{
    ChatTokenLogprob, ChatTopLogprob, CompletionLogprobs, PromptLogprobs, PromptTokenLogprob,
};
use pointsman_proto::prompt::PromptEncoder;
use serde_json::{Map, Value};

use super::LOGPROB_MIN;
use crate::sample::TokenLogprob;
use crate::text::token_text;

/// How an answer names tokens.
#[derive(Debug, Clone)]
pub(super) struct TokenNames {
    pub(super) encoder: Arc<PromptEncoder>,
    /// As `token_id:7`.
    pub(super) as_ids: bool,
}

impl TokenNames {
    fn name(&self, token: u32) -> String {
        if self.as_ids {
            return format!("token_id:{token}");
        }
        token_text(self.encoder.tokenizer(), token)
    }

    /// A chat's entry for a generated token.
    pub(super) fn chat(&self, token: u32, logprob: &TokenLogprob) -> ChatTokenLogprob {
        let top = logprob.top.iter().map(|(token, logprob)| {
            let text = self.name(*token);
            ChatTopLogprob {
                bytes: Some(text.clone().into_bytes()),
                token: text,
                logprob: logprob.max(LOGPROB_MIN),
            }
        });
        let text = self.name(token);
        ChatTokenLogprob {
            top_logprobs: top.collect(),
            bytes: Some(text.clone().into_bytes()),
            token: text,
            logprob: logprob.logprob.max(LOGPROB_MIN),
        }
    }

    /// Adds a token to a completion's lists; one without a log probability is the first of an echoed prompt.
    /// `offset` is where its text begins, and is moved to its end.
    pub(super) fn completion(
        &self,
        token: u32,
        logprob: Option<&TokenLogprob>,
        offset: &mut u32,
        lists: &mut CompletionLogprobs,
    ) {
        let text = self.name(token);
        let top = logprob.map(|logprob| {
            let sampled = std::iter::once((text.clone(), logprob.logprob));
            let others = logprob.top.iter();
            let others = others.map(|(token, logprob)| (self.name(*token), *logprob));
            let mut top = Map::new();
            for (name, logprob) in sampled.chain(others) {
                // Of tokens with the same text the first counts: the token itself, or else the likelier one.
                top.entry(name)
                    .or_insert_with(|| Value::from(logprob.max(LOGPROB_MIN)));
            }
            top
        });
        lists.text_offset.push(*offset);
        *offset += text.chars().count() as u32;
        lists.tokens.push(text);
        let sampled = logprob.map(|logprob| logprob.logprob.max(LOGPROB_MIN));
        lists.token_logprobs.push(sampled);
        lists.top_logprobs.push(top);
    }

    /// Adds an echoed prompt to a completion's lists.
    pub(super) fn echo(
        &self,
        prompt: &[u32],
        logprobs: &[TokenLogprob],
        offset: &mut u32,
        lists: &mut CompletionLogprobs,
    ) {
        for (token, logprob) in prompt.iter().zip(places(logprobs)) {
            self.completion(*token, logprob, offset, lists);
        }
    }

    /// A prompt's own list.
    pub(super) fn prompt(&self, prompt: &[u32], logprobs: &[TokenLogprob]) -> PromptLogprobs {
        let entry = |token: u32, logprob: f32, rank: u32| PromptTokenLogprob {
            logprob: logprob.max(LOGPROB_MIN),
            rank: Some(rank),
            decoded_token: Some(token_text(self.encoder.tokenizer(), token)),
        };
        let place = |(token, logprob): (&u32, Option<&TokenLogprob>)| {
            let logprob = logprob?;
            let ranked = logprob.top.iter().zip(1..);
            let mut entries: BTreeMap<_, _> = ranked
                .map(|((token, logprob), rank)| (*token, entry(*token, *logprob, rank)))
                .collect();
            entries.insert(*token, entry(*token, logprob.logprob, logprob.rank));
            Some(entries)
        };
        prompt.iter().zip(places(logprobs)).map(place).collect()
    }
}

/// The log probabilities by place of the prompt: none for the first.
fn places(logprobs: &[TokenLogprob]) -> impl Iterator<Item = Option<&TokenLogprob>> {
    std::iter::once(None).chain(logprobs.iter().map(Some))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::json;

    use super::*;

    fn names(as_ids: bool) -> TokenNames {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("demo-model");
        let encoder = PromptEncoder::load(&folder).expect("the demo model is in the repository");
        TokenNames {
            encoder: Arc::new(encoder),
            as_ids,
        }
    }

    fn logprob(logprob: f32, rank: u32, top: &[(u32, f32)]) -> TokenLogprob {
        TokenLogprob {
            logprob,
            rank,
            top: top.to_vec(),
        }
    }

    #[test]
    fn tokens_may_be_named_by_id() {
        let got = names(true).chat(
            70,
            &logprob(-1.0, 2, &[(71, -0.5), (70, f32::NEG_INFINITY)]),
        );
        assert_eq!(got.token, "token_id:70");
        assert_eq!(got.bytes, Some(b"token_id:70".to_vec()));
        let top: Vec<_> = got
            .top_logprobs
            .iter()
            .map(|top| (top.token.as_str(), top.logprob))
            .collect();
        assert_eq!(top, [("token_id:71", -0.5), ("token_id:70", -9999.0)]);
    }

    #[test]
    fn an_echoed_prompt_begins_with_a_token_without_a_log_probability() {
        let names = names(false);
        let prompt = names.encoder.encode_text("one two", false).unwrap();
        let mut lists = CompletionLogprobs::default();
        let mut offset = 0;
        let logprobs: Vec<_> = prompt[1..]
            .iter()
            .map(|token| logprob(-1.0, 2, &[(5, -0.5), (*token, -1.0)]))
            .collect();
        names.echo(&prompt, &logprobs, &mut offset, &mut lists);
        assert_eq!(offset, 7);
        assert_eq!(lists.tokens.concat(), "one two");
        assert_eq!(
            (lists.token_logprobs[0], &lists.top_logprobs[0]),
            (None, &None)
        );
        assert_eq!(lists.token_logprobs[1], Some(-1.0));
        let top = lists.top_logprobs[1].as_ref().unwrap();
        assert_eq!(top.len(), 2);
        assert_eq!(
            top.keys().next(),
            Some(&lists.tokens[1]),
            "the token itself comes first"
        );
        assert_eq!(lists.text_offset[0], 0);
    }

    #[test]
    fn a_prompts_own_list_has_ranks_and_texts() {
        let names = names(false);
        let text = token_text(names.encoder.tokenizer(), 300);
        let got = names.prompt(
            &[9, 300],
            &[logprob(-3.0, 17, &[(301, -0.25), (302, -0.5)])],
        );
        assert_eq!(got[0], None);
        let place = serde_json::to_value(&got[1]).unwrap();
        assert_eq!(
            place["300"],
            json!({"logprob": -3.0, "rank": 17, "decoded_token": text})
        );
        assert_eq!(place["302"]["rank"], 2);
        assert_eq!(place.as_object().unwrap().len(), 3);
        assert_eq!(names.prompt(&[9], &[]), [None]);
    }
}
