//! From what is written to what is meant: every reference looked up, every default filled in, as
//! the field's loader does it.
//!
//! Plugins that the field implies are added on the first need, so the plugins of a resolved
//! configuration are the listed ones in their order and then the implied ones. A plugin that is
//! itself wrong is remembered by its name: what refers to it is not reported a second time.

use rustc_hash::{FxHashMap, FxHashSet};

use super::LoadOptions;
use super::catalogue::Catalogue;
use super::draft::{DataLayerDraft, Draft, ProfileDraft, ProfilePluginDraft};
use super::resolve_plugins::kind_name;
use crate::config::fields::Located;
use crate::config::plugins::PluginKind;
use crate::config::problems::{Problems, shortened_warning, shown, suggestion};
use crate::config::resolved::{
    DataLayerSpec, FeatureGates, PluginSpec, ProfilePluginSpec, ProfileSpec, ResolvedConfig,
    SourceSpec,
};
use crate::config::yaml::Place;

/// Warnings kept of one configuration.
const WARNINGS_MAX: usize = 50;

const DEFAULT_PROFILE: &str = "default";
const DEFAULT_PICKER: &str = "max-score-picker";
const DEFAULT_HANDLER: &str = "single-profile-handler";
const DEFAULT_SOURCE: &str = "metrics-data-source";
const DEFAULT_EXTRACTOR: &str = "core-metrics-extractor";
const DEFAULT_PARSERS: [&str; 4] = [
    "openai-parser",
    "anthropic-parser",
    "vllmhttp-parser",
    "passthrough-parser",
];

/// The weight of a scorer that is listed without one.
const DEFAULT_WEIGHT: f64 = 1.0;

/// `None` where problems were found.
pub(super) fn resolve(
    mut draft: Draft<'_>,
    catalogue: &Catalogue,
    options: LoadOptions,
    problems: &Problems,
) -> Option<ResolvedConfig> {
    let mut resolver = Resolver {
        catalogue,
        options,
        problems,
        plugins: Vec::new(),
        by_name: FxHashMap::default(),
        wrong: FxHashSet::default(),
        warnings: std::mem::take(&mut draft.warnings),
    };
    let gates = resolver.gates(&draft.gates);
    resolver.add_listed(&draft.plugins);
    let profiles = resolver.profiles(&draft.profiles);
    let handler = resolver.handler(&draft);
    let flow_control = resolver.flow_control(&draft.flow);
    let data_layer = resolver.data_layer(&draft.data_layer);
    let parsers = resolver.parsers(&draft.parsers);
    resolver.add_needed(&draft.plugins);
    resolver.warnings.truncate(WARNINGS_MAX);
    for warning in &mut resolver.warnings {
        *warning = shortened_warning(warning);
    }
    if !problems.is_empty() {
        return None;
    }
    Some(ResolvedConfig {
        gates,
        plugins: resolver.plugins,
        profiles: profiles?,
        handler: handler?,
        flow_control: flow_control?,
        data_layer: data_layer?,
        parsers: parsers?,
        warnings: resolver.warnings,
    })
}

#[derive(Debug)]
pub(super) struct Resolver<'c> {
    pub(super) catalogue: &'c Catalogue,
    pub(super) options: LoadOptions,
    pub(super) problems: &'c Problems,
    pub(super) plugins: Vec<PluginSpec>,
    pub(super) by_name: FxHashMap<String, usize>,
    /// Names of plugins that were refused.
    pub(super) wrong: FxHashSet<String>,
    pub(super) warnings: Vec<String>,
}

impl Resolver<'_> {
    fn gates(&mut self, written: &[Located<String>]) -> FeatureGates {
        let mut gates = FeatureGates {
            flow_control: false,
            ha_populate_non_leader_datastore: true,
        };
        for gate in written {
            let (name, value) = gate.value.split_once('=').unwrap_or((&gate.value, "true"));
            let Some(value) = go_bool(value) else {
                self.problem(gate, &format!("{} is neither true nor false", shown(value)));
                continue;
            };
            match name {
                "flowControl" => gates.flow_control = value,
                "haPopulateNonLeaderDatastore" => gates.ha_populate_non_leader_datastore = value,
                "dataLayer" | "enableLegacyMetrics" => {
                    let reason = "is of an older picker and has no effect";
                    self.warnings.push(format!("feature gate {name} {reason}"));
                }
                unknown => {
                    let known = ["flowControl", "haPopulateNonLeaderDatastore"];
                    let suggestion = suggestion(unknown, known);
                    let unknown = shown(unknown);
                    self.problem(
                        gate,
                        &format!("there is no feature gate {unknown}{suggestion}"),
                    );
                }
            }
        }
        gates
    }

    fn profiles(&mut self, drafts: &[ProfileDraft]) -> Option<Vec<ProfileSpec>> {
        if drafts.is_empty() {
            return Some(vec![self.default_profile()?]);
        }
        let mut seen: FxHashMap<&str, Place> = FxHashMap::default();
        let mut profiles = Vec::new();
        for draft in drafts {
            if let Some(first) = seen.insert(&draft.name.value, draft.name.place) {
                let reason = format!(
                    "a second profile named {}; the first one is in line {}",
                    shown(&draft.name.value),
                    first.line
                );
                self.problem(&draft.name, &reason);
            }
            let mut plugins = Vec::new();
            let mut has_picker = false;
            for listed in &draft.plugins {
                let Some(plugin) = self.profile_plugin(listed) else {
                    continue;
                };
                if self.kind(plugin.plugin) == Some(PluginKind::Picker) {
                    if has_picker {
                        self.problem(&listed.plugin, "a second picker in this profile");
                    }
                    has_picker = true;
                }
                plugins.push(plugin);
            }
            if !has_picker {
                plugins.push(self.default_picker(&draft.name)?);
            }
            profiles.push(ProfileSpec {
                name: draft.name.value.clone(),
                plugins,
            });
        }
        Some(profiles)
    }

    /// All filters, scorers and pickers that are listed, in their order.
    fn default_profile(&mut self) -> Option<ProfileSpec> {
        let top = Located {
            value: String::new(),
            place: Place::START,
            path: "schedulingProfiles".to_owned(),
        };
        let mut plugins: Vec<ProfilePluginSpec> = (0..self.plugins.len())
            .filter(|plugin| self.kind(*plugin).is_some_and(is_scheduling))
            .map(unweighted)
            .collect();
        let pickers = plugins
            .iter()
            .filter(|listed| self.kind(listed.plugin) == Some(PluginKind::Picker))
            .count();
        match pickers {
            0 => plugins.push(self.default_picker(&top)?),
            1 => {}
            _ => {
                let reason = "several pickers are listed; write a profile that names one";
                self.problem(&top, reason);
            }
        }
        Some(ProfileSpec {
            name: DEFAULT_PROFILE.to_owned(),
            plugins,
        })
    }

    fn profile_plugin(&mut self, listed: &ProfilePluginDraft) -> Option<ProfilePluginSpec> {
        let plugin = self.find(&listed.plugin)?;
        let kind = self.kind(plugin)?;
        let name = &listed.plugin.value;
        if !is_scheduling(kind) {
            // The field passes over these, too.
            self.warnings.push(format!(
                "{}: {name} is {}, which does nothing in a profile",
                listed.plugin.path,
                kind_name(kind)
            ));
            return None;
        }
        if let Some(weight) = &listed.weight
            && kind != PluginKind::Scorer
        {
            self.warnings.push(format!(
                "{}: {name} is {}; only scorers have a weight",
                weight.path,
                kind_name(kind)
            ));
            return Some(unweighted(plugin));
        }
        Some(ProfilePluginSpec {
            plugin,
            weight: listed
                .weight
                .as_ref()
                .map_or(DEFAULT_WEIGHT, |weight| weight.value),
        })
    }

    /// The picker of a profile that lists none: the first one listed among the plugins, as in the
    /// field, else the one with the highest score.
    fn default_picker(&mut self, profile: &Located<String>) -> Option<ProfilePluginSpec> {
        let listed = self
            .plugins
            .iter()
            .position(|plugin| plugin.kind == PluginKind::Picker);
        let picker = match listed {
            Some(picker) => picker,
            None => self.implied(DEFAULT_PICKER, PluginKind::Picker, &profile.path)?,
        };
        Some(unweighted(picker))
    }

    fn handler(&mut self, draft: &Draft<'_>) -> Option<usize> {
        let handlers: Vec<usize> = (0..self.plugins.len())
            .filter(|plugin| self.kind(*plugin) == Some(PluginKind::ProfileHandler))
            .collect();
        let several = draft.profiles.len() > 1;
        match handlers.as_slice() {
            [] if !self.wrong.is_empty() => None,
            [] if several => {
                let reason = "several profiles need a profile handler among the plugins, \
                    such as disagg-profile-handler";
                let place = draft.profiles.first()?.name.place;
                self.problems.add(place, "schedulingProfiles", reason);
                None
            }
            [] => self.implied(DEFAULT_HANDLER, PluginKind::ProfileHandler, "plugins"),
            [one] => {
                let spec = self.plugins.get(*one)?;
                if several && spec.type_name == DEFAULT_HANDLER {
                    let place = draft.profiles.get(1)?.name.place;
                    let reason = format!("{DEFAULT_HANDLER} runs one profile only");
                    self.problems.add(place, "schedulingProfiles[1]", &reason);
                }
                Some(*one)
            }
            [_, second, ..] => {
                let name = &self.plugins.get(*second)?.name;
                let place = draft
                    .plugins
                    .iter()
                    .find(|plugin| plugin.name.value == *name);
                let place = place.map_or(Place::START, |plugin| plugin.name.place);
                let reason = format!(
                    "{} is a second profile handler; one is allowed",
                    shown(name)
                );
                self.problems.add(place, "plugins", &reason);
                None
            }
        }
    }

    fn data_layer(&mut self, draft: &DataLayerDraft) -> Option<DataLayerSpec> {
        let mut sources = Vec::new();
        for written in &draft.sources {
            let source = self.reference(&written.source, &[PluginKind::DataSource]);
            // Producers that follow a source's notifications are named as its extractors.
            let allowed = [PluginKind::Extractor, PluginKind::DataProducer];
            let extractors: Vec<usize> = written
                .extractors
                .iter()
                .filter_map(|extractor| self.reference(extractor, &allowed))
                .collect();
            if let Some(source) = source {
                sources.push(SourceSpec { source, extractors });
            }
        }
        let has_metrics = sources.iter().any(|source| {
            self.plugins
                .get(source.source)
                .is_some_and(|spec| spec.type_name == DEFAULT_SOURCE)
        });
        if draft.inject_defaults != Some(false) && !has_metrics {
            sources.push(SourceSpec {
                source: self.implied(DEFAULT_SOURCE, PluginKind::DataSource, "dataLayer")?,
                extractors: vec![self.implied(
                    DEFAULT_EXTRACTOR,
                    PluginKind::Extractor,
                    "dataLayer",
                )?],
            });
        }
        let discovery = match &draft.discovery {
            Some(reference) => Some(self.reference(reference, &[PluginKind::Discovery])?),
            None => None,
        };
        Some(DataLayerSpec { sources, discovery })
    }

    fn parsers(&mut self, written: &[Located<String>]) -> Option<Vec<usize>> {
        if !written.is_empty() {
            return Some(
                written
                    .iter()
                    .filter_map(|parser| self.reference(parser, &[PluginKind::Parser]))
                    .collect(),
            );
        }
        DEFAULT_PARSERS
            .iter()
            .map(|parser| self.implied(parser, PluginKind::Parser, "requestHandler"))
            .collect()
    }
}

fn unweighted(plugin: usize) -> ProfilePluginSpec {
    ProfilePluginSpec {
        plugin,
        weight: DEFAULT_WEIGHT,
    }
}

fn is_scheduling(kind: PluginKind) -> bool {
    matches!(
        kind,
        PluginKind::Filter | PluginKind::Scorer | PluginKind::Picker
    )
}

/// As Go reads a flag.
fn go_bool(text: &str) -> Option<bool> {
    match text.trim().to_ascii_lowercase().as_str() {
        "1" | "t" | "true" => Some(true),
        "0" | "f" | "false" => Some(false),
        _ => None,
    }
}
