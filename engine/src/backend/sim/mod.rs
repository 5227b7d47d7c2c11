//! The simulated backend: a named model on a named GPU, without weights and without the GPU.
//!
//! ```text
//! Step ─▶ StepShape ─▶ TimeModel ─▶ Pace (waits on the wall clock, divided by --sim-speedup)
//!      └▶ Tokens (a hash of the context's end; words of the folder's tokenizer)
//! ```
//!
//! Everything above the backend is the real thing: scheduler, KV cache, API, metrics, events. So a fleet of such
//! workers behaves towards a picker as a fleet of GPUs would, on two cores. [`Faults`](crate::faults::Faults) make them misbehave on
//! demand.
//!
//! [`TimeModel`], [`StepShape`] and [`Tokens`] are plain values and functions: a simulator in virtual time uses them
//! without this backend, its clock or a thread.

mod backend;
mod gpu;
pub mod model_shape;
mod pace;
pub mod time_model;
mod tokens;

pub use backend::SimBackend;
pub use gpu::{GPUS, Gpu};
pub use model_shape::{MODELS, ModelShape};
pub use pace::Pace;
pub use time_model::{DoesNotFit, StepShape, TimeModel};
pub use tokens::Tokens;
