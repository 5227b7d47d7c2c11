//! One priority's waiting requests, sorted for every rule that may ask for them.
//!
//! Each request stands in two sorted maps, the band's and its flow's, and each flow once in the row
//! of turns. So adding, removing and choosing are logarithmic under every policy that compares
//! requests or turns; `program-aware-fairness` looks at each flow once.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::super::fairness::Fairness;
use super::super::fairness::ledger::{Ledger, OTHER};
use super::super::fairness::program_aware::{self, Standing};
use super::super::settings::BandSettings;

/// Most flows of one band. Requests of further fairness ids wait in one flow named
/// [`OTHER`].
pub const FLOWS_MAX: usize = 1_024;

/// Where a request stands: its ordering key, then the order in which requests were queued.
pub(super) type Place = (u64, u64);

/// One priority.
#[derive(Debug)]
pub(super) struct Band {
    pub(super) settings: BandSettings,
    /// Whether the configuration names it; the others go when they are unused.
    pub(super) configured: bool,
    pub(super) requests: u64,
    pub(super) bytes: u64,
    /// Dispatches that the band has a right to while higher ones wait, in millionths.
    pub(super) credit_ppm: u64,
    /// Since when nothing waits.
    pub(super) idle_since_ms: u64,
    order: BTreeMap<Place, u64>,
    flows: Vec<Option<Flow>>,
    free: Vec<u32>,
    names: HashMap<Arc<str>, u32>,
    turns: BTreeSet<(u64, u32)>,
    next_turn: u64,
}

/// One fairness id of one band, while it has waiting requests.
#[derive(Debug)]
struct Flow {
    id: Arc<str>,
    queue: BTreeMap<Place, Head>,
    bytes: u64,
    turn: u64,
    /// Its program's account, where the fairness policy keeps a ledger.
    account: Option<u32>,
    head: Head,
}

#[derive(Clone, Copy, Debug)]
struct Head {
    ticket: u64,
    arrived_ms: u64,
}

/// A request as the band needs to know it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    pub(super) ticket: u64,
    pub(super) place: Place,
    pub(super) bytes: u64,
    pub(super) arrived_ms: u64,
}

/// A flow as it is shown.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize)]
pub struct FlowQueue {
    pub fairness_id: Arc<str>,
    pub requests: u64,
    pub bytes: u64,
}

impl Band {
    pub(super) fn new(settings: BandSettings, configured: bool, now_ms: u64) -> Self {
        Self {
            settings,
            configured,
            requests: 0,
            bytes: 0,
            credit_ppm: 0,
            idle_since_ms: now_ms,
            order: BTreeMap::new(),
            flows: Vec::new(),
            free: Vec::new(),
            names: HashMap::new(),
            turns: BTreeSet::new(),
            next_turn: 0,
        }
    }

    /// Whether a request of `bytes` may wait here as well.
    pub(super) fn has_room(&self, bytes: u64) -> bool {
        self.requests < self.settings.max_requests
            && self.bytes.saturating_add(bytes) <= self.settings.max_bytes
    }

    /// Queues a request; returns the position of its flow.
    pub(super) fn insert(
        &mut self,
        id: &Arc<str>,
        entry: Entry,
        ledger: Option<&mut Ledger>,
        now_ms: u64,
    ) -> u32 {
        let at = self.flow(id, ledger, now_ms);
        let head = Head {
            ticket: entry.ticket,
            arrived_ms: entry.arrived_ms,
        };
        if let Some(flow) = self.flow_mut(at) {
            flow.queue.insert(entry.place, head);
            flow.bytes += entry.bytes;
            flow.find_head();
        }
        self.order.insert(entry.place, entry.ticket);
        self.requests += 1;
        self.bytes += entry.bytes;
        at
    }

    /// Takes a request out. A flow that is empty then is gone.
    pub(super) fn remove(
        &mut self,
        at: u32,
        place: Place,
        bytes: u64,
        ledger: Option<&mut Ledger>,
        now_ms: u64,
    ) {
        if self.order.remove(&place).is_none() {
            return;
        }
        self.requests -= 1;
        self.bytes -= bytes;
        if self.requests == 0 {
            self.credit_ppm = 0;
            self.idle_since_ms = now_ms;
        }
        let Some(flow) = self.flow_mut(at) else {
            return;
        };
        flow.queue.remove(&place);
        flow.bytes -= bytes;
        if !flow.queue.is_empty() {
            flow.find_head();
            return;
        }
        if let Some(flow) = self.flows.get_mut(at as usize).and_then(Option::take) {
            self.turns.remove(&(flow.turn, at));
            self.names.remove(&flow.id);
            self.free.push(at);
            if let (Some(ledger), Some(account)) = (ledger, flow.account) {
                ledger.close(account, now_ms);
            }
        }
    }

    /// The request that goes next, by the band's fairness.
    pub(super) fn next(&self, ledger: Option<&Ledger>) -> Option<u64> {
        let at = match &self.settings.fairness {
            Fairness::GlobalStrict => return self.order.first_key_value().map(|(_, next)| *next),
            Fairness::RoundRobin => self.turns.first().map(|(_, at)| *at),
            Fairness::ProgramAware { parameters, .. } => {
                program_aware::choose(parameters, self.standings(ledger))
            }
        };
        self.flow_at(at?).map(|flow| flow.head.ticket)
    }

    /// The request that would go last.
    pub(super) fn last(&self) -> Option<u64> {
        self.order.last_key_value().map(|(_, last)| *last)
    }

    /// Notes that a request of this flow goes now: the flow takes the last place in the row.
    pub(super) fn took_turn(&mut self, at: u32, waited_ms: u64, ledger: Option<&mut Ledger>) {
        let turn = self.next_turn;
        let Some(flow) = self.flows.get_mut(at as usize).and_then(Option::as_mut) else {
            return;
        };
        self.turns.remove(&(flow.turn, at));
        self.turns.insert((turn, at));
        self.next_turn += 1;
        flow.turn = turn;
        if let (Some(ledger), Some(account)) = (ledger, flow.account) {
            ledger.dispatched(account, waited_ms);
        }
    }

    /// The flows with waiting requests.
    pub(super) fn queues(&self) -> Vec<FlowQueue> {
        let flows = self.flows.iter().flatten();
        flows
            .map(|flow| FlowQueue {
                fairness_id: Arc::clone(&flow.id),
                requests: flow.queue.len() as u64,
                bytes: flow.bytes,
            })
            .collect()
    }

    /// Gives the accounts of all flows back, before the band is dropped.
    pub(super) fn close(&self, ledger: Option<&mut Ledger>, now_ms: u64) {
        if let Some(ledger) = ledger {
            let accounts = self.flows.iter().flatten().filter_map(|flow| flow.account);
            accounts.for_each(|account| ledger.close(account, now_ms));
        }
    }

    fn flow(&mut self, id: &Arc<str>, ledger: Option<&mut Ledger>, now_ms: u64) -> u32 {
        if let Some(at) = self.names.get(id) {
            return *at;
        }
        let other: Arc<str>;
        let id = if self.names.len() < FLOWS_MAX {
            id
        } else if let Some(at) = self.names.get(OTHER) {
            return *at;
        } else {
            other = Arc::from(OTHER);
            &other
        };
        let flow = Flow {
            id: Arc::clone(id),
            queue: BTreeMap::new(),
            bytes: 0,
            turn: self.next_turn,
            account: ledger.map(|ledger| ledger.open(id, now_ms)),
            head: Head {
                ticket: 0,
                arrived_ms: 0,
            },
        };
        let at = self.free.pop().unwrap_or(self.flows.len() as u32);
        self.names.insert(Arc::clone(id), at);
        self.turns.insert((self.next_turn, at));
        self.next_turn += 1;
        match self.flows.get_mut(at as usize) {
            Some(place) => *place = Some(flow),
            None => self.flows.push(Some(flow)),
        }
        at
    }

    fn standings<'a>(
        &'a self,
        ledger: Option<&'a Ledger>,
    ) -> impl Iterator<Item = (u32, Standing)> + Clone + 'a {
        self.flows.iter().enumerate().filter_map(move |(at, flow)| {
            let flow = flow.as_ref()?;
            let account = flow.account.zip(ledger);
            let standing = Standing {
                service: account.map_or(0.0, |(account, ledger)| ledger.standing(account)),
                head_arrived_ms: flow.head.arrived_ms,
                turn: flow.turn,
            };
            Some((at as u32, standing))
        })
    }

    fn flow_at(&self, at: u32) -> Option<&Flow> {
        self.flows.get(at as usize).and_then(Option::as_ref)
    }

    fn flow_mut(&mut self, at: u32) -> Option<&mut Flow> {
        self.flows.get_mut(at as usize).and_then(Option::as_mut)
    }
}

impl Flow {
    fn find_head(&mut self) {
        if let Some((_, head)) = self.queue.first_key_value() {
            self.head = *head;
        }
    }
}
