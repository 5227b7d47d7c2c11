//! The rooms of one pool, and which pool a request is for.
//!
//! One process serves many pools: each has its fleet, indexes, policy and queue, and the process
//! shares metrics, decision log and ports. A request's pool is the one that its gateway's call
//! names, else the one whose picker service the call went to, else the default pool.

use std::collections::HashMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use parking_lot::Mutex;

use super::flow_events::FlowMetrics;
use super::policy::Policy;
use super::shares::CachedShares;
use crate::clock::Clock;
use crate::config::resources::PoolResources;
use crate::ext_proc::{PoolHint, Refusal, RefusalCode};
use crate::fleet::{Endpoint, Fleet, Snapshot};
use crate::flow::{Gate, Saturation, Stages};
use crate::index::approximate::{ApproximateIndex, PickLimits};
use crate::index::{IndexLimits, PrefixIndex};
use crate::observe::Metrics;
use crate::request::model_rewrite::ModelRewrites;
use crate::request::objectives::Objectives;
use crate::schedule::by_member::ByMember;
use crate::schedule::expected::FleetExpectation;
use crate::schedule::filters::role::ROLE_LABEL;
use crate::schedule::latency::{LatencyModel, LatencyOptions};
use crate::tokens::{TokenLimits, Tokens};

/// See the module.
#[derive(Debug)]
pub struct Pool {
    pub name: Arc<str>,
    pub fleet: Arc<Fleet>,
    pub index: Arc<PrefixIndex>,
    pub approximate: Arc<ApproximateIndex>,
    pub tokens: Tokens,
    pub policy: Arc<ArcSwap<Policy>>,
    pub rules: ArcSwap<Rules>,
    pub gate: Gate,
    /// What is learned of latencies; only used where the policy predicts.
    pub latency: Mutex<LatencyModel>,
    /// Who has how much to prefill; only kept where the policy expects times to first token.
    pub expected: Mutex<FleetExpectation>,
    pub shares: CachedShares,
}

/// The rooms before a policy connects them.
#[derive(Debug)]
pub struct Rooms {
    pub fleet: Arc<Fleet>,
    pub index: Arc<PrefixIndex>,
    pub approximate: Arc<ApproximateIndex>,
    pub tokens: Tokens,
}

impl Rooms {
    /// Empty indexes and no tokenizer.
    pub fn over(fleet: Arc<Fleet>) -> Self {
        Self {
            fleet,
            index: Arc::new(PrefixIndex::new(IndexLimits::default())),
            approximate: Arc::new(ApproximateIndex::new(PickLimits::default())),
            tokens: Tokens::new([], TokenLimits::default()),
        }
    }
}

impl Pool {
    /// A pool without objectives and rewrites. Its gate's timer has to run where flow control does.
    pub fn connect(
        name: &str,
        rooms: Rooms,
        policy: Policy,
        latency: LatencyOptions,
        metrics: &Arc<Metrics>,
        clock: &Clock,
    ) -> Self {
        let flow = policy.flow.clone();
        let policy = Arc::new(ArcSwap::from_pointee(policy));
        let name: Arc<str> = Arc::from(name);
        let events = FlowMetrics {
            metrics: Arc::clone(metrics),
            pool: Arc::clone(&name),
        };
        let read = saturation_reader(&rooms.fleet, &policy);
        let gate = Gate::new(clock.clone(), read, Arc::new(events), flow);
        let Rooms {
            fleet,
            index,
            approximate,
            tokens,
        } = rooms;
        Self {
            name,
            fleet,
            index,
            approximate,
            tokens,
            policy,
            rules: ArcSwap::from_pointee(Rules::default()),
            gate,
            latency: Mutex::new(LatencyModel::new(latency)),
            expected: Mutex::default(),
            shares: CachedShares::default(),
        }
    }
}

/// Reads how full the pool is, under whichever policy is in force.
fn saturation_reader(
    fleet: &Arc<Fleet>,
    policy: &Arc<ArcSwap<Policy>>,
) -> Arc<dyn Fn(u64) -> Saturation + Send + Sync> {
    let (fleet, policy) = (Arc::clone(fleet), Arc::clone(policy));
    let snapshot = Mutex::new(Snapshot::default());
    let roles: ByMember<Stages> = ByMember::default();
    Arc::new(move |now_ms| {
        let mut snapshot = snapshot.lock();
        fleet.snapshot_into(&mut snapshot);
        let stages_of = |endpoint: &Endpoint| {
            Stages::of_role(endpoint.spec.labels.get(ROLE_LABEL).map(String::as_str))
        };
        let detector = policy.load().detector;
        roles.with(&snapshot.members, stages_of, |stages| {
            let stages_at = |position: usize| stages.get(position).copied().unwrap_or(Stages::BOTH);
            detector.read(&snapshot, stages_at, now_ms)
        })
    })
}

/// What the pool's resources say about requests.
#[derive(Debug, Default)]
pub struct Rules {
    pub objectives: Objectives,
    pub rewrites: ModelRewrites,
}

impl From<&PoolResources> for Rules {
    fn from(resources: &PoolResources) -> Self {
        Self {
            objectives: Objectives::new(&resources.objectives),
            rewrites: ModelRewrites::new(&resources.rewrites),
        }
    }
}

/// All pools of the process.
#[derive(Debug)]
pub struct Pools {
    all: Vec<Arc<Pool>>,
    by_name: HashMap<Arc<str>, usize>,
    /// By lower-case host name.
    by_authority: HashMap<String, usize>,
    default: Option<usize>,
}

impl Pools {
    /// One pool, which takes every request.
    pub fn one(pool: Pool) -> Self {
        Self::new([(Arc::new(pool), Vec::new(), true)])
    }

    /// Pools, each with the host names that its picker is called by and whether it takes requests
    /// that belong to no other.
    pub fn new(pools: impl IntoIterator<Item = (Arc<Pool>, Vec<String>, bool)>) -> Self {
        let mut made = Self {
            all: Vec::new(),
            by_name: HashMap::new(),
            by_authority: HashMap::new(),
            default: None,
        };
        for (place, (pool, authorities, is_default)) in pools.into_iter().enumerate() {
            made.by_name.insert(Arc::clone(&pool.name), place);
            let authorities = authorities.into_iter().map(|authority| (authority, place));
            made.by_authority.extend(authorities);
            if is_default {
                made.default = Some(place);
            }
            made.all.push(pool);
        }
        made
    }

    /// The pools in the order in which they were given.
    pub fn all(&self) -> &[Arc<Pool>] {
        &self.all
    }

    /// The pool of a call. A name that no pool has is an error of the gateway's configuration, and
    /// said as one: to guess would send requests to workers of another model.
    pub fn select(&self, hint: &PoolHint) -> Result<&Arc<Pool>, Refusal> {
        let unknown = |message: String| Refusal::new(RefusalCode::NotFound, message);
        let place = match &hint.pool {
            Some(name) => *self
                .by_name
                .get(name.as_str())
                .ok_or_else(|| unknown(format!("no pool is named {name:?}")))?,
            None => self
                .by_host(hint.authority.as_deref())
                .or(self.default)
                .ok_or_else(|| unknown("the request belongs to no pool".to_owned()))?,
        };
        self.all
            .get(place)
            .ok_or_else(|| unknown("the request belongs to no pool".to_owned()))
    }

    fn by_host(&self, authority: Option<&str>) -> Option<usize> {
        if self.by_authority.is_empty() {
            return None;
        }
        let host = host(authority?).to_ascii_lowercase();
        self.by_authority.get(&host).copied()
    }
}

/// The host of `host`, `host:port`, `[v6]` or `[v6]:port`.
fn host(authority: &str) -> &str {
    if let Some(rest) = authority.strip_prefix('[') {
        return rest.split(']').next().unwrap_or(rest);
    }
    authority.split(':').next().unwrap_or(authority)
}

#[cfg(test)]
mod tests {
    use super::host;

    #[test]
    fn a_host_is_without_its_port() {
        for (authority, expected) in [
            ("epp.ns:9002", "epp.ns"),
            ("epp", "epp"),
            ("[::1]:9002", "::1"),
            ("[::1]", "::1"),
        ] {
            assert_eq!(host(authority), expected);
        }
    }
}
