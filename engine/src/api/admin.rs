//! Health, metrics and what else machines ask a worker.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::{Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use pointsman_proto::openai::{ErrorBody, ModelCard, ModelList};
use pointsman_proto::series;
use serde_json::{Value, json};

use super::Api;
use super::error::ApiError;

/// 200 while the worker takes requests, 503 while it drains or sleeps, after its backend failed, or while a step hangs; never a
/// body.
pub(super) async fn health(State(api): State<Arc<Api>>) -> StatusCode {
    let limit = api.config.stall_timeout;
    let stalled = !limit.is_zero() && api.engine.silence() > limit;
    let closed = api.engine.is_draining() || api.stillness.refuses();
    if api.engine.is_healthy() && !closed && !stalled {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    }
}

/// The version of this worker, not of any vLLM.
pub(super) async fn version() -> Json<Value> {
    Json(json!({ "version": env!("CARGO_PKG_VERSION") }))
}

/// The Prometheus page.
pub(super) async fn metrics(State(api): State<Arc<Api>>) -> Response {
    let page = api.metrics.render(api.engine.iter().map(|rank| {
        // Live requests that are in neither gauge are on their way to the engine thread.
        let live = rank.live_requests();
        let stats = rank.stats();
        let seen = stats.running as usize + stats.waiting as usize;
        (stats, live.saturating_sub(seen) as u32)
    }));
    ([(header::CONTENT_TYPE, series::CONTENT_TYPE)], page).into_response()
}

/// Requests in the worker, running or waiting.
pub(super) async fn load(State(api): State<Arc<Api>>) -> Json<Value> {
    Json(json!({ "server_load": api.engine.live_requests() }))
}

/// The served names, all of them for the one model.
pub(super) async fn models(State(api): State<Arc<Api>>) -> Json<ModelList> {
    let names = api.config.model_names.iter();
    Json(ModelList::new(names.map(|name| card(&api, name)).collect()))
}

/// One of the served names; the name may hold slashes, as those of model hubs do.
pub(super) async fn model(
    State(api): State<Arc<Api>>,
    name: Result<Path<String>, PathRejection>,
) -> Result<Json<ModelCard>, ApiError> {
    let Path(name) = name.map_err(|error| ApiError::bad_request(error.to_string()))?;
    let name = api.model(Some(&name))?;
    Ok(Json(card(&api, &name)))
}

fn card(api: &Api, name: &str) -> ModelCard {
    let root = api.config.model_root.display().to_string();
    let max_model_len = api.engine.max_model_len();
    ModelCard::base(name, api.config.created, "pointsman", &root, max_model_len)
}

/// Where KV events are published; 404 where they are not.
pub(super) async fn kv_event_sources(State(api): State<Arc<Api>>) -> Result<Response, ApiError> {
    if api.config.kv_event_sources.is_empty() {
        let message = "this worker publishes no KV events; start it with --kv-events-config";
        return Err(ApiError::new(ErrorBody::not_found(message)));
    }
    Ok(Json(&api.config.kv_event_sources).into_response())
}

/// Everything else.
pub(super) async fn not_found(uri: Uri) -> ApiError {
    ApiError::new(ErrorBody::not_found(format!(
        "there is nothing at {}",
        uri.path()
    )))
}

/// Something is there, but not for this method.
pub(super) async fn method_not_allowed(method: Method, uri: Uri) -> ApiError {
    ApiError::new(ErrorBody::method_not_allowed(format!(
        "{} does not take {method}",
        uri.path()
    )))
}
