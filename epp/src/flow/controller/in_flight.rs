//! What was dispatched and has not ended: what no reading shows yet, and what may be stopped.
//!
//! Between the moment a request is dispatched and the moment it is counted against an endpoint no
//! reading of the pool knows of it. Until it is reported as placed, or for [`UNPLACED_MS`] at most,
//! it is *assumed*: the controller adds its weight to every reading.
//!
//! Requests that may be stopped are kept sorted by the eviction order. Stopping one frees room only
//! a while later, so at most [`REVOCATIONS_MAX`] are under way at a time, and each counts until its
//! request has ended and a fresh page can show it.

use std::cmp::Reverse;
use std::collections::{BTreeSet, VecDeque};

use rustc_hash::FxHashMap;

use super::super::eviction::{EvictionFilter, EvictionOrder};

/// Most requests in flight. At it nothing more is dispatched until one ends.
pub const IN_FLIGHT_MAX: usize = 1 << 18;

/// How long a request that nobody reports as placed is assumed.
pub const UNPLACED_MS: u64 = 1_000;

/// Most stops under way at a time.
pub const REVOCATIONS_MAX: usize = 2;

/// How long a stop counts after its request ended, so that a page can show the room it left.
const SETTLE_MS: u64 = 500;

/// How long a stop counts whose request does not end.
const REVOCATION_TIMEOUT_MS: u64 = 10_000;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct InFlight {
    running: FxHashMap<u64, Running>,
    evictable: BTreeSet<(i32, Reverse<u64>, u64)>,
    /// Until when each dispatched request is assumed, in the order of dispatches.
    unplaced: VecDeque<(u64, u64)>,
    unplaced_requests: u64,
    unplaced_bytes: u64,
    revocations: Vec<Revocation>,
    filter: EvictionFilter,
    order: EvictionOrder,
}

#[derive(Clone, Copy, Debug)]
struct Running {
    priority: i32,
    bytes: u64,
    since_ms: u64,
    placed: bool,
}

#[derive(Clone, Copy, Debug)]
struct Revocation {
    ticket: u64,
    counts_until_ms: u64,
}

impl InFlight {
    pub(super) fn len(&self) -> usize {
        self.running.len()
    }

    pub(super) fn is_full(&self) -> bool {
        self.running.len() >= IN_FLIGHT_MAX
    }

    /// Notes a dispatch.
    pub(super) fn begin(&mut self, ticket: u64, priority: i32, bytes: u64, now_ms: u64) {
        let running = Running {
            priority,
            bytes,
            since_ms: now_ms,
            placed: false,
        };
        self.running.insert(ticket, running);
        self.unplaced.push_back((now_ms + UNPLACED_MS, ticket));
        self.unplaced_requests += 1;
        self.unplaced_bytes += bytes;
        if self.filter.accepts(priority) {
            self.evictable.insert(self.key(ticket, &running));
        }
    }

    /// Notes that readings show the request from now on.
    pub(super) fn placed(&mut self, ticket: u64) {
        if let Some(running) = self.running.get_mut(&ticket)
            && !running.placed
        {
            running.placed = true;
            self.unplaced_requests -= 1;
            self.unplaced_bytes -= running.bytes;
        }
    }

    /// Notes the end of a request; false where it is not known.
    pub(super) fn end(&mut self, ticket: u64, now_ms: u64) -> bool {
        self.placed(ticket);
        let Some(running) = self.running.remove(&ticket) else {
            return false;
        };
        self.evictable.remove(&self.key(ticket, &running));
        for revocation in &mut self.revocations {
            if revocation.ticket == ticket {
                revocation.counts_until_ms = now_ms + SETTLE_MS;
            }
        }
        true
    }

    /// Requests and bytes that no reading shows yet.
    pub(super) fn assumed(&mut self, now_ms: u64) -> (u64, u64) {
        while let Some((until_ms, ticket)) = self.unplaced.front().copied() {
            let gone = self
                .running
                .get(&ticket)
                .is_none_or(|running| running.placed);
            if !gone && until_ms > now_ms {
                break;
            }
            self.placed(ticket);
            self.unplaced.pop_front();
        }
        (self.unplaced_requests, self.unplaced_bytes)
    }

    /// When the oldest assumption ends by itself.
    pub(super) fn assumed_until_ms(&self) -> Option<u64> {
        let oldest = self.unplaced.front().map(|(until_ms, _)| *until_ms);
        oldest.filter(|_| self.unplaced_requests > 0)
    }

    /// The next request to stop for `waiting` requests of `priority`, if any may be.
    pub(super) fn revoke(&mut self, priority: i32, waiting: u64, now_ms: u64) -> Option<u64> {
        self.revocations
            .retain(|revocation| revocation.counts_until_ms > now_ms);
        let under_way = self.revocations.len();
        if under_way >= REVOCATIONS_MAX || under_way as u64 >= waiting {
            return None;
        }
        let (victim, since, ticket) = self.evictable.first().copied()?;
        if victim >= priority {
            return None;
        }
        self.evictable.remove(&(victim, since, ticket));
        self.revocations.push(Revocation {
            ticket,
            counts_until_ms: now_ms + REVOCATION_TIMEOUT_MS,
        });
        Some(ticket)
    }

    fn key(&self, ticket: u64, running: &Running) -> (i32, Reverse<u64>, u64) {
        let (priority, since) = self.order.key(running.priority, running.since_ms);
        (priority, since, ticket)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_placed_ended_or_forgotten_is_no_longer_assumed() {
        let mut in_flight = InFlight::default();
        for ticket in 0..4 {
            in_flight.begin(ticket, 0, 10, 100);
        }
        assert_eq!(in_flight.assumed(100), (4, 40));
        in_flight.placed(1);
        in_flight.placed(1);
        assert!(in_flight.end(2, 100));
        assert!(!in_flight.end(2, 100));
        assert_eq!(in_flight.assumed(1_099), (2, 20));
        assert_eq!(in_flight.assumed_until_ms(), Some(1_100));
        assert_eq!(in_flight.assumed(1_100), (0, 0));
        assert_eq!(in_flight.assumed_until_ms(), None);
        assert_eq!(in_flight.len(), 3);
    }

    #[test]
    fn the_lowest_and_youngest_is_stopped_first_and_only_two_at_a_time() {
        let mut in_flight = InFlight::default();
        for (ticket, priority, since_ms) in [(1, -1, 10), (2, -2, 10), (3, -2, 20), (4, 0, 30)] {
            in_flight.begin(ticket, priority, 1, since_ms);
        }
        assert_eq!(in_flight.revoke(-2, 9, 40), None);
        assert_eq!(in_flight.revoke(0, 9, 40), Some(3));
        assert_eq!(in_flight.revoke(0, 9, 40), Some(2));
        assert_eq!(in_flight.revoke(0, 9, 40), None);
        // The first ends; its room counts as taken until a page can show it.
        in_flight.end(3, 50);
        assert_eq!(in_flight.revoke(0, 9, 549), None);
        assert_eq!(in_flight.revoke(0, 9, 550), Some(1));
        // The second never ends and stops counting after its timeout; nothing is left to stop.
        assert_eq!(in_flight.revoke(0, 9, 10_550), None);
        assert!(in_flight.evictable.is_empty());
    }
}
