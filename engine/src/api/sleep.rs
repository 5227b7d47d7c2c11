//! Pausing and sleeping, which are developer mode's: the worker stands still while somebody changes its weights, or
//! gives its memory to another.
//!
//! As in vLLM, new requests are refused with 503 in the modes `abort` and `wait`, and wait in the mode `keep`.
//! `/health` answers 503 for as long as they are refused, so that gateways go elsewhere. Waking is asked for by tag;
//! this worker wakes as a whole once every tag was named.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::extract::State;
use axum::http::Uri;
use axum::routing::{get, post};
use axum::{Json, Router};
use pointsman_proto::openai::ErrorBody;
use serde_json::{Value, json};

use super::Api;
use super::error::ApiError;
use super::query::Query;
use crate::worker::{PauseMode, SleepError, SleepLevel};

/// What can be woken, by vLLM's names.
const TAGS: [&str; 2] = ["weights", "kv_cache"];

/// The routes of pausing and sleeping.
pub(super) fn routes() -> Router<Arc<Api>> {
    Router::new()
        .route("/pause", post(pause))
        .route("/resume", post(resume))
        .route("/is_paused", get(is_paused))
        .route("/sleep", post(sleep))
        .route("/wake_up", post(wake_up))
        .route("/is_sleeping", get(is_sleeping))
}

/// What was asked of a worker that stands still.
#[derive(Debug, Default)]
pub(super) struct Stillness {
    /// New requests are refused.
    refuses: AtomicBool,
    /// Which of [`TAGS`] were asked to wake.
    woken: [AtomicBool; 2],
}

impl Stillness {
    /// Whether new requests are refused.
    pub(super) fn refuses(&self) -> bool {
        self.refuses.load(Ordering::Acquire)
    }

    fn begin(&self, mode: PauseMode) {
        self.refuses
            .store(mode != PauseMode::Keep, Ordering::Release);
        self.sleep_again();
    }

    fn end(&self) {
        self.refuses.store(false, Ordering::Release);
        self.sleep_again();
    }

    fn sleep_again(&self) {
        for tag in &self.woken {
            tag.store(false, Ordering::Release);
        }
    }

    /// Notes the tags; true once all were named. No tags are all tags.
    fn wake(&self, tags: &[&str]) -> bool {
        for (name, woken) in TAGS.iter().zip(&self.woken) {
            if tags.is_empty() || tags.contains(name) {
                woken.store(true, Ordering::Release);
            }
        }
        self.woken.iter().all(|woken| woken.load(Ordering::Acquire))
    }
}

fn mode(query: &Query) -> Result<PauseMode, ApiError> {
    let Some(name) = query.last("mode") else {
        return Ok(PauseMode::default());
    };
    PauseMode::parse(name).ok_or_else(|| {
        let problem = format!("must be \"abort\", \"wait\" or \"keep\", got {name:?}");
        ApiError::field("mode", problem)
    })
}

/// Stands still until `/resume`; answers once it does.
async fn pause(State(api): State<Arc<Api>>, uri: Uri) -> Result<Json<Value>, ApiError> {
    let query = Query::of(&uri)?;
    let mode = mode(&query)?;
    let clear_cache = query.flag("clear_cache", true)? && mode != PauseMode::Keep;
    api.stillness.begin(mode);
    if api.engine.pause(mode, clear_cache).await {
        return Ok(Json(json!({ "status": "paused" })));
    }
    Err(ApiError::unavailable(
        "the engine was resumed before it stood still",
    ))
}

/// Goes on after a pause.
async fn resume(State(api): State<Arc<Api>>) -> Result<Json<Value>, ApiError> {
    if api.engine.resume().await {
        api.stillness.end();
        return Ok(Json(json!({ "status": "resumed" })));
    }
    Err(ApiError::bad_request(
        "the engine sleeps; POST /wake_up wakes it",
    ))
}

async fn is_paused(State(api): State<Arc<Api>>) -> Json<Value> {
    Json(json!({ "is_paused": api.engine.is_paused() }))
}

/// Gives memory back until `/wake_up`.
async fn sleep(State(api): State<Arc<Api>>, uri: Uri) -> Result<Json<Value>, ApiError> {
    let query = Query::of(&uri)?;
    let mode = mode(&query)?;
    let number = query.last("level").unwrap_or("1");
    let level = match number {
        "0" => None,
        "1" => Some(SleepLevel::KeepWeights),
        "2" => Some(SleepLevel::DiscardAll),
        _ => {
            let problem = format!("must be 0, 1 or 2, got {number:?}");
            return Err(ApiError::field("level", problem));
        }
    };
    api.stillness.begin(mode);
    match api.engine.sleep(level, mode).await {
        // Who sleeps already has nothing more to do.
        Ok(()) | Err(SleepError::Asleep) => {}
        Err(error) => {
            if !api.engine.is_paused() {
                api.stillness.end();
            }
            return Err(not_slept(&error));
        }
    }
    let level = level.map_or(0, SleepLevel::number);
    note_level(&api);
    Ok(Json(json!({ "status": "sleeping", "level": level })))
}

fn not_slept(error: &SleepError) -> ApiError {
    match error {
        SleepError::Backend(reason) => {
            ApiError::new(ErrorBody::not_implemented(reason.clone(), Some("level")))
        }
        SleepError::Asleep | SleepError::Resumed | SleepError::Gone => {
            ApiError::unavailable(error.to_string())
        }
    }
}

/// Takes back what `/sleep` gave away.
async fn wake_up(State(api): State<Arc<Api>>, uri: Uri) -> Result<Json<Value>, ApiError> {
    let query = Query::of(&uri)?;
    let tags: Vec<&str> = query.all("tags").collect();
    if let Some(other) = tags.iter().find(|tag| !TAGS.contains(tag)) {
        let problem = format!("must be \"weights\" or \"kv_cache\", got {other:?}");
        return Err(ApiError::field("tags", problem));
    }
    let all = api.stillness.wake(&tags);
    if all {
        let woken = api.engine.wake().await;
        woken.map_err(|error| ApiError::internal(error.to_string()))?;
        api.stillness.end();
        note_level(&api);
    }
    let status = if all { "awake" } else { "sleeping" };
    let tags = (!tags.is_empty()).then_some(tags);
    Ok(Json(json!({ "status": status, "tags": tags })))
}

fn note_level(api: &Api) {
    let level = api.engine.sleep_level();
    api.metrics
        .sleep_level(u8::try_from(level).unwrap_or(u8::MAX));
}

async fn is_sleeping(State(api): State<Arc<Api>>) -> Json<Value> {
    Json(json!({ "is_sleeping": api.engine.sleep_level() > 0 }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worker_wakes_once_every_tag_was_named() {
        let still = Stillness::default();
        still.begin(PauseMode::Abort);
        assert!(still.refuses());
        assert!(!still.wake(&["weights"]));
        assert!(!still.wake(&["weights"]));
        assert!(still.wake(&["kv_cache"]));
        still.end();
        assert!(!still.refuses());
        assert!(!still.wake(&["kv_cache"]), "the next sleep begins anew");
        assert!(still.wake(&[]), "no tag is every tag");
    }

    #[test]
    fn requests_wait_where_nothing_is_aborted() {
        let still = Stillness::default();
        still.begin(PauseMode::Keep);
        assert!(!still.refuses());
        still.begin(PauseMode::Wait);
        assert!(still.refuses());
    }
}
