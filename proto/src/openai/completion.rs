//! `POST /v1/completions`.

use std::fmt;

use serde::de::{Error, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

use super::{
    CompletionLogprobs, FinishReason, PromptLogprobs, PromptShapeError, StopReason, StreamOptions,
    StringOrArray, TruncationSide, Usage,
};
use crate::prompt::Prompt;

/// A completion request. Fields beyond OpenAI's are vLLM's.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct CompletionRequest {
    /// The model; the worker's own where absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// What to continue.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt: Option<CompletionPrompt>,
    /// Whether the answer begins with the prompt.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub echo: Option<bool>,
    /// Text that follows the completion.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub suffix: Option<String>,
    /// Number of likeliest tokens whose log probabilities to list at each position.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logprobs: Option<i64>,
    /// Whether the tokenizer puts its special tokens around the text. True by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub add_special_tokens: Option<bool>,
    /// JSON output and its schema.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub response_format: Option<Value>,
    /// Most tokens to generate; [`Self::DEFAULT_MAX_TOKENS`] where absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<i64>,
    /// Fewest tokens before the request may stop.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_tokens: Option<i64>,
    /// Number of choices.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub n: Option<i64>,
    /// 0 for the likeliest token, above that for more variety.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f32>,
    /// Sample among the likeliest tokens that make up this probability.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_p: Option<f32>,
    /// Sample among this many likeliest tokens; 0 or -1 for all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_k: Option<i64>,
    /// Sample among tokens with at least this share of the likeliest one's probability.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_p: Option<f32>,
    /// Divides the logits of tokens seen before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repetition_penalty: Option<f32>,
    /// Taken from the logits of tokens generated before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub presence_penalty: Option<f32>,
    /// Taken from the logits of tokens generated before, once for each time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub frequency_penalty: Option<f32>,
    /// Added to the logits of tokens by id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logit_bias: Option<Map<String, Value>>,
    /// Makes sampling repeatable.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<i64>,
    /// Strings that end the text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop: Option<StringOrArray>,
    /// Tokens that end the text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_token_ids: Option<Vec<u32>>,
    /// Whether the stop string belongs to the text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub include_stop_str_in_output: Option<bool>,
    /// Whether to go on after an end-of-sequence token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ignore_eos: Option<bool>,
    /// Whether special tokens are left out of the text. True by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub skip_special_tokens: Option<bool>,
    /// Whether the answer comes as server-sent events.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stream: Option<bool>,
    /// What else the stream carries.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stream_options: Option<StreamOptions>,
    /// Lower goes first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub priority: Option<i64>,
    /// Keeps this prompt's blocks from being shared with others.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache_salt: Option<String>,
    /// The request's id, where no header gives one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
    /// Whether the answer lists token ids.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub return_token_ids: Option<bool>,
    /// The only tokens that may come.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allowed_token_ids: Option<Vec<u32>>,
    /// Words that must not come.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bad_words: Option<Vec<String>>,
    /// Log probabilities of the prompt's tokens, each with this many likeliest ones; -1 for all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_logprobs: Option<i64>,
    /// Tokens whose log probabilities to list at each position, in place of the likeliest ones.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logprob_token_ids: Option<Vec<u32>>,
    /// Whether log probabilities name tokens as `token_id:7` instead of by their text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub return_tokens_as_token_ids: Option<bool>,
    /// Most tokens of the prompt to keep; -1 for as many as the context leaves room for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub truncate_prompt_tokens: Option<i64>,
    /// Where a prompt that is too long is cut: `left` (the default) keeps its end, `right` its beginning.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub truncation_side: Option<TruncationSide>,
    /// The end user, for the operator's records.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
}

impl CompletionRequest {
    /// The limit on generated tokens where the request has none.
    pub const DEFAULT_MAX_TOKENS: i64 = 16;

    /// Whether the answer is streamed.
    pub fn is_stream(&self) -> bool {
        self.stream.unwrap_or(false)
    }

    /// What is to be computed, one entry for each prompt of the request, in its order.
    ///
    /// # Errors
    ///
    /// [`PromptShapeError`] where there is no prompt or one of no tokens.
    pub fn prompt(&self) -> Result<Vec<Prompt>, PromptShapeError> {
        self.prompt
            .as_ref()
            .ok_or(PromptShapeError::NoPrompt)?
            .prompts()
    }
}

/// The four ways to write a prompt. An empty array reads as no tokens.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(untagged)]
pub enum CompletionPrompt {
    /// One text.
    Text(String),
    /// Several texts.
    Texts(Vec<String>),
    /// One list of token ids.
    Tokens(Vec<u32>),
    /// Several lists of token ids.
    TokenLists(Vec<Vec<u32>>),
}

impl CompletionPrompt {
    /// The prompts, one entry for each.
    ///
    /// # Errors
    ///
    /// [`PromptShapeError`] where there is none, or one of no tokens.
    pub fn prompts(&self) -> Result<Vec<Prompt>, PromptShapeError> {
        let prompts: Vec<Prompt> = match self {
            Self::Text(text) => vec![Prompt::Text(text.clone())],
            Self::Texts(texts) => texts.iter().cloned().map(Prompt::Text).collect(),
            Self::Tokens(tokens) if tokens.is_empty() => Vec::new(),
            Self::Tokens(tokens) => vec![Prompt::Tokens(tokens.clone())],
            Self::TokenLists(lists) => {
                if let Some(index) = lists.iter().position(Vec::is_empty) {
                    return Err(PromptShapeError::EmptyPromptAt { index });
                }
                lists.iter().cloned().map(Prompt::Tokens).collect()
            }
        };
        if prompts.is_empty() {
            return Err(PromptShapeError::EmptyPrompt);
        }
        Ok(prompts)
    }
}

impl<'de> Deserialize<'de> for CompletionPrompt {
    /// Decides by the first element of an array, so that a list of ids is read straight into place
    /// and an error can name the element that does not fit.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(PromptVisitor)
    }
}

struct PromptVisitor;

impl<'de> Visitor<'de> for PromptVisitor {
    type Value = CompletionPrompt;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a string, an array of strings, or one or more arrays of token ids")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
        Ok(CompletionPrompt::Text(text.to_owned()))
    }

    fn visit_string<E: Error>(self, text: String) -> Result<Self::Value, E> {
        Ok(CompletionPrompt::Text(text))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Self::Value, A::Error> {
        match sequence.next_element::<PromptItem>()? {
            None => Ok(CompletionPrompt::Tokens(Vec::new())),
            Some(PromptItem::Text(first)) => rest(first, sequence).map(CompletionPrompt::Texts),
            Some(PromptItem::Token(first)) => rest(first, sequence).map(CompletionPrompt::Tokens),
            Some(PromptItem::Tokens(first)) => {
                rest(first, sequence).map(CompletionPrompt::TokenLists)
            }
        }
    }
}

/// The elements after the first, which must be of its type.
fn rest<'de, T, A>(first: T, mut sequence: A) -> Result<Vec<T>, A::Error>
where
    T: Deserialize<'de>,
    A: SeqAccess<'de>,
{
    let mut items = vec![first];
    loop {
        let index = items.len();
        match sequence.next_element() {
            Ok(Some(item)) => items.push(item),
            Ok(None) => return Ok(items),
            Err(error) => return Err(A::Error::custom(format!("prompt[{index}]: {error}"))),
        }
    }
}

/// The first element of a prompt array.
enum PromptItem {
    Text(String),
    Token(u32),
    Tokens(Vec<u32>),
}

impl<'de> Deserialize<'de> for PromptItem {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ItemVisitor)
    }
}

struct ItemVisitor;

impl<'de> Visitor<'de> for ItemVisitor {
    type Value = PromptItem;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a string, a token id or an array of token ids")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
        Ok(PromptItem::Text(text.to_owned()))
    }

    fn visit_string<E: Error>(self, text: String) -> Result<Self::Value, E> {
        Ok(PromptItem::Text(text))
    }

    fn visit_u64<E: Error>(self, token: u64) -> Result<Self::Value, E> {
        let token = u32::try_from(token)
            .map_err(|_| E::custom(format!("token id {token} does not fit 32 bits")))?;
        Ok(PromptItem::Token(token))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Self::Value, A::Error> {
        let mut tokens = Vec::new();
        while let Some(token) = sequence.next_element()? {
            tokens.push(token);
        }
        Ok(PromptItem::Tokens(tokens))
    }
}

/// A whole answer.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct CompletionResponse {
    /// `cmpl-` and the request's id.
    pub id: String,
    /// Always `text_completion`.
    pub object: String,
    /// Unix time in seconds.
    pub created: u64,
    /// The model that answered.
    pub model: String,
    /// One for each choice of each prompt.
    pub choices: Vec<CompletionChoice>,
    /// Tokens taken, of all prompts together.
    pub usage: Usage,
}

impl CompletionResponse {
    /// The value of `object`, on whole answers and on chunks.
    pub const OBJECT: &str = "text_completion";
}

/// One choice of a whole answer.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct CompletionChoice {
    /// Position among the choices of all prompts: the prompt's position times `n`, plus the
    /// choice's.
    pub index: u32,
    /// The text.
    pub text: String,
    /// Log probabilities, where asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logprobs: Option<CompletionLogprobs>,
    /// Why it ended; `null` before the end.
    #[serde(default)]
    pub finish_reason: Option<FinishReason>,
    /// What exactly ended it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_reason: Option<StopReason>,
    /// Ids of the generated tokens, where asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_ids: Option<Vec<u32>>,
    /// Log probabilities of the prompt's tokens, where asked for; `null` for the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt_logprobs: Option<PromptLogprobs>,
    /// Ids of the prompt, where asked for; on the first chunk of a stream only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt_token_ids: Option<Vec<u32>>,
}

/// One event of a streamed answer.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct CompletionChunk {
    /// The same on every chunk of an answer.
    pub id: String,
    /// Always `text_completion`.
    pub object: String,
    /// Unix time in seconds, the same on every chunk.
    pub created: u64,
    /// The model that answers.
    pub model: String,
    /// What is new; empty on the chunk that carries the final usage.
    pub choices: Vec<CompletionChunkChoice>,
    /// Tokens taken, where asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
}

/// What is new in one choice: the fields are those of a whole choice, with the new part of each.
pub type CompletionChunkChoice = CompletionChoice;
