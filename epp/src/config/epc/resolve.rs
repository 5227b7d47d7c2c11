//! From what is written to what is meant: every reference looked up, every default filled in, as
//! the field's loader does it.
//!
//! Plugins that the field implies are added on the first need, so the plugins of a resolved
//! configuration are the listed ones in their order and then the implied ones. A plugin that is
//! itself wrong is remembered by its name: what refers to it is not reported a second time.

use rustc_hash::{FxHashMap, FxHashSet};
use serde_json::Value;

use super::LoadOptions;
use super::catalogue::{Catalogue, direct_successor};
use super::draft::{DataLayerDraft, Draft, PluginDraft, ProfileDraft, ProfilePluginDraft};
use super::producers::{self, NamedPlugin};
use crate::config::fields::Located;
use crate::config::plugins::{ParameterError, PluginKind, PluginType, Stage};
use crate::config::problems::{Problems, shown, suggestion};
use crate::config::resolved::{
    DataLayerSpec, FeatureGates, PluginSpec, ProfilePluginSpec, ProfileSpec, ResolvedConfig,
    SourceSpec,
};
use crate::config::yaml::{Node, Place};

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

/// Types that may be referred to by their name without being listed.
const IMPLIED: [&str; 12] = [
    DEFAULT_PICKER,
    DEFAULT_HANDLER,
    DEFAULT_SOURCE,
    DEFAULT_EXTRACTOR,
    "openai-parser",
    "anthropic-parser",
    "vllmhttp-parser",
    "passthrough-parser",
    "global-strict-fairness-policy",
    "fcfs-ordering-policy",
    "static-usage-limit-policy",
    "utilization-detector",
];

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
    catalogue: &'c Catalogue,
    options: LoadOptions,
    pub(super) problems: &'c Problems,
    plugins: Vec<PluginSpec>,
    by_name: FxHashMap<String, usize>,
    /// Names of plugins that were refused.
    wrong: FxHashSet<String>,
    warnings: Vec<String>,
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

    fn add_listed(&mut self, drafts: &[PluginDraft<'_>]) {
        let mut seen: FxHashMap<&str, Place> = FxHashMap::default();
        for draft in drafts {
            let name = draft.name.value.as_str();
            if let Some(first) = seen.insert(name, draft.name.place) {
                let reason = format!(
                    "a second plugin named {}; the first one is in line {}",
                    shown(name),
                    first.line
                );
                self.problem(&draft.name, &reason);
                continue;
            }
            match self.spec_of(draft) {
                Some(spec) => self.add(spec),
                None => {
                    self.wrong.insert(name.to_owned());
                }
            }
        }
    }

    fn spec_of(&mut self, draft: &PluginDraft<'_>) -> Option<PluginSpec> {
        let plugin_type = self.type_of(draft)?;
        let given = draft.parameters.map_or(Value::Null, Node::to_json);
        match (plugin_type.check)(&given) {
            Ok(parameters) => Some(PluginSpec {
                name: draft.name.value.clone(),
                type_name: plugin_type.name,
                kind: plugin_type.kind,
                parameters,
            }),
            Err(error) => {
                self.parameter_problem(draft, &error);
                None
            }
        }
    }

    fn type_of(&mut self, draft: &PluginDraft<'_>) -> Option<PluginType> {
        let written = &draft.type_name;
        let successor = direct_successor(&written.value)
            .and_then(|successor| self.catalogue.get(successor))
            .copied();
        if let Some(successor) = successor {
            self.warnings.push(format!(
                "plugin type {} is deprecated; write {}",
                written.value, successor.name
            ));
        }
        let found = successor.or_else(|| self.catalogue.get(&written.value).copied());
        let Some(found) = found else {
            self.problem(written, &self.catalogue.unknown(&written.value));
            return None;
        };
        match found.stage {
            Stage::Alpha if !self.options.allow_experimental => {
                let reason = format!(
                    "plugin type {:?} is alpha; start with --allow-experimental-plugins to use it",
                    found.name
                );
                self.problem(written, &reason);
                return None;
            }
            Stage::Deprecated { instead } => self.warnings.push(format!(
                "plugin type {} is deprecated; use {instead} instead",
                found.name
            )),
            Stage::Alpha | Stage::Beta => {}
        }
        Some(found)
    }

    /// Points at the parameter; a field that is not known is only named by the error's text.
    fn parameter_problem(&self, draft: &PluginDraft<'_>, error: &ParameterError) {
        let mut path = error.path.clone();
        let mut reason = error.reason.clone();
        let names: Vec<&str> = error.reason.split('`').skip(1).step_by(2).collect();
        if let (true, Some((unknown, known))) = (
            error.reason.starts_with("unknown field"),
            names.split_first(),
        ) {
            if !path.ends_with(unknown) {
                path = if path.is_empty() {
                    (*unknown).to_owned()
                } else {
                    format!("{path}.{unknown}")
                };
            }
            reason = format!(
                "unknown parameter{}",
                suggestion(unknown, known.iter().copied())
            );
            if !known.is_empty() && !reason.contains(';') {
                reason = format!("unknown parameter; known here: {}", known.join(", "));
            }
        }
        let place = match draft.parameters {
            Some(node) if path.is_empty() => node.place,
            Some(node) => node.place_at(&path),
            None => draft.type_name.place,
        };
        let dot = if path.is_empty() { "" } else { "." };
        let path = format!("{}.parameters{dot}{path}", draft.path);
        self.problems.add(place, &path, &reason);
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

    /// What plugins need of others, also of those that are only there because others need them.
    fn add_needed(&mut self, drafts: &[PluginDraft<'_>]) {
        let mut next = 0;
        while let Some(spec) = self.plugins.get(next) {
            let (type_name, name) = (spec.type_name, spec.name.clone());
            let named = producers::named_by(type_name, &spec.parameters);
            next += 1;
            let names_its_producer = named
                .iter()
                .any(|named| named.kind == PluginKind::DataProducer);
            for named in named {
                self.check_named(drafts, &name, &named);
            }
            if names_its_producer {
                continue;
            }
            for wanted in producers::producers_of(type_name) {
                let is_there = self
                    .plugins
                    .iter()
                    .any(|spec| producers::is_served_by(wanted, spec.type_name));
                if !is_there && !self.by_name.contains_key(*wanted) {
                    self.add_type(wanted);
                }
            }
        }
    }

    fn check_named(&mut self, drafts: &[PluginDraft<'_>], owner: &str, named: &NamedPlugin) {
        let of_kind = |spec: &PluginSpec| spec.name == named.name && spec.kind == named.kind;
        if self.plugins.iter().any(of_kind) || self.wrong.contains(&named.name) {
            return;
        }
        let is_free = !self.by_name.contains_key(&named.name);
        let is_type = self
            .catalogue
            .get(&named.name)
            .is_some_and(|found| found.kind == named.kind);
        if named.is_created && is_free && is_type {
            self.add_type(&named.name);
            return;
        }
        let Some(draft) = drafts.iter().find(|draft| draft.name.value == owner) else {
            return;
        };
        let known = self
            .plugins
            .iter()
            .filter(|spec| spec.kind == named.kind)
            .map(|spec| spec.name.as_str());
        let reason = format!(
            "no plugin that is {} is named {}{}",
            kind_name(named.kind),
            shown(&named.name),
            suggestion(&named.name, known)
        );
        self.parameter_problem(draft, &ParameterError::new(named.path.as_str(), reason));
    }

    /// Adds a plugin of a type with its defaults, where this picker has the type and may use it.
    fn add_type(&mut self, type_name: &str) -> Option<usize> {
        let found = self.catalogue.get(type_name)?;
        if found.stage == Stage::Alpha && !self.options.allow_experimental {
            return None;
        }
        let parameters = (found.check)(&Value::Null).ok()?;
        self.add(PluginSpec {
            name: found.name.to_owned(),
            type_name: found.name,
            kind: found.kind,
            parameters,
        });
        Some(self.plugins.len() - 1)
    }

    /// The plugin of a default name, added where it is not listed. `needed_by` is the path that an
    /// error names.
    pub(super) fn implied(
        &mut self,
        name: &str,
        kind: PluginKind,
        needed_by: &str,
    ) -> Option<usize> {
        let reference = Located {
            value: name.to_owned(),
            place: Place::START,
            path: needed_by.to_owned(),
        };
        self.reference(&reference, &[kind])
    }

    /// A plugin of one of these kinds by its name.
    pub(super) fn reference(
        &mut self,
        reference: &Located<String>,
        kinds: &[PluginKind],
    ) -> Option<usize> {
        let plugin = self.find(reference)?;
        let kind = self.kind(plugin)?;
        if kinds.contains(&kind) {
            return Some(plugin);
        }
        let wanted = kinds.first().copied().map_or("", kind_name);
        let reason = format!(
            "{} is {}, not {wanted}",
            shown(&reference.value),
            kind_name(kind)
        );
        self.problem(reference, &reason);
        None
    }

    fn find(&mut self, reference: &Located<String>) -> Option<usize> {
        let name = reference.value.as_str();
        if let Some(plugin) = self.by_name.get(name) {
            return Some(*plugin);
        }
        if self.wrong.contains(name) {
            return None;
        }
        if IMPLIED.contains(&name) {
            let added = self.add_type(name);
            if added.is_none() {
                self.problem(reference, &self.catalogue.unknown(name));
            }
            return added;
        }
        let names = self.by_name.keys().map(String::as_str);
        let reason = format!(
            "no plugin is named {}{}",
            shown(name),
            suggestion(name, names.chain(self.wrong.iter().map(String::as_str)))
        );
        self.problem(reference, &reason);
        None
    }

    fn add(&mut self, spec: PluginSpec) {
        self.by_name.insert(spec.name.clone(), self.plugins.len());
        self.plugins.push(spec);
    }

    fn kind(&self, plugin: usize) -> Option<PluginKind> {
        self.plugins.get(plugin).map(|spec| spec.kind)
    }

    fn problem<T>(&self, at: &Located<T>, reason: &str) {
        self.problems.add(at.place, &at.path, reason);
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

fn kind_name(kind: PluginKind) -> &'static str {
    match kind {
        PluginKind::Filter => "a filter",
        PluginKind::Scorer => "a scorer",
        PluginKind::Picker => "a picker",
        PluginKind::ProfileHandler => "a profile handler",
        PluginKind::Decider => "a decider",
        PluginKind::DataProducer => "a data producer",
        PluginKind::Admitter => "an admitter",
        PluginKind::RequestControl => "a request control plugin",
        PluginKind::Fairness => "a fairness policy",
        PluginKind::Ordering => "an ordering policy",
        PluginKind::UsageLimit => "a usage limit policy",
        PluginKind::SaturationDetector => "a saturation detector",
        PluginKind::EvictionFilter => "an eviction filter",
        PluginKind::EvictionOrder => "an eviction order",
        PluginKind::DataSource => "a data source",
        PluginKind::Extractor => "an extractor",
        PluginKind::Discovery => "a discovery",
        PluginKind::Parser => "a parser",
    }
}
