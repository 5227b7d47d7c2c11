//! A resolved configuration as text that [`load`](super::load) reads back to the same value.
//!
//! Nothing is left to defaults: every plugin, weight, limit and policy is written out, which is what
//! one wants to see when a picker does not do what one thought.

use std::fmt::Write as _;

use serde_json::{Map, Value, json};

use crate::config::resolved::{BandSpec, FlowControlSpec, ResolvedConfig};
use crate::config::values::duration_text;

/// The configuration in YAML; its warnings come first, as comments.
pub fn show(config: &ResolvedConfig) -> String {
    let mut text = String::new();
    for warning in &config.warnings {
        let line: String = warning
            .chars()
            .map(|c| if c.is_control() { ' ' } else { c })
            .collect();
        let _ = writeln!(text, "# {line}");
    }
    emit(&tree(config), 0, &mut text);
    text
}

fn tree(config: &ResolvedConfig) -> Value {
    let name = |plugin: usize| {
        let name = config.plugins.get(plugin).map(|spec| spec.name.as_str());
        name.unwrap_or_default()
    };
    let reference = |plugin: &usize| json!({"pluginRef": name(*plugin)});
    let gates = &config.gates;
    let plugins: Vec<Value> = config
        .plugins
        .iter()
        .map(|spec| {
            json!({"name": spec.name, "type": spec.type_name, "parameters": spec.parameters})
        })
        .collect();
    let profiles: Vec<Value> = config
        .profiles
        .iter()
        .map(|profile| {
            let plugins: Vec<Value> = profile
                .plugins
                .iter()
                .map(|listed| {
                    if is_scorer(config, listed.plugin) {
                        return json!({"pluginRef": name(listed.plugin), "weight": listed.weight});
                    }
                    reference(&listed.plugin)
                })
                .collect();
            json!({"name": profile.name, "plugins": plugins})
        })
        .collect();
    let sources: Vec<Value> = config
        .data_layer
        .sources
        .iter()
        .map(|source| {
            let extractors: Vec<Value> = source.extractors.iter().map(reference).collect();
            json!({"pluginRef": name(source.source), "extractors": extractors})
        })
        .collect();
    let mut data_layer = json!({"injectDefaults": false, "sources": sources});
    if let (Some(discovery), Some(fields)) =
        (&config.data_layer.discovery, data_layer.as_object_mut())
    {
        fields.insert("discovery".to_owned(), reference(discovery));
    }
    let parsers: Vec<Value> = config.parsers.iter().map(reference).collect();
    json!({
        "apiVersion": "llm-d.ai/v1alpha1",
        "kind": "EndpointPickerConfig",
        "featureGates": [
            format!("flowControl={}", gates.flow_control),
            format!("haPopulateNonLeaderDatastore={}", gates.ha_populate_non_leader_datastore),
        ],
        "plugins": plugins,
        "schedulingProfiles": profiles,
        "dataLayer": data_layer,
        "flowControl": flow_control(&config.flow_control, &name),
        "requestHandler": {"parsers": parsers},
    })
}

fn is_scorer(config: &ResolvedConfig, plugin: usize) -> bool {
    let kind = config.plugins.get(plugin).map(|spec| spec.kind);
    kind == Some(crate::config::plugins::PluginKind::Scorer)
}

fn flow_control<'a>(flow: &FlowControlSpec, name: &impl Fn(usize) -> &'a str) -> Value {
    let ttl = |ttl: Option<std::time::Duration>| duration_text(ttl.unwrap_or_default());
    let band = |band: &BandSpec, listed: bool| {
        let mut fields = Map::new();
        fields.insert("priority".to_owned(), json!(band.priority));
        fields.insert("maxBytes".to_owned(), json!(band.max_bytes.to_string()));
        fields.insert(
            "maxRequests".to_owned(),
            json!(band.max_requests.to_string()),
        );
        fields.insert("fairnessPolicyRef".to_owned(), json!(name(band.fairness)));
        fields.insert("orderingPolicyRef".to_owned(), json!(name(band.ordering)));
        if let Some(limit) = band.request_ttl {
            fields.insert("requestTTL".to_owned(), json!(ttl(limit)));
        }
        if listed {
            fields.insert("minShare".to_owned(), json!(band.min_share));
        }
        Value::Object(fields)
    };
    let mut fields = Map::new();
    for (field, limit) in [
        ("maxBytes", flow.max_bytes),
        ("maxRequests", flow.max_requests),
    ] {
        if let Some(limit) = limit {
            fields.insert(field.to_owned(), json!(limit.to_string()));
        }
    }
    let bands: Vec<Value> = flow.bands.iter().map(|of| band(of, true)).collect();
    let rest = [
        ("defaultRequestTTL", json!(ttl(flow.default_request_ttl))),
        (
            "noEndpointRequestTTL",
            json!(ttl(flow.no_endpoint_request_ttl)),
        ),
        ("defaultPriorityBand", band(&flow.default_band, false)),
        (
            "defaultNegativePriorityBand",
            band(&flow.default_negative_band, false),
        ),
        ("priorityBands", json!(bands)),
        ("usageLimitPolicyPluginRef", json!(name(flow.usage_limit))),
        (
            "saturationDetector",
            json!({"pluginRef": name(flow.saturation_detector)}),
        ),
        ("enableEviction", json!(flow.eviction)),
    ];
    fields.extend(rest.map(|(field, value)| (field.to_owned(), value)));
    Value::Object(fields)
}

/// Writes a group of fields or a list in block style; `text` stands at the beginning of a line.
fn emit(value: &Value, indent: usize, text: &mut String) {
    let margin = " ".repeat(indent);
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                let _ = write!(text, "{margin}{}:", scalar(name));
                emit_value(value, indent + 2, text);
            }
        }
        Value::Array(items) => {
            for item in items {
                match item {
                    Value::Object(fields) if !fields.is_empty() => {
                        let start = text.len();
                        emit(item, indent + 2, text);
                        // The first field stands on the line of its dash.
                        text.replace_range(start + indent..=start + indent, "-");
                    }
                    _ => {
                        let _ = write!(text, "{margin}-");
                        emit_value(item, indent + 2, text);
                    }
                }
            }
        }
        _ => {}
    }
}

/// Writes what follows a colon or a dash, and ends the line.
fn emit_value(value: &Value, indent: usize, text: &mut String) {
    match value {
        Value::Object(fields) if fields.is_empty() => text.push_str(" {}\n"),
        Value::Array(items) if items.is_empty() => text.push_str(" []\n"),
        Value::Object(_) | Value::Array(_) => {
            text.push('\n');
            emit(value, indent, text);
        }
        Value::String(content) => {
            let _ = writeln!(text, " {}", scalar(content));
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {
            let _ = writeln!(text, " {value}");
        }
    }
}

/// A text, quoted unless every reader takes it for the same text without quotes.
fn scalar(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/');
    let is_word = text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.chars().all(plain)
        && !matches!(
            text.to_ascii_lowercase().as_str(),
            "null" | "true" | "false" | "yes" | "no" | "on" | "off" | "y" | "n"
        );
    if is_word {
        return text.to_owned();
    }
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => {
                quoted.push('\\');
                quoted.push(c);
            }
            ' '..='~' => quoted.push(c),
            _ => {
                let _ = write!(quoted, "\\U{:08x}", u32::from(c));
            }
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::config::yaml;

    #[test]
    fn blocks_read_as_one_would_write_them() {
        let mut text = String::new();
        let value = json!({"a": {"b": [{"c": 1, "d": ["x y", true]}, 2, {}, []]}, "e": null});
        emit(&value, 0, &mut text);
        let expected = "a:\n  b:\n    - c: 1\n      d:\n        - \"x y\"\n        - true\n    - 2\n    - {}\n    - []\ne: null\n";
        assert_eq!(text, expected);
    }

    fn any_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            (-1e9..1e9).prop_map(Value::from),
            "\\PC{0,12}".prop_map(Value::from),
            "[ \\n\\t:#&*!\\\\\"'-]{0,6}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 32, 5, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                proptest::collection::btree_map("\\PC{0,8}|[a-z~:0-9.-]{0,5}", inner, 0..4)
                    .prop_map(|fields| Value::Object(fields.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn whatever_is_written_is_read_back(inner in any_value()) {
            let value = json!({"top": inner});
            let mut text = String::new();
            emit(&value, 0, &mut text);
            let read = yaml::parse(&text).map_err(|error| {
                TestCaseError::fail(format!("{error:?}\n{text}"))
            })?;
            prop_assert_eq!(read.to_json(), value, "{}", text);
        }
    }
}
