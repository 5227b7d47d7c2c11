//! `global-strict-fairness-policy`: no fairness between flows; the most urgent request of the
//! whole band goes next, by the ordering policy of the band.

use crate::config::plugins::{self, NoParameters, PluginKind, PluginType, Stage};

/// The plugin's type name.
pub const TYPE_NAME: &str = "global-strict-fairness-policy";

/// The plugin type.
pub const PLUGIN: PluginType = PluginType {
    name: TYPE_NAME,
    kind: PluginKind::Fairness,
    stage: Stage::Beta,
    check: plugins::check::<NoParameters>,
};
