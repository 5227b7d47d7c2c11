//! Paged KV memory as bookkeeping: which block is whose, and which prefix it holds. No KV data is here.
//!
//! A block holds the keys and values of `block_size` consecutive tokens. Full blocks are known by a digest chained over
//! all tokens before them, so one equal digest proves the whole prefix equal. Freed blocks keep their contents and
//! digest until their memory is needed: the cache is what the free list still remembers.
//!
//! One digest has one block. When two requests computed the same prefix side by side, the later one is moved onto the
//! first one's block and its own copy is freed. vLLM keeps both copies; merging them saves the memory, and makes
//! the stream of KV events an exact image of the cache: a block is stored once, and removed once.
//!
//! A block that is evicted can move on to a second tier in host memory, from where it comes back on a hit. What is
//! to be copied is a value, too, which goes out with the step that needs it.
//!
//! Everything here is pure and single-threaded; the engine thread owns it through `crate::scheduler`.

mod free_list;
mod hash;
mod host;
mod journal;
mod pool;
#[cfg(test)]
mod tests;

pub use hash::{HashAlgorithm, HashRecipe};
pub use host::HostBlock;
pub use pool::{BlockId, BlockPool, Hit, Run, Transfer};
