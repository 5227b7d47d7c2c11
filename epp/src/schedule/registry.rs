//! The plugins by the field's type names, each made from its parameters.
//!
//! A configuration names a type and gives parameters as a free-form object; the constructor of that
//! type reads them strictly, so a misspelt parameter is an error that names the plugin and the
//! field.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::filters::{HealthyFilter, healthy};
use super::pickers::{
    MaxScorePicker, RandomPicker, WeightedRandomPicker, max_score, random, weighted_random,
};
use super::plugin::{Filter, Picker, Scorer};
use super::scorers::{
    KvCacheUtilizationScorer, PrefixCacheScorer, QueueScorer, RunningRequestsScorer,
    kv_cache_utilization, prefix_cache, queue, running_requests,
};

/// A made plugin.
#[derive(Debug)]
pub enum Plugin {
    Filter(Box<dyn Filter>),
    Scorer(Box<dyn Scorer>),
    Picker(Box<dyn Picker>),
}

/// Why a plugin could not be made.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PluginError {
    #[error("there is no scheduling plugin of type {type_name:?}")]
    UnknownType { type_name: String },
    #[error("parameters of plugin type {type_name:?}: {reason}")]
    Parameters {
        type_name: &'static str,
        reason: String,
    },
}

type Constructor = fn(Value) -> Result<Plugin, String>;

/// Plugin types by name.
pub struct Registry {
    constructors: BTreeMap<&'static str, Constructor>,
}

impl fmt::Debug for Registry {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_set().entries(self.type_names()).finish()
    }
}

impl Registry {
    /// All plugins of this room.
    pub fn field() -> Self {
        let entries: [(&'static str, Constructor); 8] = [
            (healthy::TYPE_NAME, |parameters| {
                let parameters: healthy::Parameters = read(parameters)?;
                Ok(Plugin::Filter(Box::new(HealthyFilter::from(parameters))))
            }),
            (queue::TYPE_NAME, |parameters| {
                let parameters: queue::Parameters = read(parameters)?;
                Ok(Plugin::Scorer(Box::new(QueueScorer::from(parameters))))
            }),
            (kv_cache_utilization::TYPE_NAME, |parameters| {
                let parameters: kv_cache_utilization::Parameters = read(parameters)?;
                let scorer = KvCacheUtilizationScorer::from(parameters);
                Ok(Plugin::Scorer(Box::new(scorer)))
            }),
            (running_requests::TYPE_NAME, |parameters| {
                let parameters: running_requests::Parameters = read(parameters)?;
                let scorer = RunningRequestsScorer::from(parameters);
                Ok(Plugin::Scorer(Box::new(scorer)))
            }),
            (prefix_cache::TYPE_NAME, |parameters| {
                let parameters: prefix_cache::Parameters = read(parameters)?;
                let scorer =
                    PrefixCacheScorer::try_from(parameters).map_err(|error| error.to_string())?;
                Ok(Plugin::Scorer(Box::new(scorer)))
            }),
            (max_score::TYPE_NAME, |parameters| {
                let parameters: super::pickers::Parameters = read(parameters)?;
                Ok(Plugin::Picker(Box::new(MaxScorePicker::from(parameters))))
            }),
            (random::TYPE_NAME, |parameters| {
                let parameters: super::pickers::Parameters = read(parameters)?;
                Ok(Plugin::Picker(Box::new(RandomPicker::from(parameters))))
            }),
            (weighted_random::TYPE_NAME, |parameters| {
                let parameters: super::pickers::Parameters = read(parameters)?;
                let picker = WeightedRandomPicker::from(parameters);
                Ok(Plugin::Picker(Box::new(picker)))
            }),
        ];
        Self {
            constructors: entries.into_iter().collect(),
        }
    }

    /// Makes a plugin. `parameters` is an object, or null for the defaults.
    pub fn make(&self, type_name: &str, parameters: Value) -> Result<Plugin, PluginError> {
        let (type_name, constructor) =
            self.constructors
                .get_key_value(type_name)
                .ok_or_else(|| PluginError::UnknownType {
                    type_name: type_name.to_owned(),
                })?;
        constructor(parameters).map_err(|reason| PluginError::Parameters { type_name, reason })
    }

    /// The known type names, sorted.
    pub fn type_names(&self) -> impl Iterator<Item = &'static str> {
        self.constructors.keys().copied()
    }
}

fn read<T: DeserializeOwned>(parameters: Value) -> Result<T, String> {
    let parameters = match parameters {
        Value::Null => Value::Object(serde_json::Map::new()),
        other => other,
    };
    serde_json::from_value(parameters).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_type_is_made_from_no_parameters_under_its_own_name() {
        let registry = Registry::field();
        for type_name in registry.type_names() {
            let made = match registry.make(type_name, Value::Null).unwrap() {
                Plugin::Filter(filter) => filter.type_name(),
                Plugin::Scorer(scorer) => scorer.type_name(),
                Plugin::Picker(picker) => picker.type_name(),
            };
            assert_eq!(made, type_name);
        }
    }

    #[test]
    fn unknown_types_and_parameters_are_named() {
        let registry = Registry::field();
        let unknown = registry.make("queue-scorre", Value::Null).unwrap_err();
        assert_eq!(
            unknown.to_string(),
            "there is no scheduling plugin of type \"queue-scorre\""
        );
        for type_name in registry.type_names() {
            let error = registry
                .make(type_name, json!({"nonsense": 1}))
                .unwrap_err()
                .to_string();
            assert!(
                error.contains(type_name) && error.contains("nonsense"),
                "{error}"
            );
        }
        let range = registry
            .make("prefix-cache-scorer", json!({"matchLengthWeight": 2.0}))
            .unwrap_err();
        assert!(range.to_string().contains("between 0 and 1"));
    }
}
