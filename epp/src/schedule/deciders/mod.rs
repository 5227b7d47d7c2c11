//! Deciders: whether a stage of a request runs on an endpoint of its own.

pub mod always;
pub mod prefix_based;

use std::fmt::Debug;

use super::plugin::{Context, Maker};

/// Says whether a stage is split off.
pub trait Decider: Send + Sync + Debug {
    /// The field's plugin type name.
    fn type_name(&self) -> &'static str;
    /// `decode` is the position that the decode stage picked, where it has.
    fn splits(&self, context: &Context<'_>, decode: Option<usize>) -> bool;
}

/// Every decider.
pub const MAKERS: &[Maker<dyn Decider>] = &[
    always::PD_MAKER,
    always::MULTIMODAL_MAKER,
    prefix_based::MAKER,
];
