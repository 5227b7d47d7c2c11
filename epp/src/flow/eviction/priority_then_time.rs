//! `priority-then-time-eviction-order-policy`: the lowest priority first, and among equals the one
//! that started last, because the least work is lost with it.

use std::cmp::Reverse;

use crate::config::plugins::{self, NoParameters, PluginKind, PluginType, Stage};

/// The plugin's type name.
pub const TYPE_NAME: &str = "priority-then-time-eviction-order-policy";

/// What it was called before.
pub const OLD_TYPE_NAME: &str = "eviction-priority-then-time-ordering";

/// The plugin type.
pub const PLUGIN: PluginType = PluginType {
    name: TYPE_NAME,
    kind: PluginKind::EvictionOrder,
    stage: Stage::Alpha,
    check: plugins::check::<NoParameters>,
};

/// The same under its old name.
pub const OLD_PLUGIN: PluginType = PluginType {
    name: OLD_TYPE_NAME,
    stage: Stage::Deprecated { instead: TYPE_NAME },
    ..PLUGIN
};

/// The key of a request that is in flight since `since_ms`; the smallest goes first.
pub(super) fn key(priority: i32, since_ms: u64) -> (i32, Reverse<u64>) {
    (priority, Reverse(since_ms))
}
