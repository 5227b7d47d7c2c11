//! A scheduler from a checked configuration.
//!
//! Each named plugin is made once and shared by the profiles that refer to it. The configuration
//! was checked against the plugin types before; what can still go wrong here are references between
//! plugins, which only their owner understands.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::deciders::Decider;
use super::handlers::{self, Parts, ProfileHandler};
use super::pickers::MaxScorePicker;
use super::plugin::{Filter, Picker, Scorer};
use super::profile::Profile;
use super::registry::{self, Plugin};
use super::scheduler::Scheduler;
use crate::config::plugins::{ParameterError, PluginKind};
use crate::config::resolved::{PluginSpec, ProfileSpec, ResolvedConfig};

/// Why no scheduler could be built.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BuildError {
    #[error("plugin {name:?}: {error}")]
    Plugin {
        name: String,
        error: registry::PluginError,
    },
    #[error("profile handler {name:?}: {error}")]
    Handler { name: String, error: ParameterError },
    #[error(
        "scheduling profile {profile:?} refers to {name:?}, which is no filter, scorer or picker"
    )]
    NotOfAProfile { profile: String, name: String },
    #[error("scheduling profile {profile:?} has two pickers")]
    TwoPickers { profile: String },
    #[error("there is no profile handler of type {type_name:?}")]
    NoHandler { type_name: &'static str },
}

/// Builds the scheduler of a configuration. `first_filters` run before the configured ones in every
/// profile.
pub fn build(
    config: &ResolvedConfig,
    first_filters: &[Arc<dyn Filter>],
) -> Result<Scheduler, BuildError> {
    let plugins = Plugins::make(&config.plugins)?;
    let profiles = config
        .profiles
        .iter()
        .map(|spec| plugins.profile(spec, first_filters))
        .collect::<Result<Vec<_>, _>>()?;
    let handler = plugins.handler(config, &profiles)?;
    Ok(Scheduler::new(profiles, handler))
}

/// The made plugins by their place in the configuration.
#[derive(Default)]
struct Plugins {
    filters: BTreeMap<usize, Arc<dyn Filter>>,
    scorers: BTreeMap<usize, Arc<dyn Scorer>>,
    pickers: BTreeMap<usize, Arc<dyn Picker>>,
    deciders: BTreeMap<String, Arc<dyn Decider>>,
}

impl Plugins {
    fn make(specs: &[PluginSpec]) -> Result<Self, BuildError> {
        let mut made = Self::default();
        for (place, spec) in specs.iter().enumerate() {
            let is_of_this_room = matches!(
                spec.kind,
                PluginKind::Filter | PluginKind::Scorer | PluginKind::Picker | PluginKind::Decider
            );
            if !is_of_this_room {
                continue;
            }
            let plugin = registry::make(spec.type_name, &spec.parameters);
            let plugin = plugin.map_err(|error| BuildError::Plugin {
                name: spec.name.clone(),
                error,
            })?;
            match plugin {
                Plugin::Filter(filter) => drop(made.filters.insert(place, Arc::from(filter))),
                Plugin::Scorer(scorer) => drop(made.scorers.insert(place, Arc::from(scorer))),
                Plugin::Picker(picker) => drop(made.pickers.insert(place, Arc::from(picker))),
                Plugin::Decider(decider) => {
                    made.deciders.insert(spec.name.clone(), Arc::from(decider));
                }
            }
        }
        Ok(made)
    }

    fn profile(
        &self,
        spec: &ProfileSpec,
        first_filters: &[Arc<dyn Filter>],
    ) -> Result<Profile, BuildError> {
        let mut profile = Profile::new(&spec.name, Arc::new(MaxScorePicker::default()));
        profile.filters.extend(first_filters.iter().map(Arc::clone));
        let mut has_picker = false;
        for entry in &spec.plugins {
            let place = entry.plugin;
            if let Some(filter) = self.filters.get(&place) {
                profile.filters.push(Arc::clone(filter));
            } else if let Some(scorer) = self.scorers.get(&place) {
                profile = profile.with_scorer(Arc::clone(scorer), entry.weight as f32);
            } else if let Some(picker) = self.pickers.get(&place) {
                if std::mem::replace(&mut has_picker, true) {
                    let profile = spec.name.clone();
                    return Err(BuildError::TwoPickers { profile });
                }
                profile.picker = Arc::clone(picker);
            }
            // The field passes over plugins of other kinds in a profile, and so do we.
        }
        Ok(profile)
    }

    fn handler(
        &self,
        config: &ResolvedConfig,
        profiles: &[Profile],
    ) -> Result<Box<dyn ProfileHandler>, BuildError> {
        let spec = config.plugins.get(config.handler);
        let type_name = spec.map_or("", |spec| spec.type_name);
        let maker = handlers::MAKERS
            .iter()
            .find(|maker| maker.plugin.name == type_name);
        let (Some(spec), Some(maker)) = (spec, maker) else {
            return Err(BuildError::NoHandler { type_name });
        };
        let names: Vec<Arc<str>> = profiles
            .iter()
            .map(|profile| Arc::clone(&profile.name))
            .collect();
        let parts = Parts {
            profiles: &names,
            decider: &|name| self.deciders.get(name).map(Arc::clone),
        };
        (maker.make)(&spec.parameters, &parts).map_err(|error| BuildError::Handler {
            name: spec.name.clone(),
            error,
        })
    }
}

#[cfg(test)]
mod tests;
