//! From logits to a token, as a pure function of the logits, the request's parameters and its own history.
//!
//! The order of operations is vLLM's: raw log probabilities, banned tokens, penalties, then greedy choice or
//! temperature, min-p, top-k, top-p and a draw. The draw's random numbers come from a counter, not from a
//! generator with state: see [`philox`].

mod params;
pub mod philox;
mod sampler;

pub use params::{SamplingParams, TokenLogprob};
pub use sampler::{History, Sampler};
