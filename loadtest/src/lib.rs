//! Starts the whole stack on one machine, drives it and measures it: stack → chats → client → demo.
//!
//! - [`stack`]: real Envoy, epp and workers as child processes, in a few lines. The demo and the end-to-end tests
//!   start the same one, so what the tests hold is what the demo shows.
//! - [`chats`]: the conversations that are sent; deterministic, so that two runs send the same.
//! - [`client`]: a streaming OpenAI client that takes the times where a user would feel them.
//! - [`demo`]: `cargo demo`, the same chats with round robin and with epp, side by side.
//! - [`overhead`]: what epp costs, in CPU and in time, through the same Envoy with and without it.
//! - [`engine_bench`]: how fast the worker is, beside the engines that people run today.
//! - [`workload`]: what is asked of a fleet: recorded traffic, or traffic from a seed with prefixes shared on purpose.
//! - [`drive`]: that load at any endpoint, open or closed loop, and what it was like to be its client.
//! - [`peers`]: other routers of PyPI and ours in front of the same simulated workers, under the same load.
//! - [`simulate`]: fleets in virtual time, from the product's own code.
//! - [`validate`]: the same load over the real stack and in virtual time.
//! - [`report`]: results as one HTML file.
//!
//! The client reads JSON with its own small types and not with those of `pointsman-proto`: what measures a server
//! must not share its mistakes.

pub mod chats;
pub mod client;
mod console;
pub mod demo;
pub mod drive;
pub mod engine_bench;
mod fleet;
pub mod overhead;
pub mod peers;
mod pypi;
pub mod report;
pub mod simulate;
pub mod stack;
mod usage;
pub mod validate;
pub mod workload;
