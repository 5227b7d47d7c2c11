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
mod auth;
mod body;
mod caller;
mod chat;
mod choice;
mod completion;
mod dev;
mod embeddings;
mod error;
mod faults;
mod generate;
mod inference;
mod intake;
mod invocations;
mod logprobs;
mod observe;
mod prompt;
mod query;
mod render;
mod sampling;
mod sleep;
mod sse;
mod template;
mod token_fields;
mod tokens;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::middleware::from_fn_with_state;
use axum::routing::{get, post};
use pointsman_proto::openai::{ErrorBody, FinishReason, StopReason};
use pointsman_proto::prompt::PromptEncoder;

use crate::export::kv_events::Source;
use crate::export::metrics::{MetricsPage, Rejection};
use crate::export::requests::RequestRecords;
use crate::model::GenerationDefaults;
use crate::scheduler::NewRequest;
use crate::text::Pieces;
use crate::worker::{QueueBound, Ranks, RequestStream, RequestWatch, SubmitError};
use choice::End;
use error::ApiError;
pub use faults::with_faults;
use intake::Intake;
use sampling::Limits;
use sleep::Stillness;
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
    /// How long the engine may not be heard of while requests are alive, before `/health` says so; 0 is for ever.
    pub stall_timeout: Duration,
    /// Answer each request with its id in a header.
    pub request_id_headers: bool,
    /// Log a line for each HTTP request.
    pub access_log: bool,
    /// Where ended requests are told of; none where they are not.
    pub requests: Option<RequestRecords>,
    /// KV-event sockets by data-parallel rank; empty where events are off.
    pub kv_event_sources: BTreeMap<String, Source>,
    /// When the model was loaded: Unix time in seconds.
    pub created: u64,
    /// Keys of which a request to what computes must bear one; none asked for where this is empty.
    pub api_keys: Vec<String>,
    /// Tokens in one event of a stream, after the first.
    pub stream_interval: u32,
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
    engine: Ranks,
    encoder: Arc<PromptEncoder>,
    metrics: MetricsPage,
    intake: Intake,
    stillness: Stillness,
    config: ApiConfig,
    /// Texts of tokens that need no decoding.
    pieces: Arc<Pieces>,
}

/// The routes over one engine.
pub fn router(
    engine: Ranks,
    encoder: Arc<PromptEncoder>,
    metrics: MetricsPage,
    config: ApiConfig,
) -> Router {
    let api = Arc::new(Api {
        engine,
        metrics,
        intake: Intake::new(),
        stillness: Stillness::default(),
        pieces: Arc::new(Pieces::new(encoder.tokenizer())),
        encoder,
        config,
    });
    let mut router = Router::new()
        .route("/v1/chat/completions", post(chat::handle))
        .route("/v1/chat/completions/render", post(render::chat))
        .route("/v1/completions", post(completion::handle))
        .route("/v1/completions/render", post(render::completion))
        .route("/v1/embeddings", post(embeddings::handle))
        .route("/v1/models", get(admin::models))
        .route("/v1/models/{*name}", get(admin::model))
        .route("/inference/v1/generate", post(inference::handle))
        .route("/invocations", post(invocations::handle))
        .route("/tokenize", post(tokens::tokenize))
        .route("/detokenize", post(tokens::detokenize))
        .route("/health", get(admin::health))
        .route("/ping", get(admin::health).post(admin::health))
        .route("/version", get(admin::version))
        .route("/metrics", get(admin::metrics))
        .route("/load", get(admin::load))
        .route("/kv_event_sources", get(admin::kv_event_sources));
    if api.config.dev_mode {
        router = router.merge(dev::routes()).merge(sleep::routes());
    }
    let keys: Arc<[String]> = api.config.api_keys.iter().cloned().collect();
    let observed = from_fn_with_state(Arc::clone(&api), observe::observe);
    let mut router = router
        .fallback(admin::not_found)
        .method_not_allowed_fallback(admin::method_not_allowed)
        .with_state(api);
    if !keys.is_empty() {
        router = router.layer(from_fn_with_state(keys, auth::guard));
    }
    // Outermost, so that what is refused is counted as well.
    router.layer(observed)
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

    /// Hands a request to the engine, and counts it where there is no room for it. `watch` hears of its end.
    fn submit(
        &self,
        request: NewRequest,
        watch: Option<Arc<dyn RequestWatch>>,
    ) -> Result<RequestStream, ApiError> {
        let submitted = self.engine.submit_watched(request, watch);
        let stream = submitted.inspect_err(|error| {
            if let SubmitError::QueueFull { bound, .. } = error {
                self.metrics.rejected(match bound {
                    QueueBound::Requests => Rejection::Requests,
                    QueueBound::Tokens => Rejection::Tokens,
                });
            }
        })?;
        Ok(stream)
    }

    /// Refuses work that would be refused after it was read and encoded.
    fn refuse_when_closed(&self) -> Result<(), ApiError> {
        if self.engine.is_draining() {
            return Err(ApiError::unavailable("the worker is draining"));
        }
        if !self.engine.is_healthy() {
            return Err(ApiError::unavailable("the worker's backend has failed"));
        }
        if self.stillness.refuses() {
            return Err(ApiError::unavailable("the worker is paused or sleeps"));
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
