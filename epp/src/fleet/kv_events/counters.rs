//! Counts of what came over all subscriptions since the start.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// One count.
#[derive(Debug, Default)]
pub struct Count(AtomicU64);

impl Count {
    /// Its value now.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }

    pub(super) fn add(&self, more: u64) {
        self.0.fetch_add(more, Relaxed);
    }

    pub(super) fn one(&self) {
        self.add(1);
    }
}

/// Counts of all endpoints since the start.
#[derive(Debug, Default)]
pub struct KvEventCounters {
    /// Connections made to publishers.
    pub connects: Count,
    /// Connections that could not be made.
    pub connect_failures: Count,
    /// Batches taken over, live and replayed.
    pub batches: Count,
    /// Batches that came again.
    pub duplicate_batches: Count,
    /// Events handed to the index.
    pub events: Count,
    /// Events skipped because their tag is unknown.
    pub unknown_events: Count,
    /// Events skipped because their blocks make no prefix that could be asked for: another cache
    /// group or kind, an unknown medium, an adapter without its name.
    pub unindexed_events: Count,
    /// Events skipped because they cannot be read.
    pub malformed_events: Count,
    /// Messages and payloads that cannot be read at all.
    pub malformed_batches: Count,
    /// Batches that name another rank than the one whose publisher sent them.
    pub rank_mismatches: Count,
    /// Jumps in the sequence numbers.
    pub gaps: Count,
    /// Batches that no replay brought back.
    pub lost_batches: Count,
    /// Replays asked for.
    pub replays: Count,
    /// Times that catching up was given up.
    pub replay_failures: Count,
    /// Replays that did not reach back to the first batch of a publisher.
    pub truncated_replays: Count,
    /// Publishers found without a replay address.
    pub without_replay: Count,
    /// Times that all blocks of a rank were dropped: its engine started over, or events were lost.
    pub resets: Count,
    /// Ranks left out because their endpoint names too many.
    pub refused_ranks: Count,
}
