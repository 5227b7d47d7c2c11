//! `round-robin-fairness-policy`: flows take turns, one request each.
//!
//! A flow that starts to wait goes to the end of the row, and so does one that was just served. A
//! flow that drains loses its place: what it did not use it cannot save up.

use crate::config::plugins::{self, NoParameters, PluginKind, PluginType, Stage};

/// The plugin's type name.
pub const TYPE_NAME: &str = "round-robin-fairness-policy";

/// The plugin type.
pub const PLUGIN: PluginType = PluginType {
    name: TYPE_NAME,
    kind: PluginKind::Fairness,
    stage: Stage::Beta,
    check: plugins::check::<NoParameters>,
};
