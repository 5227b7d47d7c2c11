//! The services over real gRPC: a decider that says what it is told, and a client that plays Envoy.

mod log;
mod rig;
mod streams;
