//! The metrics port over plain HTTP: `/` for people, `/metrics` for Prometheus, `/healthz`, and
//! `/debug/*` as JSON.
//!
//! It serves what it is handed as closures and knows none of the rooms. Pages are written on
//! blocking threads: one of a thousand models is some megabytes, and the runtime's threads carry
//! requests.

use std::fmt;
use std::future::Future;
use std::sync::Arc;

use axum::Router;
use axum::extract::{Query, State};
use axum::http::header::{ACCEPT, CONTENT_TYPE};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use super::decisions::DecisionLog;
use super::exposition::Page;
use super::html;
use super::status::StatusView;

const TEXT_FORMAT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Nothing is loaded from elsewhere, and nothing may be.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; \
                      connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// Where the pages come from.
#[derive(Clone)]
pub struct Pages {
    /// Writes every series, each family once.
    pub metrics: Arc<dyn Fn(&mut Page) + Send + Sync>,
    pub status: Arc<dyn Fn() -> StatusView + Send + Sync>,
    /// The resolved plugins and their state.
    pub plugins: Arc<dyn Fn() -> Value + Send + Sync>,
    pub decisions: Arc<DecisionLog>,
}

impl fmt::Debug for Pages {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Pages").finish_non_exhaustive()
    }
}

/// Serves until `shutdown`.
pub async fn serve(
    listener: TcpListener,
    pages: Pages,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    axum::serve(listener, router(pages))
        .with_graceful_shutdown(shutdown)
        .await
}

fn router(pages: Pages) -> Router {
    Router::new()
        .route("/", get(front))
        .route("/metrics", get(metrics))
        .route("/healthz", get(|| async { "ok" }))
        .route("/debug/status", get(status))
        .route("/debug/decisions", get(decisions))
        .route("/debug/plugins/state", get(plugins))
        .with_state(pages)
}

async fn front(State(pages): State<Pages>) -> Response {
    let html = written(move || html::page(&(pages.status)())).await;
    let policy = ("content-security-policy", POLICY);
    html.map(|html| ([policy, NO_STORE, NO_SNIFF], Html(html)))
        .into_response()
}

async fn metrics(State(pages): State<Pages>) -> Response {
    let text = written(move || {
        let mut page = Page::new();
        (pages.metrics)(&mut page);
        page.into_text()
    });
    text.await
        .map(|text| ([(CONTENT_TYPE, TEXT_FORMAT)], text))
        .into_response()
}

/// JSON; the page's own script asks for the parts of the page instead.
async fn status(State(pages): State<Pages>, headers: HeaderMap) -> Response {
    let accepted = headers.get(ACCEPT).and_then(|value| value.to_str().ok());
    // A person who follows a link accepts many things, the script only this.
    if accepted == Some("text/html") {
        let html = written(move || html::sections(&(pages.status)())).await;
        return html
            .map(|html| ([NO_STORE, NO_SNIFF], Html(html)))
            .into_response();
    }
    let text = written(move || (pages.status)().to_json().to_string());
    as_json(text.await)
}

#[derive(Debug, Deserialize)]
struct Wanted {
    limit: Option<usize>,
    model: Option<String>,
}

async fn decisions(State(pages): State<Pages>, Query(wanted): Query<Wanted>) -> Response {
    let text = written(move || {
        let capacity = pages.decisions.capacity();
        let limit = wanted.limit.unwrap_or(capacity);
        let latest = pages.decisions.latest(limit, wanted.model.as_deref());
        json!({ "capacity": capacity, "decisions": latest }).to_string()
    });
    as_json(text.await)
}

async fn plugins(State(pages): State<Pages>) -> Response {
    as_json(written(move || (pages.plugins)().to_string()).await)
}

const NO_STORE: (&str, &str) = ("cache-control", "no-store");
const NO_SNIFF: (&str, &str) = ("x-content-type-options", "nosniff");

fn as_json(text: Result<String, StatusCode>) -> Response {
    let kind = ("content-type", "application/json");
    text.map(|text| ([kind, NO_STORE, NO_SNIFF], text))
        .into_response()
}

/// Runs it where it holds up nobody. One that panics is an answer of 500.
async fn written(write: impl FnOnce() -> String + Send + 'static) -> Result<String, StatusCode> {
    tokio::task::spawn_blocking(write)
        .await
        .map_err(|_panicked| StatusCode::INTERNAL_SERVER_ERROR)
}

#[cfg(test)]
mod tests;
