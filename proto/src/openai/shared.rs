//! What chat and completion requests and responses have in common.

use serde::{Deserialize, Serialize};

/// One string or several: the `stop` field.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub enum StringOrArray {
    /// A single string.
    One(String),
    /// A list, possibly empty.
    Many(Vec<String>),
}

impl StringOrArray {
    /// The strings, whichever way they were written.
    pub fn as_slice(&self) -> &[String] {
        match self {
            Self::One(text) => std::slice::from_ref(text),
            Self::Many(texts) => texts,
        }
    }
}

/// Which end of a prompt that is too long is cut off.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TruncationSide {
    /// The beginning, so that the end stays.
    #[default]
    Left,
    /// The end.
    Right,
}

/// What a streaming client wants besides the text.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct StreamOptions {
    /// A last chunk with the usage and no choices.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub include_usage: Option<bool>,
    /// The usage so far on every chunk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub continuous_usage_stats: Option<bool>,
}

/// Tokens that a request took.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Usage {
    /// Tokens of the prompt, cached or computed.
    pub prompt_tokens: u32,
    /// Prompt and generated tokens.
    pub total_tokens: u32,
    /// Generated tokens.
    #[serde(default)]
    pub completion_tokens: u32,
    /// More about the prompt's tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt_tokens_details: Option<PromptTokensDetails>,
    /// More about the generated tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completion_tokens_details: Option<CompletionTokensDetails>,
}

impl Usage {
    /// The usage of a request whose prompt had `cached_tokens` of its `prompt_tokens` in the prefix
    /// cache.
    pub fn new(prompt_tokens: u32, completion_tokens: u32, cached_tokens: u32) -> Self {
        Self {
            prompt_tokens,
            total_tokens: prompt_tokens.saturating_add(completion_tokens),
            completion_tokens,
            prompt_tokens_details: Some(PromptTokensDetails {
                cached_tokens: Some(cached_tokens),
            }),
            completion_tokens_details: None,
        }
    }
}

/// Where the prompt's tokens came from.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct PromptTokensDetails {
    /// Those found in the prefix cache.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cached_tokens: Option<u32>,
}

/// What the generated tokens were spent on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct CompletionTokensDetails {
    /// Those of the model's reasoning.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reasoning_tokens: Option<u32>,
}

/// Why a choice ended.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// An end-of-sequence token, a stop token or a stop string.
    Stop,
    /// The token limit or the context length.
    Length,
    /// The request was given up before its end.
    Abort,
    /// The worker failed.
    Error,
    /// The model called functions.
    ToolCalls,
    /// A reason of another worker that has no name here.
    #[serde(untagged)]
    Other(String),
}

/// What exactly ended a choice that finished with `stop`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub enum StopReason {
    /// The id of the stop token.
    Token(u32),
    /// The stop string.
    Text(String),
}
