//! Continuous batching: which tokens of which requests the next step computes.
//!
//! A request has tokens (its prompt, then what was generated) and a count of those already computed. There is no
//! prefill phase and no decode phase: every step lets requests catch up with their own tokens under one budget, so a
//! long prompt is computed in chunks beside the single tokens of running requests. The chunks are cut by the budget of
//! tokens and by time (see `room`), and where even a short chunk would take too long, by layers (see `slices`).
//!
//! ```text
//! schedule:  1. running requests that lack one token each (decode), oldest first; out of blocks → preempt the newest
//!            2. running requests in the middle of their prompt, a chunk each
//!            3. waiting requests, in order, while room, places and blocks last   (not after a preemption)
//! complete:  note what was computed → publish full blocks → append sampled tokens → end what is finished
//! ```
//!
//! Order is (priority, arrival) everywhere. Admission takes the blocks of the whole prompt at once, so two half
//! computed prompts can never starve each other; the first in order is never preempted for anyone, so it always ends,
//! and by induction every request does. A preempted request keeps its place in the order and is computed again,
//! mostly out of the prefix cache.
//!
//! While a step runs, the one after it can be formed already (see `ahead`), so that a device need not wait for the
//! host in between.
//!
//! A simulator in virtual time has no use for the arrays of a step, nor for each step of a long run of decodes: `shape`
//! forms and completes steps without the arrays, `skip` makes many steps at once. Both leave behind what the above
//! leaves behind.
//!
//! The room is pure: time comes in as a `Duration`, and work goes out as a [`Step`](crate::backend::Step).

mod adopt;
mod ahead;
mod complete;
mod config;
mod cost;
mod intake;
mod outlook;
mod pause;
mod prompts;
mod rate;
mod report;
mod request;
mod room;
mod sampling;
mod schedule;
mod sequence;
mod shape;
mod skip;
mod slices;
#[cfg(test)]
mod tests;

pub use complete::Outcome;
pub use config::{ConfigError, Policy, QueueBound, QueueLimits, SchedulerConfig};
pub use intake::{Intake, Prepared, Refused};
pub use outlook::Alive;
pub use pause::Pause;
pub use report::{Phases, RequestReport, Stats, StepReport};
pub use request::{Finish, NewRequest, Task, TokenUpdate};
pub use schedule::{Scheduler, SequenceNumber};
pub use skip::{DecodeDriver, DecodeRun};
