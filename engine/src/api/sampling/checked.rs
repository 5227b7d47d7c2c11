//! The fields that requests share once they are checked, and what they come to for one prompt.

use std::sync::Arc;

use pointsman_proto::openai::{StreamOptions, TruncationSide};

use crate::api::choice::TextOptions;
use crate::api::error::ApiError;
use crate::api::prompt::Truncation;
use crate::sample::SamplingParams;

/// Log probabilities of one prompt, its tokens times those listed at each place: 64 MiB of them.
const PROMPT_LOGPROBS_MAX: usize = 8 << 20;
/// The shared fields, checked.
#[derive(Debug, Clone)]
pub(in crate::api) struct Checked {
    /// `max_tokens` in it is the default until [`Checked::for_prompt`] knows the prompt.
    pub(super) sampling: SamplingParams,
    pub(super) max_tokens: Option<u32>,
    pub(super) max_tokens_field: &'static str,
    pub(super) max_tokens_default: Option<u32>,
    pub(super) truncate_prompt_tokens: Option<i64>,
    pub(super) truncation_side: TruncationSide,
    pub(in crate::api) text: TextOptions,
    pub(in crate::api) n: usize,
    pub(in crate::api) stream: Option<StreamOptions>,
    pub(in crate::api) priority: i32,
    pub(in crate::api) cache_salt: Option<Arc<str>>,
    pub(in crate::api) logprobs: bool,
    pub(in crate::api) return_token_ids: bool,
    /// The answer has the prompt's log probabilities in a list of their own.
    pub(in crate::api) prompt_logprobs: bool,
    /// Log probabilities name tokens by id.
    pub(in crate::api) tokens_as_token_ids: bool,
}

impl Checked {
    /// The sampling parameters of choice number `choice` of a prompt of `prompt_tokens` tokens, under a context
    /// of `context_tokens`.
    ///
    /// A limit that the client asked for and that does not fit is refused; a default one is lowered.
    pub(in crate::api) fn for_prompt(
        &self,
        choice: usize,
        prompt_tokens: usize,
        context_tokens: u32,
    ) -> Result<SamplingParams, ApiError> {
        let left = (context_tokens as usize).saturating_sub(prompt_tokens);
        let left = u32::try_from(left).unwrap_or(u32::MAX);
        if left == 0 {
            return Err(ApiError::bad_request(format!(
                "the maximum context length of this model is {context_tokens} tokens, and the prompt \
                 has {prompt_tokens}; shorten the messages or the prompt"
            )));
        }
        let max_tokens = match self.max_tokens {
            Some(asked) if asked > left => {
                return Err(ApiError::field(
                    self.max_tokens_field,
                    format!(
                        "is too large: the maximum context length of this model is {context_tokens} \
                         tokens, the prompt has {prompt_tokens}, and {asked} more were asked for \
                         ({asked} > {context_tokens} - {prompt_tokens})"
                    ),
                ));
            }
            // What an answer that is only its prompt costs beyond it.
            Some(asked) => asked.max(1),
            None => self.max_tokens_default.unwrap_or(left).min(left),
        };
        let seed = self
            .sampling
            .seed
            .map(|seed| seed.wrapping_add(choice as u64));
        let mut sampling = SamplingParams {
            max_tokens,
            seed,
            ..self.sampling.clone()
        };
        let listed = sampling.prompt_logprobs.map_or(0, |top| top as usize + 1);
        if listed.saturating_mul(prompt_tokens) > PROMPT_LOGPROBS_MAX {
            let problem = format!(
                "asks for {listed} log probabilities at each of the prompt's {prompt_tokens} tokens; at most \
                 {PROMPT_LOGPROBS_MAX} are given"
            );
            return Err(ApiError::field("prompt_logprobs", problem));
        }
        // The choices of a prompt share it, so one of them is enough, unless each is sent as it comes.
        if choice > 0 && self.stream.is_none() {
            sampling.prompt_logprobs = None;
        }
        Ok(sampling)
    }

    /// What to keep of a prompt under a context of `context_tokens`.
    pub(in crate::api) fn truncation(
        &self,
        context_tokens: u32,
    ) -> Result<Option<Truncation>, ApiError> {
        let Some(asked) = self.truncate_prompt_tokens else {
            return Ok(None);
        };
        let keep = match asked {
            -1 => context_tokens.saturating_sub(self.max_tokens.unwrap_or(1).max(1)),
            _ => u32::try_from(asked)
                .ok()
                .filter(|keep| (1..=context_tokens).contains(keep))
                .ok_or_else(|| {
                    let problem =
                        format!("must be -1 or between 1 and {context_tokens}, got {asked}");
                    ApiError::field("truncate_prompt_tokens", problem)
                })?,
        };
        Ok(Some(Truncation {
            keep: keep as usize,
            side: self.truncation_side,
        }))
    }
}
