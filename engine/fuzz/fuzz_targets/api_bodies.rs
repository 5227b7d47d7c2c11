//! No body makes an endpoint panic, hang or answer 500.
//!
//! The first byte says which endpoint the rest of the input goes to. The worker is a whole one around the demo model,
//! with a context so short that no answer takes long; only the socket is left out.

#![no_main]

use std::sync::LazyLock;

use axum::Router;
use axum::body::Body;
use axum::http::Request;
use clap::Parser;
use http_body_util::BodyExt;
use libfuzzer_sys::fuzz_target;
use pointsman_engine::flags::Flags;
use pointsman_engine::serve::{self, Server};
use tokio::runtime::Runtime;
use tower::ServiceExt;

const PATHS: &[&str] = &[
    "/v1/chat/completions",
    "/v1/chat/completions/render",
    "/v1/completions",
    "/v1/completions/render",
    "/v1/embeddings",
    "/inference/v1/generate",
    "/invocations",
    "/tokenize",
    "/detokenize",
    "/abort_requests",
];

struct Worker {
    runtime: Runtime,
    router: Router,
    /// Holds the engine.
    _server: Server,
}

static WORKER: LazyLock<Worker> = LazyLock::new(|| {
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/../demo-model");
    let flags = Flags::parse_from([
        "engine", "--model", model, "--served-model-name", "demo", "--port", "0", "--backend", "cpu",
        "--threads", "1", "--max-model-len", "48", "--kv-cache-memory-bytes", "16MiB", "--server-dev-mode",
    ]);
    let runtime = Runtime::new().expect("a runtime");
    let server = runtime.block_on(serve::start(&flags)).expect("the demo model serves");
    Worker {
        runtime,
        router: server.router().clone(),
        _server: server,
    }
});

fuzz_target!(|input: &[u8]| {
    let Some((which, body)) = input.split_first() else {
        return;
    };
    let path = PATHS[usize::from(*which) % PATHS.len()];
    let request = Request::post(path)
        .header("content-type", "application/json")
        .body(Body::from(body.to_vec()))
        .expect("a request");
    WORKER.runtime.block_on(async {
        let response = WORKER.router.clone().oneshot(request).await.expect("infallible");
        let status = response.status();
        let body = response.into_body().collect().await.expect("a whole body").to_bytes();
        let text = String::from_utf8_lossy(&body);
        assert!(!status.is_server_error() || status == 501, "{path} {status} {text}");
        assert!(!text.contains("\"InternalServerError\""), "{path} {status} {text}");
    });
});
