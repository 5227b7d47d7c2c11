//! Which endpoint holds how much of a prompt.
//!
//! - `prefix`, the precise index: the engines' own KV events in, cached prompt tokens out. Engines
//!   name blocks by hashes of their own making, which mean something only at the endpoint, rank and
//!   model that sent them. The token ids that the events carry are hashed into *request keys*, which
//!   are the same for every engine, whatever its hash seed, block naming or vendor. `ranks` is what
//!   one endpoint said, `orphans` what waits there for a parent.
//! - [`chains`], the structure under it: which holder has which block, for lookups that never wait.

pub mod chains;
mod orphans;
mod prefix;
mod ranks;

pub use crate::fleet::Matches;
pub use prefix::{Applied, BLOCK_SIZES_MAX, IndexLimits, IndexScratch, IndexStats, PrefixIndex};
pub use ranks::Refusal;

#[cfg(test)]
mod tests;
