//! The endpoints and their live state: who is in the pool, how busy each one is, and what it tells
//! about its cache.
//!
//! Values first: [`endpoint`] names things, [`mod@matches`] carries what an index says about them,
//! [`members`] is the pure membership table, [`live`] holds the signals of one endpoint. Around
//! them the shells: [`Fleet`] owns both and hands out snapshots and leases; [`discovery`] says
//! which endpoints there should be; [`scrape`] reads each one's `/metrics` (through [`exposition`],
//! at the rate that [`pace`] says); [`kv_events`] follows each one's block events.
//!
//! Nothing here knows the rooms above. What follows the fleet from outside (an index, a status
//! page) is handed in as a trait or listens to [`Fleet::membership`].

pub mod discovery;
pub mod endpoint;
pub mod exposition;
pub mod http;
pub mod kv_events;
pub mod live;
pub mod matches;
pub mod members;
pub mod pace;
pub mod scrape;
mod shell;
mod tasks;

pub use endpoint::{Adapters, Endpoint, EndpointId, EndpointSpec, Generation, Live, Snapshot};
pub use live::{Lease, Scraped};
pub use matches::Matches;
pub use members::{Change, MembershipError};
pub use shell::Fleet;

use std::sync::Arc;

/// Reads epp's monotonic clock in milliseconds. Injected, so that every age in this room is
/// testable.
pub type NowMs = Arc<dyn Fn() -> u64 + Send + Sync>;
