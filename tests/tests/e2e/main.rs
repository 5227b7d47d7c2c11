//! End-to-end tests on real parts: Envoy with the shipped templates, epp, workers, and clients of other people.
//!
//! One binary, so that it links once. Every test has a stack of its own: what one kills, no other misses, and any of
//! them runs alone by its name.

mod access_log;
mod drive_report;
mod engine_signals;
mod failures;
mod gateways;
mod openai_client;
mod original_dst;
mod packages;
mod routing;
mod status_page;
mod steering;
mod streaming;
mod tokens;
mod without_events;
mod worker_clients;
