//! Blocks that were computed elsewhere: by another worker that hands its KV over, or, in a simulator, by whoever had them.
//!
//! The scheduler takes them into its prefix cache as if it had computed them itself; bringing the bytes is for the caller.

use pointsman_proto::block_hash::BlockDigest;

use super::Scheduler;
use crate::kv::Run;

impl Scheduler {
    /// Takes the blocks of a prompt with these digests into the prefix cache, most recently used last. `tokens` are the prompt's, at
    /// least to the end of the last block. Returns how many were missing and are there now: all or none, none where there is no room.
    pub fn adopt(&mut self, digests: &[BlockDigest], tokens: &[u32]) -> usize {
        if self.config.prefix_cache.is_none() {
            return 0;
        }
        let mut hits = std::mem::take(&mut self.hits);
        hits.clear();
        self.pool.lookup(digests, &mut hits);
        let first = hits.len();
        let mut table = Vec::with_capacity(digests.len());
        let is_room = first < digests.len() && self.pool.admit(&hits, digests.len(), &mut table);
        self.hits = hits;
        if !is_room {
            return 0;
        }
        let run = Run {
            digests,
            tokens,
            first,
            cache_salt: None,
        };
        self.pool.commit(&run, &mut table);
        self.pool.release(&mut table);
        digests.len() - first
    }
}
