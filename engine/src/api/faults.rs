//! `/sim/faults`, and the faults that show on HTTP: only in a worker with a simulated backend.
//!
//! A layer around all routes, so that no handler knows of it. What it breaks it breaks from outside: it refuses
//! before a handler runs, cuts a body after a number of events, and delays or freezes the metrics page.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use futures_util::{StreamExt, stream};
use tokio::task::yield_now;
use tokio::time::sleep;

use super::error::ApiError;
use crate::faults::{FaultPlan, Faults, RefuseHow};

/// A metrics page that is larger is shown as it is, frozen or not.
const PAGE_BYTES_MAX: usize = 16 << 20;

/// Where requests are made that can be refused and whose streams can break.
const GENERATING: [&str; 3] = [
    "/v1/chat/completions",
    "/v1/completions",
    "/inference/v1/generate",
];

/// `router` with the faults around it, and with the endpoint to see and set them.
pub fn with_faults(router: Router, faults: Arc<Faults>) -> Router {
    let own = Router::new()
        .route("/sim/faults", get(show).post(set))
        .with_state(Arc::clone(&faults));
    router.layer(from_fn_with_state(faults, apply)).merge(own)
}

async fn show(State(faults): State<Arc<Faults>>) -> Json<FaultPlan> {
    Json(faults.plan())
}

/// Replaces the plan: what the body leaves out no longer goes wrong.
async fn set(State(faults): State<Arc<Faults>>, body: Bytes) -> Result<Json<FaultPlan>, ApiError> {
    let plan = FaultPlan::parse(&body).map_err(|error| ApiError::bad_request(error.to_string()))?;
    faults.set(plan.clone());
    Ok(Json(plan))
}

async fn apply(State(faults): State<Arc<Faults>>, request: Request, next: Next) -> Response {
    let path = request.uri().path();
    if GENERATING.contains(&path) {
        return match faults.refuse() {
            Some(RefuseHow::Unavailable) => {
                ApiError::overloaded("this worker refuses requests on demand").into_response()
            }
            Some(RefuseHow::Disconnect) => broken(),
            None => broken_later(&faults, next.run(request).await),
        };
    }
    match path {
        "/metrics" => {
            let delay = Duration::from_millis(faults.plan().metrics_delay_ms);
            if !delay.is_zero() {
                sleep(delay).await;
            }
            frozen(&faults, next.run(request).await).await
        }
        "/health" | "/ping" if faults.unhealthy() => {
            StatusCode::SERVICE_UNAVAILABLE.into_response()
        }
        _ => next.run(request).await,
    }
}

fn disconnected() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, "broken on demand")
}

/// An answer that closes the connection before its head is written.
fn broken() -> Response {
    let nothing = stream::once(async { Err::<Bytes, _>(disconnected()) });
    Body::from_stream(nothing).into_response()
}

/// `response`, or a stream of events that breaks after some of them if this one is to.
fn broken_later(faults: &Faults, response: Response) -> Response {
    let streamed = HeaderValue::from_static("text/event-stream; charset=utf-8");
    if response.headers().get(header::CONTENT_TYPE) != Some(&streamed) {
        return response;
    }
    let Some(mut left) = faults.die() else {
        return response;
    };
    let (parts, body) = response.into_parts();
    let cut = body.into_data_stream().flat_map(move |frame| {
        let mut parts = Vec::with_capacity(2);
        match frame {
            Ok(bytes) => match end_of_events(&bytes, left) {
                Ok(events) => {
                    left -= events;
                    parts.push(Ok(bytes));
                }
                Err(end) => {
                    left = 0;
                    parts.push(Ok(bytes.slice(..end)));
                    parts.push(Err(disconnected()));
                }
            },
            Err(error) => parts.push(Err(io::Error::other(error))),
        }
        stream::iter(parts)
    });
    // The connection is dropped at once with whatever is not written, so the server gets a turn to write before.
    let cut = cut.then(|part| async {
        if part.is_err() {
            yield_now().await;
        }
        part
    });
    Response::from_parts(parts, Body::from_stream(cut))
}

/// How many events `bytes` hold, or where the first `count` of them end if there are more.
fn end_of_events(bytes: &[u8], count: u32) -> Result<u32, usize> {
    let (mut events, mut end) = (0, 0);
    for (index, pair) in bytes.windows(2).enumerate() {
        if pair != b"\n\n" {
            continue;
        }
        if events == count {
            return Err(end);
        }
        events += 1;
        end = index + 2;
    }
    Ok(events)
}

/// The page, or the one that it is frozen to.
async fn frozen(faults: &Faults, response: Response) -> Response {
    let (parts, body) = response.into_parts();
    match to_bytes(body, PAGE_BYTES_MAX).await {
        Ok(page) => Response::from_parts(parts, Body::from(faults.page(page))),
        Err(error) => ApiError::internal(error.to_string()).into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_counted_up_to_the_last_that_may_pass() {
        let two = b"data: a\n\ndata: b\n\n";
        assert_eq!(end_of_events(two, 5), Ok(2));
        assert_eq!(end_of_events(two, 2), Ok(2));
        assert_eq!(end_of_events(two, 1), Err(9));
        assert_eq!(end_of_events(two, 0), Err(0));
        assert_eq!(end_of_events(b"", 0), Ok(0));
    }
}
