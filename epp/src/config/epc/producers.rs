//! What plugins need from other plugins: data producers that are created when nobody names them,
//! and parameters that name another plugin.

use serde_json::Value;

use crate::config::plugins::PluginKind;

/// The producers that a plugin type reads, created with their defaults where the configuration has
/// none of that type and this picker has the type.
pub(super) fn producers_of(type_name: &str) -> &'static [&'static str] {
    match type_name {
        "prefix-cache-scorer" | "no-hit-lru-scorer" | "prefix-based-pd-decider" => {
            &["approx-prefix-cache-producer"]
        }
        "token-load-scorer"
        | "active-request-scorer"
        | "load-aware-scorer"
        | "concurrency-detector" => &["inflight-load-producer"],
        "latency-scorer"
        | "slo-headroom-tier-filter"
        | "latency-slo-admitter"
        | "prefix-cache-affinity-filter" => {
            &["approx-prefix-cache-producer", "predicted-latency-producer"]
        }
        "mm-embeddings-cache-scorer" => &["mm-embeddings-cache-producer"],
        "approx-prefix-cache-producer" | "precise-prefix-cache-producer" => &["token-producer"],
        _ => &[],
    }
}

/// Producers that stand in for the one that is looked for.
pub(super) fn is_served_by(wanted: &str, present: &str) -> bool {
    wanted == present
        || (wanted == "approx-prefix-cache-producer"
            && matches!(
                present,
                "precise-prefix-cache-producer"
                    | "burst-prefix-cache-producer"
                    | "precise-prefix-cache-scorer"
            ))
}

/// A parameter that names a plugin.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct NamedPlugin {
    /// Within the parameters.
    pub(super) path: String,
    pub(super) name: String,
    pub(super) kind: PluginKind,
    /// Whether naming a type that is not listed creates it.
    pub(super) is_created: bool,
}

/// The plugins that checked parameters name.
pub(super) fn named_by(type_name: &str, parameters: &Value) -> Vec<NamedPlugin> {
    match type_name {
        "disagg-profile-handler" => {
            let deciders = parameters.get("deciders").and_then(Value::as_object);
            deciders
                .into_iter()
                .flatten()
                .filter_map(|(stage, name)| Some((stage, non_empty(name)?)))
                .map(|(stage, name)| NamedPlugin {
                    path: format!("deciders.{stage}"),
                    name,
                    kind: PluginKind::Decider,
                    is_created: false,
                })
                .collect()
        }
        "prefix-cache-scorer" => {
            let parameter = "prefixMatchInfoProducerName";
            parameters
                .get(parameter)
                .and_then(non_empty)
                .map(|name| NamedPlugin {
                    path: parameter.to_owned(),
                    name,
                    kind: PluginKind::DataProducer,
                    is_created: true,
                })
                .into_iter()
                .collect()
        }
        _ => Vec::new(),
    }
}

fn non_empty(value: &Value) -> Option<String> {
    value
        .as_str()
        .filter(|text| !text.is_empty())
        .map(str::to_owned)
}
