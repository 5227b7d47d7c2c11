//! The controller: which request waits, which goes, which is refused. A pure state machine.
//!
//! Requests wait in bands by priority, in flows by fairness id within a band, sorted by the band's
//! ordering within a flow. [`Controller::on_capacity`] takes a reading of the pool and dispatches
//! while the policy allows it, and each dispatch adds its own weight to the reading, so a burst
//! fills the pool and no more.
//!
//! Between bands priority is strict: while a band waits for its ceiling, none below it goes. A band
//! with a share is the exception. Each dispatch of a higher band while it waits and is open earns
//! it that share of a dispatch, and a whole one is its turn; the count ends when nothing waits.
//!
//! Time comes in as milliseconds of one monotonic line. [`Controller::next_deadline`] says when
//! something happens by itself, so whoever drives it needs one timer and no tick.

mod band;
mod in_flight;
mod queue;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use rustc_hash::FxHashMap;

pub use band::{FLOWS_MAX, FlowQueue};
pub use in_flight::{IN_FLIGHT_MAX, REVOCATIONS_MAX, UNPLACED_MS};

use self::band::{Band, Place};
use self::in_flight::InFlight;
use super::fairness::ledger::Ledger;
use super::outcome::{Cause, FlowRefusal, Outcome};
use super::saturation::Saturation;
use super::settings::{FlowSettings, SHARES_MAX_PPM, WHOLE_PPM};

/// Most bands. Requests of further priorities wait in the next lower band, or in the lowest.
pub const BANDS_MAX: usize = 64;

/// How long a band that the configuration does not name stays known after its last request. While
/// it does, policies that rank bands keep room for it.
pub const BAND_IDLE_MS: u64 = 600_000;

/// A request that wants to go.
#[derive(Clone, PartialEq, Debug)]
pub struct Item {
    /// Unique among all that wait or are in flight.
    pub ticket: u64,
    /// Higher is more urgent; below 0 is sheddable.
    pub priority: i32,
    pub fairness_id: Arc<str>,
    /// Size of its body.
    pub bytes: u64,
    /// How long it waits at most, in place of every configured bound, counted from its arrival in
    /// the queue.
    pub ttl_ms: Option<u64>,
    pub arrived_ms: u64,
    /// For `edf-ordering-policy`; without it the end of its wait counts.
    pub deadline_ms: Option<u64>,
    /// For `slo-deadline-ordering-policy`.
    pub slo_ttft_ms: Option<f64>,
}

/// What is to be done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Decision {
    /// The request goes now. It is in flight until [`Controller::on_finished`].
    Dispatch { ticket: u64, waited_ms: u64 },
    /// The request waited and is refused.
    Refuse {
        ticket: u64,
        cause: Cause,
        waited_ms: u64,
    },
    /// The request is in flight and is to be stopped; it stays in flight until it has ended.
    Evict { ticket: u64 },
}

/// See the module.
#[derive(Debug)]
pub struct Controller {
    settings: FlowSettings,
    bands: BTreeMap<i32, Band>,
    items: FxHashMap<u64, Waiting>,
    expiry: BTreeSet<(u64, u64)>,
    ledgers: BTreeMap<Arc<str>, Ledger>,
    in_flight: InFlight,
    requests: u64,
    bytes: u64,
    pool: PoolState,
    sequence: u64,
    counts: [u64; Outcome::ALL.len()],
    evicted_in_flight: u64,
    shut_down: bool,
    last: Saturation,
    /// Of all bands, the highest first.
    priorities: Vec<i32>,
    ceilings: Vec<f64>,
}

/// A request that waits.
#[derive(Debug)]
struct Waiting {
    item: Item,
    /// The band it waits in: its priority, unless there were too many bands.
    band: i32,
    flow: u32,
    place: Place,
    enqueued_ms: u64,
    expires_ms: Option<u64>,
}

/// Whether the pool has endpoints, and since when it is so.
#[derive(Clone, Copy, Debug)]
struct PoolState {
    empty: bool,
    since_ms: u64,
}

enum Choice {
    Dispatch(i32),
    /// The band of this priority waits for its ceiling.
    Held(i32),
    Nothing,
}

impl Controller {
    /// A controller of a pool that is taken to have endpoints until a reading says otherwise.
    pub fn new(settings: FlowSettings, now_ms: u64) -> Self {
        let mut controller = Self {
            settings: FlowSettings::default(),
            bands: BTreeMap::new(),
            items: FxHashMap::default(),
            expiry: BTreeSet::new(),
            ledgers: BTreeMap::new(),
            in_flight: InFlight::default(),
            requests: 0,
            bytes: 0,
            pool: PoolState {
                empty: false,
                since_ms: 0,
            },
            sequence: 0,
            counts: [0; Outcome::ALL.len()],
            evicted_in_flight: 0,
            shut_down: false,
            last: Saturation::EMPTY,
            priorities: Vec::new(),
            ceilings: Vec::new(),
        };
        controller.set_settings(now_ms, settings);
        controller
    }

    /// Queues a request, or says why not. Waiting requests that have to make room for it are in
    /// `out`. It goes with the next [`on_capacity`](Self::on_capacity) that has room for it.
    pub fn enqueue(
        &mut self,
        now_ms: u64,
        item: Item,
        out: &mut Vec<Decision>,
    ) -> Result<(), Cause> {
        if self.shut_down {
            return Err(self.refused(Cause::ShuttingDown));
        }
        let priority = self.band_for(item.priority, now_ms);
        if !self.make_room(priority, item.bytes, now_ms, out) {
            let cause = if self.pool.empty {
                Cause::FullWithoutEndpoints
            } else {
                Cause::Full
            };
            return Err(self.refused(cause));
        }
        self.sequence += 1;
        self.queue(priority, item, now_ms, self.sequence, now_ms);
        Ok(())
    }

    /// Dispatches what may go at this reading of the pool, and refuses what has waited too long.
    pub fn on_capacity(&mut self, now_ms: u64, reading: &Saturation, out: &mut Vec<Decision>) {
        self.last = *reading;
        self.note_pool(reading.endpoints == 0, now_ms);
        self.expire(now_ms, out);
        let (requests, bytes) = self.in_flight.assumed(now_ms);
        if self.requests == 0 || self.pool.empty {
            return;
        }
        let weight = |requests: u64, bytes: u64| {
            requests as f64 * reading.per_request + bytes as f64 * reading.per_byte
        };
        let mut saturation = reading.effective + weight(requests, bytes);
        if saturation.is_nan() {
            saturation = 1.0;
        }
        while !self.in_flight.is_full() {
            match self.choose(saturation) {
                Choice::Dispatch(priority) => {
                    let Some(bytes) = self.dispatch(priority, now_ms, out) else {
                        return;
                    };
                    saturation += weight(1, bytes);
                }
                Choice::Held(priority) => {
                    self.revoke(priority, now_ms, out);
                    return;
                }
                Choice::Nothing => return,
            }
        }
    }

    /// Takes a waiting request back, because its client went away. False where it does not wait.
    pub fn cancel(&mut self, ticket: u64, now_ms: u64) -> bool {
        let known = self.take(ticket, now_ms).is_some();
        if known {
            self.refused(Cause::Cancelled);
        }
        known
    }

    /// Refuses what has waited for as long as it may.
    pub fn expire(&mut self, now_ms: u64, out: &mut Vec<Decision>) {
        while let Some((expires_ms, ticket)) = self.expiry.first().copied()
            && expires_ms <= now_ms
        {
            let own = self
                .items
                .get(&ticket)
                .is_some_and(|waiting| waiting.item.ttl_ms.is_some());
            let cause = match (self.pool.empty, own) {
                (true, true) => Cause::ExpiredWithoutEndpoints,
                (true, false) => Cause::NoEndpoints,
                (false, _) => Cause::Expired,
            };
            self.refuse(ticket, cause, now_ms, out);
        }
    }

    /// When something is due without anything else happening: a request will have waited too long,
    /// or an assumption about one in flight ends and others may go.
    pub fn next_deadline(&self) -> Option<u64> {
        if self.requests == 0 {
            return None;
        }
        let expiry = self.expiry.first().map(|(expires_ms, _)| *expires_ms);
        let assumed = self.in_flight.assumed_until_ms();
        expiry.into_iter().chain(assumed).min()
    }

    /// Notes that a dispatched request is counted against its endpoint, so that readings show it.
    pub fn on_placed(&mut self, ticket: u64) {
        self.in_flight.placed(ticket);
    }

    /// Notes that a dispatched request has ended, however it did.
    pub fn on_finished(&mut self, ticket: u64, now_ms: u64) {
        self.in_flight.end(ticket, now_ms);
    }

    /// Counts what a program was given, for the fairness policies that look at it.
    pub fn on_served(
        &mut self,
        fairness_id: &Arc<str>,
        input_tokens: u64,
        output_tokens: u64,
        now_ms: u64,
    ) {
        let tokens = input_tokens as f64 + 2.0 * output_tokens as f64;
        for ledger in self.ledgers.values_mut() {
            ledger.served(fairness_id, tokens, now_ms);
        }
    }

    /// Refuses all that wait and all that come after.
    pub fn shut_down(&mut self, now_ms: u64, out: &mut Vec<Decision>) {
        self.shut_down = true;
        for ticket in self.tickets_in_order() {
            self.refuse(ticket, Cause::ShutDown, now_ms, out);
        }
    }

    /// Dispatches all that wait, the most urgent first, whatever the load: flow control is switched
    /// off.
    pub fn release_all(&mut self, now_ms: u64, out: &mut Vec<Decision>) {
        for priority in self.priorities.clone() {
            while self.dispatch(priority, now_ms, out).is_some() {}
        }
    }

    /// Requests that wait.
    pub fn waiting(&self) -> u64 {
        self.requests
    }

    /// The band that goes next at this saturation. A choice to dispatch is final: shares are
    /// counted.
    fn choose(&mut self, saturation: f64) -> Choice {
        let usage = &mut self.settings.usage_limit;
        usage.ceilings(saturation, &self.priorities, &mut self.ceilings);
        let bands = self.bands.iter_mut().rev().zip(&self.ceilings);
        let mut waiting = bands.filter(|((_, band), _)| band.requests > 0);
        let Some(((top, _), ceiling)) = waiting.next() else {
            return Choice::Nothing;
        };
        if saturation >= *ceiling {
            return Choice::Held(*top);
        }
        let mut with_share: smallvec::SmallVec<[(i32, &mut Band); 8]> = waiting
            .filter(|((_, band), ceiling)| band.settings.share_ppm > 0 && saturation < **ceiling)
            .map(|((priority, band), _)| (*priority, band))
            .collect();
        let shares: u64 = with_share
            .iter()
            .map(|(_, band)| band.settings.share_ppm)
            .sum();
        let mut next = *top;
        for (priority, band) in with_share.iter_mut().rev() {
            let share = band.settings.share_ppm;
            band.credit_ppm += if shares > SHARES_MAX_PPM {
                share * SHARES_MAX_PPM / shares
            } else {
                share
            };
            if band.credit_ppm >= WHOLE_PPM {
                next = *priority;
            }
        }
        for (priority, band) in &mut with_share {
            if *priority == next {
                band.credit_ppm -= WHOLE_PPM;
            }
        }
        Choice::Dispatch(next)
    }

    /// Dispatches the next request of a band; returns its bytes.
    fn dispatch(&mut self, priority: i32, now_ms: u64, out: &mut Vec<Decision>) -> Option<u64> {
        let band = self.bands.get_mut(&priority)?;
        let name = band.settings.fairness.ledger();
        let ledger = name.and_then(|name| self.ledgers.get_mut(name));
        let ticket = band.next(ledger.as_deref())?;
        let waiting = self.items.get(&ticket)?;
        let waited_ms = now_ms.saturating_sub(waiting.enqueued_ms);
        band.took_turn(waiting.flow, waited_ms, ledger);
        let taken = self.take(ticket, now_ms)?;
        let item = taken.item;
        self.in_flight
            .begin(ticket, item.priority, item.bytes, now_ms);
        self.count(Outcome::Dispatched);
        out.push(Decision::Dispatch { ticket, waited_ms });
        Some(item.bytes)
    }

    /// Stops requests in flight for the sake of one of `priority` that waits.
    fn revoke(&mut self, priority: i32, now_ms: u64, out: &mut Vec<Decision>) {
        if !self.settings.eviction {
            return;
        }
        let waiting = self.bands.get(&priority).map_or(0, |band| band.requests);
        while let Some(ticket) = self.in_flight.revoke(priority, waiting, now_ms) {
            self.evicted_in_flight += 1;
            out.push(Decision::Evict { ticket });
        }
    }

    fn refused(&mut self, cause: Cause) -> Cause {
        self.count(FlowRefusal::from(cause).outcome);
        cause
    }

    fn count(&mut self, outcome: Outcome) {
        if let Some(count) = self.counts.get_mut(outcome as usize) {
            *count += 1;
        }
    }
}
