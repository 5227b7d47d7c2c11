//! A worker, a client and a way to wait: `Worker::start(&[..]).await`, `worker.post(..).await`.

use std::time::Duration;

use axum::body::Bytes;
use clap::Parser;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::{HeaderMap, Method, Request, Response, StatusCode};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use pointsman_engine::flags::Flags;
use pointsman_engine::serve::{self, ServeError};
use pointsman_engine::worker::{EngineHandle, Stats};
use serde_json::Value;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// No wait of a test takes longer, or the test fails.
pub(crate) const DEADLINE: Duration = Duration::from_mins(1);

/// A serving worker in this process.
pub(crate) struct Worker {
    pub(crate) engine: EngineHandle,
    /// Where it listens.
    pub(crate) address: String,
    client: Client<HttpConnector, Full<Bytes>>,
    stop: oneshot::Sender<()>,
    served: JoinHandle<Result<(), ServeError>>,
}

impl Worker {
    /// The demo model as `demo` on a free port, with further flags.
    pub(crate) async fn start(flags: &[&str]) -> Self {
        let small = [
            "--backend",
            "cpu",
            "--threads",
            "1",
            "--kv-cache-memory-bytes",
            "32MiB",
        ];
        Self::start_on(&small, flags).await
    }

    /// As [`Worker::start`], with a simulated GPU.
    pub(crate) async fn start_sim(flags: &[&str]) -> Self {
        Self::start_on(&["--backend", "sim"], flags).await
    }

    async fn start_on(backend: &[&str], flags: &[&str]) -> Self {
        let model = concat!(env!("CARGO_MANIFEST_DIR"), "/demo-model");
        let fixed = [
            "engine",
            "--model",
            model,
            "--served-model-name",
            "demo",
            "--port",
            "0",
        ];
        let flags = Flags::parse_from(fixed.iter().chain(backend).chain(flags));
        let server = serve::start(&flags)
            .await
            .expect("the demo model is part of the repository");
        let (stop, stopped) = oneshot::channel();
        let (engine, address) = (server.engine().clone(), server.address().to_string());
        let shutdown = async {
            // Both a message and a dropped sender ask to stop.
            let _ = stopped.await;
        };
        let served = tokio::spawn(async move { server.run(shutdown).await });
        let client = Client::builder(TokioExecutor::new()).build_http();
        Self {
            engine,
            address,
            client,
            stop,
            served,
        }
    }

    pub(crate) async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Response<Incoming> {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("http://{}{path}", self.address))
            .header("content-type", "application/json");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(body.into())).unwrap();
        tokio::time::timeout(DEADLINE, self.client.request(request))
            .await
            .unwrap()
            .unwrap()
    }

    /// Sends and returns the head of an answer, or whatever kept it from coming.
    pub(crate) async fn try_send(
        &self,
        method: Method,
        path: &str,
        body: String,
    ) -> Result<StatusCode, String> {
        let request = Request::builder()
            .method(method)
            .uri(format!("http://{}{path}", self.address))
            .body(Full::new(Bytes::from(body)))
            .unwrap();
        let answer = tokio::time::timeout(DEADLINE, self.client.request(request));
        let answer = answer.await.unwrap();
        answer
            .map(|response| response.status())
            .map_err(|error| error.to_string())
    }

    /// Why a worker with these flags does not start.
    pub(crate) async fn refused(flags: &[&str]) -> String {
        let model = concat!(env!("CARGO_MANIFEST_DIR"), "/demo-model");
        let fixed = ["engine", "--model", model, "--port", "0"];
        let flags = Flags::parse_from(fixed.iter().chain(flags));
        serve::start(&flags).await.unwrap_err().to_string()
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> Reply {
        Reply::read(self.send(Method::POST, path, &[], body.to_string()).await).await
    }

    pub(crate) async fn get(&self, path: &str) -> Reply {
        Reply::read(self.send(Method::GET, path, &[], "").await).await
    }

    /// Posts and returns the JSON of a 200.
    pub(crate) async fn ask(&self, path: &str, body: &Value) -> Value {
        let reply = self.post(path, body).await;
        assert_eq!(reply.status, StatusCode::OK, "{}", reply.text());
        reply.json()
    }

    /// Posts and returns the events of a 200, which come as they are made.
    pub(crate) async fn open(&self, path: &str, body: &Value) -> Events {
        let response = self.send(Method::POST, path, &[], body.to_string()).await;
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(
            response.headers()["content-type"],
            "text/event-stream; charset=utf-8"
        );
        Events::of(response)
    }

    /// Waits until the engine's numbers are as wanted.
    pub(crate) async fn until(&self, what: &str, wanted: impl Fn(&Stats) -> bool) {
        self.until_engine(what, |engine| wanted(&engine.stats()))
            .await;
    }

    pub(crate) async fn until_engine(&self, what: &str, wanted: impl Fn(&EngineHandle) -> bool) {
        // The engine tells nobody of a step, so its numbers are looked at every millisecond.
        let mut looks = tokio::time::interval(Duration::from_millis(1));
        let waited = tokio::time::timeout(DEADLINE, async {
            while !wanted(&self.engine) {
                looks.tick().await;
            }
        });
        assert!(waited.await.is_ok(), "{what}: {:?}", self.engine.stats());
    }

    /// Waits until the metrics page shows a value.
    pub(crate) async fn until_metric(&self, series: &str, value: &str) {
        let waited = tokio::time::timeout(DEADLINE, async {
            while self.metric(series).await != value {}
        });
        let found = waited.await;
        assert!(found.is_ok(), "{series} is not {value}");
    }

    /// The value of a series of the metrics page as it is written, by the start of its line up to the value.
    pub(crate) async fn metric(&self, series: &str) -> String {
        let page = self.get("/metrics").await.text();
        let mut values = page
            .lines()
            .filter_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        let value = values
            .next()
            .unwrap_or_else(|| panic!("{series} is not on the page:\n{page}"));
        value.to_owned()
    }

    /// Asks the worker to stop, as a signal would; returns what to await for its end.
    pub(crate) fn stop(self) -> JoinHandle<Result<(), ServeError>> {
        drop(self.stop);
        self.served
    }

    /// As [`Worker::stop`], for a test that goes on talking to the worker.
    pub(crate) fn begin_stop(&mut self) {
        let (unused, _) = oneshot::channel();
        drop(std::mem::replace(&mut self.stop, unused));
    }
}

/// A whole response.
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    body: Bytes,
}

impl Reply {
    pub(crate) async fn read(response: Response<Incoming>) -> Self {
        let (parts, body) = response.into_parts();
        let body = tokio::time::timeout(DEADLINE, body.collect())
            .await
            .unwrap()
            .unwrap();
        Self {
            status: parts.status,
            headers: parts.headers,
            body: body.to_bytes(),
        }
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.body.to_vec()).unwrap()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }
}

/// The events of a streamed answer.
pub(crate) struct Events {
    body: Incoming,
    buffer: String,
}

impl Events {
    pub(crate) fn of(response: Response<Incoming>) -> Self {
        Self {
            body: response.into_body(),
            buffer: String::new(),
        }
    }

    /// The data of the next event; none at the end of the body.
    pub(crate) async fn next(&mut self) -> Option<String> {
        let next = self.try_next().await?;
        Some(next.expect("the connection holds"))
    }

    /// As [`Events::next`]; an error where the connection breaks.
    pub(crate) async fn try_next(&mut self) -> Option<Result<String, ()>> {
        loop {
            if let Some((event, rest)) = self.buffer.split_once("\n\n") {
                let data = event
                    .strip_prefix("data: ")
                    .expect("an event is one data line");
                let (data, rest) = (data.to_owned(), rest.to_owned());
                self.buffer = rest;
                return Some(Ok(data));
            }
            let frame = tokio::time::timeout(DEADLINE, self.body.frame());
            let Ok(frame) = frame.await.unwrap()? else {
                return Some(Err(()));
            };
            let bytes = frame.into_data().expect("no trailers");
            self.buffer.push_str(std::str::from_utf8(&bytes).unwrap());
        }
    }

    /// All events up to `[DONE]`, which must be the last.
    pub(crate) async fn all(mut self) -> Vec<Value> {
        let mut events = Vec::new();
        loop {
            let data = self.next().await.expect("the stream ends with [DONE]");
            if data == "[DONE]" {
                assert_eq!(self.next().await, None, "nothing follows [DONE]");
                return events;
            }
            events.push(serde_json::from_str(&data).unwrap());
        }
    }
}
