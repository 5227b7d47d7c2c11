//! The stream: Envoy's external-processing protocol around one request and its response.
//!
//! [`machine`] decides what is answered and when, as a pure state machine; [`wire`] turns Envoy's
//! messages into its events and its answers into messages; [`server`] moves both over gRPC, keeps
//! the time and holds what is in flight. The room knows no other room: what a decision is,
//! [`Decider`] says.

pub mod decider;
pub mod head;
pub mod health;
pub mod listen;
pub mod machine;
pub mod refusal;
pub mod server;
pub mod tls;
pub mod usage;
pub mod wire;

pub use decider::{Decider, Exchange};
pub use head::RequestHead;
pub use machine::{Destination, End, Intake, Outcome};
pub use refusal::{Refusal, RefusalCode};
pub use server::{Processor, StreamLimits};
