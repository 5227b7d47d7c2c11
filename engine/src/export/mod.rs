//! What the worker tells the world about itself: Prometheus series, KV events, and of single requests spans and lines
//! of the log.
//!
//! All are contracts with other programs (any endpoint picker of the field, Prometheus, dashboards), so names,
//! labels, buckets and frames are vLLM's. All are fed by the engine thread through the seams of
//! [`crate::worker`], and none may make that thread wait.

pub mod kv_events;
pub mod metrics;
pub mod requests;
pub mod spans;
