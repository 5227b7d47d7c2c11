//! Prompt to token ids, off the hot path where it is long, and not at all where it was done before.
//!
//! [`cache`] remembers the ids of whole rendered texts; [`encode`] runs the model's own encoder,
//! short prompts at once and long ones on a bounded blocking pool under a deadline. Token ids are a
//! help to the pick, never a condition of it: every failure here is a reason that the caller counts
//! before it goes on without them.

pub mod cache;
pub mod encode;

pub use encode::{TokenLimits, Tokens, TokensStats, Unavailable};
