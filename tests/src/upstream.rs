//! HTTP servers inside the test process that stand where a worker stands.
//!
//! A real worker computes; these do what a test needs to be certain of: say back exactly what arrived, hold every
//! request until told, send a response one step at a time, break off, or merely note that somebody called. Each also
//! serves the few series that epp scrapes and passes Envoy's health check, so that it is an endpoint like any other.

use std::convert::Infallible;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;

use crate::eventually::within_deadline;
use crate::task::Task;

/// What a handler says. An error cuts the connection without a byte of answer.
pub type Answer = io::Result<Response<BoxBody<Bytes, Infallible>>>;

type Handler = Arc<dyn Fn(Received) -> BoxFuture<'static, Answer> + Send + Sync>;

/// Requests that one upstream remembers; a test that sends more than this is told so by a panic in the upstream.
const REQUESTS_MAX: usize = 4096;

/// What [`Upstream::held_streams`] sends. It holds after the first, and says at the end what it counted.
pub const HELD_EVENTS: [&str; 4] = [
    r#"{"object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":"One"}}]}"#,
    r#"{"object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":" two."},"finish_reason":"stop"}]}"#,
    r#"{"object":"chat.completion.chunk","choices":[],"usage":{"prompt_tokens":70,"completion_tokens":10,"total_tokens":80,"prompt_tokens_details":{"cached_tokens":64}}}"#,
    "[DONE]",
];

/// One request as it arrived, read to its end.
#[derive(Clone, Debug)]
pub struct Received {
    pub method: Method,
    pub path: String,
    pub headers: HeaderMap,
    pub body: Bytes,
    pub trailers: Option<HeaderMap>,
}

/// A running server. It ends, with its connections, when dropped.
#[derive(Debug)]
pub struct Upstream {
    address: SocketAddr,
    state: Arc<State>,
    accepting: watch::Sender<bool>,
    _server: Task,
}

struct State {
    handler: Handler,
    connections: AtomicUsize,
    waiting: AtomicU32,
    ill: AtomicBool,
    requests: Mutex<Vec<Received>>,
}

impl std::fmt::Debug for State {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("State").finish_non_exhaustive()
    }
}

impl Upstream {
    /// Answers 200 with the body that it received.
    pub async fn echo() -> Result<Self> {
        Self::answering(|request| async move { Ok(ok(Full::new(request.body).boxed())) }).await
    }

    /// Holds every request until the gate opens, then answers 200.
    pub async fn gated() -> Result<(Self, Gate)> {
        let gate = Gate {
            inner: Arc::new(GateState::default()),
        };
        let state = Arc::clone(&gate.inner);
        let upstream = Self::answering(move |_| {
            let state = Arc::clone(&state);
            async move {
                state.arrived.send_modify(|arrived| *arrived += 1);
                drop(state.open.acquire().await);
                Ok(ok(Full::new(Bytes::from_static(b"{}")).boxed()))
            }
        });
        Ok((upstream.await?, gate))
    }

    /// Answers the one request of the test with a body that the test sends piece by piece through the channel.
    ///
    /// The channel holds one piece; dropping the sender ends the body.
    pub async fn stepped() -> Result<(Self, mpsc::Sender<Bytes>)> {
        let (pieces, receiver) = mpsc::channel(1);
        let receiver = Arc::new(Mutex::new(Some(receiver)));
        let upstream = Self::answering(move |_| {
            let taken = receiver
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .take();
            async move {
                let frames = stream::unfold(
                    taken.ok_or(ErrorKind::ConnectionAborted)?,
                    async |mut receiver| {
                        let piece: Bytes = receiver.recv().await?;
                        Some((Ok::<_, Infallible>(Frame::data(piece)), receiver))
                    },
                );
                let mut response = ok(BodyExt::boxed(StreamBody::new(frames)));
                let content_type = http::HeaderValue::from_static("text/event-stream");
                response.headers_mut().insert(CONTENT_TYPE, content_type);
                Ok(response)
            }
        });
        Ok((upstream.await?, pieces))
    }

    /// Reads each request to its end and cuts the connection without a byte of answer.
    pub async fn breaking_off() -> Result<Self> {
        Self::answering(|_| async { Err(ErrorKind::ConnectionAborted.into()) }).await
    }

    /// Streams to each request the first event of a chat, and the rest once the gate opens; see [`HELD_EVENTS`].
    pub async fn held_streams() -> Result<(Self, Gate)> {
        let gate = Gate {
            inner: Arc::new(GateState::default()),
        };
        let state = Arc::clone(&gate.inner);
        let upstream = Self::answering(move |_| {
            let state = Arc::clone(&state);
            async move {
                let frames = stream::unfold((state, 0_usize), async |(state, sent)| {
                    let event = *HELD_EVENTS.get(sent)?;
                    if sent == 1 {
                        state.arrived.send_modify(|arrived| *arrived += 1);
                        drop(state.open.acquire().await);
                    }
                    let frame = Frame::data(Bytes::from(format!("data: {event}\n\n")));
                    Some((Ok::<_, Infallible>(frame), (state, sent + 1)))
                });
                let mut response = ok(BodyExt::boxed(StreamBody::new(frames)));
                let content_type = http::HeaderValue::from_static("text/event-stream");
                response.headers_mut().insert(CONTENT_TYPE, content_type);
                Ok(response)
            }
        });
        Ok((upstream.await?, gate))
    }

    /// Answers with what `answer` makes of each request.
    pub async fn answering<F, A>(answer: F) -> Result<Self>
    where
        F: Fn(Received) -> A + Send + Sync + 'static,
        A: Future<Output = Answer> + Send + 'static,
    {
        Self::answering_at(IpAddr::V4(Ipv4Addr::LOCALHOST), answer).await
    }

    /// The same on another address of this machine.
    pub async fn answering_at<F, A>(address: IpAddr, answer: F) -> Result<Self>
    where
        F: Fn(Received) -> A + Send + Sync + 'static,
        A: Future<Output = Answer> + Send + 'static,
    {
        let listener = TcpListener::bind((address, 0))
            .await
            .context("bind an upstream")?;
        let address = listener.local_addr()?;
        let state = Arc::new(State {
            handler: Arc::new(move |request| Box::pin(answer(request))),
            connections: AtomicUsize::new(0),
            waiting: AtomicU32::new(0),
            ill: AtomicBool::new(false),
            requests: Mutex::new(Vec::new()),
        });
        let (accepting, changed) = watch::channel(true);
        let server = Task::spawn(serve(listener, Arc::clone(&state), changed));
        Ok(Self {
            address,
            state,
            accepting,
            _server: server,
        })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Says in its metrics that so many requests wait, which makes it a worse pick.
    pub fn pretend_waiting(&self, requests: u32) {
        self.state.waiting.store(requests, Ordering::Relaxed);
    }

    /// Answers 503 to health checks from now on, and everything else as before.
    pub fn fall_ill(&self) {
        self.state.ill.store(true, Ordering::Relaxed);
    }

    /// Closes the listener but keeps the open connections.
    ///
    /// To whoever scrapes over a kept connection the endpoint goes on living; to whoever connects anew it is gone. So a
    /// picker picks it and the gateway finds it dead, without a race between the two.
    pub async fn stop_accepting(&self) {
        self.accepting.send_replace(false);
        within_deadline("the listener's end", self.accepting.closed()).await;
    }

    /// Connections ever accepted, whatever was said on them.
    pub fn connections(&self) -> usize {
        self.state.connections.load(Ordering::SeqCst)
    }

    /// The requests so far in order of their ends, without what epp and Envoy ask for their own sake.
    pub fn requests(&self) -> Vec<Received> {
        self.state
            .requests
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// The only request so far.
    ///
    /// # Panics
    /// When there were none or several.
    pub fn only_request(&self) -> Received {
        let mut requests = self.requests();
        assert_eq!(
            requests.len(),
            1,
            "requests that reached the upstream: {requests:?}"
        );
        requests.remove(0)
    }
}

/// What holds the requests of [`Upstream::gated`].
#[derive(Debug)]
pub struct Gate {
    inner: Arc<GateState>,
}

#[derive(Debug)]
struct GateState {
    arrived: watch::Sender<usize>,
    open: Semaphore,
}

impl Default for GateState {
    fn default() -> Self {
        Self {
            arrived: watch::Sender::new(0),
            open: Semaphore::new(0),
        }
    }
}

impl Gate {
    /// Returns when so many requests stand at the gate.
    pub async fn arrived(&self, requests: usize) {
        let mut arrived = self.inner.arrived.subscribe();
        let enough = arrived.wait_for(|arrived| *arrived >= requests);
        within_deadline(&format!("{requests} requests at the upstream"), async {
            drop(enough.await.expect("the sender lives in this gate"));
        })
        .await;
    }

    /// Lets through all who stand there and all who come.
    pub fn open(&self) {
        self.inner.open.close();
    }
}

fn ok(body: BoxBody<Bytes, Infallible>) -> Response<BoxBody<Bytes, Infallible>> {
    Response::new(body)
}

async fn serve(listener: TcpListener, state: Arc<State>, mut accepting: watch::Receiver<bool>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((socket, _)) => {
                    state.connections.fetch_add(1, Ordering::SeqCst);
                    connections.spawn(serve_connection(socket, Arc::clone(&state)));
                }
                Err(_) => return,
            },
            _ = accepting.wait_for(|accepting| !accepting) => break,
        }
    }
    drop(listener);
    drop(accepting);
    while connections.join_next().await.is_some() {}
}

async fn serve_connection(socket: TcpStream, state: Arc<State>) {
    // Each piece of a stepped response must leave at once, or the test measures Nagle's algorithm.
    drop(socket.set_nodelay(true));
    let service = service_fn(|request| answer(request, Arc::clone(&state)));
    let builder = auto::Builder::new(TokioExecutor::new());
    // A connection that ends badly was cut by the other side or by a test, and the test asserts on that itself.
    drop(
        builder
            .serve_connection(TokioIo::new(socket), service)
            .await,
    );
}

async fn answer(request: Request<Incoming>, state: Arc<State>) -> Answer {
    match request.uri().path() {
        "/metrics" => return Ok(ok(Full::from(exposition(&state)).boxed())),
        "/health" => {
            let mut response = ok(Full::default().boxed());
            if state.ill.load(Ordering::Relaxed) {
                *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
            }
            return Ok(response);
        }
        "/kv_event_sources" => {
            let mut response = ok(Full::default().boxed());
            *response.status_mut() = StatusCode::NOT_FOUND;
            return Ok(response);
        }
        _ => {}
    }
    let (head, body) = request.into_parts();
    let collected = body.collect().await.map_err(io::Error::other)?;
    let trailers = collected.trailers().cloned();
    let received = Received {
        method: head.method,
        path: head.uri.path().to_owned(),
        headers: head.headers,
        body: collected.to_bytes(),
        trailers,
    };
    {
        let mut requests = state
            .requests
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        assert!(
            requests.len() < REQUESTS_MAX,
            "an upstream remembers {REQUESTS_MAX} requests"
        );
        requests.push(received.clone());
    }
    (state.handler)(received).await
}

/// An otherwise idle vLLM worker's page, cut to what pickers read.
fn exposition(state: &State) -> String {
    let waiting = state.waiting.load(Ordering::Relaxed);
    let labels = r#"{engine="0",model_name="demo"}"#;
    format!(
        "# TYPE vllm:num_requests_running gauge\nvllm:num_requests_running{labels} 0.0\n\
         # TYPE vllm:num_requests_waiting gauge\nvllm:num_requests_waiting{labels} {waiting}.0\n\
         # TYPE vllm:kv_cache_usage_perc gauge\nvllm:kv_cache_usage_perc{labels} 0.0\n\
         # TYPE vllm:cache_config_info gauge\n\
         vllm:cache_config_info{{block_size=\"16\",engine=\"0\",num_gpu_blocks=\"1024\"}} 1.0\n"
    )
}
