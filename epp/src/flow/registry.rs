//! The plugin types of this room, and what is wrong where one cannot be made.
//!
//! Each family makes its own members ([`Fairness::make`], [`Ordering::make`], [`UsageLimit::make`],
//! [`SaturationDetector::make`], [`EvictionFilter::make`], [`EvictionOrder::make`]); a
//! configuration is checked against the list here.
//!
//! [`Fairness::make`]: super::Fairness::make
//! [`Ordering::make`]: super::Ordering::make
//! [`UsageLimit::make`]: super::UsageLimit::make
//! [`SaturationDetector::make`]: super::SaturationDetector::make
//! [`EvictionFilter::make`]: super::eviction::EvictionFilter::make
//! [`EvictionOrder::make`]: super::eviction::EvictionOrder::make

use serde_json::Value;

use super::{eviction, fairness, ordering, saturation, usage_limit};
use crate::config::plugins::{self, ParameterError, Parameters, PluginType};

/// Every plugin type of this room.
pub const PLUGIN_TYPES: &[PluginType] = &[
    fairness::global_strict::PLUGIN,
    fairness::round_robin::PLUGIN,
    fairness::program_aware::PLUGIN,
    ordering::fcfs::PLUGIN,
    ordering::edf::PLUGIN,
    ordering::slo_deadline::PLUGIN,
    usage_limit::fixed::PLUGIN,
    usage_limit::holdback::PLUGIN,
    usage_limit::soft_reflective::PLUGIN,
    saturation::utilization::PLUGIN,
    saturation::concurrency::PLUGIN,
    eviction::sheddable::PLUGIN,
    eviction::sheddable::OLD_PLUGIN,
    eviction::priority_then_time::PLUGIN,
    eviction::priority_then_time::OLD_PLUGIN,
];

/// Why a plugin of this room could not be made.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum FlowPluginError {
    #[error("{type_name:?} is no {family}")]
    UnknownType {
        family: &'static str,
        type_name: String,
    },
    #[error("parameters of plugin type {type_name:?}: {error}")]
    Parameters {
        type_name: &'static str,
        error: ParameterError,
    },
}

impl FlowPluginError {
    pub(super) fn unknown(family: &'static str, type_name: &str) -> Self {
        Self::UnknownType {
            family,
            type_name: type_name.to_owned(),
        }
    }

    pub(super) fn read<P: Parameters>(
        type_name: &'static str,
        parameters: &Value,
    ) -> Result<P, Self> {
        plugins::read(parameters).map_err(|error| Self::Parameters { type_name, error })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::{Fairness, Ordering, SaturationDetector, UsageLimit};
    use super::*;
    use crate::config::plugins::{PluginKind, Stage};

    /// Makes the plugin and says under which name it knows itself.
    fn made(plugin: &PluginType, parameters: &Value) -> Result<&'static str, FlowPluginError> {
        let name = plugin.name;
        match plugin.kind {
            PluginKind::Fairness => {
                Fairness::make("any", name, parameters).map(|made| made.type_name())
            }
            PluginKind::Ordering => Ordering::make(name, parameters).map(Ordering::type_name),
            PluginKind::UsageLimit => {
                UsageLimit::make(name, parameters).map(|made| made.type_name())
            }
            PluginKind::SaturationDetector => {
                SaturationDetector::make(name, parameters).map(|made| made.type_name())
            }
            PluginKind::EvictionFilter => {
                eviction::EvictionFilter::make(name, parameters).map(|_| name)
            }
            PluginKind::EvictionOrder => {
                eviction::EvictionOrder::make(name, parameters).map(|_| name)
            }
            other => panic!("{other:?} is of another room"),
        }
    }

    #[test]
    fn every_type_is_made_from_its_defaults_under_its_own_name() {
        for plugin in PLUGIN_TYPES {
            let given = if plugin.name == usage_limit::holdback::TYPE_NAME {
                json!({"minCeiling": 0.5})
            } else {
                Value::Null
            };
            let filled = (plugin.check)(&given).unwrap();
            assert_eq!(made(plugin, &filled), Ok(plugin.name));
        }
    }

    #[test]
    fn misspelt_parameters_and_types_are_named() {
        for plugin in PLUGIN_TYPES {
            let error = made(plugin, &json!({"nonsense": 1})).unwrap_err();
            let told = error.to_string();
            assert!(told.contains("nonsense"), "{told}");
            assert!((plugin.check)(&json!({"nonsense": 1})).is_err());
        }
        let unknown = Ordering::make("lifo", &Value::Null).unwrap_err();
        assert_eq!(unknown.to_string(), "\"lifo\" is no ordering policy");
    }

    #[test]
    fn names_are_unique_and_old_ones_say_what_to_use() {
        for (at, plugin) in PLUGIN_TYPES.iter().enumerate() {
            let again = PLUGIN_TYPES.iter().skip(at + 1);
            assert!(again.clone().all(|other| other.name != plugin.name));
            if let Stage::Deprecated { instead } = plugin.stage {
                assert!(PLUGIN_TYPES.iter().any(|other| other.name == instead));
            }
        }
    }
}
