//! Log probabilities: in the two shapes that the two endpoints have, and the prompt's, which are vLLM's.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Map;

/// Log probabilities of a chat choice.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct ChatLogprobs {
    /// One entry for each token.
    pub content: Vec<ChatTokenLogprob>,
}

/// One generated token.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct ChatTokenLogprob {
    /// Its text; bytes that are no UTF-8 of their own show as replacement characters.
    pub token: String,
    /// Its log probability, before temperature.
    pub logprob: f32,
    /// Its bytes.
    pub bytes: Option<Vec<u8>>,
    /// The likeliest tokens at its place, likeliest first.
    #[serde(default)]
    pub top_logprobs: Vec<ChatTopLogprob>,
}

/// One of the likeliest tokens at a place.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct ChatTopLogprob {
    /// Its text.
    pub token: String,
    /// Its log probability, before temperature.
    pub logprob: f32,
    /// Its bytes.
    pub bytes: Option<Vec<u8>>,
}

/// Log probabilities of a completion choice: parallel lists with one entry for each token.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct CompletionLogprobs {
    /// Where each token's text begins, in characters from the start of the choice's text.
    pub text_offset: Vec<u32>,
    /// Log probability of each token; none for the first token of an echoed prompt.
    pub token_logprobs: Vec<Option<f32>>,
    /// Text of each token.
    pub tokens: Vec<String>,
    /// The likeliest tokens at each place, text to log probability, likeliest first.
    pub top_logprobs: Vec<Option<Map<String, serde_json::Value>>>,
}

/// One entry for each token of a prompt, by token id: the token itself and the likeliest ones at its place. Nothing
/// for the first, which follows nothing.
pub type PromptLogprobs = Vec<Option<BTreeMap<u32, PromptTokenLogprob>>>;

/// A token at a place of a prompt.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct PromptTokenLogprob {
    /// Its log probability.
    pub logprob: f32,
    /// Its place among all tokens; 1 is the likeliest.
    pub rank: Option<u32>,
    /// Its text.
    pub decoded_token: Option<String>,
}
