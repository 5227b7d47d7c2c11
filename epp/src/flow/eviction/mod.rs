//! Which requests may be put out for the sake of more urgent ones, and which goes first.
//!
//! The configuration has one switch and no choice of policies, so the two types here are what the
//! switch turns on; they are plugin types because configurations name them.

pub mod priority_then_time;
pub mod sheddable;

use serde_json::Value;

use super::registry::FlowPluginError;
use crate::config::plugins::NoParameters;

/// Who may be put out.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum EvictionFilter {
    #[default]
    Sheddable,
}

impl EvictionFilter {
    /// Makes the filter of a plugin type.
    pub fn make(type_name: &str, parameters: &Value) -> Result<Self, FlowPluginError> {
        let type_name = match type_name {
            sheddable::TYPE_NAME => sheddable::TYPE_NAME,
            sheddable::OLD_TYPE_NAME => sheddable::OLD_TYPE_NAME,
            other => return Err(FlowPluginError::unknown("eviction filter", other)),
        };
        FlowPluginError::read::<NoParameters>(type_name, parameters).map(|_| Self::Sheddable)
    }

    /// Whether a request of this priority may be put out.
    pub fn accepts(self, priority: i32) -> bool {
        match self {
            Self::Sheddable => sheddable::accepts(priority),
        }
    }
}

/// Who goes first.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum EvictionOrder {
    #[default]
    PriorityThenTime,
}

impl EvictionOrder {
    /// Makes the order of a plugin type.
    pub fn make(type_name: &str, parameters: &Value) -> Result<Self, FlowPluginError> {
        let type_name = match type_name {
            priority_then_time::TYPE_NAME => priority_then_time::TYPE_NAME,
            priority_then_time::OLD_TYPE_NAME => priority_then_time::OLD_TYPE_NAME,
            other => return Err(FlowPluginError::unknown("eviction order", other)),
        };
        FlowPluginError::read::<NoParameters>(type_name, parameters).map(|_| Self::PriorityThenTime)
    }

    /// The key of a request in flight; the smallest goes first.
    pub fn key(self, priority: i32, since_ms: u64) -> (i32, std::cmp::Reverse<u64>) {
        match self {
            Self::PriorityThenTime => priority_then_time::key(priority, since_ms),
        }
    }
}
