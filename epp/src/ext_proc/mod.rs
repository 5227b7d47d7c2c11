//! The stream: Envoy's external-processing protocol around one request and its response.
//!
//! [`machine`] decides what is answered and when, as a pure state machine; [`wire`] turns Envoy's
//! messages into its events and its answers into messages; [`server`] moves both over gRPC, keeps
//! the time and holds what is in flight. Where the response is not watched on the stream, [`leases`]
//! holds the exchange and [`access_log`] ends it. The room knows no other room: what a decision is,
//! [`Decider`] says.

pub mod access_log;
pub mod authority;
pub mod decider;
pub mod head;
pub mod health;
pub mod held;
pub mod lease;
pub mod leases;
pub mod listen;
pub mod machine;
pub mod outcome;
pub mod refusal;
pub mod server;
pub mod sse;
pub mod tls;
pub mod usage;
pub mod wire;
pub mod write_back;

pub use authority::PoolHint;
pub use decider::{Decider, Exchange};
pub use head::RequestHead;
pub use lease::{LeaseLimits, LeaseToken};
pub use leases::Leases;
pub use machine::{Destination, Intake, Watch};
pub use outcome::{End, EndReason, Measured, Outcome, Progress, Seen};
pub use refusal::{DroppedReason, Refusal, RefusalCode};
pub use server::{Processor, StreamLimits};
pub use write_back::WriteBack;
