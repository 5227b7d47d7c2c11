//! One replica of epp: what it has heard, and what it picks from that.
//!
//! It holds the very rooms that the process holds: a fleet of live cells, the precise and the approximate index, and a
//! scheduler; news arrive as calls. What it does for a pick is what `epp::pipeline` does: look the prompt up, take a
//! snapshot, schedule, count the request against the endpoint.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use pointsman_engine::scheduler::Stats;
use pointsman_epp::fleet::kv_events::EventSource;
use pointsman_epp::fleet::{Endpoint, EndpointSpec, Fleet, Lease, Matches, Scraped, Snapshot};
use pointsman_epp::flow::controller::Decision;
use pointsman_epp::index::approximate::{ApproximateIndex, Belief, PickLimits, Reported, TextKeys};
use pointsman_epp::index::{IndexLimits, IndexScratch, PrefixIndex};
use pointsman_epp::schedule::expected::{Placement, Sighting};
use pointsman_proto::block_hash::KeyScope;
use pointsman_proto::kv_events::Event;
use rustc_hash::FxHashMap;

use super::gate::{Arrival, Gate};
use super::policies::{Asked, Choice, Knowledge, OwnLoad, Policy, View};

/// The model that all requests ask for.
const MODEL: &str = "model";
const SCOPE: KeyScope<'static> = KeyScope {
    model: MODEL,
    adapter: None,
    cache_salt: None,
};

/// See the module.
#[derive(Debug)]
pub struct Replica {
    fleet: Arc<Fleet>,
    index: PrefixIndex,
    approximate: ApproximateIndex,
    policy: Policy,
    gate: Option<Gate>,
    /// What counts as in flight, by request.
    held: FxHashMap<u32, Held>,
    /// By worker.
    own: Vec<OwnLoad>,
    snapshot: Snapshot,
    matches: Matches,
    scratch: IndexScratch,
    keys: TextKeys,
    bytes: Vec<u8>,
}

/// Where a request goes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Picked {
    pub worker: usize,
    /// The time to first token that the policy expects there, in seconds; `None` where it expects nothing.
    pub expected_s: Option<f64>,
}

/// One request in flight.
#[derive(Debug)]
struct Held {
    worker: usize,
    lease: Lease,
    belief: Option<Belief>,
    placement: Option<Placement>,
    prompt_tokens: u32,
    uncached_tokens: u32,
    is_prefilled: bool,
}

impl Replica {
    /// A replica that knows of no worker yet.
    pub fn new(policy: Policy) -> Self {
        Self {
            fleet: Fleet::new(),
            index: PrefixIndex::new(IndexLimits {
                // A simulated fleet may be larger than one that any process serves.
                max_bytes: 8 << 30,
                ..IndexLimits::default()
            }),
            approximate: ApproximateIndex::new(PickLimits::default()),
            gate: policy.gate(),
            policy,
            held: FxHashMap::default(),
            own: Vec::new(),
            snapshot: Snapshot::default(),
            matches: Matches::default(),
            scratch: IndexScratch::default(),
            keys: TextKeys::default(),
            bytes: Vec::new(),
        }
    }

    /// What the policy wants to hear of.
    pub fn knowledge(&self) -> Knowledge {
        self.policy.knowledge()
    }

    /// The workers that discovery lists.
    ///
    /// # Errors
    /// When there are more than a fleet holds.
    pub fn discover(&mut self, workers: impl Iterator<Item = usize>) -> Result<()> {
        let specs: Vec<EndpointSpec> = workers.map(spec).collect();
        let most = specs.len();
        let change = self.fleet.apply(specs).context("workers")?;
        for gone in &change.removed {
            self.index.forget(gone.id, gone.generation);
            self.approximate.forget(gone.id, gone.generation);
        }
        self.fleet.snapshot_into(&mut self.snapshot);
        if self.own.len() < most {
            self.own.resize(most, OwnLoad::default());
        }
        Ok(())
    }

    /// A worker's page was read.
    pub fn page(&mut self, worker: usize, stats: &Stats, block_size: u32, now: Duration) {
        let Some(endpoint) = self.endpoint(worker) else {
            return;
        };
        let Some(cell) = self.fleet.cell(endpoint.id, endpoint.generation) else {
            return;
        };
        let scraped = Scraped {
            waiting: stats.waiting,
            running: stats.running,
            kv_usage: stats.kv_usage() as f32,
            block_size,
            blocks: stats.blocks_total,
        };
        cell.record(&scraped, millis(now));
    }

    /// A worker does not answer.
    pub fn lost(&mut self, worker: usize) {
        if let Some(endpoint) = self.endpoint(worker)
            && let Some(cell) = self.fleet.cell(endpoint.id, endpoint.generation)
        {
            cell.mark_unhealthy();
            self.index.forget(endpoint.id, endpoint.generation);
            self.approximate.forget(endpoint.id, endpoint.generation);
        }
    }

    /// A worker's KV events are followed from here on.
    pub fn follow(&mut self, worker: usize) {
        if let Some(source) = self.source(worker) {
            self.index.followed(source);
        }
    }

    /// KV events of a worker arrived.
    pub fn kv_events(&mut self, worker: usize, events: &[Event]) {
        if let Some(source) = self.source(worker) {
            for event in events {
                self.index.apply(source, MODEL, event);
            }
            self.index.reclaim(1_024);
        }
    }

    /// Whether requests wait until there is room for them.
    pub fn has_gate(&self) -> bool {
        self.gate.is_some()
    }

    /// A request comes to the gate; false where it is refused at once. [`Replica::look`] says when it goes.
    pub fn enqueue(&mut self, arrival: Arrival, now: Duration, out: &mut Vec<Decision>) -> bool {
        let gate = self.gate.as_mut();
        gate.is_none_or(|gate| gate.enqueue(arrival, now, out))
    }

    /// Has the gate look at the pool.
    pub fn look(&mut self, now: Duration, out: &mut Vec<Decision>) {
        if let Some(gate) = &mut self.gate {
            self.fleet.snapshot_into(&mut self.snapshot);
            gate.look(&self.snapshot, now, out);
        }
    }

    /// When the gate has to look even if nothing happens.
    pub fn next_deadline(&self) -> Option<Duration> {
        self.gate.as_ref()?.next_deadline()
    }

    /// Picks a worker for a request, and counts it there. `None` where nobody answers.
    pub fn pick(&mut self, request: u32, asked: &Asked<'_>, now: Duration) -> Option<Picked> {
        self.look_up(asked.tokens, now);
        self.fleet.snapshot_into(&mut self.snapshot);
        let view = View {
            snapshot: &self.snapshot,
            matches: &self.matches,
            own: &self.own,
            asked,
            now,
        };
        let Choice {
            position,
            placement,
            expected_s,
        } = self.policy.pick(&view)?;
        let endpoint = Arc::clone(self.snapshot.members.get(position)?);
        let worker = worker_of(&endpoint);
        let live = *self.snapshot.live.get(position)?;
        let cached = self.matches.tokens(endpoint.id, endpoint.generation);
        let prompt_tokens = asked.tokens.len() as u32;
        let uncached_tokens = prompt_tokens.saturating_sub(cached);
        let wants_picks = self.knowledge().picks;
        let belief = wants_picks.then(|| {
            self.approximate
                .record(&endpoint, &live, &self.keys, millis(now))
        });
        let lease = self
            .fleet
            .lease(endpoint.id, endpoint.generation, uncached_tokens);
        if self.own.len() <= worker {
            self.own.resize(worker + 1, OwnLoad::default());
        }
        let own = self.own.get_mut(worker)?;
        own.requests += 1;
        own.prompts += 1;
        own.prefill_tokens += u64::from(uncached_tokens);
        own.context_tokens += u64::from(prompt_tokens);
        let held = Held {
            worker,
            lease,
            belief,
            placement,
            prompt_tokens,
            uncached_tokens,
            is_prefilled: false,
        };
        self.held.insert(request, held);
        if let Some(gate) = &mut self.gate {
            gate.placed(request);
        }
        Some(Picked { worker, expected_s })
    }

    /// The first token of a request went by, at `at`.
    pub fn first_token(&mut self, request: u32, at: Duration, now: Duration) {
        let Some(held) = self.held.get_mut(&request) else {
            return;
        };
        held.lease.keep_tokens(0);
        if !held.is_prefilled {
            held.is_prefilled = true;
            if let Some(own) = self.own.get_mut(held.worker) {
                own.prompts -= 1;
                own.prefill_tokens -= u64::from(held.uncached_tokens);
            }
        }
        if let Some(belief) = &held.belief {
            self.approximate.started(belief, millis(now));
        }
        if let Some(placement) = held.placement {
            let sighting = if at == now {
                Sighting::AtOnce
            } else {
                Sighting::Afterwards
            };
            self.policy.first_token(placement, at, sighting);
        }
    }

    /// A request is over. `cached_tokens` is what its usage says; `None` where it failed.
    pub fn ended(&mut self, request: u32, cached_tokens: Option<u32>, now: Duration) {
        if let Some(gate) = &mut self.gate {
            gate.finished(request, now);
        }
        let Some(held) = self.held.remove(&request) else {
            return;
        };
        if let Some(own) = self.own.get_mut(held.worker) {
            own.requests -= 1;
            own.context_tokens -= u64::from(held.prompt_tokens);
            if !held.is_prefilled {
                own.prompts -= 1;
                own.prefill_tokens -= u64::from(held.uncached_tokens);
            }
        }
        if let Some(placement) = held.placement {
            self.policy.ended(placement, now);
        }
        let Some(belief) = &held.belief else { return };
        match cached_tokens {
            None => self.approximate.failed(belief),
            Some(cached) => {
                let reported = Reported {
                    prompt_tokens: u64::from(held.prompt_tokens),
                    cached_tokens: u64::from(cached),
                    block_size: 0,
                };
                if !self.knowledge().events {
                    self.approximate.reported(belief, &reported);
                }
            }
        }
    }

    fn look_up(&mut self, tokens: &[u32], now: Duration) {
        self.matches.clear();
        let knowledge = self.knowledge();
        if knowledge.events {
            self.index
                .matches(&SCOPE, tokens, &mut self.scratch, &mut self.matches);
        }
        if knowledge.picks {
            // Four bytes a token, as much as text has.
            self.bytes.clear();
            self.bytes
                .extend(tokens.iter().flat_map(|token| token.to_le_bytes()));
            self.keys.clear();
            self.keys.begin_text(&SCOPE);
            self.keys.push_text(&self.bytes);
            let (index, events) = (&self.index, knowledge.events);
            self.approximate.matches(
                &self.keys,
                tokens.len() as u32,
                millis(now),
                |id, generation| events && index.is_followed(id, generation),
                &mut self.matches,
            );
        }
    }

    fn endpoint(&self, worker: usize) -> Option<Arc<Endpoint>> {
        let is_it = |member: &&Arc<Endpoint>| worker_of(member) == worker;
        // Workers are listed in order and seldom leave, so the first guess is nearly always right.
        let guess = self.snapshot.members.get(worker).filter(is_it);
        guess
            .or_else(|| self.snapshot.members.iter().find(is_it))
            .map(Arc::clone)
    }

    fn source(&self, worker: usize) -> Option<EventSource> {
        let endpoint = self.endpoint(worker)?;
        Some(EventSource {
            endpoint: endpoint.id,
            generation: endpoint.generation,
            rank: 0,
        })
    }
}

/// Workers are told apart by their port and address, which hold their number.
fn spec(worker: usize) -> EndpointSpec {
    let number = worker as u32;
    let [_, a, b, c] = number.to_be_bytes();
    let address = SocketAddr::from(([10, a, b, c], 8000));
    EndpointSpec::new(format!("worker-{worker}"), address)
}

pub(super) fn worker_of(endpoint: &Endpoint) -> usize {
    match endpoint.spec.address {
        SocketAddr::V4(address) => {
            let [_, a, b, c] = address.ip().octets();
            u32::from_be_bytes([0, a, b, c]) as usize
        }
        SocketAddr::V6(_) => usize::MAX,
    }
}

pub(super) fn millis(time: Duration) -> u64 {
    // 0 means never to the cells.
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX) + 1
}
