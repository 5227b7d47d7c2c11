//! The controller once more, as a list that is scanned for every question.

use std::collections::{BTreeMap, BTreeSet};

use super::super::super::ordering::Urgency;
use super::*;

pub(super) struct Waits {
    pub(super) item: Item,
    sequence: u64,
    enqueued_ms: u64,
    expires_ms: Option<u64>,
}

pub(super) struct Model {
    pub(super) settings: FlowSettings,
    pub(super) waiting: Vec<Waits>,
    pub(super) in_flight: Vec<Flies>,
    known: BTreeSet<i32>,
    /// The flows of each band in the order of their turns.
    rows: BTreeMap<i32, Vec<Arc<str>>>,
    credits: BTreeMap<i32, u64>,
    empty: bool,
    since_ms: u64,
    sequence: u64,
}

pub(super) struct Flies {
    item: Item,
    since_ms: u64,
    placed: bool,
}

impl Model {
    pub(super) fn new(settings: FlowSettings) -> Self {
        let known = settings.bands.iter().map(|(priority, _)| *priority);
        Self {
            known: known.collect(),
            settings,
            waiting: Vec::new(),
            in_flight: Vec::new(),
            rows: BTreeMap::new(),
            credits: BTreeMap::new(),
            empty: false,
            since_ms: 0,
            sequence: 0,
        }
    }

    pub(super) fn enqueue(
        &mut self,
        now_ms: u64,
        item: Item,
        out: &mut Vec<Decision>,
    ) -> Result<(), Cause> {
        self.known.insert(item.priority);
        if !self.make_room(&item, now_ms, out) {
            return Err(if self.empty {
                Cause::FullWithoutEndpoints
            } else {
                Cause::Full
            });
        }
        self.sequence += 1;
        self.join_row(item.priority, &item.fairness_id);
        let expires_ms = self.expires(&item, now_ms);
        self.waiting.push(Waits {
            item,
            sequence: self.sequence,
            enqueued_ms: now_ms,
            expires_ms,
        });
        Ok(())
    }

    pub(super) fn look(&mut self, now_ms: u64, reading: &Saturation, out: &mut Vec<Decision>) {
        if self.empty != (reading.endpoints == 0) {
            self.empty = !self.empty;
            self.since_ms = now_ms;
            self.renew_expiry();
        }
        self.expire(now_ms, out);
        if self.empty {
            return;
        }
        let mut saturation = reading.effective;
        for one in &self.in_flight {
            if !one.placed && one.since_ms + UNPLACED_MS > now_ms {
                saturation += weight(&one.item, reading);
            }
        }
        while let Some(priority) = self.choose(saturation) {
            let at = self.next_of(priority);
            let one = self.waiting.remove(at);
            saturation += weight(&one.item, reading);
            let row = self.rows.entry(priority).or_default();
            row.retain(|flow| *flow != one.item.fairness_id);
            row.push(Arc::clone(&one.item.fairness_id));
            self.tidy(priority);
            out.push(Decision::Dispatch {
                ticket: one.item.ticket,
                waited_ms: now_ms - one.enqueued_ms,
            });
            self.in_flight.push(Flies {
                item: one.item,
                since_ms: now_ms,
                placed: false,
            });
        }
    }

    pub(super) fn cancel(&mut self, ticket: u64) {
        self.remove(ticket);
    }

    pub(super) fn placed(&mut self, ticket: u64) {
        let found = self.in_flight.iter_mut();
        for one in found.filter(|one| one.item.ticket == ticket) {
            one.placed = true;
        }
    }

    pub(super) fn finished(&mut self, ticket: u64) {
        self.in_flight.retain(|one| one.item.ticket != ticket);
    }

    pub(super) fn reload(&mut self, settings: FlowSettings) {
        self.settings = settings;
        self.rows.clear();
        self.waiting.sort_by_key(|one| one.sequence);
        for at in 0..self.waiting.len() {
            let item = self.waiting[at].item.clone();
            self.join_row(item.priority, &item.fairness_id);
        }
        self.renew_expiry();
    }

    pub(super) fn nth_waiting(&self, at: usize) -> Option<u64> {
        let count = self.waiting.len();
        (count > 0).then(|| self.waiting[at % count].item.ticket)
    }

    pub(super) fn nth_in_flight(&self, at: usize) -> Option<u64> {
        let count = self.in_flight.len();
        (count > 0).then(|| self.in_flight[at % count].item.ticket)
    }

    pub(super) fn is_sheddable_in_flight(&self, ticket: u64) -> bool {
        let mut found = self.in_flight.iter();
        found.any(|one| one.item.ticket == ticket && one.item.priority < 0)
    }

    fn make_room(&mut self, item: &Item, now_ms: u64, out: &mut Vec<Decision>) -> bool {
        let own = self.settings.band(item.priority);
        let (requests, bytes) = self.totals(|of| of == item.priority);
        if requests >= own.max_requests || bytes + item.bytes > own.max_bytes {
            return false;
        }
        let max_requests = self.settings.max_requests.unwrap();
        let max_bytes = self.settings.max_bytes.unwrap();
        let evictable = |of: i32| self.settings.eviction && of < 0 && of < item.priority;
        let (requests, bytes) = self.totals(|of| !evictable(of));
        if requests >= max_requests || bytes + item.bytes > max_bytes {
            return false;
        }
        loop {
            let (requests, bytes) = self.totals(|_| true);
            if requests < max_requests && bytes + item.bytes <= max_bytes {
                return true;
            }
            let lowest = self.waiting.iter().map(|one| one.item.priority).min();
            let in_lowest = self
                .waiting
                .iter()
                .filter(|one| Some(one.item.priority) == lowest);
            let victim = in_lowest.max_by_key(|one| self.place(one)).unwrap();
            let (ticket, waited_ms) = (victim.item.ticket, now_ms - victim.enqueued_ms);
            self.remove(ticket);
            out.push(Decision::Refuse {
                ticket,
                cause: Cause::QueuePressure,
                waited_ms,
            });
        }
    }

    fn expire(&mut self, now_ms: u64, out: &mut Vec<Decision>) {
        let due = self.waiting.iter().filter_map(|one| {
            let expires_ms = one.expires_ms.filter(|expires_ms| *expires_ms <= now_ms)?;
            Some((expires_ms, one.item.ticket))
        });
        let mut due: Vec<(u64, u64)> = due.collect();
        due.sort_unstable();
        for (_, ticket) in due {
            let one = self.remove(ticket);
            let cause = match (self.empty, one.item.ttl_ms) {
                (true, Some(_)) => Cause::ExpiredWithoutEndpoints,
                (true, None) => Cause::NoEndpoints,
                (false, _) => Cause::Expired,
            };
            out.push(Decision::Refuse {
                ticket,
                cause,
                waited_ms: now_ms - one.enqueued_ms,
            });
        }
    }

    fn choose(&mut self, saturation: f64) -> Option<i32> {
        let known: Vec<i32> = self.known.iter().rev().copied().collect();
        let mut ceilings = Vec::new();
        let limit = &mut self.settings.usage_limit;
        limit.ceilings(saturation, &known, &mut ceilings);
        let waits = |priority: i32| self.waiting.iter().any(|one| one.item.priority == priority);
        let open: Vec<(i32, bool)> = known
            .iter()
            .zip(ceilings)
            .filter(|(priority, _)| waits(**priority))
            .map(|(priority, ceiling)| (*priority, saturation < ceiling))
            .collect();
        let (top, true) = *open.first()? else {
            return None;
        };
        let shares: Vec<(i32, u64)> = open[1..]
            .iter()
            .filter(|(_, open)| *open)
            .map(|(priority, _)| (*priority, self.settings.band(*priority).share_ppm))
            .collect();
        for (priority, share) in &shares {
            *self.credits.entry(*priority).or_default() += share;
        }
        let turn = shares
            .iter()
            .map(|(priority, _)| *priority)
            .find(|priority| self.credits[priority] >= WHOLE_PPM);
        if let Some(priority) = turn {
            *self.credits.entry(priority).or_default() -= WHOLE_PPM;
        }
        Some(turn.unwrap_or(top))
    }

    fn next_of(&self, priority: i32) -> usize {
        let row = self.rows[&priority].first();
        let turns = self.settings.band(priority).fairness == Fairness::RoundRobin;
        let mut found: Vec<(Place, usize)> = self
            .waiting
            .iter()
            .enumerate()
            .filter(|(_, one)| one.item.priority == priority)
            .filter(|(_, one)| !turns || row == Some(&one.item.fairness_id))
            .map(|(at, one)| (self.place(one), at))
            .collect();
        found.sort_unstable();
        found[0].1
    }

    fn place(&self, one: &Waits) -> Place {
        let band = self.settings.band(one.item.priority);
        let end = one.item.ttl_ms.or(band.ttl_ms);
        let urgency = Urgency {
            arrived_ms: one.item.arrived_ms,
            deadline_ms: one
                .item
                .deadline_ms
                .or(end.map(|ttl_ms| one.enqueued_ms + ttl_ms)),
            slo_ttft_ms: one.item.slo_ttft_ms,
        };
        (band.ordering.key(&urgency), one.sequence)
    }

    fn expires(&self, item: &Item, enqueued_ms: u64) -> Option<u64> {
        let ttl_ms = if self.empty {
            self.settings.no_endpoint_ttl_ms
        } else {
            self.settings.band(item.priority).ttl_ms
        };
        match item.ttl_ms {
            Some(own) => Some(enqueued_ms + own),
            None => ttl_ms.map(|ttl_ms| enqueued_ms.max(self.since_ms) + ttl_ms),
        }
    }

    fn renew_expiry(&mut self) {
        for at in 0..self.waiting.len() {
            let one = &self.waiting[at];
            self.waiting[at].expires_ms = self.expires(&one.item, one.enqueued_ms);
        }
    }

    fn totals(&self, counts: impl Fn(i32) -> bool) -> (u64, u64) {
        let counted = self.waiting.iter().map(|one| &one.item);
        let counted = counted.filter(|item| counts(item.priority));
        counted.fold((0, 0), |(requests, bytes), item| {
            (requests + 1, bytes + item.bytes)
        })
    }

    fn join_row(&mut self, priority: i32, flow: &Arc<str>) {
        let row = self.rows.entry(priority).or_default();
        if !row.contains(flow) {
            row.push(Arc::clone(flow));
        }
    }

    fn remove(&mut self, ticket: u64) -> Waits {
        let at = self
            .waiting
            .iter()
            .position(|one| one.item.ticket == ticket);
        let one = self.waiting.remove(at.unwrap());
        self.tidy(one.item.priority);
        one
    }

    /// Drops the flows without requests from the row, and the credit of a band without any.
    fn tidy(&mut self, priority: i32) {
        let waiting = &self.waiting;
        let waits = |flow: &Arc<str>| {
            let mut found = waiting.iter();
            found.any(|one| one.item.priority == priority && one.item.fairness_id == *flow)
        };
        let row = self.rows.entry(priority).or_default();
        row.retain(waits);
        if row.is_empty() {
            self.credits.remove(&priority);
        }
    }
}

fn weight(item: &Item, reading: &Saturation) -> f64 {
    reading.per_request + item.bytes as f64 * reading.per_byte
}
