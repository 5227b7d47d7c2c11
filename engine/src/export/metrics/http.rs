//! HTTP requests by handler, under the names that vLLM's server has them.
//!
//! A handler is a route, not a path, so there are as many as there are routes; a path without one counts as `none`.
//! Methods that no route has count as `OTHER`. So the number of series is bounded, whatever clients send.

use std::time::Duration;

use parking_lot::RwLock;
use pointsman_proto::series::http as names;
use rustc_hash::FxHashMap;

use super::buckets::{HTTP_BUCKETS, HTTP_FINE_BUCKETS};
use super::cells::{Counter, Histogram, Summary};
use super::page::{Labels, Page};

const METHODS: [&str; 7] = ["GET", "POST", "HEAD", "OPTIONS", "PUT", "DELETE", "PATCH"];

/// One request that was answered.
#[derive(Clone, Copy, Debug)]
pub struct Served<'a> {
    /// The route that answered; `none` where there is none.
    pub handler: &'a str,
    /// The request's method.
    pub method: &'a str,
    /// The answer's status.
    pub status: u16,
    /// From the request's head to the end of the answer.
    pub duration: Duration,
    /// Bytes of the request's body as its length declares them.
    pub request_bytes: u64,
    /// Bytes of the answer's body.
    pub response_bytes: u64,
}

/// The series, made as handlers are first used.
#[derive(Debug)]
pub(super) struct HttpSeries {
    durations: Histogram,
    handlers: RwLock<FxHashMap<String, Handler>>,
}

#[derive(Debug, Default)]
struct Handler {
    by_method: Vec<(&'static str, Histogram)>,
    by_status: Vec<(&'static str, u16, Counter)>,
    sizes: Option<(Summary, Summary)>,
}

impl HttpSeries {
    pub(super) fn new(page: &mut Page) -> Self {
        Self {
            durations: page.histogram(
                names::REQUEST_DURATION_HIGHR_SECONDS,
                "Latency of requests, with many buckets and no labels.",
                &Labels::default(),
                &HTTP_FINE_BUCKETS,
            ),
            handlers: RwLock::default(),
        }
    }

    /// Counts a request; `page` is locked only the first time that a handler answers in this way.
    pub(super) fn record(&self, served: &Served<'_>, page: &RwLock<Page>) {
        let method = METHODS.into_iter().find(|known| *known == served.method);
        let method = method.unwrap_or("OTHER");
        let class = served.status / 100;
        self.durations.record(served.duration.as_secs_f64());
        let handlers = self.handlers.read();
        let known = handlers.get(served.handler);
        if known.is_some_and(|handler| handler.record(method, class, served)) {
            return;
        }
        drop(handlers);
        let mut handlers = self.handlers.write();
        let handler = handlers.entry(served.handler.to_owned()).or_default();
        handler.register(method, class, served.handler, &mut page.write());
        handler.record(method, class, served);
    }
}

impl Handler {
    /// False where a series is missing; then nothing was counted.
    fn record(&self, method: &str, class: u16, served: &Served<'_>) -> bool {
        let mut methods = self.by_method.iter();
        let duration = methods.find(|(known, _)| *known == method);
        let mut statuses = self.by_status.iter();
        let requests = statuses.find(|(known, status, _)| *known == method && *status == class);
        let (Some((_, duration)), Some((.., requests)), Some(sizes)) =
            (duration, requests, &self.sizes)
        else {
            return false;
        };
        duration.record(served.duration.as_secs_f64());
        requests.increment(1);
        sizes.0.record(served.request_bytes as f64);
        sizes.1.record(served.response_bytes as f64);
        true
    }

    fn register(&mut self, method: &'static str, class: u16, handler: &str, page: &mut Page) {
        let labels = Labels::default().and(names::HANDLER, handler);
        let with_method = labels.and(names::METHOD, method);
        if !self.by_method.iter().any(|(known, _)| *known == method) {
            let duration = page.histogram(
                names::REQUEST_DURATION_SECONDS,
                "Latency of requests by handler.",
                &with_method,
                &HTTP_BUCKETS,
            );
            self.by_method.push((method, duration));
        }
        let mut statuses = self.by_status.iter();
        if !statuses.any(|(known, status, _)| *known == method && *status == class) {
            let requests = page.counter(
                names::REQUESTS,
                "Requests by method, status and handler.",
                &with_method.and(names::STATUS, format_args!("{class}xx")),
            );
            self.by_status.push((method, class, requests));
        }
        self.sizes.get_or_insert_with(|| {
            (
                page.summary(
                    names::REQUEST_SIZE_BYTES,
                    "Declared length of request bodies by handler.",
                    &labels,
                ),
                page.summary(
                    names::RESPONSE_SIZE_BYTES,
                    "Bytes of response bodies by handler.",
                    &labels,
                ),
            )
        });
    }
}
