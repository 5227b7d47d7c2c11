//! Configurations of the field and what they come to; wrong ones and what is said about them.

mod errors;
pub(in crate::config) mod fixtures;
mod round_trip;

use std::time::Duration;

use fixtures::{body, catalogue};

use super::*;
use crate::config::plugins::{PluginKind, Stage};
use crate::config::resolved::ProfileSpec;

const DISAGGREGATED: &str = include_str!("tests/disaggregated.yaml");
const PRECISE: &str = include_str!("tests/precise.yaml");
const FLOW: &str = include_str!("tests/flow.yaml");
const GAIE: &str = include_str!("tests/gaie-1.5.yaml");

fn loaded(text: &str) -> ResolvedConfig {
    let options = LoadOptions::default();
    load("c.yaml", text, &catalogue(), &options).unwrap_or_else(|errors| panic!("{errors}"))
}

/// `name*weight` of each plugin.
fn plugins_of(config: &ResolvedConfig, profile: &ProfileSpec) -> Vec<String> {
    profile
        .plugins
        .iter()
        .map(|listed| format!("{}*{}", config.plugins[listed.plugin].name, listed.weight))
        .collect()
}

fn name(config: &ResolvedConfig, plugin: usize) -> &str {
    &config.plugins[plugin].name
}

#[test]
fn no_configuration_is_the_fields_default() {
    let config = field_default(&catalogue()).unwrap();
    assert_eq!(config.profiles.len(), 1);
    assert_eq!(
        plugins_of(&config, &config.profiles[0]),
        [
            "queue-scorer*2",
            "kv-cache-utilization-scorer*2",
            "prefix-cache-scorer*3",
            "max-score-picker*1"
        ]
    );
    assert_eq!(name(&config, config.handler), "single-profile-handler");
    let parsers: Vec<&str> = config.parsers.iter().map(|at| name(&config, *at)).collect();
    assert_eq!(
        parsers,
        [
            "openai-parser",
            "anthropic-parser",
            "vllmhttp-parser",
            "passthrough-parser"
        ]
    );
    let source = &config.data_layer.sources[0];
    assert_eq!(name(&config, source.source), "metrics-data-source");
    assert_eq!(
        name(&config, source.extractors[0]),
        "core-metrics-extractor"
    );
    let flow = &config.flow_control;
    assert_eq!(
        name(&config, flow.saturation_detector),
        "utilization-detector"
    );
    assert_eq!(flow.default_request_ttl, Some(Duration::from_mins(1)));
    assert_eq!(flow.default_band.max_bytes, 1_000_000_000);
    assert_eq!(flow.default_band.max_requests, 5000);
    assert!(!config.gates.flow_control && config.gates.ha_populate_non_leader_datastore);
    for producer in ["approx-prefix-cache-producer", "token-producer"] {
        assert!(config.plugins.iter().any(|spec| spec.type_name == producer));
    }
    assert_eq!(config.warnings, [""; 0]);
}

#[test]
fn prefill_and_decode_profiles_load() {
    let config = loaded(DISAGGREGATED);
    let profiles: Vec<&str> = config.profiles.iter().map(|at| at.name.as_str()).collect();
    assert_eq!(profiles, ["prefill", "decode"]);
    assert_eq!(name(&config, config.handler), "disagg-profile-handler");
    assert_eq!(
        plugins_of(&config, &config.profiles[1]),
        [
            "decode-filter*1",
            "max-score-picker*1",
            "prefix-cache-scorer*2",
            "queue-scorer*1"
        ]
    );
    assert_eq!(config.warnings, [""; 0]);
}

#[test]
fn precise_prefix_configuration_loads() {
    let config = loaded(PRECISE);
    let types: Vec<&str> = config.plugins.iter().map(|spec| spec.type_name).collect();
    assert!(
        !types.contains(&"approx-prefix-cache-producer"),
        "{types:?}"
    );
    let extractors = &config.data_layer.sources[1].extractors;
    assert_eq!(
        name(&config, extractors[0]),
        "precise-prefix-cache-producer"
    );
    assert_eq!(
        config.data_layer.sources.len(),
        2,
        "metrics are not added twice"
    );
}

#[test]
fn flow_control_configuration_loads() {
    let config = loaded(FLOW);
    let flow = &config.flow_control;
    assert!(config.gates.flow_control && flow.eviction);
    assert_eq!(flow.max_bytes, Some(2 << 30));
    assert_eq!(flow.max_requests, None, "0 means unlimited");
    assert_eq!(flow.default_request_ttl, None, "0s means no limit");
    assert_eq!(flow.no_endpoint_request_ttl, Some(Duration::from_mins(5)));
    assert_eq!(flow.default_negative_band.max_requests, 50);
    let [high, low] = flow.bands.as_slice() else {
        panic!("{:?}", flow.bands)
    };
    assert_eq!((high.priority, low.priority), (100, 0));
    assert_eq!(name(&config, high.fairness), "by-tenant");
    assert_eq!(name(&config, high.ordering), "edf-ordering-policy");
    assert_eq!(high.request_ttl, Some(Some(Duration::from_secs(10))));
    assert_eq!(low.request_ttl, None);
    assert!((low.min_share - 0.2).abs() < 1e-9);
    assert_eq!(name(&config, flow.saturation_detector), "load");
}

#[test]
fn configuration_of_the_older_group_loads_with_warnings() {
    let config = loaded(GAIE);
    assert_eq!(
        name(&config, config.flow_control.saturation_detector),
        "detector"
    );
    assert_eq!(config.parsers.len(), 1);
    let warnings = config.warnings.join("\n");
    for part in [
        "apiVersion inference.networking.x-k8s.io/v1alpha1",
        "feature gate dataLayer",
        "feature gate enableLegacyMetrics",
        "saturationDetector at the top",
        "parser at the top",
        "plugin type tokenizer is deprecated; write token-producer",
        "plugin type by-label is deprecated; use label-selector-filter",
    ] {
        assert!(
            warnings.contains(part),
            "{part} is missing from\n{warnings}"
        );
    }
    let tokens = config.plugins.iter().find(|spec| spec.name == "tokenizer");
    assert_eq!(tokens.map(|spec| spec.type_name), Some("token-producer"));
}

#[test]
fn json_loads_as_well() {
    let json = r#"{
	"apiVersion": "llm-d.ai/v1alpha1", "kind": "EndpointPickerConfig",
	"plugins": [{"type": "queue-scorer"}],
	"schedulingProfiles": [{"name": "p", "plugins": [{"pluginRef": "queue-scorer", "weight": 0.5}]}]
}"#;
    let config = loaded(json);
    assert_eq!(
        plugins_of(&config, &config.profiles[0]),
        ["queue-scorer*0.5", "max-score-picker*1"]
    );
}

#[test]
fn without_profiles_every_scheduling_plugin_is_in_one() {
    let config = body(
        "plugins: [{type: decode-filter}, {type: random-picker, name: any}, {type: queue-scorer}, {type: token-producer}]\n",
    )
    .unwrap();
    assert_eq!(config.profiles[0].name, "default");
    assert_eq!(
        plugins_of(&config, &config.profiles[0]),
        ["decode-filter*1", "any*1", "queue-scorer*1"]
    );
}

#[test]
fn profile_without_picker_takes_the_listed_one() {
    let config = body(
        "plugins: [{type: queue-scorer}, {type: random-picker}]\nschedulingProfiles: [{name: p, plugins: [{pluginRef: queue-scorer}]}]\n",
    )
    .unwrap();
    assert_eq!(
        plugins_of(&config, &config.profiles[0]),
        ["queue-scorer*1", "random-picker*1"]
    );
}

#[test]
fn weight_of_anything_but_a_scorer_is_passed_over_with_a_warning() {
    let config = body(
        "plugins: [{type: decode-filter}, {type: token-producer}]\nschedulingProfiles: [{name: p, plugins: [{pluginRef: decode-filter, weight: 3}, {pluginRef: token-producer}]}]\n",
    )
    .unwrap();
    assert_eq!(
        plugins_of(&config, &config.profiles[0]),
        ["decode-filter*1", "max-score-picker*1"]
    );
    assert!(config.warnings[0].contains("only scorers have a weight"));
    assert!(config.warnings[1].contains("does nothing in a profile"));
}

#[test]
fn metrics_source_is_left_out_on_request() {
    let config = body("dataLayer: {injectDefaults: false}\n").unwrap();
    assert_eq!(config.data_layer.sources, []);
}

#[test]
fn alpha_types_load_only_when_allowed() {
    let text = "apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\nplugins: [{type: utilization-filter}]\n";
    let of = |allow_experimental| {
        load(
            "c.yaml",
            text,
            &catalogue(),
            &LoadOptions { allow_experimental },
        )
    };
    assert!(of(true).is_ok());
    let refusal = of(false).unwrap_err().to_string();
    assert!(
        refusal.contains("--allow-experimental-plugins"),
        "{refusal}"
    );
}

#[test]
fn producers_that_nobody_lists_are_created_where_they_exist() {
    let config = body("plugins: [{type: latency-scorer}, {type: load-aware-scorer}]\n").unwrap();
    let types: Vec<&str> = config.plugins.iter().map(|spec| spec.type_name).collect();
    for wanted in [
        "predicted-latency-producer",
        "inflight-load-producer",
        "token-producer",
    ] {
        assert!(types.contains(&wanted), "{types:?}");
    }
    let few = FIELD_TYPES
        .iter()
        .filter(|(_, kind, _)| *kind != PluginKind::DataProducer);
    let catalogue = Catalogue::new(few.map(|(name, ..)| *catalogue().get(name).unwrap()));
    let config = field_default(&catalogue).unwrap();
    assert!(
        config
            .plugins
            .iter()
            .all(|spec| spec.kind != PluginKind::DataProducer)
    );
}

#[test]
fn every_type_of_the_field_is_listed_once_and_loads_by_its_name() {
    let catalogue = catalogue();
    assert_eq!(catalogue.missing_of_the_field(), [""; 0]);
    for (at, (name, kind, stage)) in FIELD_TYPES.iter().enumerate() {
        let again = FIELD_TYPES[..at]
            .iter()
            .any(|(earlier, ..)| earlier == name);
        assert!(!again, "{name} is listed twice");
        let text = format!(
            "apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\nplugins: [{{type: {name}, name: it}}]\n"
        );
        let options = LoadOptions {
            allow_experimental: true,
        };
        let config = load("c.yaml", &text, &catalogue, &options).unwrap();
        let spec = &config.plugins[0];
        assert_eq!(spec.kind, *kind);
        let is_deprecated = matches!(stage, Stage::Deprecated { .. });
        assert_eq!(!config.warnings.is_empty(), is_deprecated, "{name}");
    }
    for (old, new) in DIRECT_SUCCESSORS {
        assert!(catalogue.get(old).is_some() && catalogue.get(new).is_some());
    }
}
