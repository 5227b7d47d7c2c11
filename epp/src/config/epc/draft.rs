//! What a configuration says, field by field, before any reference or default is looked up.

use std::time::Duration;

use crate::config::fields::{Cursor, Fields, Located};
use crate::config::problems::{Problems, shown};
use crate::config::values;
use crate::config::yaml::Node;

/// Bounds of one configuration. What is over is left out and reported.
const PLUGINS_MAX: usize = 256;
const PROFILES_MAX: usize = 64;
const BANDS_MAX: usize = 256;
const GATES_MAX: usize = 32;

const API_VERSIONS: [&str; 2] = [
    "llm-d.ai/v1alpha1",
    "inference.networking.x-k8s.io/v1alpha1",
];
const KIND: &str = "EndpointPickerConfig";

/// A configuration as written.
#[derive(Debug, Default)]
pub(super) struct Draft<'n> {
    pub(super) gates: Vec<Located<String>>,
    pub(super) plugins: Vec<PluginDraft<'n>>,
    pub(super) profiles: Vec<ProfileDraft>,
    pub(super) data_layer: DataLayerDraft,
    pub(super) flow: FlowDraft,
    pub(super) parsers: Vec<Located<String>>,
    pub(super) warnings: Vec<String>,
}

#[derive(Debug)]
pub(super) struct PluginDraft<'n> {
    pub(super) name: Located<String>,
    pub(super) type_name: Located<String>,
    pub(super) parameters: Option<&'n Node>,
    /// Of the plugin, such as `plugins[2]`.
    pub(super) path: String,
}

#[derive(Debug)]
pub(super) struct ProfileDraft {
    pub(super) name: Located<String>,
    pub(super) plugins: Vec<ProfilePluginDraft>,
}

#[derive(Debug)]
pub(super) struct ProfilePluginDraft {
    pub(super) plugin: Located<String>,
    pub(super) weight: Option<Located<f64>>,
}

#[derive(Debug, Default)]
pub(super) struct DataLayerDraft {
    /// `None` = true.
    pub(super) inject_defaults: Option<bool>,
    pub(super) sources: Vec<SourceDraft>,
    pub(super) discovery: Option<Located<String>>,
}

#[derive(Debug)]
pub(super) struct SourceDraft {
    pub(super) source: Located<String>,
    pub(super) extractors: Vec<Located<String>>,
}

/// A TTL that is written.
#[derive(Clone, Copy, Debug)]
pub(super) struct TtlDraft {
    /// `None` = written as `0s`, no limit.
    pub(super) limit: Option<Duration>,
}

#[derive(Debug, Default)]
pub(super) struct FlowDraft {
    pub(super) max_bytes: Option<u64>,
    pub(super) max_requests: Option<u64>,
    pub(super) default_request_ttl: Option<TtlDraft>,
    pub(super) no_endpoint_request_ttl: Option<TtlDraft>,
    pub(super) default_band: Option<BandDraft>,
    pub(super) default_negative_band: Option<BandDraft>,
    pub(super) bands: Vec<BandDraft>,
    pub(super) usage_limit: Option<Located<String>>,
    pub(super) saturation_detector: Option<Located<String>>,
    pub(super) eviction: bool,
}

#[derive(Clone, Debug)]
pub(super) struct BandDraft {
    pub(super) priority: Located<i32>,
    pub(super) max_bytes: Option<u64>,
    pub(super) max_requests: Option<u64>,
    pub(super) fairness: Option<Located<String>>,
    pub(super) ordering: Option<Located<String>>,
    pub(super) request_ttl: Option<TtlDraft>,
    pub(super) min_share: f64,
}

/// Reads the tree. `None` only where it is no group of fields; anything else that is wrong is among
/// the problems.
pub(super) fn read<'n>(tree: &'n Node, problems: &'n Problems) -> Option<Draft<'n>> {
    let top = Cursor::top(tree, problems).fields(&[
        "apiVersion",
        "kind",
        "featureGates",
        "plugins",
        "schedulingProfiles",
        "dataLayer",
        "flowControl",
        "requestHandler",
        "saturationDetector",
        "parser",
    ])?;
    let mut draft = Draft::default();
    read_header(&top, &mut draft.warnings);
    draft.gates = texts(&top.items("featureGates", GATES_MAX));
    draft.plugins = top
        .items("plugins", PLUGINS_MAX)
        .iter()
        .filter_map(plugin)
        .collect();
    draft.profiles = top
        .items("schedulingProfiles", PROFILES_MAX)
        .iter()
        .filter_map(profile)
        .collect();
    if let Some(layer) = top.get("dataLayer") {
        draft.data_layer = data_layer(&layer, &mut draft.warnings);
    }
    if let Some(control) = top.get("flowControl") {
        draft.flow = flow_control(&control);
    }
    if let Some(handler) = top.get("requestHandler")
        && let Some(fields) = handler.fields(&["parsers"])
    {
        draft.parsers = references(&fields, "parsers", PLUGINS_MAX);
    }
    read_deprecated(&top, &mut draft);
    Some(draft)
}

fn read_header(top: &Fields<'_>, warnings: &mut Vec<String>) {
    let version = top.need("apiVersion");
    if let Some((cursor, text)) = version.and_then(|at| at.text().map(|text| (at, text.value))) {
        if !API_VERSIONS.contains(&text.as_str()) {
            let reason = format!(
                "{} is neither {} nor {}",
                shown(&text),
                API_VERSIONS[0],
                API_VERSIONS[1]
            );
            cursor.problem(&reason);
        } else if text == API_VERSIONS[1] {
            warnings.push(format!(
                "apiVersion {text} is deprecated; write {}",
                API_VERSIONS[0]
            ));
        }
    }
    let kind = top.need("kind");
    if let Some((cursor, text)) = kind.and_then(|at| at.text().map(|text| (at, text.value)))
        && text != KIND
    {
        cursor.problem(&format!("{} is not {KIND}", shown(&text)));
    }
}

/// The field's two moved fields. Where both places are written the new one counts.
fn read_deprecated(top: &Fields<'_>, draft: &mut Draft<'_>) {
    if let Some(old) = top.get("saturationDetector") {
        let moved =
            "saturationDetector at the top is deprecated; write flowControl.saturationDetector";
        draft.warnings.push(moved.to_owned());
        let reference = optional_reference(&old);
        draft.flow.saturation_detector = draft.flow.saturation_detector.take().or(reference);
    }
    if let Some(old) = top.get("parser") {
        let moved = "parser at the top is deprecated; write requestHandler.parsers";
        draft.warnings.push(moved.to_owned());
        if let Some(reference) = reference(&old)
            && draft.parsers.is_empty()
        {
            draft.parsers.push(reference);
        }
    }
}

fn plugin<'n>(cursor: &Cursor<'n>) -> Option<PluginDraft<'n>> {
    let fields = cursor.fields(&["name", "type", "parameters"])?;
    let type_name = fields.need("type").and_then(|at| at.text());
    // An empty name means none, as in the field.
    let name = fields
        .get("name")
        .filter(|name| name.node.to_json() != "")
        .map(|name| name.text());
    let parameters = fields.get("parameters");
    if let Some(parameters) = &parameters {
        // Reports anything that is no group of fields.
        parameters.entries()?;
    }
    let type_name = type_name?;
    let name = match name {
        Some(name) => name?,
        None => type_name.clone(),
    };
    Some(PluginDraft {
        name,
        type_name,
        parameters: parameters.map(|parameters| parameters.node),
        path: cursor.path.clone(),
    })
}

fn profile(cursor: &Cursor<'_>) -> Option<ProfileDraft> {
    let fields = cursor.fields(&["name", "plugins"])?;
    let name = fields.need("name").and_then(|at| at.text());
    let plugins = fields
        .items("plugins", PLUGINS_MAX)
        .iter()
        .filter_map(profile_plugin)
        .collect();
    Some(ProfileDraft {
        name: name?,
        plugins,
    })
}

fn profile_plugin(cursor: &Cursor<'_>) -> Option<ProfilePluginDraft> {
    let fields = cursor.fields(&["pluginRef", "weight"])?;
    let plugin = fields.need("pluginRef").and_then(|at| at.text());
    let weight = fields
        .get("weight")
        .and_then(|at| at.number().map(|number| at.located(number)));
    Some(ProfilePluginDraft {
        plugin: plugin?,
        weight,
    })
}

fn data_layer(cursor: &Cursor<'_>, warnings: &mut Vec<String>) -> DataLayerDraft {
    let mut draft = DataLayerDraft::default();
    let known = [
        "injectDefaults",
        "sources",
        "discovery",
        "peerDiscovery",
        "crossReplicaSyncerPluginRef",
        "crossReplicaSyncInterval",
    ];
    let Some(fields) = cursor.fields(&known) else {
        return draft;
    };
    draft.inject_defaults = fields.get("injectDefaults").and_then(|at| at.boolean());
    for source in fields.items("sources", PLUGINS_MAX) {
        let Some(of_source) = source.fields(&["pluginRef", "extractors"]) else {
            continue;
        };
        let reference = of_source.need("pluginRef").and_then(|at| at.text());
        let extractors = references(&of_source, "extractors", PLUGINS_MAX);
        if let Some(source) = reference {
            draft.sources.push(SourceDraft { source, extractors });
        }
    }
    draft.discovery = fields.get("discovery").and_then(|at| reference(&at));
    if let Some(interval) = fields.get("crossReplicaSyncInterval") {
        interval.read("a duration", values::duration);
    }
    for name in [
        "peerDiscovery",
        "crossReplicaSyncerPluginRef",
        "crossReplicaSyncInterval",
    ] {
        if fields.get(name).is_some() {
            warnings.push(format!(
                "dataLayer.{name} has no effect: replicas do not talk to one another"
            ));
        }
    }
    draft
}

fn flow_control(cursor: &Cursor<'_>) -> FlowDraft {
    let known = [
        "maxBytes",
        "maxRequests",
        "defaultRequestTTL",
        "noEndpointRequestTTL",
        "defaultPriorityBand",
        "defaultNegativePriorityBand",
        "priorityBands",
        "usageLimitPolicyPluginRef",
        "saturationDetector",
        "enableEviction",
    ];
    let Some(fields) = cursor.fields(&known) else {
        return FlowDraft::default();
    };
    let default_band = |name| fields.get(name).and_then(|at| band(&at, false));
    FlowDraft {
        max_bytes: limit(&fields, "maxBytes"),
        max_requests: limit(&fields, "maxRequests"),
        default_request_ttl: ttl(&fields, "defaultRequestTTL"),
        no_endpoint_request_ttl: ttl(&fields, "noEndpointRequestTTL"),
        default_band: default_band("defaultPriorityBand"),
        default_negative_band: default_band("defaultNegativePriorityBand"),
        bands: fields
            .items("priorityBands", BANDS_MAX)
            .iter()
            .filter_map(|at| band(at, true))
            .collect(),
        usage_limit: optional_text(&fields, "usageLimitPolicyPluginRef"),
        saturation_detector: fields
            .get("saturationDetector")
            .and_then(|at| optional_reference(&at)),
        eviction: fields
            .get("enableEviction")
            .and_then(|at| at.boolean())
            .unwrap_or_default(),
    }
}

/// A band that is not `listed` is a template and needs no priority.
fn band(cursor: &Cursor<'_>, listed: bool) -> Option<BandDraft> {
    let fields = cursor.fields(&[
        "priority",
        "maxBytes",
        "maxRequests",
        "fairnessPolicyRef",
        "orderingPolicyRef",
        "requestTTL",
        "minShare",
    ])?;
    let priority = match fields.get("priority") {
        Some(at) => at.integer().map(|number| at.located(number)),
        // The field reads a band without a priority as 0, too.
        None => Some(cursor.located(0)),
    };
    let min_share = fields.get("minShare").and_then(|at| {
        let share = at.number()?;
        if !(0.0..=1.0).contains(&share) {
            at.problem("must be between 0 and 1");
        } else if !listed && share > 0.0 {
            at.problem("only a band of priorityBands can have a share of its own");
        }
        Some(share)
    });
    Some(BandDraft {
        max_bytes: limit(&fields, "maxBytes"),
        max_requests: limit(&fields, "maxRequests"),
        fairness: optional_text(&fields, "fairnessPolicyRef"),
        ordering: optional_text(&fields, "orderingPolicyRef"),
        request_ttl: ttl(&fields, "requestTTL"),
        min_share: min_share.unwrap_or_default(),
        priority: priority?,
    })
}

/// A quantity; 0 means not set.
fn limit(fields: &Fields<'_>, name: &str) -> Option<u64> {
    fields
        .get(name)
        .and_then(|at| at.read("a quantity", values::quantity))
        .filter(|limit| *limit > 0)
}

/// A duration; 0 means no limit.
fn ttl(fields: &Fields<'_>, name: &str) -> Option<TtlDraft> {
    let duration = fields
        .get(name)
        .and_then(|at| at.read("a duration", values::duration))?;
    Some(TtlDraft {
        limit: (!duration.is_zero()).then_some(duration),
    })
}

fn optional_text(fields: &Fields<'_>, name: &str) -> Option<Located<String>> {
    fields
        .get(name)
        .filter(|at| at.node.to_json() != "")
        .and_then(|at| at.text())
}

fn texts(items: &[Cursor<'_>]) -> Vec<Located<String>> {
    items.iter().filter_map(Cursor::text).collect()
}

fn references(fields: &Fields<'_>, name: &str, most: usize) -> Vec<Located<String>> {
    fields
        .items(name, most)
        .iter()
        .filter_map(reference)
        .collect()
}

/// `{pluginRef: name}`.
fn reference(cursor: &Cursor<'_>) -> Option<Located<String>> {
    cursor.fields(&["pluginRef"])?.need("pluginRef")?.text()
}

/// The same where the name may be left out.
fn optional_reference(cursor: &Cursor<'_>) -> Option<Located<String>> {
    optional_text(&cursor.fields(&["pluginRef"])?, "pluginRef")
}
