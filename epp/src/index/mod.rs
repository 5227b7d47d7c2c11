//! Which endpoint holds which block of which prompt, as the engines' own KV events tell it.
//!
//! Engines name blocks by hashes of their own making. Those names mean something only at the
//! endpoint (and model) that sent them, so `blocks` keeps them per endpoint and translates each
//! into a *request key*: the chain of XXH3-64 over the token ids that the event carries. Request
//! keys are the same for every engine, whatever its hash seed, block naming or vendor, and
//! `prefix` maps each key to the endpoints that hold it. Because a key covers everything before
//! it, equal keys mean equal prefixes.

pub mod approximate;
mod blocks;
pub mod chains;
mod holders;
mod orphans;
mod prefix;
pub mod speculative;

pub use crate::fleet::Matches;
pub use blocks::Refusal;
pub use prefix::{Applied, BLOCK_SIZES_MAX, IndexLimits, IndexScratch, IndexStats, PrefixIndex};

#[cfg(test)]
mod tests;
