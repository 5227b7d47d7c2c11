//! The fields that chat and completion requests share, checked against their limits.
//!
//! What the client leaves open is filled from the model's `generation_config.json`, then from vLLM's defaults. A
//! value out of range is refused by name, never bent into range: the client would get another answer than it asked
//! for.

mod checked;
mod values;

use std::sync::Arc;

use pointsman_proto::openai::{
    ChatCompletionRequest, CompletionRequest, StreamOptions, TruncationSide,
};
use serde_json::{Map, Value};

use super::choice::TextOptions;
use super::error::ApiError;
use super::token_fields::Vocabulary;
use crate::model::GenerationDefaults;
use crate::sample::SamplingParams;
pub(super) use checked::Checked;
use values::{count, number, penalty, top_count};

/// Choices of one prompt; each is a request of its own to the engine.
const CHOICES_MAX: i64 = 128;
/// Stop strings of a request; each costs a search per token.
const STOP_STRINGS_MAX: usize = 64;
/// Stop tokens of a request; each costs a comparison per token.
const STOP_TOKENS_MAX: usize = 256;
/// Characters of a cache salt, as in vLLM.
const CACHE_SALT_CHARS_MAX: usize = 128;

/// What requests are checked against: the model, and how the operator set up the worker.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits<'a> {
    pub(super) defaults: &'a GenerationDefaults,
    pub(super) vocabulary: Vocabulary<'a>,
    /// Tokens beside the sampled one whose log probabilities can be asked for; -1 for the whole vocabulary.
    pub(super) max_logprobs: i64,
    /// Streams carry their usage whether asked to or not.
    pub(super) force_include_usage: bool,
    /// Log probabilities name tokens by id unless the request says otherwise.
    pub(super) tokens_as_token_ids: bool,
}

/// The shared fields as they came.
#[derive(Debug, Default)]
pub(super) struct Fields<'a> {
    pub(super) max_tokens: Option<i64>,
    /// The name under which the request has its limit.
    pub(super) max_tokens_field: Option<&'static str>,
    /// The limit where the request has none; none is "what is left of the context".
    pub(super) max_tokens_default: Option<i64>,
    pub(super) min_tokens: Option<i64>,
    pub(super) n: Option<i64>,
    pub(super) temperature: Option<f32>,
    pub(super) top_p: Option<f32>,
    pub(super) top_k: Option<i64>,
    pub(super) min_p: Option<f32>,
    pub(super) repetition_penalty: Option<f32>,
    pub(super) presence_penalty: Option<f32>,
    pub(super) frequency_penalty: Option<f32>,
    pub(super) seed: Option<i64>,
    pub(super) stop: &'a [String],
    pub(super) stop_token_ids: &'a [u32],
    pub(super) include_stop_str_in_output: Option<bool>,
    pub(super) ignore_eos: Option<bool>,
    pub(super) skip_special_tokens: Option<bool>,
    /// Most likely tokens to list, none without log probabilities.
    pub(super) logprobs: Option<i64>,
    /// The name under which the request has them.
    pub(super) logprobs_field: Option<&'static str>,
    pub(super) stream: Option<bool>,
    pub(super) stream_options: Option<StreamOptions>,
    pub(super) priority: Option<i64>,
    pub(super) cache_salt: Option<&'a str>,
    pub(super) return_token_ids: Option<bool>,
    pub(super) logit_bias: Option<&'a Map<String, Value>>,
    pub(super) allowed_token_ids: Option<&'a [u32]>,
    pub(super) bad_words: &'a [String],
    pub(super) prompt_logprobs: Option<i64>,
    pub(super) logprob_token_ids: Option<&'a [u32]>,
    pub(super) return_tokens_as_token_ids: Option<bool>,
    pub(super) truncate_prompt_tokens: Option<i64>,
    pub(super) truncation_side: Option<TruncationSide>,
    /// The answer begins with the prompt, and may consist of it.
    pub(super) echo: bool,
}

/// Copies the fields that both request types have under the same name.
macro_rules! shared_fields {
    ($request:expr) => {
        Fields {
            min_tokens: $request.min_tokens,
            n: $request.n,
            temperature: $request.temperature,
            top_p: $request.top_p,
            top_k: $request.top_k,
            min_p: $request.min_p,
            repetition_penalty: $request.repetition_penalty,
            presence_penalty: $request.presence_penalty,
            frequency_penalty: $request.frequency_penalty,
            seed: $request.seed,
            stop: $request.stop.as_ref().map_or(&[], |stop| stop.as_slice()),
            stop_token_ids: $request.stop_token_ids.as_deref().unwrap_or_default(),
            include_stop_str_in_output: $request.include_stop_str_in_output,
            ignore_eos: $request.ignore_eos,
            skip_special_tokens: $request.skip_special_tokens,
            stream: $request.stream,
            stream_options: $request.stream_options,
            priority: $request.priority,
            cache_salt: $request.cache_salt.as_deref(),
            return_token_ids: $request.return_token_ids,
            logit_bias: $request.logit_bias.as_ref(),
            allowed_token_ids: $request.allowed_token_ids.as_deref(),
            bad_words: $request.bad_words.as_deref().unwrap_or_default(),
            prompt_logprobs: $request.prompt_logprobs,
            logprob_token_ids: $request.logprob_token_ids.as_deref(),
            return_tokens_as_token_ids: $request.return_tokens_as_token_ids,
            truncate_prompt_tokens: $request.truncate_prompt_tokens,
            truncation_side: $request.truncation_side,
            ..Fields::default()
        }
    };
}

impl<'a> Fields<'a> {
    pub(super) fn of_chat(request: &'a ChatCompletionRequest) -> Result<Self, ApiError> {
        let logprobs = match (request.logprobs.unwrap_or(false), request.top_logprobs) {
            (true, top) => Some(top.unwrap_or(0)),
            (false, None | Some(0)) => None,
            (false, Some(_)) => {
                return Err(ApiError::field("top_logprobs", "needs logprobs to be true"));
            }
        };
        let by_new_name = request.max_completion_tokens.is_some();
        Ok(Self {
            max_tokens: request.token_limit(),
            max_tokens_field: by_new_name.then_some("max_completion_tokens"),
            logprobs,
            logprobs_field: Some("top_logprobs"),
            ..shared_fields!(request)
        })
    }

    pub(super) fn of_completion(request: &'a CompletionRequest) -> Self {
        Self {
            max_tokens: request.max_tokens,
            max_tokens_default: Some(CompletionRequest::DEFAULT_MAX_TOKENS),
            logprobs: request.logprobs,
            echo: request.echo.unwrap_or(false),
            ..shared_fields!(request)
        }
    }

    /// Checks every field. `priority_header` is the value of `X-Vllm-Priority`, which wins over the field.
    pub(super) fn check(
        &self,
        limits: &Limits<'_>,
        priority_header: Option<&str>,
    ) -> Result<Checked, ApiError> {
        let max_tokens_field = self.max_tokens_field.unwrap_or("max_tokens");
        // An answer that begins with its prompt may end there.
        let least = u32::from(!self.echo);
        let max_tokens = self
            .max_tokens
            .map(|value| count(max_tokens_field, value, least))
            .transpose()?;
        let min_tokens = count("min_tokens", self.min_tokens.unwrap_or(0), 0)?;
        if max_tokens.is_some_and(|max| min_tokens > max) {
            let problem = format!("must not be larger than {max_tokens_field}");
            return Err(ApiError::field("min_tokens", problem));
        }
        let n = self.n.unwrap_or(1);
        if !(1..=CHOICES_MAX).contains(&n) {
            return Err(ApiError::field(
                "n",
                format!("must be between 1 and {CHOICES_MAX}, got {n}"),
            ));
        }
        let sampling = self.sampling(limits, min_tokens)?;
        Ok(Checked {
            max_tokens,
            max_tokens_field,
            max_tokens_default: self
                .max_tokens_default
                .and_then(|max| u32::try_from(max).ok()),
            truncate_prompt_tokens: self.truncate_prompt_tokens,
            truncation_side: self.truncation_side.unwrap_or_default(),
            text: TextOptions {
                stop: self.checked_stop()?,
                include_stop_str_in_output: self.include_stop_str_in_output.unwrap_or(false),
                skip_special_tokens: self.skip_special_tokens.unwrap_or(true),
                min_tokens,
                only_prompt: max_tokens == Some(0),
            },
            n: n as usize,
            stream: self.checked_stream(limits)?,
            priority: checked_priority(self.priority, priority_header)?,
            cache_salt: self.cache_salt.map(checked_salt).transpose()?,
            logprobs: sampling.logprobs.is_some(),
            return_token_ids: self.return_token_ids.unwrap_or(false),
            prompt_logprobs: self.prompt_logprobs.is_some(),
            tokens_as_token_ids: self
                .return_tokens_as_token_ids
                .unwrap_or(limits.tokens_as_token_ids),
            sampling,
        })
    }

    fn checked_stream(&self, limits: &Limits<'_>) -> Result<Option<StreamOptions>, ApiError> {
        if self.stream != Some(true) {
            if self.stream_options.is_some() {
                let problem = "can only be set when stream is true";
                return Err(ApiError::field("stream_options", problem));
            }
            return Ok(None);
        }
        if self.prompt_logprobs.is_some() {
            let problem = "is not available when stream is true";
            return Err(ApiError::field("prompt_logprobs", problem));
        }
        let asked = self.stream_options.unwrap_or_default();
        let forced = limits.force_include_usage.then_some(true);
        Ok(Some(StreamOptions {
            include_usage: forced.or(asked.include_usage),
            continuous_usage_stats: forced.or(asked.continuous_usage_stats),
        }))
    }

    fn sampling(&self, limits: &Limits<'_>, min_tokens: u32) -> Result<SamplingParams, ApiError> {
        let vocabulary = limits.vocabulary;
        if self.stop_token_ids.len() > STOP_TOKENS_MAX {
            let problem = format!("must have at most {STOP_TOKENS_MAX} entries");
            return Err(ApiError::field("stop_token_ids", problem));
        }
        let field = self.logprobs_field.unwrap_or("logprobs");
        let logprobs = top_count(field, self.logprobs, limits)?;
        let asked = self.logprob_token_ids.map(|ids| vocabulary.asked(ids));
        if asked.is_some() && logprobs.is_none() {
            let problem = "needs logprobs to be set";
            return Err(ApiError::field("logprob_token_ids", problem));
        }
        let mut prompt_logprobs = top_count("prompt_logprobs", self.prompt_logprobs, limits)?;
        if self.echo {
            prompt_logprobs = prompt_logprobs.or(logprobs);
        }
        let allowed = self.allowed_token_ids.map(|ids| vocabulary.allowed(ids));
        let biases = self.logit_bias.map(|biases| vocabulary.biases(biases));
        Ok(SamplingParams {
            min_tokens,
            seed: self.seed.map(|seed| seed as u64),
            stop_token_ids: self.stop_token_ids.to_vec(),
            ignore_eos: self.ignore_eos.unwrap_or(false),
            logprobs,
            logprob_token_ids: asked.transpose()?.unwrap_or_default(),
            prompt_logprobs,
            logit_bias: biases.transpose()?.unwrap_or_default(),
            allowed_token_ids: allowed.transpose()?.unwrap_or_default(),
            bad_words: vocabulary.bad_words(self.bad_words)?,
            ..self.distribution(limits.defaults)?
        })
    }

    /// The numbers that shape the distribution.
    fn distribution(&self, defaults: &GenerationDefaults) -> Result<SamplingParams, ApiError> {
        let top_k = self.top_k.or(defaults.top_k.map(i64::from)).unwrap_or(0);
        if top_k < -1 || top_k > i64::from(u32::MAX) {
            return Err(ApiError::field(
                "top_k",
                format!("must be 0, -1 (off) or a count, got {top_k}"),
            ));
        }
        Ok(SamplingParams {
            temperature: number(
                "temperature",
                self.temperature.or(defaults.temperature).unwrap_or(1.0),
                |value| (0.0..=100.0).contains(&value),
                "at least 0",
            )?,
            top_p: number(
                "top_p",
                self.top_p.or(defaults.top_p).unwrap_or(1.0),
                |value| value > 0.0 && value <= 1.0,
                "above 0 and at most 1",
            )?,
            top_k: top_k.max(0) as u32,
            min_p: number(
                "min_p",
                self.min_p.or(defaults.min_p).unwrap_or(0.0),
                |value| (0.0..=1.0).contains(&value),
                "between 0 and 1",
            )?,
            repetition_penalty: number(
                "repetition_penalty",
                self.repetition_penalty
                    .or(defaults.repetition_penalty)
                    .unwrap_or(1.0),
                |value| value > 0.0 && value <= 100.0,
                "above 0",
            )?,
            presence_penalty: penalty("presence_penalty", self.presence_penalty)?,
            frequency_penalty: penalty("frequency_penalty", self.frequency_penalty)?,
            ..SamplingParams::greedy(1)
        })
    }

    fn checked_stop(&self) -> Result<Vec<String>, ApiError> {
        if self.stop.len() > STOP_STRINGS_MAX {
            let problem = format!("must have at most {STOP_STRINGS_MAX} entries");
            return Err(ApiError::field("stop", problem));
        }
        if self.stop.iter().any(String::is_empty) {
            return Err(ApiError::field("stop", "must not contain an empty string"));
        }
        Ok(self.stop.to_vec())
    }
}

pub(super) fn checked_priority(field: Option<i64>, header: Option<&str>) -> Result<i32, ApiError> {
    let value = match header {
        Some(header) => header.trim().parse().map_err(|_| {
            ApiError::bad_request(format!(
                "header x-vllm-priority must be an integer, got {header:?}"
            ))
        })?,
        None => field.unwrap_or(0),
    };
    i32::try_from(value)
        .map_err(|_| ApiError::field("priority", format!("must fit 32 bits, got {value}")))
}

/// vLLM's rules: they keep a salt from being mistaken for a path or a name when it is written somewhere.
pub(super) fn checked_salt(salt: &str) -> Result<Arc<str>, ApiError> {
    if salt.is_empty() {
        return Err(ApiError::field("cache_salt", "must not be empty"));
    }
    if salt.chars().count() > CACHE_SALT_CHARS_MAX {
        let problem = format!("must have at most {CACHE_SALT_CHARS_MAX} characters");
        return Err(ApiError::field("cache_salt", problem));
    }
    if salt.contains(['@', '/', '\\', '\0']) {
        return Err(ApiError::field(
            "cache_salt",
            "must not contain '@', '/', '\\' or NUL",
        ));
    }
    Ok(Arc::from(salt))
}

#[cfg(test)]
mod tests;
