//! The engine thread: the one place where scheduler, KV pool and backend meet sockets' side of the house.
//!
//! ```text
//! EngineHandle::submit ─▶ bounded command channel ─▶ engine thread: schedule ▶ begin ▶ finish ▶ complete ─▶ RequestStream
//!                                                         │  KV events ─▶ EventSink
//!                                                         └  reports   ─▶ Observer
//! ```
//!
//! One thread owns the scheduler and the device, so the step path takes no lock and nothing in the cores knows of
//! threads. Each request has a channel of its own with room for every token it may generate, so the thread never
//! waits for a slow client; the bound is `max_tokens`.
//!
//! Where the backend can take it, the next step is scheduled and begun before the present one is finished, so the device
//! has work while the thread completes.
//!
//! The thread waits only where there is nothing to compute. While it is paused with requests alive it looks up now and
//! then: their readers may leave, and their deadlines pass.
//!
//! A request is cancelled by dropping its stream: the thread looks at each live request's channel before a step and
//! frees the blocks of those whose reader is gone. No message has to find its way, so none can be lost.

mod command;
mod engine;
mod handle;
mod observer;
mod pause;
mod progress;
mod ranks;
mod shared;
#[cfg(test)]
mod tests;

pub use command::{PauseMode, SleepError};
pub use engine::{StartError, start};
pub use handle::{EngineHandle, RequestStream, SubmitError};
pub use observer::{EventSink, Observer, RequestWatch};
pub use ranks::Ranks;

pub use crate::backend::SleepLevel;
pub use crate::sample::{SamplingParams, TokenLogprob};
pub use crate::scheduler::{
    Finish, NewRequest, Phases, Policy, QueueBound, RequestReport, SchedulerConfig, Stats,
    StepReport, Task, TokenUpdate,
};
