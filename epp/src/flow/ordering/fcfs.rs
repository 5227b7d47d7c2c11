//! `fcfs-ordering-policy`: first come, first served.

use super::Urgency;
use crate::config::plugins::{self, NoParameters, PluginKind, PluginType, Stage};

/// The plugin's type name.
pub const TYPE_NAME: &str = "fcfs-ordering-policy";

/// The plugin type.
pub const PLUGIN: PluginType = PluginType {
    name: TYPE_NAME,
    kind: PluginKind::Ordering,
    stage: Stage::Beta,
    check: plugins::check::<NoParameters>,
};

/// All requests are equal; the order in which they were queued decides.
pub(super) fn key(_: &Urgency) -> u64 {
    0
}
