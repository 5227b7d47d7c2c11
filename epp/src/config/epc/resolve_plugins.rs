//! The plugins of a configuration: listed ones checked, implied and needed ones added, references
//! looked up.

use rustc_hash::FxHashMap;
use serde_json::Value;

use super::catalogue::direct_successor;
use super::draft::PluginDraft;
use super::producers::{self, NamedPlugin};
use super::resolve::Resolver;
use crate::config::fields::Located;
use crate::config::plugins::{ParameterError, PluginKind, PluginType, Stage};
use crate::config::problems::{shown, suggestion};
use crate::config::resolved::PluginSpec;
use crate::config::yaml::{Node, Place};

/// Types that may be referred to by their name without being listed.
const IMPLIED: [&str; 12] = [
    "max-score-picker",
    "single-profile-handler",
    "metrics-data-source",
    "core-metrics-extractor",
    "openai-parser",
    "anthropic-parser",
    "vllmhttp-parser",
    "passthrough-parser",
    "global-strict-fairness-policy",
    "fcfs-ordering-policy",
    "static-usage-limit-policy",
    "utilization-detector",
];

impl Resolver<'_> {
    pub(super) fn add_listed(&mut self, drafts: &[PluginDraft<'_>]) {
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

    /// What plugins need of others, also of those that are only there because others need them.
    pub(super) fn add_needed(&mut self, drafts: &[PluginDraft<'_>]) {
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

    pub(super) fn find(&mut self, reference: &Located<String>) -> Option<usize> {
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

    pub(super) fn kind(&self, plugin: usize) -> Option<PluginKind> {
        self.plugins.get(plugin).map(|spec| spec.kind)
    }

    pub(super) fn problem<T>(&self, at: &Located<T>, reason: &str) {
        self.problems.add(at.place, &at.path, reason);
    }
}

/// What a plugin of this kind is called, with its article.
pub(super) fn kind_name(kind: PluginKind) -> &'static str {
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
