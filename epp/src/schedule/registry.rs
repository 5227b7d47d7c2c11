//! The plugins of this room by the field's type names, each made from its parameters.
//!
//! A configuration names a type and gives parameters as a free-form object; the constructor of that
//! type reads them strictly, so a misspelt parameter is an error that names the plugin and the
//! field.

use serde_json::Value;

use super::deciders::{self, Decider};
use super::plugin::{Filter, Maker, Picker, Scorer};
use super::{admitters, filters, handlers, pickers, scorers};
use crate::config::plugins::{ParameterError, PluginType};

/// A made plugin.
#[derive(Debug)]
pub enum Plugin {
    Filter(Box<dyn Filter>),
    Scorer(Box<dyn Scorer>),
    Picker(Box<dyn Picker>),
    Decider(Box<dyn Decider>),
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
        .chain(of(deciders::MAKERS))
        .chain(handlers::MAKERS.iter().map(|maker| maker.plugin))
        .chain(of(admitters::MAKERS))
        .chain(handlers::HEADER_WRITERS.iter().copied())
        .collect()
}

/// Makes a filter, scorer, picker or decider. `parameters` is an object, or null for the defaults.
pub fn make(type_name: &str, parameters: &Value) -> Result<Plugin, PluginError> {
    let filter = || find(filters::MAKERS, type_name).map(|it| made(it, parameters, Plugin::Filter));
    let scorer = || find(scorers::MAKERS, type_name).map(|it| made(it, parameters, Plugin::Scorer));
    let picker = || find(pickers::MAKERS, type_name).map(|it| made(it, parameters, Plugin::Picker));
    let decider =
        || find(deciders::MAKERS, type_name).map(|it| made(it, parameters, Plugin::Decider));
    let plugin = filter().or_else(scorer).or_else(picker).or_else(decider);
    plugin.unwrap_or_else(|| {
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

    fn is_made_here(plugin: &PluginType) -> bool {
        use crate::config::plugins::PluginKind::{Decider, Filter, Picker, Scorer};
        matches!(plugin.kind, Decider | Filter | Picker | Scorer)
    }

    #[test]
    fn every_type_is_made_from_its_defaults_under_its_own_name() {
        for plugin in plugin_types().iter().filter(|plugin| is_made_here(plugin)) {
            let Ok(defaults) = (plugin.check)(&Value::Null) else {
                // It has a parameter that must be given.
                continue;
            };
            let made = match make(plugin.name, &defaults).unwrap() {
                Plugin::Filter(filter) => filter.type_name(),
                Plugin::Scorer(scorer) => scorer.type_name(),
                Plugin::Picker(picker) => picker.type_name(),
                Plugin::Decider(decider) => decider.type_name(),
            };
            assert_eq!(made, plugin.name);
        }
    }

    #[test]
    fn names_are_unique() {
        let mut names: Vec<_> = plugin_types().iter().map(|plugin| plugin.name).collect();
        let all = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), all);
    }

    #[test]
    fn unknown_types_and_parameters_are_named() {
        let unknown = make("queue-scorre", &Value::Null).unwrap_err();
        assert_eq!(
            unknown.to_string(),
            "there is no scheduling plugin of type \"queue-scorre\""
        );
        for plugin in plugin_types() {
            let error = (plugin.check)(&json!({"nonsense": 1})).unwrap_err();
            assert!(error.to_string().contains("nonsense"), "{error}");
        }
        let range = make("prefix-cache-scorer", &json!({"matchLengthWeight": 2.0})).unwrap_err();
        assert!(range.to_string().contains("between 0 and 1"));
    }
}
