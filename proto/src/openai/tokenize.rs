//! `POST /tokenize` and `POST /detokenize`, which are vLLM's.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::PromptShapeError;
use super::chat::checked_tools;
use crate::prompt::{ChatPrompt, Prompt, check_messages};

/// Asks for the token ids of a text, or of a conversation.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct TokenizeRequest {
    /// The model; the worker's own where absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// The text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt: Option<String>,
    /// The conversation; wins over the text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub messages: Option<Value>,
    /// Functions that the model may call.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tools: Option<Value>,
    /// Whether a conversation ends by opening the assistant's turn. True by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub add_generation_prompt: Option<bool>,
    /// Further variables for the chat template.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chat_template_kwargs: Option<Map<String, Value>>,
    /// Whether the tokenizer puts its special tokens around the text; see
    /// [`Self::adds_special_tokens`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub add_special_tokens: Option<bool>,
    /// Whether the answer holds each token's text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub return_token_strs: Option<bool>,
}

impl TokenizeRequest {
    /// What is to be turned into token ids: one prompt.
    ///
    /// # Errors
    ///
    /// [`PromptShapeError`] where there is neither text nor conversation, or the conversation is
    /// none.
    pub fn prompt(&self) -> Result<Vec<Prompt>, PromptShapeError> {
        if let Some(messages) = &self.messages {
            check_messages(messages)?;
            return Ok(vec![Prompt::Chat(ChatPrompt {
                messages: messages.clone(),
                tools: checked_tools(self.tools.as_ref())?,
                add_generation_prompt: self.add_generation_prompt.unwrap_or(true),
                template_kwargs: self.chat_template_kwargs.clone(),
            })]);
        }
        match &self.prompt {
            Some(text) => Ok(vec![Prompt::Text(text.clone())]),
            None => Err(PromptShapeError::NoPrompt),
        }
    }

    /// Whether special tokens are added: by default to a text and not to a conversation, whose
    /// template writes them.
    pub fn adds_special_tokens(&self) -> bool {
        self.add_special_tokens.unwrap_or(self.messages.is_none())
    }
}

/// The token ids.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct TokenizeResponse {
    /// Number of tokens.
    pub count: u32,
    /// Most tokens of a prompt and its answer together.
    pub max_model_len: u32,
    /// The ids.
    pub tokens: Vec<u32>,
    /// The text of each, where asked for.
    #[serde(default)]
    pub token_strs: Option<Vec<String>>,
}

/// Asks for the text of token ids.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct DetokenizeRequest {
    /// The model; the worker's own where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// The ids.
    pub tokens: Vec<u32>,
}

/// The text.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DetokenizeResponse {
    /// The text.
    pub prompt: String,
}
