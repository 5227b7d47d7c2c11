//! Which request of a flow goes first.
//!
//! An ordering gives each request a key when it is queued; the smallest key goes first, and equal
//! keys go in the order in which they were queued. Keys do not change while a request waits, so a
//! queue is a sorted map and every operation on it is logarithmic.

pub mod edf;
pub mod fcfs;
pub mod slo_deadline;

use serde_json::Value;

use super::registry::FlowPluginError;
use crate::config::plugins::NoParameters;

/// What an ordering looks at. Times are milliseconds of epp's monotonic clock.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Urgency {
    /// When the request came in.
    pub arrived_ms: u64,
    /// When it will have waited for as long as it may, or the client's own deadline.
    pub deadline_ms: Option<u64>,
    /// The client's target for the time to first token.
    pub slo_ttft_ms: Option<f64>,
}

/// An ordering policy.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Ordering {
    #[default]
    Fcfs,
    Edf,
    SloDeadline,
}

impl Ordering {
    /// Makes the policy of a plugin type.
    pub fn make(type_name: &str, parameters: &Value) -> Result<Self, FlowPluginError> {
        let (type_name, made) = match type_name {
            fcfs::TYPE_NAME => (fcfs::TYPE_NAME, Self::Fcfs),
            edf::TYPE_NAME => (edf::TYPE_NAME, Self::Edf),
            slo_deadline::TYPE_NAME => (slo_deadline::TYPE_NAME, Self::SloDeadline),
            other => return Err(FlowPluginError::unknown("ordering policy", other)),
        };
        FlowPluginError::read::<NoParameters>(type_name, parameters).map(|_| made)
    }

    /// The plugin type's name.
    pub fn type_name(self) -> &'static str {
        match self {
            Self::Fcfs => fcfs::TYPE_NAME,
            Self::Edf => edf::TYPE_NAME,
            Self::SloDeadline => slo_deadline::TYPE_NAME,
        }
    }

    /// The key of a request; smaller goes first.
    pub fn key(self, urgency: &Urgency) -> u64 {
        match self {
            Self::Fcfs => fcfs::key(urgency),
            Self::Edf => edf::key(urgency),
            Self::SloDeadline => slo_deadline::key(urgency),
        }
    }
}
