//! Which flow of a band goes next.
//!
//! A flow is what carries one fairness id inside one band. The policies differ in what they keep
//! sorted, so they are not objects with a method: a [`Fairness`] says which rule holds, and a band
//! keeps what the rules need and applies them.

pub mod global_strict;
pub mod ledger;
pub mod program_aware;
pub mod round_robin;

use std::sync::Arc;

use serde_json::Value;

use super::registry::FlowPluginError;
use crate::config::plugins::NoParameters;

/// A fairness policy.
#[derive(Clone, PartialEq, Default, Debug)]
pub enum Fairness {
    #[default]
    GlobalStrict,
    RoundRobin,
    ProgramAware {
        /// The plugin's name: bands that refer to the same plugin share one account of what each
        /// program got.
        ledger: Arc<str>,
        parameters: program_aware::Parameters,
    },
}

impl Fairness {
    /// Makes the policy of the plugin `name`.
    pub fn make(name: &str, type_name: &str, parameters: &Value) -> Result<Self, FlowPluginError> {
        let none = |type_name| FlowPluginError::read::<NoParameters>(type_name, parameters);
        match type_name {
            global_strict::TYPE_NAME => none(global_strict::TYPE_NAME).map(|_| Self::GlobalStrict),
            round_robin::TYPE_NAME => none(round_robin::TYPE_NAME).map(|_| Self::RoundRobin),
            program_aware::TYPE_NAME => FlowPluginError::read(program_aware::TYPE_NAME, parameters)
                .map(|parameters| Self::ProgramAware {
                    ledger: Arc::from(name),
                    parameters,
                }),
            other => Err(FlowPluginError::unknown("fairness policy", other)),
        }
    }

    /// The plugin type's name.
    pub fn type_name(&self) -> &'static str {
        match self {
            Self::GlobalStrict => global_strict::TYPE_NAME,
            Self::RoundRobin => round_robin::TYPE_NAME,
            Self::ProgramAware { .. } => program_aware::TYPE_NAME,
        }
    }

    /// The ledger that the policy reads, by its name.
    pub fn ledger(&self) -> Option<&Arc<str>> {
        match self {
            Self::ProgramAware { ledger, .. } => Some(ledger),
            _ => None,
        }
    }
}
