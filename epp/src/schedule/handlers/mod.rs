//! Profile handlers: which profiles run for a request, in which order, and which of them decides
//! where it goes.
//!
//! The scheduler asks a handler for the next profile until it has none, and then to conclude: to
//! name the run that decides, and to add what the worker must know of the others.

pub mod data_parallel;
pub mod disagg;
pub mod header;
pub mod single;

use std::fmt::Debug;
use std::sync::Arc;

use serde_json::Value;

use super::deciders::Decider;
use super::decision::{Decision, NoEndpoint};
use super::plugin::Context;
use crate::config::plugins::{ParameterError, PluginType};

/// Orders the profiles of a request.
pub trait ProfileHandler: Send + Sync + Debug {
    /// The field's plugin type name.
    fn type_name(&self) -> &'static str;
    /// The profile to run next, given those that ran; `None` once all have.
    fn next(&self, context: &Context<'_>, decision: &Decision) -> Option<usize>;
    /// Chooses the run that decides and completes the decision.
    fn conclude(&self, context: &Context<'_>, decision: &mut Decision) -> Result<(), NoEndpoint>;
    /// Whether requests go to a port that stands for all ranks of a pod.
    fn sends_to_primary_port(&self) -> bool {
        false
    }
}

/// Finds a decider by the name of its plugin.
pub type FindDecider<'a> = dyn Fn(&str) -> Option<Arc<dyn Decider>> + 'a;

/// What a handler may refer to by name.
#[expect(missing_debug_implementations, reason = "a closure has none")]
pub struct Parts<'a> {
    pub profiles: &'a [Arc<str>],
    pub decider: &'a FindDecider<'a>,
}

impl Parts<'_> {
    /// The place of a profile. `path` is the parameter that names it.
    pub fn profile(&self, path: &str, name: &str) -> Result<usize, ParameterError> {
        let place = self.profiles.iter().position(|known| **known == *name);
        place.ok_or_else(|| {
            ParameterError::new(path, format!("no scheduling profile is named {name:?}"))
        })
    }

    /// A decider. `path` is the parameter that names it.
    pub fn decider(&self, path: &str, name: &str) -> Result<Arc<dyn Decider>, ParameterError> {
        (self.decider)(name)
            .ok_or_else(|| ParameterError::new(path, format!("no decider is named {name:?}")))
    }
}

/// A handler type, and how one is made from its parameters.
#[derive(Debug)]
pub struct HandlerMaker {
    pub plugin: PluginType,
    pub make: MakeHandler,
}

/// Makes a handler from its parameters.
pub type MakeHandler = fn(&Value, &Parts<'_>) -> Result<Box<dyn ProfileHandler>, ParameterError>;

/// Every handler.
pub const MAKERS: &[HandlerMaker] = &[
    single::MAKER,
    disagg::MAKER,
    disagg::PD_MAKER,
    data_parallel::MAKER,
    header::MAKER,
];

/// Plugins that only wrote what the handlers write themselves. They are accepted and do nothing.
pub const HEADER_WRITERS: &[PluginType] =
    &[disagg::HEADERS_HANDLER, disagg::PREFILL_HEADER_HANDLER];

#[cfg(test)]
mod tests;
