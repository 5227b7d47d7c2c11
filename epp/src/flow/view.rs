//! What the status page and the metrics page show of flow control: plain values.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Serialize;

use super::controller::FlowQueue;
use super::fairness::ledger::Program;
use super::outcome::Outcome;
use super::saturation::Saturation;

/// Flow control at one moment.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct FlowView {
    /// Whether requests are queued at all; without it only sheddable ones are ever refused.
    pub flow_control: bool,
    /// The last reading that was decided on.
    pub saturation: Saturation,
    /// Requests that wait, over all bands.
    pub requests: u64,
    /// Bytes of their bodies.
    pub bytes: u64,
    /// `None` = unlimited.
    pub max_requests: Option<u64>,
    /// `None` = unlimited.
    pub max_bytes: Option<u64>,
    /// Dispatched and not ended.
    pub in_flight: u64,
    /// Requests in flight that were asked to stop, since the start.
    pub evicted_in_flight: u64,
    /// Requests by what became of them, since the start.
    pub outcomes: BTreeMap<Outcome, u64>,
    /// The highest priority first.
    pub bands: Vec<BandView>,
    /// One per `program-aware-fairness` plugin in use.
    pub fairness: Vec<FairnessView>,
}

/// One priority.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct BandView {
    pub priority: i32,
    pub requests: u64,
    pub bytes: u64,
    pub max_requests: u64,
    pub max_bytes: u64,
    pub fairness: &'static str,
    pub ordering: &'static str,
    /// The saturation from which on it waited at the last choice; `None` before the first one.
    pub ceiling: Option<f64>,
    /// Flows with waiting requests, in no order.
    pub flows: Vec<FlowQueue>,
}

/// What a `program-aware-fairness` plugin knows.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct FairnessView {
    pub plugin: Arc<str>,
    /// 1 when all programs wait the same.
    pub jains_index: f64,
    pub programs: Vec<Program>,
}
