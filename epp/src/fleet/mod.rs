//! The endpoints and their live state: who is in the pool, how busy each one is, and what it tells
//! about its cache.
//!
//! Values first: [`endpoint`] names things, [`mod@matches`] carries what an index says about them,
//! [`members`] is the pure membership table, [`live`] holds the signals of one endpoint. Around
//! them the shells: [`Fleet`] owns both and hands out snapshots and leases; [`discovery`] says
//! which endpoints there should be; [`scrape`] reads each one's `/metrics` at the rate that [`pace`]
//! says: [`exposition`] scans the page, [`engines`] knows the names, [`signals`] puts both together;
//! [`kv_events`] follows each one's block events. [`data_layer`] is how a configuration asks for it.
//!
//! Nothing here knows the rooms above. What follows the fleet from outside (an index, a status
//! page) is handed in as a trait or listens to [`Fleet::membership`].

pub mod data_layer;
pub mod discovery;
pub mod endpoint;
pub mod engines;
pub mod exposition;
pub mod http;
pub mod kv_events;
pub mod live;
pub mod matches;
pub mod members;
pub mod pace;
pub mod scrape;
pub mod series_spec;
mod shell;
pub mod signals;
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
