//! What the worker tells the world about itself: Prometheus series and KV events.
//!
//! Both are contracts with other programs (any endpoint picker of the field, Prometheus, dashboards), so names,
//! labels, buckets and frames are vLLM's. Both are fed by the engine thread through the seams of
//! [`crate::worker`], and neither may make that thread wait.

pub mod kv_events;
pub mod metrics;
