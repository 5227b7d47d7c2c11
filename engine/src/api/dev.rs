//! What only an operator may do, served in developer mode: forget the cache, abort everything, show the settings.
//!
//! None of it asks for a key, as in vLLM, so the mode is for addresses that strangers cannot reach.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, Uri};
use axum::routing::{get, post};
use axum::{Json, Router};
use pointsman_proto::openai::ErrorBody;
use serde::Deserialize;
use serde_json::{Value, json};

use super::error::ApiError;
use super::query::Query;
use super::{Api, body};

/// The routes of developer mode.
pub(super) fn routes() -> Router<Arc<Api>> {
    Router::new()
        .route("/reset_prefix_cache", post(reset_prefix_cache))
        .route("/abort_requests", post(abort_requests))
        .route("/server_info", get(server_info))
}

/// Forgets all cached prefixes, unless a request is using blocks; asked to, running requests give theirs up and compute
/// their tokens again.
async fn reset_prefix_cache(
    State(api): State<Arc<Api>>,
    uri: Uri,
) -> Result<Json<Value>, ApiError> {
    let success = if Query::of(&uri)?.flag("reset_running_requests", false)? {
        api.engine.reset_prefix_cache_preempting().await
    } else {
        api.engine.reset_prefix_cache().await
    };
    Ok(Json(json!({ "success": success })))
}

/// The body of `/abort_requests`.
#[derive(Default, Deserialize)]
#[serde(default)]
struct AbortRequests {
    request_ids: Option<Vec<String>>,
}

/// Ends every request; those that come afterwards are not touched.
async fn abort_requests(
    State(api): State<Arc<Api>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Value>, ApiError> {
    let body = body::read(&headers, body, api.config.body_bytes_max).await?;
    let request: AbortRequests = if body.is_empty() {
        AbortRequests::default()
    } else {
        body::parse(&body)?
    };
    if request.request_ids.is_some_and(|ids| !ids.is_empty()) {
        let message = "request_ids is not supported by this worker; without it all are aborted";
        return Err(ApiError::new(ErrorBody::not_implemented(
            message,
            Some("request_ids"),
        )));
    }
    let aborted = api.engine.live_requests();
    api.engine.abort_all();
    Ok(Json(json!({ "status": "aborted", "aborted": aborted })))
}

/// What this worker was told to be.
async fn server_info(State(api): State<Arc<Api>>) -> Json<Value> {
    let stats = api.engine.stats();
    Json(json!({
        "vllm_config": {
            "model": api.config.model_root,
            "served_model_name": api.config.model_names,
            "max_model_len": api.engine.max_model_len(),
            "num_gpu_blocks": stats.blocks_total,
        },
        "version": env!("CARGO_PKG_VERSION"),
    }))
}
