//! What endpoints hold by our own picks: for engines that send no KV events, for prompts without
//! token ids, and for the moments until events arrive.
//!
//! An endpoint that was sent a prompt has it in its cache a moment later, so the picks alone say
//! much. This index is told each pick and keeps, for every endpoint, a cache of prompts that works
//! like the endpoint's own:
//!
//! - `keys`: prompts are keyed by their text, so it answers without a tokenizer, past its deadline
//!   and with its queue full, and the same whether or not ids came for one request.
//! - `beliefs`: a least-recently-used cache per endpoint, as large as the endpoint says its own is,
//!   that loses the tail of a chain before its head. What is believed held is contiguous.
//! - `correction`: the worker's own count of cached tokens takes away what it has evicted.
//! - [`speculative`](super::speculative): a pick whose response has not started, or whose events are
//!   still on their way, counts for endpoints with events as well.
//!
//! All of it is the pure `Picks`, in one lock. A request takes it for a lookup, for its pick and
//! for its end, which together are some 3 µs at 8 endpoints and 7 µs at 256, because all cost by
//! runs of blocks; the hashing of the prompt stays outside. So the lock is free five sixths of the
//! time at 25,000 requests a second, and one tree can share keys and bound among all endpoints.

mod beliefs;
mod correction;
mod keys;
mod picks;
mod recency;
mod runs;
mod slab;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use parking_lot::Mutex;

use crate::fleet::{Endpoint, EndpointId, Fleet, Generation, Live, Matches};
use picks::Picks;

pub use keys::{BLOCK_BYTES, BLOCK_TOKENS, PROMPT_BLOCKS_MAX, TextKeys};
pub use picks::{Belief, Corrected, ENDPOINT_BLOCKS_DEFAULT, PickLimits, PickStats, Reported};

/// Blocks of endpoints that left, freed in one go while the membership is quiet.
const RECLAIMED_AT_ONCE: usize = 16_384;

/// See the module.
#[derive(Debug)]
pub struct ApproximateIndex {
    picks: Mutex<Picks>,
    counters: Counters,
}

/// What happened since the start.
#[derive(Debug, Default)]
pub struct Counters {
    /// Responses that had clearly less cached than was believed.
    pub shortfalls: AtomicU64,
    /// Blocks no longer believed held because responses said so.
    pub corrected_blocks: AtomicU64,
    /// Picks whose prompts were taken back because their requests came to nothing.
    pub failed_picks: AtomicU64,
}

impl Counters {
    /// Adds what another index has counted.
    pub fn add(&self, other: &Self) {
        for (sum, more) in [
            (&self.shortfalls, &other.shortfalls),
            (&self.corrected_blocks, &other.corrected_blocks),
            (&self.failed_picks, &other.failed_picks),
        ] {
            sum.fetch_add(more.load(Relaxed), Relaxed);
        }
    }
}

impl ApproximateIndex {
    /// An empty index.
    pub fn new(limits: PickLimits) -> Self {
        Self {
            picks: Mutex::new(Picks::new(limits)),
            counters: Counters::default(),
        }
    }

    /// Adds to `out` the tokens of a prompt that each endpoint is believed to hold: all that is
    /// believed of endpoints without events; of those whose events are followed only what pending
    /// picks promise, because the events have said the rest.
    pub fn matches(
        &self,
        keys: &TextKeys,
        prompt_tokens: u32,
        now_ms: u64,
        is_followed: impl Fn(EndpointId, Generation) -> bool,
        out: &mut Matches,
    ) {
        let found = |endpoint, generation, blocks, is_confirmed| {
            let tokens = keys.tokens_of(blocks, prompt_tokens);
            if is_confirmed {
                out.record(endpoint, generation, tokens, tokens);
            } else {
                out.promise(endpoint, generation, tokens);
            }
        };
        let picks = self.picks.lock();
        picks.find(keys.keys(), now_ms, is_followed, found);
    }

    /// Notes that a prompt is sent to an endpoint, and says what that one was believed to hold of
    /// it.
    pub fn record(&self, endpoint: &Endpoint, live: &Live, keys: &TextKeys, now_ms: u64) -> Belief {
        let Endpoint { id, generation, .. } = *endpoint;
        let mut picks = self.picks.lock();
        picks.record(id, generation, live, keys.keys(), now_ms)
    }

    /// The response to a pick started: the prompt has been computed.
    pub fn started(&self, belief: &Belief, now_ms: u64) {
        self.picks.lock().started(belief, now_ms);
    }

    /// A pick came to nothing: the request was refused, failed or served by another endpoint.
    pub fn failed(&self, belief: &Belief) {
        self.counters.failed_picks.fetch_add(1, Relaxed);
        self.picks.lock().failed(belief);
    }

    /// A worker said how much of a prompt it had cached; of an endpoint whose events are followed
    /// there is nothing to learn from it.
    pub fn reported(&self, belief: &Belief, reported: &Reported) -> Corrected {
        let corrected = self.picks.lock().reported(belief, reported);
        let counters = &self.counters;
        let shortfalls = u64::from(corrected.is_shortfall);
        counters.shortfalls.fetch_add(shortfalls, Relaxed);
        let dropped = u64::from(corrected.dropped);
        counters.corrected_blocks.fetch_add(dropped, Relaxed);
        corrected
    }

    /// Forgets a generation of an endpoint whose engine left or started over.
    pub fn forget(&self, endpoint: EndpointId, generation: Generation) {
        self.picks.lock().forget(endpoint, generation);
    }

    /// Forgets endpoints as they leave the fleet; for as long as the fleet lives.
    pub async fn follow(self: Arc<Self>, fleet: Arc<Fleet>) {
        let mut membership = fleet.membership();
        drop(fleet);
        loop {
            let members = Arc::clone(&membership.borrow_and_update());
            let mut present: Vec<_> = members.iter().map(|one| (one.id, one.generation)).collect();
            present.sort_unstable();
            let is_present = |id, generation| present.binary_search(&(id, generation)).is_ok();
            self.picks.lock().retain(is_present);
            while self.reclaim() {
                tokio::task::yield_now().await;
            }
            if membership.changed().await.is_err() {
                return;
            }
        }
    }

    /// The counts as they are.
    pub fn stats(&self) -> PickStats {
        self.picks.lock().stats()
    }

    /// What happened since the start.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    fn reclaim(&self) -> bool {
        self.picks.lock().reclaim(RECLAIMED_AT_ONCE)
    }
}
