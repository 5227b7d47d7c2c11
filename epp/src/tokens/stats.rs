//! What the encoders did since the start.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::Unavailable;

/// Counts since the start, and what the cache holds now.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct TokensStats {
    /// Prompts that came to their ids.
    pub encoded: u64,
    /// Those of them whose ids were all remembered.
    pub cache_hits: u64,
    /// Prompts that were handed to the pool.
    pub pooled: u64,
    pub busy: u64,
    pub deadline: u64,
    pub failed: u64,
    /// Bytes of text whose ids were remembered.
    pub remembered_bytes: u64,
    /// Bytes of text that were encoded.
    pub encoded_bytes: u64,
    /// Bytes that the cache holds.
    pub cache_bytes: u64,
    /// Pieces of text that the cache had to let go.
    pub evicted: u64,
}

impl std::ops::AddAssign for TokensStats {
    fn add_assign(&mut self, other: Self) {
        self.encoded += other.encoded;
        self.cache_hits += other.cache_hits;
        self.pooled += other.pooled;
        self.busy += other.busy;
        self.deadline += other.deadline;
        self.failed += other.failed;
        self.remembered_bytes += other.remembered_bytes;
        self.encoded_bytes += other.encoded_bytes;
        self.cache_bytes += other.cache_bytes;
        self.evicted += other.evicted;
    }
}

#[derive(Debug, Default)]
pub(super) struct Counters {
    encoded: AtomicU64,
    cache_hits: AtomicU64,
    pooled: AtomicU64,
    busy: AtomicU64,
    deadline: AtomicU64,
    failed: AtomicU64,
    remembered_bytes: AtomicU64,
    encoded_bytes: AtomicU64,
}

impl Counters {
    /// Counts one prompt's end.
    pub(super) fn count_outcome<T>(&self, outcome: &Result<T, Unavailable>) {
        let counter = match outcome {
            Ok(_) => &self.encoded,
            Err(Unavailable::NoTokenizer) => return,
            Err(Unavailable::Busy) => &self.busy,
            Err(Unavailable::Deadline) => &self.deadline,
            Err(Unavailable::Failed(_)) => &self.failed,
            // Counted by reason where the request goes on without ids.
            Err(Unavailable::Remote(_) | Unavailable::RemoteDown) => return,
        };
        counter.fetch_add(1, Relaxed);
    }

    pub(super) fn count_pooled(&self) {
        self.pooled.fetch_add(1, Relaxed);
    }

    /// Counts one text by what had to be encoded of it.
    pub(super) fn count_text(&self, text_bytes: usize, encoded_bytes: usize) {
        if encoded_bytes == 0 {
            self.cache_hits.fetch_add(1, Relaxed);
        }
        let remembered = text_bytes.saturating_sub(encoded_bytes);
        self.remembered_bytes.fetch_add(remembered as u64, Relaxed);
        self.encoded_bytes.fetch_add(encoded_bytes as u64, Relaxed);
    }

    /// The counts, with the cache's own left at zero.
    pub(super) fn stats(&self) -> TokensStats {
        TokensStats {
            encoded: self.encoded.load(Relaxed),
            cache_hits: self.cache_hits.load(Relaxed),
            pooled: self.pooled.load(Relaxed),
            busy: self.busy.load(Relaxed),
            deadline: self.deadline.load(Relaxed),
            failed: self.failed.load(Relaxed),
            remembered_bytes: self.remembered_bytes.load(Relaxed),
            encoded_bytes: self.encoded_bytes.load(Relaxed),
            cache_bytes: 0,
            evicted: 0,
        }
    }
}
