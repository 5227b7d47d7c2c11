//! One answer in the making: token updates in, text deltas out. Pure: no stream, no clock, no JSON.
//!
//! Tokens become text by [`Detokenizer`]; the text passes [`StopStrings`], which may end the answer before the
//! engine does. The token that ends an answer (end of sequence or a stop token) is part of its token ids and of its
//! usage but not of its text, unless `include_stop_str_in_output` asks for it; both as in vLLM.

use std::sync::Arc;

use pointsman_proto::openai::{ErrorBody, FinishReason, StopReason};
use pointsman_proto::prompt::PromptEncoder;

use super::error::ApiError;
use crate::sample::TokenLogprob;
use crate::scheduler::{Finish, TokenUpdate};
use crate::text::{Detokenizer, Pieces, StopStrings};

/// How tokens are to become text; from the request.
#[derive(Debug, Clone, Default)]
pub(super) struct TextOptions {
    pub(super) stop: Vec<String>,
    pub(super) include_stop_str_in_output: bool,
    pub(super) skip_special_tokens: bool,
    /// Tokens before which no stop string ends the answer.
    pub(super) min_tokens: u32,
    /// The answer is the echoed prompt alone: the engine generates a token, because it must, and nobody sees it.
    pub(super) only_prompt: bool,
}

/// What one token update added to the answer.
#[derive(Clone, Debug, Default)]
pub(super) struct Delta {
    pub(super) text: String,
    /// The token, none for an end without one.
    pub(super) token: Option<u32>,
    pub(super) logprob: Option<TokenLogprob>,
    /// Of each prompt token but the first; on the first delta, where asked for.
    pub(super) prompt_logprobs: Vec<TokenLogprob>,
    pub(super) end: Option<End>,
}

/// How an answer ended.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum End {
    /// `finish_reason`, and what it was that stopped the answer.
    Finished {
        reason: FinishReason,
        stopped_by: Option<StopReason>,
        by_stop_string: bool,
    },
    /// The engine could not go on, or the time was over; what is answered in place of the rest.
    Failed(Box<ErrorBody>),
}

/// The state of one answer.
#[derive(Debug)]
pub(super) struct Choice {
    detokenizer: Detokenizer,
    stops: StopStrings,
    include_stop: bool,
    only_prompt: bool,
    min_tokens: u32,
    generated_tokens: u32,
    cached_tokens: u32,
}

impl Choice {
    pub(super) fn new(encoder: Arc<PromptEncoder>, prompt: &[u32], options: &TextOptions) -> Self {
        let include_stop = options.include_stop_str_in_output;
        Self {
            detokenizer: Detokenizer::new(encoder, prompt, options.skip_special_tokens),
            stops: StopStrings::new(options.stop.clone(), include_stop),
            include_stop,
            only_prompt: options.only_prompt,
            min_tokens: options.min_tokens,
            generated_tokens: 0,
            cached_tokens: 0,
        }
    }

    /// The same, with the texts of tokens that need no decoding.
    pub(super) fn with_pieces(self, pieces: Arc<Pieces>) -> Self {
        Self {
            detokenizer: self.detokenizer.with_pieces(pieces),
            ..self
        }
    }

    pub(super) fn generated_tokens(&self) -> u32 {
        self.generated_tokens
    }

    /// Prompt tokens that were not computed; known from the first update on.
    pub(super) fn cached_tokens(&self) -> u32 {
        self.cached_tokens
    }

    /// Takes the next update. After a delta with an end, nothing more may be pushed.
    pub(super) fn push(&mut self, mut update: TokenUpdate) -> Delta {
        self.cached_tokens = update.cached_tokens;
        if self.only_prompt {
            hide_token(&mut update);
        }
        let mut delta = Delta {
            token: update.token,
            logprob: update.logprob,
            prompt_logprobs: update.prompt_logprobs,
            ..Delta::default()
        };
        if let Some(token) = update.token {
            self.generated_tokens += 1;
            let ends_the_text = matches!(update.finish, Some(Finish::Stop { .. }));
            if !ends_the_text || self.include_stop {
                let piece = self.detokenizer.push(token);
                self.take(&piece, &mut delta);
            }
        }
        if delta.end.is_none()
            && let Some(finish) = update.finish
        {
            let held = self.detokenizer.finish();
            self.take(&held, &mut delta);
            if delta.end.is_none() {
                delta.text.push_str(&self.stops.finish());
                delta.end = Some(End::of(&finish));
            }
        }
        delta
    }

    fn take(&mut self, piece: &str, delta: &mut Delta) {
        if self.stops.is_empty() {
            delta.text.push_str(piece);
            return;
        }
        if self.generated_tokens <= self.min_tokens {
            delta.text.push_str(&self.stops.push_unsearched(piece));
            return;
        }
        let passed = self.stops.push(piece);
        delta.text.push_str(&passed.text);
        if let Some(stop) = passed.matched.and_then(|index| self.stops.get(index)) {
            delta.end = Some(End::Finished {
                reason: FinishReason::Stop,
                stopped_by: Some(StopReason::Text(stop.to_owned())),
                by_stop_string: true,
            });
        }
    }
}

/// Leaves what an answer without tokens of its own can show.
fn hide_token(update: &mut TokenUpdate) {
    update.token = None;
    update.logprob = None;
    if let Some(Finish::Stop { .. }) = update.finish {
        update.finish = Some(Finish::Length);
    }
}

impl End {
    fn of(finish: &Finish) -> Self {
        let finished = |reason, stopped_by| Self::Finished {
            reason,
            stopped_by,
            by_stop_string: false,
        };
        match finish {
            Finish::Stop { token } => finished(FinishReason::Stop, token.map(StopReason::Token)),
            Finish::Length => finished(FinishReason::Length, None),
            Finish::Abort => finished(FinishReason::Abort, None),
            Finish::Error(_) | Finish::Deadline => {
                Self::Failed(Box::new(ApiError::ended(finish).into_body()))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn encoder() -> Arc<PromptEncoder> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("demo-model");
        Arc::new(PromptEncoder::load(&folder).expect("the demo model is part of the repository"))
    }

    fn update(token: Option<u32>, finish: Option<Finish>) -> TokenUpdate {
        TokenUpdate {
            token,
            cached_tokens: 16,
            finish,
            ..TokenUpdate::default()
        }
    }

    /// Pushes the tokens of `text`, the last with `finish`, and returns all text and the end.
    fn run(options: &TextOptions, text: &str, finish: &Finish) -> (String, Option<End>, u32) {
        let encoder = encoder();
        let ids = encoder.encode_text(text, false).unwrap();
        let mut choice = Choice::new(encoder, &[], options);
        let mut all = String::new();
        for (index, id) in ids.iter().enumerate() {
            let last = index + 1 == ids.len();
            let delta = choice.push(update(Some(*id), last.then(|| finish.clone())));
            all.push_str(&delta.text);
            if delta.end.is_some() {
                return (all, delta.end, choice.generated_tokens());
            }
        }
        (all, None, choice.generated_tokens())
    }

    #[test]
    fn held_text_comes_out_at_the_end() {
        let options = TextOptions {
            stop: vec!["not in it".to_owned()],
            ..TextOptions::default()
        };
        let (text, end, _) = run(&options, "a prefix 🚂", &Finish::Length);
        assert_eq!(text, "a prefix 🚂");
        let finished = End::Finished {
            reason: FinishReason::Length,
            stopped_by: None,
            by_stop_string: false,
        };
        assert_eq!(end, Some(finished));
    }

    #[test]
    fn the_stop_tokens_text_is_shown_on_request_only() {
        let encoder = encoder();
        let last = *encoder
            .encode_text("one two", false)
            .unwrap()
            .last()
            .unwrap();
        let last_text = encoder.tokenizer().decode(&[last], true).unwrap();
        let finish = Finish::Stop { token: Some(last) };
        let (text, end, tokens) = run(&TextOptions::default(), "one two", &finish);
        assert_eq!(format!("{text}{last_text}"), "one two");
        assert!(matches!(
            end,
            Some(End::Finished { stopped_by: Some(StopReason::Token(id)), .. }) if id == last
        ));
        let options = TextOptions {
            include_stop_str_in_output: true,
            ..TextOptions::default()
        };
        let (text, _, same_tokens) = run(&options, "one two", &finish);
        assert_eq!(
            (text.as_str(), same_tokens),
            ("one two", tokens),
            "it counts either way"
        );
    }

    #[test]
    fn a_stop_string_is_not_looked_for_under_min_tokens() {
        let stop = vec!["a".to_owned()];
        let options = TextOptions {
            stop: stop.clone(),
            ..TextOptions::default()
        };
        assert_eq!(run(&options, "banana", &Finish::Length).0, "b");
        let options = TextOptions {
            stop,
            min_tokens: 100,
            ..TextOptions::default()
        };
        assert_eq!(run(&options, "banana", &Finish::Length).0, "banana");
    }

    #[test]
    fn a_stop_string_ends_the_answer_with_the_first_token_after_min_tokens() {
        let text = "the cache holds the prefix 🚂 of the prompt";
        let tokens = encoder().encode_text(text, false).unwrap().len() as u32;
        for include_stop_str_in_output in [false, true] {
            let mut seen = Vec::new();
            for min_tokens in 0..tokens {
                let options = TextOptions {
                    stop: vec!["🚂".to_owned(), "the".to_owned()],
                    min_tokens,
                    include_stop_str_in_output,
                    ..TextOptions::default()
                };
                let (sent, end, generated) = run(&options, text, &Finish::Length);
                assert!(text.starts_with(&sent), "{sent}");
                let stopped = matches!(
                    end,
                    Some(End::Finished {
                        by_stop_string: true,
                        ..
                    })
                );
                assert!(!stopped || generated > min_tokens, "{min_tokens}");
                seen.push(sent.len());
            }
            assert!(seen.is_sorted(), "more tokens, more text");
            assert_eq!(seen[0], if include_stop_str_in_output { 3 } else { 0 });
        }
    }

    #[test]
    fn an_answer_of_the_prompt_alone_shows_no_token() {
        let options = TextOptions {
            only_prompt: true,
            ..TextOptions::default()
        };
        let mut choice = Choice::new(encoder(), &[5, 6], &options);
        let logprob = TokenLogprob {
            logprob: -1.0,
            rank: 1,
            top: Vec::new(),
        };
        let delta = choice.push(TokenUpdate {
            prompt_logprobs: vec![logprob.clone()],
            logprob: Some(logprob),
            ..update(Some(2), Some(Finish::Stop { token: None }))
        });
        assert_eq!(
            (delta.text.as_str(), delta.token, delta.logprob),
            ("", None, None)
        );
        assert_eq!(delta.prompt_logprobs.len(), 1);
        assert!(matches!(
            delta.end,
            Some(End::Finished {
                reason: FinishReason::Length,
                stopped_by: None,
                ..
            })
        ));
        assert_eq!(choice.generated_tokens(), 0);
    }

    #[test]
    fn an_error_ends_the_answer_as_failed() {
        let mut choice = Choice::new(encoder(), &[], &TextOptions::default());
        let delta = choice.push(update(None, Some(Finish::Error("no memory".to_owned()))));
        assert_eq!(
            delta.end,
            Some(End::Failed(Box::new(ErrorBody::internal("no memory"))))
        );
        assert_eq!((choice.generated_tokens(), choice.cached_tokens()), (0, 16));
    }
}
