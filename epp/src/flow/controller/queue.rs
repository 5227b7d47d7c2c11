//! The controller's queues: bands that come and go, room, bounds on waiting, and other settings.

use std::sync::Arc;

use super::super::eviction::EvictionFilter;
use super::super::fairness::Fairness;
use super::super::fairness::ledger::Ledger;
use super::super::ordering::Urgency;
use super::super::outcome::{Cause, Outcome};
use super::super::settings::FlowSettings;
use super::super::view::{BandView, FairnessView, FlowView};
use super::band::{Band, Entry};
use super::{BAND_IDLE_MS, BANDS_MAX, Controller, Decision, Item, PoolState, Waiting};

impl Controller {
    /// Takes over other settings. What waits keeps waiting, in its order of arrival where the new
    /// ordering has no other opinion; what is over a new limit stays, and nothing joins it until
    /// there is room.
    pub fn set_settings(&mut self, now_ms: u64, settings: FlowSettings) {
        let mut waiting: Vec<Waiting> = self.items.drain().map(|(_, waiting)| waiting).collect();
        waiting.sort_unstable_by_key(|waiting| waiting.place.1);
        let bands = std::mem::take(&mut self.bands);
        for band in bands.values() {
            let name = band.settings.fairness.ledger();
            band.close(name.and_then(|name| self.ledgers.get_mut(name)), now_ms);
        }
        self.expiry.clear();
        self.requests = 0;
        self.bytes = 0;
        self.settings = settings;
        self.renew_ledgers(now_ms);
        for (priority, band) in &self.settings.bands {
            let band = Band::new(band.clone(), true, now_ms);
            self.bands.insert(*priority, band);
        }
        for (priority, old) in bands {
            let fresh = self.bands.entry(priority).or_insert_with(|| {
                let settings = self.settings.band(priority).clone();
                Band::new(settings, false, now_ms)
            });
            fresh.credit_ppm = old.credit_ppm;
            fresh.idle_since_ms = old.idle_since_ms;
        }
        self.list_priorities();
        for one in waiting {
            self.queue(one.band, one.item, one.enqueued_ms, one.place.1, now_ms);
        }
    }

    /// What the status page and the metrics page show.
    pub fn view(&self, now_ms: u64) -> FlowView {
        let bands = self.bands.iter().rev().enumerate();
        FlowView {
            flow_control: true,
            saturation: self.last,
            requests: self.requests,
            bytes: self.bytes,
            max_requests: self.settings.max_requests,
            max_bytes: self.settings.max_bytes,
            in_flight: self.in_flight.len() as u64,
            evicted_in_flight: self.evicted_in_flight,
            outcomes: Outcome::ALL.into_iter().zip(self.counts).collect(),
            bands: bands
                .map(|(rank, (priority, band))| BandView {
                    priority: *priority,
                    requests: band.requests,
                    bytes: band.bytes,
                    max_requests: band.settings.max_requests,
                    max_bytes: band.settings.max_bytes,
                    fairness: band.settings.fairness.type_name(),
                    ordering: band.settings.ordering.type_name(),
                    ceiling: self.ceilings.get(rank).copied(),
                    flows: band.queues(),
                })
                .collect(),
            fairness: self
                .ledgers
                .iter()
                .map(|(plugin, ledger)| FairnessView {
                    plugin: Arc::clone(plugin),
                    jains_index: ledger.jains_index(),
                    programs: ledger.programs(now_ms),
                })
                .collect(),
        }
    }

    /// The band that a priority waits in, made where it does not exist.
    pub(super) fn band_for(&mut self, priority: i32, now_ms: u64) -> i32 {
        if self.bands.contains_key(&priority) {
            return priority;
        }
        self.bands.retain(|_, band| {
            let idle = now_ms.saturating_sub(band.idle_since_ms) >= BAND_IDLE_MS;
            band.configured || band.requests > 0 || !idle
        });
        let mut chosen = priority;
        if self.bands.len() >= BANDS_MAX {
            let lower = self.bands.range(..priority).next_back();
            let lowest = || self.bands.first_key_value();
            chosen = lower
                .or_else(lowest)
                .map_or(priority, |(existing, _)| *existing);
        }
        if !self.bands.contains_key(&chosen) {
            let settings = self.settings.band(chosen).clone();
            self.bands
                .insert(chosen, Band::new(settings, false, now_ms));
        }
        self.list_priorities();
        chosen
    }

    /// Makes sure that a request of `bytes` may join the band `priority`. Where eviction is on and
    /// the limits over all bands stand in the way, sheddable requests of lower bands are refused,
    /// the lowest band first and in it the one that would go last; but none where that would not
    /// suffice.
    pub(super) fn make_room(
        &mut self,
        priority: i32,
        bytes: u64,
        now_ms: u64,
        out: &mut Vec<Decision>,
    ) -> bool {
        let band = self.bands.get(&priority);
        if !band.is_some_and(|band| band.has_room(bytes)) {
            return false;
        }
        if self.is_within_limits(bytes) {
            return true;
        }
        let filter = EvictionFilter::default();
        let evictable = |of: &i32| self.settings.eviction && *of < priority && filter.accepts(*of);
        let lower = self.bands.iter().filter(|(of, _)| evictable(of));
        let (requests, freed) = lower.fold((0, 0), |(requests, freed), (_, band)| {
            (requests + band.requests, freed + band.bytes)
        });
        let max_requests = self.settings.max_requests.unwrap_or(u64::MAX);
        let max_bytes = self.settings.max_bytes.unwrap_or(u64::MAX);
        let suffices = self.requests - requests < max_requests
            && (self.bytes - freed).saturating_add(bytes) <= max_bytes;
        if !suffices {
            return false;
        }
        while !self.is_within_limits(bytes) {
            let victim = self.bands.values().find_map(Band::last);
            let Some(ticket) = victim else {
                return false;
            };
            self.refuse(ticket, Cause::QueuePressure, now_ms, out);
        }
        true
    }

    /// Puts a request into its band.
    pub(super) fn queue(
        &mut self,
        priority: i32,
        item: Item,
        enqueued_ms: u64,
        sequence: u64,
        now_ms: u64,
    ) {
        let pool = self.pool;
        let no_endpoint_ttl_ms = self.settings.no_endpoint_ttl_ms;
        let Some(band) = self.bands.get_mut(&priority) else {
            return;
        };
        let ttl_ms = band.settings.ttl_ms;
        let urgency = Urgency {
            arrived_ms: item.arrived_ms,
            deadline_ms: item
                .deadline_ms
                .or(expiry(&item, enqueued_ms, ttl_ms, enqueued_ms)),
            slo_ttft_ms: item.slo_ttft_ms,
        };
        let place = (band.settings.ordering.key(&urgency), sequence);
        let entry = Entry {
            ticket: item.ticket,
            place,
            bytes: item.bytes,
            arrived_ms: item.arrived_ms,
        };
        let name = band.settings.fairness.ledger();
        let ledger = name.and_then(|name| self.ledgers.get_mut(name));
        let flow = band.insert(&item.fairness_id, entry, ledger, now_ms);
        let ttl_ms = if pool.empty {
            no_endpoint_ttl_ms
        } else {
            ttl_ms
        };
        let expires_ms = expiry(&item, enqueued_ms, ttl_ms, pool.since_ms);
        if let Some(expires_ms) = expires_ms {
            self.expiry.insert((expires_ms, item.ticket));
        }
        self.requests += 1;
        self.bytes += item.bytes;
        let waiting = Waiting {
            band: priority,
            flow,
            place,
            enqueued_ms,
            expires_ms,
            item,
        };
        self.items.insert(waiting.item.ticket, waiting);
    }

    /// Takes a waiting request out of everything it stands in.
    pub(super) fn take(&mut self, ticket: u64, now_ms: u64) -> Option<Waiting> {
        let waiting = self.items.remove(&ticket)?;
        if let Some(band) = self.bands.get_mut(&waiting.band) {
            let name = band.settings.fairness.ledger();
            let ledger = name.and_then(|name| self.ledgers.get_mut(name));
            let bytes = waiting.item.bytes;
            band.remove(waiting.flow, waiting.place, bytes, ledger, now_ms);
        }
        if let Some(expires_ms) = waiting.expires_ms {
            self.expiry.remove(&(expires_ms, ticket));
        }
        self.requests -= 1;
        self.bytes -= waiting.item.bytes;
        Some(waiting)
    }

    /// Refuses a waiting request.
    pub(super) fn refuse(
        &mut self,
        ticket: u64,
        cause: Cause,
        now_ms: u64,
        out: &mut Vec<Decision>,
    ) {
        if let Some(waiting) = self.take(ticket, now_ms) {
            let waited_ms = now_ms.saturating_sub(waiting.enqueued_ms);
            out.push(Decision::Refuse {
                ticket,
                cause: self.refused(cause),
                waited_ms,
            });
        }
    }

    /// Takes over whether the pool has endpoints. When that changes, every request that waits has
    /// the new state's whole bound before it: a pool that scaled up from nothing serves those that
    /// waited for it. This is the one step that is linear in what waits.
    pub(super) fn note_pool(&mut self, empty: bool, now_ms: u64) {
        if self.pool.empty == empty {
            return;
        }
        self.pool = PoolState {
            empty,
            since_ms: now_ms,
        };
        self.expiry.clear();
        for (ticket, waiting) in &mut self.items {
            let ttl_ms = if empty {
                self.settings.no_endpoint_ttl_ms
            } else {
                let band = self.bands.get(&waiting.band);
                band.and_then(|band| band.settings.ttl_ms)
            };
            waiting.expires_ms = expiry(&waiting.item, waiting.enqueued_ms, ttl_ms, now_ms);
            if let Some(expires_ms) = waiting.expires_ms {
                self.expiry.insert((expires_ms, *ticket));
            }
        }
    }

    /// The tickets that wait, in their order of arrival.
    pub(super) fn tickets_in_order(&self) -> Vec<u64> {
        let mut tickets: Vec<(u64, u64)> = self
            .items
            .iter()
            .map(|(ticket, waiting)| (waiting.place.1, *ticket))
            .collect();
        tickets.sort_unstable();
        tickets.into_iter().map(|(_, ticket)| ticket).collect()
    }

    fn is_within_limits(&self, bytes: u64) -> bool {
        let max_requests = self.settings.max_requests.unwrap_or(u64::MAX);
        let max_bytes = self.settings.max_bytes.unwrap_or(u64::MAX);
        self.requests < max_requests && self.bytes.saturating_add(bytes) <= max_bytes
    }

    fn list_priorities(&mut self) {
        self.priorities.clear();
        self.priorities.extend(self.bands.keys().rev());
    }

    /// Keeps the ledgers that the settings refer to, with what they know, and makes new ones.
    fn renew_ledgers(&mut self, now_ms: u64) {
        let mut old = std::mem::take(&mut self.ledgers);
        for fairness in self.settings.fairness() {
            if let Fairness::ProgramAware { ledger, parameters } = fairness
                && !self.ledgers.contains_key(ledger)
            {
                let kept = old.remove(ledger).map(|mut kept| {
                    kept.set_parameters(parameters, now_ms);
                    kept
                });
                let kept = kept.unwrap_or_else(|| Ledger::new(parameters, now_ms));
                self.ledgers.insert(Arc::clone(ledger), kept);
            }
        }
    }
}

/// When a request will have waited for as long as it may. A bound of its own counts from its
/// arrival in the queue; a configured one starts anew when the pool's state changes.
fn expiry(item: &Item, enqueued_ms: u64, ttl_ms: Option<u64>, since_ms: u64) -> Option<u64> {
    match item.ttl_ms {
        Some(own) => Some(enqueued_ms.saturating_add(own)),
        None => ttl_ms.map(|ttl_ms| enqueued_ms.max(since_ms).saturating_add(ttl_ms)),
    }
}
