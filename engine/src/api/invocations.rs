//! `POST /invocations`, the one path that SageMaker knows: which endpoint is meant shows in the body.
//!
//! A body with `messages` is a chat, one with `prompt` a completion, one with `input` an embedding; where there are
//! several, in this order, as in vLLM.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::error::ApiError;
use super::{Api, body, chat, completion, embeddings};

/// The fields that tell requests apart.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Fields {
    messages: Option<IgnoredAny>,
    prompt: Option<IgnoredAny>,
    input: Option<IgnoredAny>,
}

/// Answers as the endpoint that the body is for.
pub(super) async fn handle(
    State(api): State<Arc<Api>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let bytes = body::read(&headers, body, api.config.body_bytes_max).await?;
    let fields: Fields = body::parse(&bytes)?;
    let has = [fields.messages, fields.prompt, fields.input].map(|field| field.is_some());
    let (api, body) = (State(api), Body::from(bytes));
    match has {
        [true, ..] => chat::handle(api, headers, body).await,
        [_, true, _] => completion::handle(api, headers, body).await,
        [_, _, true] => embeddings::handle(api, headers, body)
            .await
            .map(IntoResponse::into_response),
        _ => Err(ApiError::bad_request(
            "cannot tell what is asked for: there is neither messages nor prompt nor input",
        )),
    }
}
