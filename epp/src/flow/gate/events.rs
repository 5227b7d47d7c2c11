//! Who watches the gate: a trait with nothing to do by default.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use super::super::outcome::Outcome;

/// What a request is counted under.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FlowLabels {
    pub priority: i32,
    pub fairness_id: Arc<str>,
    /// The model as the client named it.
    pub model: Arc<str>,
    /// The model after a rewrite.
    pub target_model: Arc<str>,
}

/// An observer. Calls come from whichever task passes the gate, outside of its lock; of one request
/// in the order of what happened to it, except that a request may be dispatched by another task
/// before the one that queued it has said so.
pub trait FlowEvents: Send + Sync + Debug {
    /// A request waits; it was queued in `took`.
    fn queued(&self, _request: &FlowLabels, _bytes: u64, _took: Duration) {}

    /// A request goes after `waited`. `queued` says whether [`queued`](Self::queued) was called.
    fn dispatched(&self, _request: &FlowLabels, _bytes: u64, _queued: bool, _waited: Duration) {}

    /// A request is refused after `waited`. `queued` says whether [`queued`](Self::queued) was
    /// called.
    fn refused(
        &self,
        _request: &FlowLabels,
        _bytes: u64,
        _queued: bool,
        _outcome: Outcome,
        _waited: Duration,
    ) {
    }

    /// A request in flight is asked to stop.
    fn evicted_in_flight(&self, _priority: i32) {}

    /// One reading was decided on in `took`.
    fn cycle(&self, _took: Duration) {}
}

/// Watches nothing.
#[derive(Clone, Copy, Debug)]
pub struct NoEvents;

impl FlowEvents for NoEvents {}
