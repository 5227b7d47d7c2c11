//! Upstreams that cost next to nothing, so that what is measured is the way to them.
//!
//! Each is an HTTP server on loopback inside this process. It passes Envoy's health check, serves a metrics page of the
//! length that a vLLM worker's has, and answers each chat with the same events, one every so often: sent all at once
//! they would share a few reads, and a gateway that handles each of them would look cheaper than it is.

use std::convert::Infallible;
use std::fmt::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use futures_util::stream;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Interval, MissedTickBehavior, interval};

use crate::stack::MODEL_NAME;

/// Buckets of each histogram on the metrics page, and how many of them there are: together some 200 lines.
const BUCKETS: usize = 18;
const HISTOGRAMS: [&str; 9] = [
    "time_to_first_token_seconds",
    "inter_token_latency_seconds",
    "e2e_request_latency_seconds",
    "request_queue_time_seconds",
    "request_inference_time_seconds",
    "request_prefill_time_seconds",
    "request_decode_time_seconds",
    "request_prompt_tokens",
    "request_generation_tokens",
];

/// What every chat is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ReplyShape {
    /// Events with text; a last one with usage and `[DONE]` follow.
    pub(super) chunks: u32,
    /// Between two events; zero sends all at once.
    pub(super) pause: Duration,
}

/// So many servers. They end, with their connections, when dropped.
#[derive(Debug)]
pub(super) struct Upstreams {
    addresses: Vec<SocketAddr>,
    servers: Vec<JoinHandle<()>>,
}

impl Upstreams {
    pub(super) async fn start(count: usize, shape: ReplyShape) -> Result<Upstreams> {
        let pages = Arc::new(Pages::new(shape));
        let mut upstreams = Upstreams {
            addresses: Vec::with_capacity(count),
            servers: Vec::with_capacity(count),
        };
        for _ in 0..count {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await;
            let listener = listener.context("cannot listen on loopback")?;
            upstreams.addresses.push(listener.local_addr()?);
            let server = tokio::spawn(serve(listener, Arc::clone(&pages)));
            upstreams.servers.push(server);
        }
        Ok(upstreams)
    }

    pub(super) fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }
}

impl Drop for Upstreams {
    fn drop(&mut self) {
        for server in &self.servers {
            server.abort();
        }
    }
}

/// All that is ever sent, made once.
#[derive(Debug)]
struct Pages {
    metrics: Bytes,
    events: Vec<Bytes>,
    pause: Duration,
}

impl Pages {
    fn new(shape: ReplyShape) -> Pages {
        Pages {
            metrics: Bytes::from(metrics_page()),
            events: events(shape.chunks),
            pause: shape.pause,
        }
    }
}

async fn serve(listener: TcpListener, pages: Arc<Pages>) {
    // Bounded by who connects: one Envoy, one epp.
    let mut connections = JoinSet::new();
    while let Ok((socket, _)) = listener.accept().await {
        connections.spawn(serve_connection(socket, Arc::clone(&pages)));
        while connections.try_join_next().is_some() {}
    }
}

async fn serve_connection(socket: TcpStream, pages: Arc<Pages>) {
    // Without it an event would wait for the acknowledgement of the one before.
    let _unimportant = socket.set_nodelay(true);
    let service = service_fn(|request| answer(request, Arc::clone(&pages)));
    // A connection that breaks is seen by the client, which counts the request as failed.
    let _ended = http1::Builder::new()
        .serve_connection(TokioIo::new(socket), service)
        .await;
}

type Reply = Response<UnsyncBoxBody<Bytes, Infallible>>;

async fn answer(request: Request<Incoming>, pages: Arc<Pages>) -> Result<Reply, hyper::Error> {
    let whole = |body: Bytes| Response::new(Full::new(body).boxed_unsync());
    match request.uri().path() {
        "/health" => Ok(whole(Bytes::new())),
        "/metrics" => Ok(whole(pages.metrics.clone())),
        "/v1/chat/completions" => {
            let mut body = request.into_body();
            while let Some(frame) = body.frame().await {
                frame?;
            }
            Ok(stream_events(pages))
        }
        _ => {
            let mut reply = whole(Bytes::new());
            *reply.status_mut() = StatusCode::NOT_FOUND;
            Ok(reply)
        }
    }
}

fn stream_events(pages: Arc<Pages>) -> Reply {
    let ticks = (!pages.pause.is_zero()).then(|| {
        let mut ticks = interval(pages.pause);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
        ticks
    });
    let frames = stream::unfold(
        (pages, 0_usize, ticks),
        async |(pages, sent, mut ticks): (Arc<Pages>, usize, Option<Interval>)| {
            let event = pages.events.get(sent)?.clone();
            if let Some(ticks) = &mut ticks {
                // The first tick is due at once.
                ticks.tick().await;
            }
            Some((
                Ok::<_, Infallible>(Frame::data(event)),
                (pages, sent + 1, ticks),
            ))
        },
    );
    let mut reply = Response::new(BodyExt::boxed_unsync(StreamBody::new(frames)));
    let content_type = HeaderValue::from_static("text/event-stream; charset=utf-8");
    reply.headers_mut().insert(CONTENT_TYPE, content_type);
    reply
}

/// Events as vLLM writes them, some 220 bytes each. The last has the usage and the end mark.
fn events(chunks: u32) -> Vec<Bytes> {
    let head = format!(
        r#"data: {{"id":"chatcmpl-7c1e6f0a2b3d4c5e8f901a2b3c4d5e6f","object":"chat.completion.chunk","created":1767225600,"model":"{MODEL_NAME}""#
    );
    let text = |word: u32| {
        let choice = format!(
            r#""choices":[{{"index":0,"delta":{{"content":" word{word}"}},"logprobs":null,"finish_reason":null,"token_ids":null}}]"#
        );
        Bytes::from(format!("{head},{choice}}}\n\n"))
    };
    let usage = format!(
        r#""usage":{{"prompt_tokens":500,"total_tokens":{},"completion_tokens":{chunks},"prompt_tokens_details":{{"cached_tokens":480}}}}"#,
        500 + chunks
    );
    let last = format!("{head},\"choices\":[],{usage}}}\n\ndata: [DONE]\n\n");
    (0..chunks).map(text).chain([Bytes::from(last)]).collect()
}

/// The series that pickers read, among as many others as a worker has.
fn metrics_page() -> String {
    let labels = format!(r#"engine="0",model_name="{MODEL_NAME}""#);
    let mut page = String::new();
    for name in HISTOGRAMS {
        let mut line = |text: std::fmt::Arguments<'_>| {
            // Writing to a string cannot fail.
            let _written = page.write_fmt(text);
        };
        line(format_args!(
            "# HELP vllm:{name} Histogram of {name}.\n# TYPE vllm:{name} histogram\n"
        ));
        for bucket in 1..=BUCKETS {
            let bound = bucket as f64 * 0.25;
            line(format_args!(
                "vllm:{name}_bucket{{{labels},le=\"{bound}\"}} {bucket}.0\n"
            ));
        }
        line(format_args!(
            "vllm:{name}_sum{{{labels}}} 12.5\nvllm:{name}_count{{{labels}}} {BUCKETS}.0\n"
        ));
    }
    for gauge in [
        "num_requests_running",
        "num_requests_waiting",
        "kv_cache_usage_perc",
    ] {
        let _written = write!(
            page,
            "# TYPE vllm:{gauge} gauge\nvllm:{gauge}{{{labels}}} 0.0\n"
        );
    }
    page.push_str(
        "# TYPE vllm:cache_config_info gauge\n\
         vllm:cache_config_info{block_size=\"16\",engine=\"0\",num_gpu_blocks=\"8192\"} 1.0\n",
    );
    page
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::HttpClient;
    use crate::client::sse::EventParser;

    const SOON: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn answers_the_probe_the_scrape_and_chats() {
        let shape = ReplyShape {
            chunks: 3,
            pause: Duration::from_millis(1),
        };
        let upstreams = Upstreams::start(2, shape).await.unwrap();
        let http = HttpClient::new();
        for address in upstreams.addresses() {
            let url = |path| format!("http://{address}{path}");
            let health = http.get(&url("/health"), SOON).await.unwrap();
            assert_eq!(health.status, 200);
            let page = http.get(&url("/metrics"), SOON).await.unwrap().text();
            assert!((180..260).contains(&page.lines().count()), "{page}");
            assert!(page.contains("\nvllm:num_requests_waiting{engine=\"0\""));
            let chat = http.post(&url("/v1/chat/completions"), "{}", SOON).await;
            let mut events = Vec::new();
            let mut parser = EventParser::default();
            let body = chat.unwrap().body;
            parser.push(&body, |event| events.push(event)).unwrap();
            assert_eq!(events.len(), 5);
            assert_eq!(events[4], "[DONE]");
            for event in &events[..4] {
                serde_json::from_str::<serde_json::Value>(event).unwrap();
            }
            assert_eq!(http.get(&url("/x"), SOON).await.unwrap().status, 404);
        }
    }
}
