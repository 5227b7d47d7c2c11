//! `POST /v1/embeddings`: the last token's hidden state after the final norm, scaled to length one.
//!
//! That is what vLLM computes for a causal model without a pooling head of its own. Each input is a request to the
//! engine, with its own place in the queue, its own prefix hit and its own blocks; a bounded number of them is in
//! flight at a time, so that one call does not fill the queue.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::{StreamExt, TryStreamExt, stream};
use pointsman_proto::openai::{
    Embedding, EmbeddingData, EmbeddingRequest, EmbeddingResponse, ErrorBody, PromptShapeError,
    Usage,
};
use pointsman_proto::prompt::Prompt;
use tracing::debug;

use super::choice::{End, Ended};
use super::error::ApiError;
use super::generate::{Head, PRIORITY_HEADER, header};
use super::sampling::{checked_priority, checked_salt};
use super::{Api, body};
use crate::sample::SamplingParams;
use crate::scheduler::{NewRequest, Task};

/// Inputs of one request, as at OpenAI.
const INPUTS_MAX: usize = 2048;
/// Inputs of one request that are in the engine at a time.
const IN_FLIGHT: usize = 32;

/// Answers an embedding request.
pub(super) async fn handle(
    State(api): State<Arc<Api>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<EmbeddingResponse>, ApiError> {
    api.refuse_when_closed()?;
    let body = body::read(&headers, body, api.config.body_bytes_max).await?;
    let shared = Arc::clone(&api);
    let prepared = api
        .intake
        .run(body.len(), move || Prepared::new(&shared, &headers, &body))
        .await?;
    debug!(id = prepared.head.id, inputs = prepared.prompts.len(), "embeddings");
    let encoding = prepared.encoding;
    let requests = prepared.requests();
    let embedded: Vec<Embedded> = stream::iter(requests)
        .map(|request| embed(&api, request))
        .buffered(IN_FLIGHT)
        .try_collect()
        .await?;
    let count = |of: fn(&Embedded) -> u32| embedded.iter().map(of).fold(0, u32::saturating_add);
    let usage = Usage::new(count(|one| one.prompt_tokens), 0, count(|one| one.cached_tokens));
    let data = embedded.into_iter().enumerate().map(|(index, one)| EmbeddingData {
        index: index as u32,
        object: "embedding".to_owned(),
        embedding: encoding.encode(one.values),
    });
    Ok(Json(EmbeddingResponse {
        data: data.collect(),
        id: prepared.head.id,
        object: "list".to_owned(),
        created: prepared.head.created,
        model: prepared.head.model,
        usage,
    }))
}
