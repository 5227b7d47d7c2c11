//! `static-usage-limit-policy`: one ceiling for all priorities.

use serde::{Deserialize, Serialize};

use crate::config::plugins::{self, ParameterError, PluginKind, PluginType, Stage};

/// The plugin's type name.
pub const TYPE_NAME: &str = "static-usage-limit-policy";

/// The plugin type.
pub const PLUGIN: PluginType = PluginType {
    name: TYPE_NAME,
    kind: PluginKind::UsageLimit,
    stage: Stage::Beta,
    check: plugins::check::<Parameters>,
};

/// Parameters of the plugin.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
pub struct Parameters {
    /// The ceiling.
    pub threshold: f64,
}

impl Default for Parameters {
    fn default() -> Self {
        Self { threshold: 1.0 }
    }
}

impl plugins::Parameters for Parameters {
    fn validate(&self) -> Result<(), ParameterError> {
        if self.threshold > 0.0 && self.threshold.is_finite() {
            return Ok(());
        }
        Err(ParameterError::new("threshold", "must be more than 0"))
    }
}
