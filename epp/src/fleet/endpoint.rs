//! What an endpoint is: its identity, what discovery says about it, and one reading of its signals.
//!
//! Identity is a dense number with a generation. The number indexes arrays and bit sets on the hot
//! path; the generation tells a pod that came back under the same number from the one before it, so
//! that late releases, late events and old index entries of the earlier one are recognised without
//! any clean-up pass.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

/// A dense endpoint number. Freed numbers are handed out again, always with a higher
/// [`Generation`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct EndpointId(pub u32);

impl EndpointId {
    /// The position of this endpoint in a dense array.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

impl fmt::Display for EndpointId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}", self.0)
    }
}

/// How many times an [`EndpointId`] was handed out, counted from 1.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Generation(pub u32);

/// What discovery says about an endpoint.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EndpointSpec {
    /// Unique within the pool: the pod's name, or what the operator wrote.
    pub name: String,
    /// The entry or pod that it belongs to, shared by the ranks at one address; its own name where
    /// it is the only one.
    pub pod: String,
    /// Which of the pod's ports it serves at, counted from 0 over all that are listed.
    pub rank: u32,
    /// Where it serves HTTP, both inference and `/metrics`. Unique within the pool.
    pub address: SocketAddr,
    /// The pod's labels.
    pub labels: BTreeMap<String, String>,
    /// ZMQ address of its KV-event publisher, `tcp://host:port`. Without one the worker is asked.
    pub kv_events: Option<String>,
    /// ZMQ address that replays KV events, `tcp://host:port`.
    pub kv_replay: Option<String>,
}

impl EndpointSpec {
    /// A specification of only a name and an address.
    pub fn new(name: impl Into<String>, address: SocketAddr) -> Self {
        let name = name.into();
        Self {
            pod: name.clone(),
            name,
            rank: 0,
            address,
            labels: BTreeMap::new(),
            kv_events: None,
            kv_replay: None,
        }
    }

    /// Whether `other` describes the same running worker. Labels may change while it runs; the rest
    /// may not.
    pub fn same_worker(&self, other: &Self) -> bool {
        self.name == other.name
            && self.address == other.address
            && self.kv_events == other.kv_events
            && self.kv_replay == other.kv_replay
    }
}

/// A member of the pool.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Endpoint {
    pub id: EndpointId,
    pub generation: Generation,
    pub spec: EndpointSpec,
}

/// One reading of an endpoint's signals.
///
/// The first five are what the worker's own page says; the in-flight pair is counted here, at the
/// pick, and is therefore current where the page is up to one scrape old.
#[derive(Clone, Copy, PartialEq, Default, Debug)]
pub struct Live {
    /// Requests that wait in the worker's queue.
    pub waiting: u32,
    /// Requests in the worker's running batch.
    pub running: u32,
    /// Share of KV blocks in use, 0 to 1.
    pub kv_usage: f32,
    /// Tokens per KV block; 0 when the worker does not say.
    pub block_size: u32,
    /// KV blocks of the worker; 0 when it does not say.
    pub blocks: u32,
    /// Requests of ours that are on their way or running there.
    pub in_flight_requests: u32,
    /// Prompt tokens of those requests.
    pub in_flight_tokens: u32,
    /// When the page was last read, in milliseconds of epp's monotonic clock; 0 = never.
    pub scraped_at_ms: u64,
    /// Whether the worker answers. False until the first page was read.
    pub healthy: bool,
}

/// The LoRA adapters of an endpoint, as its page lists them.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Adapters {
    /// How many adapters it can hold at a time; 0 when the page does not say.
    pub max: u32,
    /// Adapters with running requests.
    pub running: Vec<Box<str>>,
    /// Adapters that only waiting requests ask for.
    pub waiting: Vec<Box<str>>,
}

/// The fleet at one moment: members and their signals, in the same order and of the same length.
///
/// A buffer to be reused: [`Fleet::snapshot_into`](super::Fleet::snapshot_into) allocates only when
/// the fleet grew.
#[derive(Clone, Debug)]
pub struct Snapshot {
    pub members: Arc<[Arc<Endpoint>]>,
    pub live: Vec<Live>,
    /// In the order of `members`; shared, because adapters change seldom.
    pub adapters: Arc<[Arc<Adapters>]>,
}

impl Default for Snapshot {
    fn default() -> Self {
        Self {
            members: Arc::from(Vec::new()),
            live: Vec::new(),
            adapters: Arc::from(Vec::new()),
        }
    }
}
