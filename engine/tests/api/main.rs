//! The HTTP surface over the real worker with the demo model, over real connections.
//!
//! Nothing here asserts on words: the demo model may be trained anew. What must hold for any model is shapes, counts,
//! determinism, caching, and that the worker is clean again after whatever a client did.

#![expect(
    clippy::unwrap_used,
    reason = "a test fails by panicking, in its helpers as well"
)]

mod admin;
mod answers;
mod endpoints;
mod errors;
mod fleet;
mod golden;
mod host_tier;
mod hostile;
mod lifecycle;
mod sampling;
mod sim;
mod streaming;
mod support;
