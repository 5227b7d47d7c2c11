//! The JSON of the worker's HTTP API: OpenAI's requests and responses, with the fields that vLLM
//! adds.
//!
//! Reading is lenient as vLLM's is: unknown fields are ignored, `null` means absent, and numbers
//! are taken in wide types, so that whoever knows the limits can refuse them by name. Writing is
//! strict: a field without a value is left out. Every type reads and writes, because a load driver
//! is the other end of the same wire.
//!
//! The picker does not go through these types on its hot path; it scans the body. What both must
//! agree on is the [`Prompt`](crate::prompt::Prompt) that a request means, and that is made here.

mod chat;
mod completion;
mod embeddings;
mod error;
mod generate;
mod logprobs;
mod models;
mod shared;
#[cfg(test)]
mod tests;
mod tokenize;

pub use chat::{
    ChatChoice, ChatChunk, ChatChunkChoice, ChatCompletionRequest, ChatDelta, ChatMessage,
    ChatResponse,
};
pub use completion::{
    CompletionChoice, CompletionChunk, CompletionChunkChoice, CompletionPrompt, CompletionRequest,
    CompletionResponse,
};
pub use embeddings::{Embedding, EmbeddingData, EmbeddingRequest, EmbeddingResponse};
pub use error::{ErrorBody, ErrorDetail, PromptShapeError};
pub use generate::{
    GenerateChoice, GenerateChunk, GenerateChunkChoice, GenerateLogprobs, GenerateRequest,
    GenerateResponse, GenerateTokenLogprob,
};
pub use logprobs::{
    ChatLogprobs, ChatTokenLogprob, ChatTopLogprob, CompletionLogprobs, PromptLogprobs,
    PromptTokenLogprob,
};
pub use models::{ModelCard, ModelList, ModelPermission};
pub use shared::{
    CompletionTokensDetails, FinishReason, PromptTokensDetails, StopReason, StreamOptions,
    StringOrArray, TruncationSide, Usage,
};
pub use tokenize::{DetokenizeRequest, DetokenizeResponse, TokenizeRequest, TokenizeResponse};

/// The data of the server-sent event that ends a stream.
pub const STREAM_DONE: &str = "[DONE]";
