//! Bytes to [`InferenceRequest`]: which API a request speaks is told by its path, what it asks for
//! by one scan of its body.
//!
//! A parser is a plugin type, one file, and one line in [`parsers`]; which of them are in use, and
//! in which order, is the operator's choice. Paths that no parser in use knows, and requests without
//! a body, pass through: they are picked by load alone and their bodies are never looked at.
//!
//! Parsers are strict about what the picker needs (a JSON object with a model name, a whole gRPC
//! message) and lenient about everything else: a field of the wrong type is the worker's to refuse,
//! with the worker's own message.
//!
//! Beside the parsers lives what follows from a parsed request alone: its priority
//! ([`objectives`]), the model that it is really sent to ([`model_rewrite`]), and how that name gets
//! into the body ([`rewrite`]).

mod anthropic;
mod fields;
mod grpc;
mod media;
pub mod model_rewrite;
pub mod objectives;
mod openai;
mod parsers;
mod passthrough;
mod responses;
pub mod rewrite;
mod sglang;
pub mod text;
mod vertex_ai;
mod vllm_grpc;
mod vllm_http;

use std::ops::Range;

use pointsman_proto::prompt::Prompt;

pub use grpc::FrameError;
pub use media::{MEDIA_MAX, MediaItem};
pub use parsers::{PLUGIN_TYPES, Parsers, RequestLine, UnknownParser, parse};

/// What the picker needs to know of a request.
#[derive(Clone, Debug, PartialEq)]
pub struct InferenceRequest {
    pub kind: RequestKind,
    /// The model as the client names it; empty where the API names none, or the request passes
    /// through.
    pub model: String,
    /// Where the model's JSON string lies in the body, quotes included, so that a rewrite can
    /// splice it. `None` where the body is no JSON, or has no model: it cannot be rewritten.
    pub model_span: Option<Range<usize>>,
    /// Whether the client asked for its answer piece by piece.
    pub stream: bool,
    /// Whether the client asked for `stream_options.include_usage`, which is how an OpenAI stream
    /// comes to tell its token counts.
    pub stream_options_include_usage: bool,
    /// What is to be computed; `None` where it is missing, has no shape that the picker knows, or is
    /// partly held by the worker. Of several prompts in one request it is the first, because one
    /// pick serves them all.
    pub prompt: Option<Prompt>,
    /// Images, audio and videos of the prompt in their order, at most [`MEDIA_MAX`] of them.
    pub media: Vec<MediaItem>,
    /// Keeps the prefix cache of this client apart from others'.
    pub cache_salt: Option<String>,
    /// The client's bound on the answer, in tokens.
    pub max_tokens: Option<u32>,
}

impl InferenceRequest {
    /// A request of which nothing but its kind is known.
    pub fn new(kind: RequestKind) -> Self {
        Self {
            kind,
            model: String::new(),
            model_span: None,
            stream: false,
            stream_options_include_usage: false,
            prompt: None,
            media: Vec::new(),
            cache_salt: None,
            max_tokens: None,
        }
    }

    /// A request that is routed without being understood.
    pub fn passthrough() -> Self {
        Self::new(RequestKind::Passthrough)
    }
}

/// The API that a request speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RequestKind {
    /// `chat/completions`
    Chat,
    /// `completions`
    Completion,
    /// `embeddings`, of OpenAI's API or of vLLM's gRPC one.
    Embedding,
    /// `responses`
    Responses,
    /// `conversations`: the worker stores turns and computes nothing, so there is no prompt.
    Conversation,
    /// `images/generations`
    Image,
    /// `messages`
    Messages,
    /// `messages/count_tokens`: the worker only counts, so there is no prompt.
    CountTokens,
    /// `.../render`: the worker only renders and tokenises, so there is no prompt.
    Render,
    /// vLLM's and SGLang's own `generate`.
    Generate,
    Passthrough,
}

/// Why a body cannot be read. All are the client's to mend.
#[derive(Debug, thiserror::Error)]
pub enum ParseError {
    /// The text says where in the body.
    #[error("error unmarshaling request bodyMap: {0}")]
    Json(#[from] serde_json::Error),
    #[error("model not found in request body")]
    ModelMissing,
    #[error("invalid or unsupported gRPC payload: {0}")]
    Frame(#[from] FrameError),
    #[error("unmarshaling {message}: {reason}")]
    Protobuf {
        /// Name of the message.
        message: &'static str,
        reason: prost::DecodeError,
    },
    #[error("{message} has no HttpBody")]
    HttpBodyMissing {
        /// Name of the message.
        message: &'static str,
    },
}

#[cfg(test)]
mod tests;
