//! The live signals of one endpoint, and the lease that counts a request against it.
//!
//! One cell belongs to one generation of one endpoint, and a lease holds the very cell it counted
//! in. So an endpoint that flaps starts from a fresh cell at zero, and a late release of the
//! earlier generation decrements a cell that nobody reads: the in-flight count can neither go
//! negative nor leak into the successor, without a check or a lock.
//!
//! The fields are separate atomics with relaxed order. A reading may mix two scrapes; each signal
//! is a measurement that is some milliseconds old anyway, and no decision depends on two of them
//! agreeing to the instant.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};

use tokio::sync::Notify;

use super::endpoint::Live;

/// What one `/metrics` page said.
#[derive(Clone, Copy, PartialEq, Default, Debug)]
pub struct Scraped {
    /// Requests waiting, summed over the page's engines.
    pub waiting: u32,
    /// Requests running, summed over the page's engines.
    pub running: u32,
    /// Share of KV blocks in use, 0 to 1: the mean over the page's engines.
    pub kv_usage: f32,
    /// Tokens per KV block; 0 when the page does not say.
    pub block_size: u32,
    /// KV blocks, summed over the page's engines; 0 when the page does not say.
    pub blocks: u32,
}

/// The signals of one generation of one endpoint.
#[derive(Debug, Default)]
pub struct LiveCell {
    waiting: AtomicU32,
    running: AtomicU32,
    kv_usage_bits: AtomicU32,
    block_size: AtomicU32,
    blocks: AtomicU32,
    in_flight_requests: AtomicU32,
    in_flight_tokens: AtomicU64,
    scraped_at_ms: AtomicU64,
    healthy: AtomicBool,
    /// Woken when the first request arrives at an idle endpoint, so that a slow scraper reads a
    /// fresh page at once.
    became_busy: Notify,
}

impl LiveCell {
    /// One reading.
    pub fn read(&self) -> Live {
        Live {
            waiting: self.waiting.load(Relaxed),
            running: self.running.load(Relaxed),
            kv_usage: f32::from_bits(self.kv_usage_bits.load(Relaxed)),
            block_size: self.block_size.load(Relaxed),
            blocks: self.blocks.load(Relaxed),
            in_flight_requests: self.in_flight_requests.load(Relaxed),
            in_flight_tokens: u32::try_from(self.in_flight_tokens.load(Relaxed))
                .unwrap_or(u32::MAX),
            scraped_at_ms: self.scraped_at_ms.load(Relaxed),
            healthy: self.healthy.load(Relaxed),
        }
    }

    /// Takes over a page that was read at `now_ms`. The endpoint counts as healthy from then on.
    pub fn record(&self, scraped: &Scraped, now_ms: u64) {
        self.waiting.store(scraped.waiting, Relaxed);
        self.running.store(scraped.running, Relaxed);
        self.kv_usage_bits
            .store(scraped.kv_usage.to_bits(), Relaxed);
        // A page without cache information keeps what an earlier one said.
        if scraped.block_size != 0 {
            self.block_size.store(scraped.block_size, Relaxed);
        }
        if scraped.blocks != 0 {
            self.blocks.store(scraped.blocks, Relaxed);
        }
        self.scraped_at_ms.store(now_ms.max(1), Relaxed);
        self.healthy.store(true, Relaxed);
    }

    /// Marks the endpoint as one that does not answer. Its last signals stay and age.
    pub fn mark_unhealthy(&self) {
        self.healthy.store(false, Relaxed);
    }

    /// Requests of ours in flight there.
    pub fn in_flight_requests(&self) -> u32 {
        self.in_flight_requests.load(Relaxed)
    }

    /// Waits until a request arrives at an endpoint that had none.
    pub async fn became_busy(&self) {
        self.became_busy.notified().await;
    }

    fn take(&self, tokens: u32) {
        self.in_flight_tokens.fetch_add(u64::from(tokens), Relaxed);
        if self.in_flight_requests.fetch_add(1, Relaxed) == 0 {
            self.became_busy.notify_one();
        }
    }

    fn release(&self, tokens: u32) {
        self.in_flight_requests.fetch_sub(1, Relaxed);
        self.in_flight_tokens.fetch_sub(u64::from(tokens), Relaxed);
    }
}

/// A request counted against an endpoint, for as long as this value lives.
#[derive(Debug)]
#[must_use = "dropping a lease releases it"]
pub struct Lease {
    /// Absent where the endpoint had gone before the lease was taken.
    cell: Option<Arc<LiveCell>>,
    tokens: u32,
}

impl Lease {
    pub(super) fn take(cell: Option<Arc<LiveCell>>, tokens: u32) -> Self {
        if let Some(cell) = &cell {
            cell.take(tokens);
        }
        Self { cell, tokens }
    }

    /// Goes on counting the request, and of its tokens no more than these: the rest is computed.
    pub fn keep_tokens(&mut self, tokens: u32) {
        let kept = self.tokens.min(tokens);
        if let Some(cell) = &self.cell {
            let computed = u64::from(self.tokens - kept);
            cell.in_flight_tokens.fetch_sub(computed, Relaxed);
        }
        self.tokens = kept;
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(cell) = &self.cell {
            cell.release(self.tokens);
        }
    }
}
