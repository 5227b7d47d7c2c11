//! From logits to a token, as a pure function of the logits, the request's parameters and its own history.
//!
//! The order of operations is vLLM's: raw log probabilities; allowed tokens, banned tokens, biases, penalties; then
//! greedy choice or temperature, min-p, top-k, top-p and a draw. The draw's random numbers come from a counter, not
//! from a generator with state: see [`philox`].
//!
//! A vocabulary has 150,000 tokens and each step samples a row of them for each request, so [`row`] and [`candidates`]
//! look at all of them as few times as the request allows, and sort none but those that are nearly chosen.

mod candidates;
mod math;
mod params;
pub mod philox;
mod row;
mod sampler;

pub use params::{SamplingParams, TokenLogprob};
pub use sampler::{History, Sampler};
