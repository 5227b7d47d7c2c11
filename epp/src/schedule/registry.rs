//! The plugins of this room by the field's type names, each made from its parameters.
//!
//! A configuration names a type and gives parameters as a free-form object; the constructor of that
//! type reads them strictly, so a misspelt parameter is an error that names the plugin and the
//! field.

use serde_json::Value;

use super::plugin::{Filter, Maker, Picker, Scorer};
use super::{filters, pickers, scorers};
use crate::config::plugins::{ParameterError, PluginType};

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
    #[error("parameters of plugin type {type_name:?}: {error}")]
    Parameters {
        type_name: &'static str,
        error: ParameterError,
    },
}

/// Every plugin type of this room.
pub fn plugin_types() -> Vec<PluginType> {
    fn of<T: ?Sized>(makers: &[Maker<T>]) -> impl Iterator<Item = PluginType> {
        makers.iter().map(|maker| maker.plugin)
    }
    of(filters::MAKERS)
        .chain(of(scorers::MAKERS))
        .chain(of(pickers::MAKERS))
        .collect()
}

/// Makes a plugin. `parameters` is an object, or null for the defaults.
pub fn make(type_name: &str, parameters: &Value) -> Result<Plugin, PluginError> {
    let filter =
        find(filters::MAKERS, type_name).map(|maker| made(maker, parameters, Plugin::Filter));
    let scorer =
        || find(scorers::MAKERS, type_name).map(|maker| made(maker, parameters, Plugin::Scorer));
    let picker =
        || find(pickers::MAKERS, type_name).map(|maker| made(maker, parameters, Plugin::Picker));
    filter.or_else(scorer).or_else(picker).unwrap_or_else(|| {
        Err(PluginError::UnknownType {
            type_name: type_name.to_owned(),
        })
    })
}

fn find<T: ?Sized>(makers: &'static [Maker<T>], type_name: &str) -> Option<&'static Maker<T>> {
    makers.iter().find(|maker| maker.plugin.name == type_name)
}

fn made<T: ?Sized>(
    maker: &'static Maker<T>,
    parameters: &Value,
    wrap: fn(Box<T>) -> Plugin,
) -> Result<Plugin, PluginError> {
    (maker.make)(parameters)
        .map(wrap)
        .map_err(|error| PluginError::Parameters {
            type_name: maker.plugin.name,
            error,
        })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_type_is_made_from_no_parameters_under_its_own_name() {
        for plugin in plugin_types() {
            let made = match make(plugin.name, &Value::Null).unwrap() {
                Plugin::Filter(filter) => filter.type_name(),
                Plugin::Scorer(scorer) => scorer.type_name(),
                Plugin::Picker(picker) => picker.type_name(),
            };
            assert_eq!(made, plugin.name);
        }
    }

    #[test]
    fn unknown_types_and_parameters_are_named() {
        let unknown = make("queue-scorre", &Value::Null).unwrap_err();
        assert_eq!(
            unknown.to_string(),
            "there is no scheduling plugin of type \"queue-scorre\""
        );
        for plugin in plugin_types() {
            let error = make(plugin.name, &json!({"nonsense": 1}))
                .unwrap_err()
                .to_string();
            assert!(
                error.contains(plugin.name) && error.contains("nonsense"),
                "{error}"
            );
        }
        let range = make("prefix-cache-scorer", &json!({"matchLengthWeight": 2.0})).unwrap_err();
        assert!(range.to_string().contains("between 0 and 1"));
    }
}
