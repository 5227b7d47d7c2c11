//! Continuous batching: which tokens of which requests the next step computes.
//!
//! A request has tokens (its prompt, then what was generated) and a count of those already computed. There is no
//! prefill phase and no decode phase: every step lets requests catch up with their own tokens under one budget, so a
//! long prompt is computed in chunks beside the single tokens of running requests, and the time between two tokens of
//! a running request stays bounded by the budget.
//!
//! ```text
//! schedule:  1. running requests that lack one token each (decode), oldest first; out of blocks → preempt the newest
//!            2. running requests in the middle of their prompt, a chunk each
//!            3. waiting requests, in order, while budget, places and blocks last   (not after a preemption)
//! complete:  note what was computed → publish full blocks → append sampled tokens → end what is finished
//! ```
//!
//! Order is (priority, arrival) everywhere. Admission takes the blocks of the whole prompt at once, so two half
//! computed prompts can never starve each other; the first in order is never preempted for anyone, so it always ends,
//! and by induction every request does. A preempted request keeps its place in the order and is computed again,
//! mostly out of the prefix cache.
//!
//! The room is pure: time comes in as a `Duration`, and work goes out as a [`Step`](crate::backend::Step).

mod config;
mod intake;
mod report;
mod request;
mod schedule;
mod sequence;
#[cfg(test)]
mod tests;

pub use config::{ConfigError, QueueLimits, SchedulerConfig};
pub use intake::{Intake, Prepared, Refused};
pub use report::{Phases, RequestReport, Stats, StepReport};
pub use request::{Finish, NewRequest, Task, TokenUpdate};
pub use schedule::{Outcome, Scheduler, SequenceNumber};
