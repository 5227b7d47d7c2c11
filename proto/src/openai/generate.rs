//! `POST /inference/v1/generate`, which is vLLM's: token ids in, token ids out. The two `…/render`
//! endpoints answer with such a request, ready to be sent to whichever worker is to compute it.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{FinishReason, StopReason, StreamOptions, Usage};

/// A prompt in token ids and how to go on from it.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct GenerateRequest {
    /// The request's id, where no header gives one.
    pub request_id: Option<String>,
    /// The prompt.
    pub token_ids: Option<Vec<u32>>,
    /// Where each token's text lies in the source, in characters. Written as `null`: nobody asks for
    /// it yet.
    pub token_offsets: Option<Vec<(u32, u32)>>,
    /// vLLM's `SamplingParams`: the fields of a completion request that bear on sampling, under the
    /// same names.
    pub sampling_params: Option<Map<String, Value>>,
    /// The model; the worker's own where absent.
    pub model: Option<String>,
    /// What comes back: `tokens`, or `text` for the text as well.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output_mode: Option<String>,
    /// Whether the answer comes as server-sent events.
    pub stream: Option<bool>,
    /// What else the stream carries.
    pub stream_options: Option<StreamOptions>,
    /// Keeps this prompt's blocks from being shared with others.
    pub cache_salt: Option<String>,
    /// Lower goes first.
    pub priority: Option<i64>,
    /// Where the prompt's KV comes from or goes to.
    pub kv_transfer_params: Option<Value>,
    /// Whether the answer repeats the prompt's ids.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub return_token_ids: Option<bool>,
}

impl GenerateRequest {
    /// The value of `output_mode` that asks for text beside the ids.
    pub const TEXT: &str = "text";
    /// The value of `output_mode` that asks for ids alone; the default.
    pub const TOKENS: &str = "tokens";
}

/// A whole answer. Fields without a value are written as `null`, as vLLM does here.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct GenerateResponse {
    /// The request's id.
    pub request_id: String,
    /// The model that answered.
    pub model: Option<String>,
    /// Unix time in seconds.
    pub created: Option<u64>,
    /// One for each choice asked for.
    pub choices: Vec<GenerateChoice>,
    /// Tokens taken.
    pub usage: Option<Usage>,
    /// As [`super::PromptLogprobs`], where asked for.
    pub prompt_logprobs: Option<Value>,
    /// The prompt's ids, where asked for.
    pub prompt_token_ids: Option<Vec<u32>>,
    /// Where the KV of the request can be fetched.
    pub kv_transfer_params: Option<Value>,
    /// `tokens` or `text`.
    pub output_mode: String,
}

/// One choice of a whole answer.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct GenerateChoice {
    /// Position among the choices.
    pub index: u32,
    /// The text, where asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// Log probabilities, where asked for.
    pub logprobs: Option<GenerateLogprobs>,
    /// Why it ended.
    pub finish_reason: Option<FinishReason>,
    /// What exactly ended it.
    #[serde(default)]
    pub stop_reason: Option<StopReason>,
    /// Ids of the generated tokens, the one that ended it included.
    pub token_ids: Vec<u32>,
}

/// One event of a streamed answer.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct GenerateChunk {
    /// The same on every chunk of an answer.
    pub request_id: String,
    /// `tokens` or `text`.
    pub output_mode: String,
    /// What is new; empty on the chunk that carries the final usage.
    pub choices: Vec<GenerateChunkChoice>,
    /// Tokens taken, where asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
    /// The prompt's ids, on the first chunk and where asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt_token_ids: Option<Vec<u32>>,
}

/// What is new in one choice.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct GenerateChunkChoice {
    /// Position among the choices.
    pub index: u32,
    /// The new text, where asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// Log probabilities of the new tokens, where asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logprobs: Option<GenerateLogprobs>,
    /// Why it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finish_reason: Option<FinishReason>,
    /// What exactly ended it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_reason: Option<StopReason>,
    /// Ids of the new tokens.
    pub token_ids: Vec<u32>,
}

/// Log probabilities of a choice.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct GenerateLogprobs {
    /// One entry for each token.
    pub content: Vec<GenerateTokenLogprob>,
}

/// One token: named by its id where only ids were asked for, as text where text was.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct GenerateTokenLogprob {
    /// The id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_id: Option<u32>,
    /// The text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// Its log probability, before temperature.
    pub logprob: f32,
    /// How many tokens are at least as likely.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rank: Option<u32>,
    /// The bytes of `token`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<Vec<u8>>,
    /// The sampled token, then the likeliest others, likeliest first. Empty on these themselves.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub top_logprobs: Vec<GenerateTokenLogprob>,
}
