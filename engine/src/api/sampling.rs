//! The fields that chat and completion requests share, checked against their limits.
//!
//! What the client leaves open is filled from the model's `generation_config.json`, then from vLLM's defaults. A
//! value out of range is refused by name, never bent into range: the client would get another answer than it asked
//! for.

use std::sync::Arc;

use pointsman_proto::openai::{ChatCompletionRequest, CompletionRequest, StreamOptions};

use super::choice::TextOptions;
use super::error::ApiError;
use crate::model::GenerationDefaults;
use crate::sample::SamplingParams;

/// Choices of one prompt; each is a request of its own to the engine.
const CHOICES_MAX: i64 = 128;
/// Stop strings of a request; each costs a search per token.
const STOP_STRINGS_MAX: usize = 64;
/// Stop tokens of a request; each costs a comparison per token.
const STOP_TOKENS_MAX: usize = 256;
/// Tokens beside the sampled one whose log probabilities can be asked for, as in vLLM.
const LOGPROBS_MAX: i64 = 20;
/// Characters of a cache salt, as in vLLM.
const CACHE_SALT_CHARS_MAX: usize = 128;

/// The shared fields as they came.
#[derive(Debug, Default)]
pub(super) struct Fields<'a> {
    pub(super) max_tokens: Option<i64>,
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
    pub(super) stream: Option<bool>,
    pub(super) stream_options: Option<StreamOptions>,
    pub(super) priority: Option<i64>,
    pub(super) cache_salt: Option<&'a str>,
    pub(super) return_token_ids: Option<bool>,
}

/// The shared fields, checked.
#[derive(Debug, Clone)]
pub(super) struct Checked {
    /// `max_tokens` in it is the default until [`Checked::for_prompt`] knows the prompt.
    sampling: SamplingParams,
    max_tokens: Option<u32>,
    max_tokens_default: Option<u32>,
    pub(super) text: TextOptions,
    pub(super) n: usize,
    pub(super) stream: Option<StreamOptions>,
    pub(super) priority: i32,
    pub(super) cache_salt: Option<Arc<str>>,
    pub(super) logprobs: bool,
    pub(super) return_token_ids: bool,
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
        let max_tokens = request.token_limit();
        Ok(Self {
            max_tokens,
            logprobs,
            ..shared_fields!(request)
        })
    }

    pub(super) fn of_completion(request: &'a CompletionRequest) -> Self {
        Self {
            max_tokens: request.max_tokens,
            max_tokens_default: Some(CompletionRequest::DEFAULT_MAX_TOKENS),
            logprobs: request.logprobs,
            ..shared_fields!(request)
        }
    }

    /// Checks every field. `priority_header` is the value of `X-Vllm-Priority`, which wins over the field.
    pub(super) fn check(
        &self,
        defaults: &GenerationDefaults,
        priority_header: Option<&str>,
    ) -> Result<Checked, ApiError> {
        let max_tokens = self
            .max_tokens
            .map(|value| count("max_tokens", value, 1))
            .transpose()?;
        let min_tokens = count("min_tokens", self.min_tokens.unwrap_or(0), 0)?;
        if max_tokens.is_some_and(|max| min_tokens > max) {
            return Err(ApiError::field(
                "min_tokens",
                "must not be larger than max_tokens",
            ));
        }
        let n = self.n.unwrap_or(1);
        if !(1..=CHOICES_MAX).contains(&n) {
            return Err(ApiError::field(
                "n",
                format!("must be between 1 and {CHOICES_MAX}, got {n}"),
            ));
        }
        if self.stream_options.is_some() && self.stream != Some(true) {
            return Err(ApiError::field(
                "stream_options",
                "can only be set when stream is true",
            ));
        }
        let sampling = self.sampling(defaults, min_tokens)?;
        Ok(Checked {
            max_tokens,
            max_tokens_default: self
                .max_tokens_default
                .and_then(|max| u32::try_from(max).ok()),
            text: TextOptions {
                stop: self.checked_stop()?,
                include_stop_str_in_output: self.include_stop_str_in_output.unwrap_or(false),
                skip_special_tokens: self.skip_special_tokens.unwrap_or(true),
                min_tokens,
            },
            n: n as usize,
            stream: (self.stream == Some(true)).then(|| self.stream_options.unwrap_or_default()),
            priority: checked_priority(self.priority, priority_header)?,
            cache_salt: self.cache_salt.map(checked_salt).transpose()?,
            logprobs: sampling.logprobs.is_some(),
            return_token_ids: self.return_token_ids.unwrap_or(false),
            sampling,
        })
    }

    fn sampling(
        &self,
        defaults: &GenerationDefaults,
        min_tokens: u32,
    ) -> Result<SamplingParams, ApiError> {
        let top_k = self.top_k.or(defaults.top_k.map(i64::from)).unwrap_or(0);
        if top_k < -1 || top_k > i64::from(u32::MAX) {
            return Err(ApiError::field(
                "top_k",
                format!("must be 0, -1 (off) or a count, got {top_k}"),
            ));
        }
        if self.stop_token_ids.len() > STOP_TOKENS_MAX {
            return Err(ApiError::field(
                "stop_token_ids",
                format!("must have at most {STOP_TOKENS_MAX} entries"),
            ));
        }
        let logprobs = match self.logprobs {
            None => None,
            Some(top) if (0..=LOGPROBS_MAX).contains(&top) => Some(top as u32),
            Some(top) => {
                let problem = format!("must ask for 0 to {LOGPROBS_MAX} tokens, got {top}");
                return Err(ApiError::field("logprobs", problem));
            }
        };
        Ok(SamplingParams {
            max_tokens: 1,
            min_tokens,
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
            seed: self.seed.map(|seed| seed as u64),
            stop_token_ids: self.stop_token_ids.to_vec(),
            ignore_eos: self.ignore_eos.unwrap_or(false),
            logprobs,
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

impl Checked {
    /// The sampling parameters of choice number `choice` of a prompt of `prompt_tokens` tokens, under a context
    /// of `context_tokens`.
    ///
    /// A limit that the client asked for and that does not fit is refused; a default one is lowered.
    pub(super) fn for_prompt(
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
                    "max_tokens",
                    format!(
                        "is too large: the maximum context length of this model is {context_tokens} \
                         tokens, the prompt has {prompt_tokens}, and {asked} more were asked for \
                         ({asked} > {context_tokens} - {prompt_tokens})"
                    ),
                ));
            }
            Some(asked) => asked,
            None => self.max_tokens_default.unwrap_or(left).min(left),
        };
        let seed = self
            .sampling
            .seed
            .map(|seed| seed.wrapping_add(choice as u64));
        Ok(SamplingParams {
            max_tokens,
            seed,
            ..self.sampling.clone()
        })
    }
}

/// A count of at least `min` that fits 32 bits.
fn count(field: &str, value: i64, min: u32) -> Result<u32, ApiError> {
    u32::try_from(value)
        .ok()
        .filter(|value| *value >= min)
        .ok_or_else(|| ApiError::field(field, format!("must be at least {min}, got {value}")))
}

fn number(
    field: &str,
    value: f32,
    allowed: impl Fn(f32) -> bool,
    range: &str,
) -> Result<f32, ApiError> {
    if allowed(value) {
        return Ok(value);
    }
    Err(ApiError::field(
        field,
        format!("must be {range}, got {value}"),
    ))
}

fn penalty(field: &str, value: Option<f32>) -> Result<f32, ApiError> {
    let allowed = |value| (-2.0..=2.0).contains(&value);
    number(field, value.unwrap_or(0.0), allowed, "between -2 and 2")
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
