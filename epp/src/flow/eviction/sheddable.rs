//! `sheddable-eviction-filter`: only requests of negative priority may be put out.

use crate::config::plugins::{self, NoParameters, PluginKind, PluginType, Stage};

/// The plugin's type name.
pub const TYPE_NAME: &str = "sheddable-eviction-filter";

/// What it was called before.
pub const OLD_TYPE_NAME: &str = "eviction-sheddable-filter";

/// The plugin type.
pub const PLUGIN: PluginType = PluginType {
    name: TYPE_NAME,
    kind: PluginKind::EvictionFilter,
    stage: Stage::Alpha,
    check: plugins::check::<NoParameters>,
};

/// The same under its old name.
pub const OLD_PLUGIN: PluginType = PluginType {
    name: OLD_TYPE_NAME,
    stage: Stage::Deprecated { instead: TYPE_NAME },
    ..PLUGIN
};

/// Whether a request of this priority may be put out.
pub(super) fn accepts(priority: i32) -> bool {
    priority < 0
}
