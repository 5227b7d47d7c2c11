//! An HTTP client that shows what a test wants to see of a response: every read, trailers, how it ended.
//!
//! One connection a request, and the connection dies with the [`Response`]: dropping one is how a test plays a client
//! that goes away. Bodies go out as they were given, with a content length or in chunks, over HTTP/1 or HTTP/2 with
//! prior knowledge; a pooled client would decide all of this by itself.

use std::convert::Infallible;
use std::net::SocketAddr;

use anyhow::{Context, Result, anyhow, bail};
use bytes::{Bytes, BytesMut};
use futures_util::stream;
use http::header::HOST;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::Value;
use tokio::net::TcpStream;

use crate::eventually::within_deadline;
use crate::task::Task;

type Body = BoxBody<Bytes, Infallible>;

/// The host that requests name. Nothing resolves it; the templates match any.
const AUTHORITY: &str = "pointsman.test";

/// The version of HTTP that the client speaks to the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    Http1,
    /// Without TLS and without an upgrade: the client knows that the server speaks it.
    Http2,
}

/// Where requests go, and in which protocol. Holds no connection.
#[derive(Clone, Copy, Debug)]
pub struct Client {
    address: SocketAddr,
    protocol: Protocol,
}

impl Client {
    pub fn http1(address: SocketAddr) -> Self {
        Self {
            address,
            protocol: Protocol::Http1,
        }
    }

    pub fn http2(address: SocketAddr) -> Self {
        Self {
            address,
            protocol: Protocol::Http2,
        }
    }

    pub fn get(&self, path: &str) -> Outgoing {
        self.request(Method::GET, path)
    }

    pub fn post(&self, path: &str) -> Outgoing {
        self.request(Method::POST, path)
    }

    pub fn request(&self, method: Method, path: &str) -> Outgoing {
        Outgoing {
            client: *self,
            method,
            path: path.to_owned(),
            headers: HeaderMap::new(),
            body: Full::new(Bytes::new()).boxed(),
        }
    }
}

/// A request on its way to being sent.
#[derive(Debug)]
pub struct Outgoing {
    client: Client,
    method: Method,
    path: String,
    headers: HeaderMap,
    body: Body,
}

impl Outgoing {
    /// Appends one header.
    ///
    /// # Panics
    /// When the name or the value is none: both are literals of the test or addresses.
    #[must_use]
    pub fn header(mut self, name: &'static str, value: &str) -> Self {
        let value = HeaderValue::from_str(value).expect("a test's header value is visible ASCII");
        self.headers.append(HeaderName::from_static(name), value);
        self
    }

    #[must_use]
    pub fn json(self, body: &Value) -> Self {
        self.header("content-type", "application/json")
            .body(body.to_string())
    }

    /// A body of known length: HTTP/1 sends it under a content length.
    #[must_use]
    pub fn body(mut self, body: impl Into<Bytes>) -> Self {
        self.body = Full::new(body.into()).boxed();
        self
    }

    /// A body of unknown length, in these pieces: HTTP/1 sends it chunked.
    #[must_use]
    pub fn chunks(self, chunks: Vec<Bytes>) -> Self {
        self.frames(chunks.into_iter().map(Frame::data).collect())
    }

    /// A body of unknown length, and trailers after it.
    #[must_use]
    pub fn chunks_and_trailers(self, chunks: Vec<Bytes>, trailers: HeaderMap) -> Self {
        let mut frames: Vec<_> = chunks.into_iter().map(Frame::data).collect();
        frames.push(Frame::trailers(trailers));
        self.frames(frames)
    }

    fn frames(mut self, frames: Vec<Frame<Bytes>>) -> Self {
        let frames = stream::iter(frames.into_iter().map(Ok::<_, Infallible>));
        self.body = BodyExt::boxed(StreamBody::new(frames));
        self
    }

    /// Connects, sends, and returns at the response's headers.
    pub async fn send(self) -> Result<Response> {
        let what = format!("{} {}", self.method, self.path);
        within_deadline(&what, self.exchange())
            .await
            .with_context(|| what.clone())
    }

    async fn exchange(self) -> Result<Response> {
        let Client { address, protocol } = self.client;
        let socket = TcpStream::connect(address).await.context("connect")?;
        socket.set_nodelay(true)?;
        let io = TokioIo::new(socket);
        let request = self.into_request()?;
        let (response, connection) = match protocol {
            Protocol::Http1 => {
                let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await?;
                let connection = Task::spawn(async move { drop(connection.await) });
                (sender.send_request(request).await?, connection)
            }
            Protocol::Http2 => {
                let (mut sender, connection) =
                    hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await?;
                let connection = Task::spawn(async move { drop(connection.await) });
                (sender.send_request(request).await?, connection)
            }
        };
        let (head, body) = response.into_parts();
        Ok(Response {
            status: head.status,
            headers: head.headers,
            trailers: None,
            body,
            unparsed: BytesMut::new(),
            reads: 0,
            _connection: connection,
        })
    }

    fn into_request(self) -> Result<Request<Body>> {
        let mut request = match self.client.protocol {
            Protocol::Http1 => {
                let builder = Request::builder().uri(self.path).header(HOST, AUTHORITY);
                builder.body(self.body)?
            }
            Protocol::Http2 => {
                let uri = format!("http://{AUTHORITY}{}", self.path);
                Request::builder().uri(uri).body(self.body)?
            }
        };
        *request.method_mut() = self.method;
        request.headers_mut().extend(self.headers);
        Ok(request)
    }
}

/// A response whose headers have arrived. Dropping it closes the connection, wherever the body stands.
#[derive(Debug)]
pub struct Response {
    pub status: StatusCode,
    pub headers: HeaderMap,
    /// What came after the body, once the body has ended.
    pub trailers: Option<HeaderMap>,
    body: Incoming,
    unparsed: BytesMut,
    reads: usize,
    _connection: Task,
}

/// One server-sent event: its data line, and in which read of the socket it was complete.
#[derive(Clone, Debug)]
pub struct Event {
    pub data: String,
    /// Counts the reads of this response from 1. Events of the same read arrived together.
    pub read: usize,
}

impl Response {
    /// The next piece of the body as it arrives; `None` at a proper end.
    ///
    /// # Errors
    /// When the body is cut off: an end without the length or the last chunk that the framing promised.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>> {
        loop {
            let frame = within_deadline("the next piece of a response", self.body.frame()).await;
            let Some(frame) = frame else { return Ok(None) };
            let frame = frame.context("the response was cut off")?;
            match frame.into_data() {
                Ok(data) if data.is_empty() => {}
                Ok(data) => {
                    self.reads += 1;
                    return Ok(Some(data));
                }
                Err(frame) => self.trailers = frame.into_trailers().ok(),
            }
        }
    }

    /// The rest of the body.
    pub async fn bytes(mut self) -> Result<Bytes> {
        let mut whole = BytesMut::new();
        while let Some(chunk) = self.chunk().await? {
            whole.extend_from_slice(&chunk);
        }
        Ok(whole.freeze())
    }

    pub async fn text(self) -> Result<String> {
        Ok(String::from_utf8(self.bytes().await?.into())?)
    }

    pub async fn json(self) -> Result<Value> {
        let body = self.bytes().await?;
        serde_json::from_slice(&body)
            .with_context(|| format!("not JSON: {}", String::from_utf8_lossy(&body)))
    }

    /// The next server-sent event. That there is none is an error; see [`Response::events`] for reading to the end.
    pub async fn event(&mut self) -> Result<Event> {
        let event = self.event_or_end().await?;
        event.context("the stream ended where an event was expected")
    }

    /// All events to the end of the body.
    ///
    /// # Errors
    /// When the body is cut off, ends within an event, or holds something else than data events.
    pub async fn events(mut self) -> Result<Vec<Event>> {
        let mut events = Vec::new();
        while let Some(event) = self.event_or_end().await? {
            events.push(event);
        }
        Ok(events)
    }

    /// The value of a header, or the empty string.
    pub fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
    }

    async fn event_or_end(&mut self) -> Result<Option<Event>> {
        loop {
            if let Some(end) = self.unparsed.windows(2).position(|pair| pair == b"\n\n") {
                let block = self.unparsed.split_to(end + 2);
                let block = std::str::from_utf8(&block).context("event is not UTF-8")?;
                let data = block.trim_end().strip_prefix("data: ");
                let data = data
                    .ok_or_else(|| anyhow!("not a data event: {block:?}"))?
                    .to_owned();
                let read = self.reads;
                return Ok(Some(Event { data, read }));
            }
            match self.chunk().await? {
                Some(chunk) => self.unparsed.extend_from_slice(&chunk),
                None if self.unparsed.is_empty() => return Ok(None),
                None => bail!("half an event at the end: {:?}", self.unparsed),
            }
        }
    }
}
