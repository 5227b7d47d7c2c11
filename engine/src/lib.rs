//! The worker: an OpenAI-compatible HTTP server around one engine thread with a paged, prefix-shared KV cache.
//!
//! ```text
//! api ─▶ text ─▶ worker[ scheduler ─▶ kv ─▶ backend( model ─▶ sample ) ] ─▶ text ─▶ api
//!                   └─────────▶ export: metrics page, KV events
//! ```
//!
//! `scheduler` and `kv` are plain state machines: values and time in, values out. `worker` is the one thread around
//! them, `api` and `export` are the async shells that own sockets. The names on the outside, from flags and request
//! fields to metrics and KV events, are vLLM's, so that what steers a vLLM fleet steers this worker unchanged.
//!
//! The crate never imports the endpoint picker; what both must agree on is in `pointsman-proto`.

pub mod faults;
pub mod flags;
pub mod serve;

pub mod api;
pub mod text;
pub mod worker;

pub mod scheduler;

pub mod kv;

pub mod model;

pub mod backend;

pub mod sample;

pub mod export;
