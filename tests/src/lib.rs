//! The words in which the end-to-end tests are written: stack → client → upstream → what was seen.
//!
//! The tests themselves are `tests/e2e`: one binary, one module a theme. They run the shipped Envoy templates on a real
//! Envoy, with real epp and worker processes; this crate only starts, sends and looks. A test reads as a few lines:
//!
//! ```no_run
//! # async fn example() -> anyhow::Result<()> {
//! use pointsman_loadtest::stack::{Stack, StackOptions};
//! use pointsman_tests::chat::Chat;
//! use pointsman_tests::witness::Witness;
//!
//! let stack = Stack::start(StackOptions::new().workers(2)).await?;
//! let reply = stack.ask(&Chat::new().user("Where is the signal box?")).await?;
//! assert_eq!(reply.completion_tokens, 8);
//! # Ok(())
//! # }
//! ```
//!
//! Nothing here sleeps: what takes time is awaited under a deadline ([`eventually`]). Nothing here outlives its test:
//! processes and tasks end when their handles are dropped, in a panic too.

pub mod browser;
pub mod chat;
pub mod client;
pub mod eventually;
pub mod exposition;
pub mod kv_events;
pub mod log_sink;
pub mod silent;
pub mod task;
pub mod upstream;
pub mod witness;
