//! A small HTTP/1.1 client, in the clear or over TLS: one request, one answer held in memory.
//!
//! For what surrounds a measurement: readiness, admin calls, metrics pages. Streams are read by
//! [`ChatClient`](super::ChatClient), which shares the connections.

use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::{Connect, HttpConnector};
use hyper_util::rt::{TokioExecutor, TokioTimer};

use super::tls::{self, TlsFailure, Trust};

/// The longest answer that is kept in memory. A longer one is an error.
const ANSWER_BYTES_MAX: usize = 16 << 20;
/// An idle connection is closed after this time, well before a server would do it under us.
const IDLE_TIMEOUT: Duration = Duration::from_secs(5);

/// A pool of connections, all in the clear or all over TLS. Clones share it.
#[derive(Clone, Debug)]
pub struct HttpClient {
    pool: Pool,
}

/// Two types, so that what goes in the clear knows nothing of TLS and costs nothing for it.
#[derive(Clone, Debug)]
enum Pool {
    Clear(Client<HttpConnector, Full<Bytes>>),
    Tls(Client<HttpsConnector<HttpConnector>, Full<Bytes>>),
}

/// What came back, whatever its status.
#[derive(Clone, Debug)]
pub struct HttpReply {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl HttpReply {
    /// The body as text; bytes that are not UTF-8 are replaced.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

impl Default for HttpClient {
    fn default() -> Self {
        Self::new()
    }
}

impl HttpClient {
    /// For `http://` URLs.
    pub fn new() -> Self {
        Self {
            pool: Pool::Clear(pool(tcp())),
        }
    }

    /// For `https://` URLs. Fails where the certificates to trust cannot be read.
    pub fn with_tls(trust: &Trust) -> Result<Self> {
        let mut tcp = tcp();
        // It would refuse an `https://` URL, whose connection it is only the first half of.
        tcp.enforce_http(false);
        let mut connector = HttpsConnector::from((tcp, tls::config(trust)?));
        connector.enforce_https();
        Ok(Self {
            pool: Pool::Tls(pool(connector)),
        })
    }

    /// `GET url`, all of it within `timeout`.
    pub async fn get(&self, url: &str, timeout: Duration) -> Result<HttpReply> {
        self.send(Method::GET, url, None, None, timeout).await
    }

    /// Like [`get`](Self::get), with an API key where there is one.
    pub async fn get_as(
        &self,
        url: &str,
        api_key: Option<&str>,
        timeout: Duration,
    ) -> Result<HttpReply> {
        self.send(Method::GET, url, None, api_key, timeout).await
    }

    /// `POST url` with a JSON body, all of it within `timeout`.
    pub async fn post(&self, url: &str, json: &str, timeout: Duration) -> Result<HttpReply> {
        self.send(Method::POST, url, Some(json), None, timeout)
            .await
    }

    async fn send(
        &self,
        method: Method,
        url: &str,
        json: Option<&str>,
        api_key: Option<&str>,
        timeout: Duration,
    ) -> Result<HttpReply> {
        let mut request = Request::builder().method(&method).uri(url);
        if let Some(key) = api_key {
            request = request.header(header::AUTHORIZATION, format!("Bearer {key}"));
        }
        if json.is_some() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        let body = Full::new(Bytes::copy_from_slice(json.unwrap_or_default().as_bytes()));
        let request = request
            .body(body)
            .with_context(|| format!("bad URL {url}"))?;
        let exchange = async {
            let (head, body) = self.request(request).await?.into_parts();
            let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await;
            let body = body.map_err(|error| anyhow::anyhow!("answer broke off: {error}"))?;
            Ok(HttpReply {
                status: head.status,
                headers: head.headers,
                body: body.to_bytes(),
            })
        };
        tokio::time::timeout(timeout, exchange)
            .await
            .unwrap_or_else(|_| Err(anyhow::anyhow!("no answer within {timeout:?}")))
            .with_context(|| format!("{method} {url}"))
    }

    /// Sends `request` and returns when the response's head is there; its body is the caller's to read.
    pub async fn request(&self, request: Request<Full<Bytes>>) -> Result<http::Response<Incoming>> {
        let client = match &self.pool {
            Pool::Clear(client) => return Ok(client.request(request).await?),
            Pool::Tls(client) => client,
        };
        let uri = request.uri().clone();
        let response = client.request(request).await;
        response.map_err(|error| match TlsFailure::of(&uri, &error) {
            Some(failure) => failure.into(),
            None => error.into(),
        })
    }
}

fn tcp() -> HttpConnector {
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    connector
}

fn pool<C: Connect + Clone>(connector: C) -> Client<C, Full<Bytes>> {
    Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(IDLE_TIMEOUT)
        .build(connector)
}
