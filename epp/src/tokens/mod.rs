//! Prompt to token ids, off the hot path where it is long, and not at all where it was done before.
//!
//! prompt → text ([`encode`]) → pieces, those seen before with their ids ([`cache`]) → the new ones
//! encoded, at once or in the [`pool`] → ids
//!
//! Token ids are a help to the pick, never a condition of it: every failure here is a reason that
//! the caller counts before it goes on without them.

pub mod breaker;
pub mod cache;
pub mod encode;
pub mod pool;
pub mod render;
mod stats;

pub use encode::{TokenLimits, Tokens, Unavailable};
pub use render::{RenderClient, RenderService};
pub use stats::TokensStats;
