//! One request through the rooms, in order: the only part of the house that knows them all.
//!
//! `request` reads the body, `tokens` turns the prompt into ids, `flow` lets it wait for its turn,
//! `index` says who holds its prefix, `schedule` picks, and `fleet` counts it against the pick until
//! its response has gone by. Each step that can fail without harm does so by name: without token
//! ids, which is counted, the prompt's text is looked up among earlier picks instead.
//!
//! [`intake`] is the first step, [`exchange`] a request's life, [`choose`] the pick itself and
//! [`settle`] what is learned from its end. A [`pool`] holds the rooms, a [`policy`] what the
//! operator chose. [`assembly`] builds all of it and [`status`] shows it.
//!
//! Everything that grows with the fleet lives in buffers of the runtime's threads, so that a
//! request allocates nothing proportional to it.

pub mod assembly;
pub mod attributes;
pub mod catalogue;
mod choose;
mod event_indexes;
mod exchange;
mod flow_events;
mod intake;
mod meter;
pub mod page;
pub mod policy;
pub mod pool;
mod prefix;
mod record;
mod settle;
pub mod shares;
pub mod status;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use tracing::debug;

pub use self::event_indexes::EventIndexes;
pub use self::exchange::InFlight;
pub use self::flow_events::FlowMetrics;
pub use self::policy::{Policy, PolicyError};
pub use self::pool::{Pool, Pools, Rooms, Rules};
use crate::clock::Clock;
use crate::ext_proc::{Decider, Intake, Refusal};
use crate::observe::Metrics;
use crate::observe::decisions::DecisionLog;
use crate::observe::request_series::RequestLabels;
use crate::observe::spans::Spans;

/// What all pools share, and what the operator chose for the process.
#[derive(Debug)]
pub struct Shared {
    pub metrics: Arc<Metrics>,
    pub decisions: Arc<DecisionLog>,
    /// `None` where nothing is traced.
    pub spans: Option<Spans>,
    pub clock: Clock,
    pub options: Options,
}

/// What the operator chose.
#[derive(Clone, Debug)]
pub struct Options {
    /// Whether the gateway may confine a request to some endpoints.
    pub use_subset_hint: bool,
    /// Whether the gateway is told the score of every candidate.
    pub emit_scores: bool,
    /// The request header that asks for the decision in the response; `None` = nobody may ask.
    pub debug_header: Option<String>,
    /// Where random choices start. One seed and one order of requests give one sequence of picks.
    pub seed: u64,
}

/// The pipeline; clones walk the same rooms.
#[derive(Clone, Debug)]
pub struct Pipeline {
    shared: Arc<Shared>,
    pools: Arc<Pools>,
    requests: Arc<AtomicU64>,
}

impl Pipeline {
    pub fn new(shared: Shared, pools: Pools) -> Self {
        Self {
            shared: Arc::new(shared),
            pools: Arc::new(pools),
            requests: Arc::default(),
        }
    }

    /// What all pools share.
    pub fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// The pools.
    pub fn pools(&self) -> &Arc<Pools> {
        &self.pools
    }
}

impl Decider for Pipeline {
    type Exchange = InFlight;

    async fn begin(&self, intake: Intake) -> Result<InFlight, Refusal> {
        let pool = Arc::clone(self.pools.select(&intake.pool)?);
        let seed = self.shared.options.seed;
        let seed = mixed(seed.wrapping_add(self.requests.fetch_add(1, Relaxed)));
        intake::begin(Arc::clone(&self.shared), pool, intake, seed).await
    }

    fn may_wait(&self) -> bool {
        let mut pools = self.pools.all().iter();
        pools.any(|pool| pool.policy.load().flow.is_some())
    }

    fn refused(&self, refusal: &Refusal) {
        let series = self.shared.metrics.request(&RequestLabels::of_model(""));
        series.total.increment(1);
        series.error(refusal.code.name());
        debug!(
            code = refusal.code.name(),
            message = refusal.message,
            "request refused unread"
        );
    }
}

impl Shared {
    fn seconds_since(&self, from_us: u64) -> f64 {
        self.clock.now_us().saturating_sub(from_us) as f64 / 1e6
    }
}

/// SplitMix64: neighbouring numbers become unrelated ones.
fn mixed(number: u64) -> u64 {
    let mut mixed = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}
