//! The HTTP surface: OpenAI's endpoints with vLLM's extensions, health, metrics and a little administration.
//!
//! ```text
//! body ─▶ parse ─▶ check fields ─▶ encode prompt ─▶ submit n requests ─▶ tokens to text ─▶ JSON, or SSE as they come
//! body      body     sampling         intake            generate             choice        chat, completion, sse
//! ```
//!
//! A response owns the streams of its requests. When a client goes away the server drops the response (or the
//! handler that is about to make it), the streams go with it, and the engine frees their blocks before its next
//! step. There is no other way to cancel and none is needed.
//!
//! Parsing and tokenising a long prompt takes milliseconds, so it happens on the blocking pool, a bounded number
//! at a time; short ones are done where they are.

mod admin;
mod body;
mod chat;
mod choice;
mod completion;
mod error;
mod generate;
mod intake;
mod logprobs;
mod prompt;
mod sampling;
mod sse;
mod token_fields;
mod tokens;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use axum::Router;
use axum::routing::{get, post};
use pointsman_proto::openai::{ErrorBody, FinishReason, StopReason};
use pointsman_proto::prompt::PromptEncoder;

use crate::export::kv_events::Source;
use crate::export::metrics::MetricsPage;
use crate::model::GenerationDefaults;
use crate::worker::EngineHandle;
use choice::End;
use error::ApiError;
use intake::Intake;
use sampling::Limits;
use token_fields::Vocabulary;

/// JSON has no infinity, so the log probability of the impossible is this, as in vLLM.
const LOGPROB_MIN: f32 = -9999.0;

/// What the surface is told about the worker.
#[derive(Debug)]
pub struct ApiConfig {
    /// Names requests may use; the first is the model's own.
    pub model_names: Vec<String>,
    /// The model folder.
    pub model_root: PathBuf,
    /// Sampling parameters of requests that leave them open.
    pub defaults: GenerationDefaults,
    /// Bytes of a request body; a longer one is answered 413.
    pub body_bytes_max: usize,
    /// Serve endpoints that change the worker's state.
    pub dev_mode: bool,
    /// KV-event sockets by data-parallel rank; empty where events are off.
    pub kv_event_sources: BTreeMap<String, Source>,
    /// When the model was loaded: Unix time in seconds.
    pub created: u64,
    /// What requests may ask of sampling and answers.
    pub answers: AnswerConfig,
}

/// What requests may ask of sampling and answers.
#[derive(Debug, Clone)]
pub struct AnswerConfig {
    /// Ids of the model's vocabulary: 0 up to this.
    pub vocab_size: u32,
    /// Tokens beside the sampled one whose log probabilities can be asked for; -1 for all of the vocabulary.
    pub max_logprobs: i64,
    /// Render chats by the template that a request brings.
    pub trust_request_chat_template: bool,
    /// Streams carry their usage whether asked to or not.
    pub force_include_usage: bool,
    /// Log probabilities name tokens by id unless the request says otherwise.
    pub return_tokens_as_token_ids: bool,
}

/// What every handler shares.
#[derive(Debug)]
struct Api {
    engine: EngineHandle,
    encoder: Arc<PromptEncoder>,
    metrics: MetricsPage,
    intake: Intake,
    config: ApiConfig,
}

/// The routes over one engine.
pub fn router(
    engine: EngineHandle,
    encoder: Arc<PromptEncoder>,
    metrics: MetricsPage,
    config: ApiConfig,
) -> Router {
    let dev_mode = config.dev_mode;
    let intake = Intake::new();
    let api = Arc::new(Api {
        engine,
        encoder,
        metrics,
        intake,
        config,
    });
    let mut router = Router::new()
        .route("/v1/chat/completions", post(chat::handle))
        .route("/v1/completions", post(completion::handle))
        .route("/v1/models", get(admin::models))
        .route("/tokenize", post(tokens::tokenize))
        .route("/detokenize", post(tokens::detokenize))
        .route("/health", get(admin::health))
        .route("/ping", get(admin::health).post(admin::health))
        .route("/version", get(admin::version))
        .route("/metrics", get(admin::metrics))
        .route("/load", get(admin::load))
        .route("/kv_event_sources", get(admin::kv_event_sources));
    if dev_mode {
        router = router.route("/reset_prefix_cache", post(admin::reset_prefix_cache));
    }
    router.fallback(admin::not_found).with_state(api)
}

impl Api {
    /// What the fields of requests are checked against.
    fn limits(&self) -> Limits<'_> {
        let answers = &self.config.answers;
        Limits {
            defaults: &self.config.defaults,
            vocabulary: Vocabulary {
                encoder: &self.encoder,
                size: answers.vocab_size,
            },
            max_logprobs: answers.max_logprobs,
            force_include_usage: answers.force_include_usage,
            tokens_as_token_ids: answers.return_tokens_as_token_ids,
        }
    }

    /// The name to answer with; 404 for a model that is not served here. No name means the worker's own.
    fn model(&self, requested: Option<&str>) -> Result<String, ApiError> {
        let names = &self.config.model_names;
        match requested.filter(|name| !name.is_empty()) {
            None => Ok(names.first().cloned().unwrap_or_default()),
            Some(name) if names.iter().any(|known| known == name) => Ok(name.to_owned()),
            Some(name) => Err(ApiError::new(ErrorBody::not_found_model(name))),
        }
    }

    /// Refuses work that would be refused after it was read and encoded.
    fn refuse_when_closed(&self) -> Result<(), ApiError> {
        if self.engine.is_draining() {
            return Err(ApiError::unavailable("the worker is draining"));
        }
        if !self.engine.is_healthy() {
            return Err(ApiError::unavailable("the worker's backend has failed"));
        }
        Ok(())
    }
}

/// `finish_reason` and `stop_reason` of a choice; both none before its end.
fn reasons(end: Option<End>) -> (Option<FinishReason>, Option<StopReason>) {
    match end {
        None => (None, None),
        Some(End::Finished {
            reason, stopped_by, ..
        }) => (Some(reason), stopped_by),
        Some(End::Failed(_)) => (Some(FinishReason::Error), None),
    }
}
