//! When would the first token come? The question that `expected-ttft-scorer` answers, in seconds.
//!
//! ```text
//! TTFT(endpoint) ≈ work ahead + own work            (both in seconds, learned rates)
//! cost(endpoint) = TTFT · (1 + delayed · own work)  what the pick costs this request and those after it
//! ```
//!
//! *Work ahead* is kept pick by pick: what was sent to an endpoint and has not brought its first
//! token ([`ahead`]). *Own work* is the part of the prompt that the endpoint does not hold, turned
//! into seconds by rates learned from the first tokens that go by ([`rates`]). The second factor is what greed forgets: work
//! that is done twice because the idle endpoint was nearer delays everyone who comes after ([`model`]
//! derives it).
//!
//! All of it is pure: times come in as values.

pub mod ahead;
pub mod estimates;
pub mod model;
pub mod rates;

pub use estimates::{Estimate, Estimates};
pub use model::{ExpectationOptions, FleetExpectation, Placement, Sighting};
pub use rates::PromptWork;
