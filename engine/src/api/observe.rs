//! Around every request: counting and timing it, its line in the access log, and the headers that any answer may have.
//!
//! A request ends when its answer's body does, so a body is watched until it is sent or dropped. Health checks and
//! scrapes are not counted, as with vLLM: they would drown what is.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes};
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Version, header};
use axum::middleware::Next;
use axum::response::Response;
use hyper::body::{Frame, SizeHint};
use pointsman_proto::headers::{ENDPOINT_LOAD_METRICS, ENDPOINT_LOAD_METRICS_FORMAT, REQUEST_ID};
use tracing::info;

use super::Api;
use super::generate::MADE_REQUEST_ID_HEADER;
use crate::export::metrics::Served;

/// Routes that are not counted.
const UNCOUNTED: [&str; 6] = [
    "/health",
    "/load",
    "/metrics",
    "/ping",
    "/server_info",
    "/version",
];

/// The handler of a path that has no route.
const NO_HANDLER: &str = "none";

/// Goes around the whole router.
pub(super) async fn observe(
    State(api): State<Arc<Api>>,
    mut request: Request,
    next: Next,
) -> Response {
    let started = Instant::now();
    let id = request_id(request.headers_mut());
    let load_format = LoadFormat::asked_by(request.headers());
    let version = request.version();
    let exchange = Exchange::of(&request);
    let mut response = next.run(request).await;
    let whole = !is_stream(response.headers());
    let headers = response.headers_mut();
    if api.config.request_id_headers {
        headers.insert(HeaderName::from_static(REQUEST_ID), id.clone());
    }
    if let Some(format) = load_format.filter(|_| whole)
        && let Some(load) = format.write(&api)
    {
        headers.insert(HeaderName::from_static(ENDPOINT_LOAD_METRICS), load);
    }
    if version <= Version::HTTP_11 && api.engine.is_draining() {
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    let Some(exchange) = exchange else {
        return response;
    };
    let watch = BodyWatch {
        api,
        started,
        id,
        status: response.status().as_u16(),
        bytes: 0,
        exchange,
    };
    response.map(|body| Body::new(Watched { body, watch }))
}

/// The client's id, or else a new one; the handlers find the new one under [`MADE_REQUEST_ID_HEADER`], because an id
/// in the body goes before it.
fn request_id(headers: &mut HeaderMap) -> HeaderValue {
    headers.remove(MADE_REQUEST_ID_HEADER);
    if let Some(id) = headers.get(REQUEST_ID).filter(|id| !id.is_empty()) {
        return id.clone();
    }
    let random = format!("{:032x}", rand::random::<u128>());
    let id = HeaderValue::try_from(random).unwrap_or(HeaderValue::from_static("0"));
    headers.insert(HeaderName::from_static(MADE_REQUEST_ID_HEADER), id.clone());
    id
}

fn is_stream(headers: &HeaderMap) -> bool {
    let content_type = headers.get(header::CONTENT_TYPE);
    content_type.is_some_and(|value| value.as_bytes().starts_with(b"text/event-stream"))
}

/// The ways to write the worker's load into a header, after ORCA.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LoadFormat {
    Text,
    Json,
}

impl LoadFormat {
    /// None for a format that there is not, as with vLLM.
    fn asked_by(headers: &HeaderMap) -> Option<Self> {
        let asked = headers.get(ENDPOINT_LOAD_METRICS_FORMAT)?.as_bytes();
        [(&b"text"[..], Self::Text), (b"json", Self::Json)]
            .into_iter()
            .find_map(|(name, format)| asked.eq_ignore_ascii_case(name).then_some(format))
    }

    fn write(self, api: &Api) -> Option<HeaderValue> {
        let stats = api.engine.stats();
        let live = api.engine.live_requests() as u32;
        let waiting = f64::from(live.saturating_sub(stats.running).max(stats.waiting));
        HeaderValue::try_from(self.text(stats.kv_usage(), waiting)).ok()
    }

    fn text(self, usage: f64, waiting: f64) -> String {
        match self {
            Self::Text => format!(
                "TEXT named_metrics.kv_cache_usage_perc={usage:?}, \
                 named_metrics.num_requests_waiting={waiting:?}"
            ),
            Self::Json => format!(
                "JSON {{\"named_metrics\": {{\"kv_cache_usage_perc\": {usage:?}, \
                 \"num_requests_waiting\": {waiting:?}}}}}"
            ),
        }
    }
}

/// What is kept of a request while it is answered.
#[derive(Debug)]
struct Exchange {
    route: Option<MatchedPath>,
    method: Method,
    /// Of the access log.
    path: String,
    request_bytes: u64,
}

impl Exchange {
    /// None for a request that is not counted.
    fn of(request: &Request) -> Option<Self> {
        let route = request.extensions().get::<MatchedPath>().cloned();
        if route
            .as_ref()
            .is_some_and(|route| UNCOUNTED.contains(&route.as_str()))
        {
            return None;
        }
        let length = request.headers().get(header::CONTENT_LENGTH);
        let length = length.and_then(|length| length.to_str().ok()?.parse().ok());
        Some(Self {
            route,
            method: request.method().clone(),
            path: request.uri().path().to_owned(),
            request_bytes: length.unwrap_or(0),
        })
    }
}

/// Counts the request when the body is sent or dropped.
struct BodyWatch {
    api: Arc<Api>,
    started: Instant,
    id: HeaderValue,
    status: u16,
    bytes: u64,
    exchange: Exchange,
}

impl Drop for BodyWatch {
    fn drop(&mut self) {
        let exchange = &self.exchange;
        let duration = self.started.elapsed();
        self.api.metrics.served(&Served {
            handler: exchange
                .route
                .as_ref()
                .map_or(NO_HANDLER, MatchedPath::as_str),
            method: exchange.method.as_str(),
            status: self.status,
            duration,
            request_bytes: exchange.request_bytes,
            response_bytes: self.bytes,
        });
        if self.api.config.access_log {
            self.log(duration);
        }
    }
}

impl BodyWatch {
    fn log(&self, duration: Duration) {
        info!(
            method = self.exchange.method.as_str(),
            path = self.exchange.path,
            status = self.status,
            id = self.id.to_str().ok(),
            request_bytes = self.exchange.request_bytes,
            response_bytes = self.bytes,
            total_ms = duration.as_millis() as u64,
            "http request"
        );
    }
}

/// A body that is passed on as it is, with its length.
struct Watched {
    body: Body,
    watch: BodyWatch,
}

impl hyper::body::Body for Watched {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        if let Poll::Ready(Some(Ok(frame))) = &polled
            && let Some(data) = frame.data_ref()
        {
            self.watch.bytes += data.len() as u64;
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_load_is_written_as_orca_has_it() {
        assert_eq!(
            LoadFormat::Text.text(0.4, 3.0),
            "TEXT named_metrics.kv_cache_usage_perc=0.4, named_metrics.num_requests_waiting=3.0"
        );
        assert_eq!(
            LoadFormat::Json.text(0.0, 0.0),
            r#"JSON {"named_metrics": {"kv_cache_usage_perc": 0.0, "num_requests_waiting": 0.0}}"#
        );
    }

    #[test]
    fn an_unknown_format_asks_for_nothing() {
        let asked = |format: &str| {
            let headers = [(
                HeaderName::from_static(ENDPOINT_LOAD_METRICS_FORMAT),
                format.parse().unwrap(),
            )];
            LoadFormat::asked_by(&HeaderMap::from_iter(headers))
        };
        assert_eq!(asked("TEXT"), Some(LoadFormat::Text));
        assert_eq!(asked("json"), Some(LoadFormat::Json));
        assert_eq!(asked("bin"), None);
    }
}
