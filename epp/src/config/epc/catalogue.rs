//! The plugin types of all rooms together.

use rustc_hash::FxHashMap;

use super::field_types::{DIRECT_SUCCESSORS, FIELD_TYPES};
use crate::config::plugins::PluginType;
use crate::config::problems::{shown, suggestion};

/// Every plugin type that a configuration may name.
#[derive(Clone, Debug)]
pub struct Catalogue {
    types: FxHashMap<&'static str, PluginType>,
}

impl Catalogue {
    /// Of two types with one name the first counts.
    pub fn new(types: impl IntoIterator<Item = PluginType>) -> Self {
        let mut by_name = FxHashMap::default();
        for plugin_type in types {
            by_name.entry(plugin_type.name).or_insert(plugin_type);
        }
        Self { types: by_name }
    }

    /// The type of exactly this name.
    pub fn get(&self, name: &str) -> Option<&PluginType> {
        self.types.get(name)
    }

    /// Every type, in no order.
    pub fn types(&self) -> impl Iterator<Item = &PluginType> {
        self.types.values()
    }

    /// The names of [`FIELD_TYPES`] that are missing here, neither under their own name nor under
    /// their direct successor's.
    pub fn missing_of_the_field(&self) -> Vec<&'static str> {
        FIELD_TYPES
            .iter()
            .map(|(name, ..)| *name)
            .filter(|name| {
                let successor = direct_successor(name);
                self.get(name).is_none() && successor.is_none_or(|new| self.get(new).is_none())
            })
            .collect()
    }

    /// Why a name is no type of this catalogue.
    pub(super) fn unknown(&self, name: &str) -> String {
        if FIELD_TYPES.iter().any(|(known, ..)| *known == name) {
            return format!("this picker does not have the plugin type {name:?}");
        }
        let names = self.types.keys().copied();
        let old_names = DIRECT_SUCCESSORS.iter().map(|(old, _)| *old);
        let suggestion = suggestion(name, names.chain(old_names));
        format!("there is no plugin type {}{suggestion}", shown(name))
    }
}

/// The present name of a type that was only renamed.
pub(super) fn direct_successor(name: &str) -> Option<&'static str> {
    DIRECT_SUCCESSORS
        .iter()
        .find(|(old, _)| *old == name)
        .map(|(_, new)| *new)
}
