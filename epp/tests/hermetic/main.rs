//! A whole picker in this process, spoken to over gRPC as a gateway does, one subject a file.
//!
//! `field` and `grpc` hold the cases of the field's own hermetic suite, `conformance` what the
//! gateway suite asks of a picker. Where our answer is another one on purpose, the test's name says
//! so. The subjects share one program, because each program costs a link of the whole crate.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

mod complaints;
mod conformance;
mod explain;
mod features;
mod field;
mod flow_control;
mod grpc;
mod pools;
mod reload;
#[path = "../support/mod.rs"]
mod support;
