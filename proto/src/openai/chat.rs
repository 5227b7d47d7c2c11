//! `POST /v1/chat/completions`.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{
    ChatLogprobs, FinishReason, PromptLogprobs, PromptShapeError, StopReason, StreamOptions,
    StringOrArray, TruncationSide, Usage,
};
use crate::prompt::{ChatPrompt, Prompt, check_messages};

/// A chat request. Fields beyond OpenAI's are vLLM's.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ChatCompletionRequest {
    /// The model; the worker's own where absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// The conversation, as it came: [`Self::prompt`] checks its shape.
    pub messages: Value,
    /// Functions that the model may call.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tools: Option<Value>,
    /// Which function to call, if any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tool_choice: Option<Value>,
    /// Whether the prompt ends by opening the assistant's turn. True by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub add_generation_prompt: Option<bool>,
    /// Further variables for the chat template.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chat_template_kwargs: Option<Map<String, Value>>,
    /// Most tokens to generate; wins over `max_tokens`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_completion_tokens: Option<i64>,
    /// Log probabilities of the generated tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logprobs: Option<bool>,
    /// Number of likeliest tokens to list at each position.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_logprobs: Option<i64>,
    /// JSON output and its schema.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub response_format: Option<Value>,
    /// Most tokens to generate; see [`Self::token_limit`].
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
    /// Whether the answer repeats the last message, where that is the assistant's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub echo: Option<bool>,
    /// Whether the model goes on with the last message instead of beginning one of its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub continue_final_message: Option<bool>,
    /// Whether the tokenizer puts its special tokens around what the template wrote. False by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub add_special_tokens: Option<bool>,
    /// Documents for templates that know how to show them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub documents: Option<Vec<Value>>,
    /// A template to use in place of the model's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chat_template: Option<String>,
    /// How much the model is to reason, for templates that ask.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reasoning_effort: Option<String>,
    /// The end user, for the operator's records.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
}

impl ChatCompletionRequest {
    /// The limit on generated tokens: `max_completion_tokens`, or else `max_tokens`.
    pub fn token_limit(&self) -> Option<i64> {
        self.max_completion_tokens.or(self.max_tokens)
    }

    /// Whether the answer is streamed.
    pub fn is_stream(&self) -> bool {
        self.stream.unwrap_or(false)
    }

    /// What is to be computed: one conversation.
    ///
    /// # Errors
    ///
    /// [`PromptShapeError`] naming the message at fault.
    pub fn prompt(&self) -> Result<Vec<Prompt>, PromptShapeError> {
        check_messages(&self.messages)?;
        Ok(vec![Prompt::Chat(ChatPrompt {
            messages: self.messages.clone(),
            tools: checked_tools(self.tools.as_ref())?,
            add_generation_prompt: self.add_generation_prompt.unwrap_or(true),
            template_kwargs: self.template_variables(),
        })])
    }

    /// `chat_template_kwargs`, with the fields that are variables of templates too. As in vLLM a reasoning effort
    /// also says whether to think, unless the request says so itself.
    fn template_variables(&self) -> Option<Map<String, Value>> {
        if self.documents.is_none() && self.reasoning_effort.is_none() {
            return self.chat_template_kwargs.clone();
        }
        let mut variables = self.chat_template_kwargs.clone().unwrap_or_default();
        if let Some(documents) = &self.documents {
            variables.insert("documents".to_owned(), Value::from(documents.clone()));
        }
        if let Some(effort) = &self.reasoning_effort {
            variables
                .entry("enable_thinking")
                .or_insert_with(|| Value::from(effort != "none"));
            variables.insert("reasoning_effort".to_owned(), Value::from(effort.clone()));
        }
        Some(variables)
    }
}

/// The tools as a template expects them: none where there are none to call.
pub(super) fn checked_tools(tools: Option<&Value>) -> Result<Option<Value>, PromptShapeError> {
    match tools {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Array(list)) if list.is_empty() => Ok(None),
        Some(Value::Array(list)) if list.iter().all(Value::is_object) => Ok(tools.cloned()),
        Some(_) => Err(PromptShapeError::Tools),
    }
}

/// A whole answer.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct ChatResponse {
    /// `chatcmpl-` and the request's id.
    pub id: String,
    /// Always `chat.completion`.
    pub object: String,
    /// Unix time in seconds.
    pub created: u64,
    /// The model that answered.
    pub model: String,
    /// One for each choice asked for.
    pub choices: Vec<ChatChoice>,
    /// Tokens taken.
    pub usage: Usage,
    /// Log probabilities of the prompt's tokens, where asked for; `null` for the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt_logprobs: Option<PromptLogprobs>,
    /// Ids of the prompt, where asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt_token_ids: Option<Vec<u32>>,
}

impl ChatResponse {
    /// The value of `object`.
    pub const OBJECT: &str = "chat.completion";
}

/// One choice of a whole answer.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct ChatChoice {
    /// Position among the choices.
    pub index: u32,
    /// The answer.
    pub message: ChatMessage,
    /// Log probabilities, where asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logprobs: Option<ChatLogprobs>,
    /// Why it ended.
    pub finish_reason: Option<FinishReason>,
    /// What exactly ended it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_reason: Option<StopReason>,
    /// Ids of the generated tokens, where asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_ids: Option<Vec<u32>>,
}

/// The assistant's message.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ChatMessage {
    /// Always `assistant`.
    pub role: String,
    /// The text.
    pub content: Option<String>,
}

/// One event of a streamed answer.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct ChatChunk {
    /// The same on every chunk of an answer.
    pub id: String,
    /// Always `chat.completion.chunk`.
    pub object: String,
    /// Unix time in seconds, the same on every chunk.
    pub created: u64,
    /// The model that answers.
    pub model: String,
    /// What is new; empty on the chunk that carries the final usage.
    pub choices: Vec<ChatChunkChoice>,
    /// Tokens taken, where asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
    /// Ids of the prompt, where asked for; on the first chunk only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt_token_ids: Option<Vec<u32>>,
}

impl ChatChunk {
    /// The value of `object`.
    pub const OBJECT: &str = "chat.completion.chunk";
}

/// What is new in one choice.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct ChatChunkChoice {
    /// Position among the choices.
    pub index: u32,
    /// The new text.
    pub delta: ChatDelta,
    /// Log probabilities of the new tokens, where asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logprobs: Option<ChatLogprobs>,
    /// Why it ended; `null` before the end.
    #[serde(default)]
    pub finish_reason: Option<FinishReason>,
    /// What exactly ended it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_reason: Option<StopReason>,
    /// Ids of the new tokens, where asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_ids: Option<Vec<u32>>,
}

/// An addition to the assistant's message.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct ChatDelta {
    /// On a choice's first chunk only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,
    /// The new text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
}

impl ChatDelta {
    /// What a choice's first chunk carries: the role and an empty text.
    pub fn first() -> Self {
        Self {
            role: Some("assistant".to_owned()),
            content: Some(String::new()),
        }
    }

    /// New text.
    pub fn text(content: impl Into<String>) -> Self {
        Self {
            role: None,
            content: Some(content.into()),
        }
    }
}
