//! `POST /v1/embeddings`.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::chat::checked_tools;
use super::{CompletionPrompt, PromptShapeError, Usage};
use crate::prompt::{ChatPrompt, Prompt, check_messages};

/// Asks for the embeddings of texts, of prompts in token ids, or (vLLM's) of one conversation.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct EmbeddingRequest {
    /// The model; the worker's own where absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// What to embed, in the four shapes that a completion's prompt has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub input: Option<CompletionPrompt>,
    /// A conversation in place of an input; wins over it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub messages: Option<Value>,
    /// Functions that the chat template is told of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tools: Option<Value>,
    /// Whether a conversation ends by opening the assistant's turn. False by default, unlike
    /// elsewhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub add_generation_prompt: Option<bool>,
    /// Further variables for the chat template.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chat_template_kwargs: Option<Map<String, Value>>,
    /// Whether the tokenizer puts its special tokens around a text; see
    /// [`Self::adds_special_tokens`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub add_special_tokens: Option<bool>,
    /// `float` or `base64`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub encoding_format: Option<String>,
    /// Order of the bytes under `base64`: `native`, `little` or `big`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endianness: Option<String>,
    /// Type of the numbers; `float32` where absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub embed_dtype: Option<String>,
    /// Length of each embedding.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dimensions: Option<i64>,
    /// Whether each embedding is scaled to length one. True by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub use_activation: Option<bool>,
    /// Lower goes first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub priority: Option<i64>,
    /// Keeps these prompts' blocks from being shared with others.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache_salt: Option<String>,
    /// The request's id, where no header gives one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
    /// The end user, for the operator's records.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
}

impl EmbeddingRequest {
    /// What is to be embedded, one entry for each embedding of the answer, in its order.
    ///
    /// # Errors
    ///
    /// [`PromptShapeError`] where there is no input or one of no tokens, or the conversation is none.
    pub fn prompts(&self) -> Result<Vec<Prompt>, PromptShapeError> {
        if let Some(messages) = &self.messages {
            check_messages(messages)?;
            return Ok(vec![Prompt::Chat(ChatPrompt {
                messages: messages.clone(),
                tools: checked_tools(self.tools.as_ref())?,
                add_generation_prompt: self.add_generation_prompt.unwrap_or(false),
                template_kwargs: self.chat_template_kwargs.clone(),
            })]);
        }
        self.input
            .as_ref()
            .ok_or(PromptShapeError::NoPrompt)?
            .prompts()
    }

    /// Whether special tokens are added: by default to a text and not to a conversation, whose
    /// template writes them.
    pub fn adds_special_tokens(&self) -> bool {
        self.add_special_tokens.unwrap_or(self.messages.is_none())
    }
}

/// The embeddings.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct EmbeddingResponse {
    /// `embd-` and the request's id.
    pub id: String,
    /// Always `list`.
    pub object: String,
    /// Unix time in seconds.
    pub created: u64,
    /// The model that answered.
    pub model: String,
    /// One for each input.
    pub data: Vec<EmbeddingData>,
    /// Tokens taken.
    pub usage: Usage,
}

/// The embedding of one input.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct EmbeddingData {
    /// Position of its input.
    pub index: u32,
    /// Always `embedding`.
    pub object: String,
    /// The numbers.
    pub embedding: Embedding,
}

/// The numbers of an embedding, in the encoding asked for.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Embedding {
    /// JSON numbers.
    Float(Vec<f32>),
    /// 32-bit floats one after another, in base64.
    Base64(String),
}
