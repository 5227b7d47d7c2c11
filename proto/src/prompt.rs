//! From what a request asks to the token ids that the model computes: chat template and tokenizer
//! of a model folder.
//!
//! The picker predicts which blocks a worker holds from the ids of the prompt, so it must arrive at
//! exactly the ids at which the worker arrives. That is why this lives beside the wire formats:
//! both programs run this one implementation over the same folder. Its yardstick is
//! `apply_chat_template` of Hugging Face's transformers, because models are published with
//! templates written against it.
//!
//! It reads from a folder: `tokenizer.json`; the chat template, from `chat_template.jinja` or else
//! from `tokenizer_config.json`; and the special token strings that templates refer to, from
//! `tokenizer_config.json`.
//!
//! It does not truncate, and knows no context length: the worker refuses what is too long. A template
//! that came with a request is a program of a stranger; whoever renders by one says so
//! ([`Rendering`]).

mod clock;
mod continuation;
mod cuts;
mod encoder;
mod messages;
mod python;
mod template;

use std::path::PathBuf;

use serde_json::{Map, Value};

pub use cuts::Cuts;
pub use encoder::{PromptEncoder, SpecialFrame};
pub use messages::{MessagesError, check_messages};

/// What a request asks to be computed.
#[derive(Clone, PartialEq, Debug)]
pub enum Prompt {
    /// A conversation, which the model's chat template turns into text.
    Chat(ChatPrompt),
    /// Plain text.
    Text(String),
    /// Token ids, taken as they are.
    Tokens(Vec<u32>),
}

/// A conversation and what the chat template is told about it.
#[derive(Clone, PartialEq, Debug)]
pub struct ChatPrompt {
    /// The conversation: a non-empty array of objects, each with a string `role`.
    pub messages: Value,
    /// The functions that the model may call: an array of objects, in OpenAI's shape.
    pub tools: Option<Value>,
    /// Whether the text ends by opening the assistant's turn. True by default.
    pub add_generation_prompt: bool,
    /// Further variables for the template. They cannot replace the conversation or the special
    /// tokens.
    pub template_kwargs: Option<Map<String, Value>>,
}

impl ChatPrompt {
    /// A conversation with everything else at its default.
    pub fn new(messages: Value) -> Self {
        Self {
            messages,
            tools: None,
            add_generation_prompt: true,
            template_kwargs: None,
        }
    }
}

/// How a conversation is rendered, where not as usual.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Rendering<'a> {
    /// A template in place of the model's.
    pub template: Option<&'a str>,
    /// The text ends with the last message's content, so that the model goes on with it. Needs a
    /// conversation without a generation prompt.
    pub continue_final_message: bool,
}

/// Why a model folder cannot be loaded, or a prompt cannot be turned into token ids.
#[derive(Debug, thiserror::Error)]
pub enum PromptError {
    /// A file of the folder cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file of the folder has not the shape it should have.
    #[error("{}: {reason}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong, and where.
        reason: String,
    },
    /// A conversation for a model that has no chat template.
    #[error("the model has no chat template")]
    NoChatTemplate,
    /// The conversation is no conversation.
    #[error(transparent)]
    Messages(#[from] MessagesError),
    /// The chat template refused the conversation in its own words.
    #[error("{reason}")]
    Refused {
        /// What the template said.
        reason: String,
    },
    /// The chat template failed over the conversation.
    #[error("chat template: {reason}")]
    Render {
        /// What went wrong, and on which line of the template.
        reason: String,
    },
    /// A template that came with a request is none.
    #[error("chat_template: {reason}")]
    Template {
        /// What is wrong, and on which line of the template.
        reason: String,
    },
    /// The last message cannot be gone on with.
    #[error("continue_final_message: {reason}")]
    NotContinuable {
        /// Why.
        reason: &'static str,
    },
    /// The tokenizer failed over the text.
    #[error("tokenizer: {reason}")]
    Tokenize {
        /// What it said.
        reason: String,
    },
    /// A token id that the model does not have.
    #[error(
        "token id {token} at position {position} is not below the vocabulary size {vocab_size}"
    )]
    UnknownToken {
        /// Index into the prompt.
        position: usize,
        /// The id.
        token: u32,
        /// The first id that does not exist.
        vocab_size: usize,
    },
}

impl PromptError {
    /// Whether the request is at fault, rather than the model folder.
    pub fn is_request_fault(&self) -> bool {
        match self {
            Self::File { .. } | Self::Malformed { .. } => false,
            Self::NoChatTemplate
            | Self::Messages(_)
            | Self::Refused { .. }
            | Self::Render { .. }
            | Self::Template { .. }
            | Self::NotContinuable { .. }
            | Self::Tokenize { .. }
            | Self::UnknownToken { .. } => true,
        }
    }
}
