//! What is said about wrong configurations, word for word.

use super::fixtures::body;

/// Loads below a two-line header.
fn errors(text: &str) -> String {
    match body(text) {
        Ok(config) => panic!("loads: {config:?}"),
        Err(errors) => errors.to_string(),
    }
}

/// Below the header, and what is said.
const CASES: &[(&str, &str)] = &[
    (
        "plugins:\n- type: queue-scorer\nschedulingProfiles:\n- name: p\n  plugins:\n  - pluginRef: queue-scorre\n",
        "c.yaml:8:16: schedulingProfiles[0].plugins[0].pluginRef: no plugin is named \"queue-scorre\"; did you mean \"queue-scorer\"?",
    ),
    (
        "plugins:\n- type: queue-scorre\n",
        "c.yaml:4:9: plugins[0].type: there is no plugin type \"queue-scorre\"; did you mean \"queue-scorer\"?",
    ),
    (
        "plugin: []\n",
        "c.yaml:3:1: plugin: unknown field; did you mean \"plugins\"?",
    ),
    (
        "banana: 1\n",
        "c.yaml:3:1: banana: unknown field; known here: apiVersion, kind, featureGates, plugins, schedulingProfiles, dataLayer, flowControl, requestHandler, saturationDetector, parser",
    ),
    (
        "plugins:\n- testing 1 2 3\n",
        "c.yaml:4:3: plugins[0]: expected a group of fields, not the text \"testing 1 2 3\"",
    ),
    (
        "plugins:\n- parameters: {a: 1}\n",
        "c.yaml:4:3: plugins[0]: the field type is missing",
    ),
    (
        "plugins:\n- type: utilization-detector\n  parameters:\n    queueDepthTreshold: 3\n",
        "c.yaml:6:25: plugins[0].parameters.queueDepthTreshold: unknown parameter; did you mean \"queueDepthThreshold\"?",
    ),
    (
        "plugins:\n- type: utilization-detector\n  parameters:\n    nested:\n    - maxValue: 1\n    - maxValue: many\n",
        "c.yaml:8:17: plugins[0].parameters.nested[1].maxValue: invalid type: string \"many\", expected u32",
    ),
    (
        "plugins:\n- type: utilization-detector\n  parameters: {queueDepthThreshold: 0}\n",
        "c.yaml:5:37: plugins[0].parameters.queueDepthThreshold: must be more than 0",
    ),
    (
        "plugins:\n- type: queue-scorer\n  parameters: {weight: 2}\n",
        "c.yaml:5:24: plugins[0].parameters.weight: unknown parameter",
    ),
    (
        "plugins:\n- name: a\n  type: queue-scorer\n- name: a\n  type: decode-filter\n",
        "c.yaml:6:9: plugins[1].name: a second plugin named \"a\"; the first one is in line 4",
    ),
    (
        "plugins:\n- type: queue-scorer\nschedulingProfiles:\n- name: p\n  plugins:\n  - pluginRef: queue-scorer\n    weight: heavy\n",
        "c.yaml:9:13: schedulingProfiles[0].plugins[0].weight: expected a number, not the text \"heavy\"",
    ),
    (
        "plugins: [{type: disagg-profile-handler}]\nschedulingProfiles:\n- name: p\n- name: p\n",
        "c.yaml:6:9: schedulingProfiles[1].name: a second profile named \"p\"; the first one is in line 5",
    ),
    (
        "schedulingProfiles:\n- plugins: []\n",
        "c.yaml:4:3: schedulingProfiles[0]: the field name is missing",
    ),
    (
        "plugins: [{type: single-profile-handler}]\nschedulingProfiles:\n- name: p\n- name: q\n",
        "c.yaml:6:9: schedulingProfiles[1]: single-profile-handler runs one profile only",
    ),
    (
        "schedulingProfiles:\n- name: p\n- name: q\n",
        "c.yaml:4:9: schedulingProfiles: several profiles need a profile handler among the plugins, such as disagg-profile-handler",
    ),
    (
        "plugins:\n- type: single-profile-handler\n- type: disagg-profile-handler\n",
        "c.yaml:5:9: plugins: \"disagg-profile-handler\" is a second profile handler; one is allowed",
    ),
    (
        "plugins: [{type: max-score-picker}, {type: random-picker}]\nschedulingProfiles:\n- name: p\n  plugins:\n  - pluginRef: max-score-picker\n  - pluginRef: random-picker\n",
        "c.yaml:8:16: schedulingProfiles[0].plugins[1].pluginRef: a second picker in this profile",
    ),
    (
        "featureGates: [flowControll]\n",
        "c.yaml:3:16: featureGates[0]: there is no feature gate \"flowControll\"; did you mean \"flowControl\"?",
    ),
    (
        "featureGates: [flowControl=maybe]\n",
        "c.yaml:3:16: featureGates[0]: \"maybe\" is neither true nor false",
    ),
    (
        "flowControl:\n  maxBytes: lots\n",
        "c.yaml:4:13: flowControl.maxBytes: `lots` is no quantity: write 5000, 1k, 500M or 1Gi",
    ),
    (
        "flowControl:\n  defaultRequestTTL: 60\n",
        "c.yaml:4:22: flowControl.defaultRequestTTL: `60` is no duration: write 50ms, 2s or 1m30s",
    ),
    (
        "flowControl:\n  priorityBands:\n  - priority: 1\n  - priority: 1\n",
        "c.yaml:6:15: flowControl.priorityBands[1].priority: a second band of priority 1; the first one is in line 5",
    ),
    (
        "plugins: [{type: queue-scorer}]\nflowControl:\n  priorityBands:\n  - priority: 1\n    orderingPolicyRef: queue-scorer\n",
        "c.yaml:7:24: flowControl.priorityBands[0].orderingPolicyRef: \"queue-scorer\" is a scorer, not an ordering policy",
    ),
    (
        "flowControl:\n  priorityBands: [{priority: 1, minShare: 0.7}, {priority: 2, minShare: 0.5}]\n",
        "c.yaml:4:60: flowControl.priorityBands: the minShare of all bands add up to 1.2, more than 1",
    ),
    (
        "dataLayer:\n  sources:\n  - pluginRef: core-metrics-extractor\n",
        "c.yaml:5:16: dataLayer.sources[0].pluginRef: \"core-metrics-extractor\" is an extractor, not a data source",
    ),
    (
        "requestHandler:\n  parsers:\n  - openai-parser\n",
        "c.yaml:5:5: requestHandler.parsers[0]: expected a group of fields, not the text \"openai-parser\"",
    ),
    (
        "plugins:\n- type: disagg-profile-handler\n  parameters:\n    deciders: {prefill: always-disagg-pd-decidr}\n- type: always-disagg-pd-decider\n",
        "c.yaml:6:25: plugins[0].parameters.deciders.prefill: no plugin that is a decider is named \"always-disagg-pd-decidr\"; did you mean \"always-disagg-pd-decider\"?",
    ),
    (
        "plugins:\n- type: prefix-cache-scorer\n  parameters: {prefixMatchInfoProducerName: mine}\n",
        "c.yaml:5:45: plugins[0].parameters.prefixMatchInfoProducerName: no plugin that is a data producer is named \"mine\"",
    ),
    (
        "plugins:\n- type: session-affinity-scorer\n",
        "c.yaml:4:9: plugins[0].type: plugin type \"session-affinity-scorer\" is alpha; start with --allow-experimental-plugins to use it",
    ),
    (
        "plugins: [\n",
        "c.yaml:4:1: while parsing a node, did not find expected node content",
    ),
    ("kind: Other\n", "c.yaml:3:1: duplicated key in mapping"),
];

#[test]
fn each_mistake_is_named_with_its_place_and_what_was_probably_meant() {
    for (text, expected) in CASES {
        assert_eq!(errors(text), *expected, "{text}");
    }
}

#[test]
fn header_is_checked() {
    let of = |text: &str| {
        let catalogue = super::catalogue();
        let loaded = super::load("c.yaml", text, &catalogue, &super::LoadOptions::default());
        loaded.unwrap_err().to_string()
    };
    assert_eq!(
        of("apiVersion: v1\nkind: Pod\n"),
        "c.yaml:1:13: apiVersion: \"v1\" is neither llm-d.ai/v1alpha1 nor inference.networking.x-k8s.io/v1alpha1\nc.yaml:2:7: kind: \"Pod\" is not EndpointPickerConfig"
    );
    assert_eq!(
        of("plugins: []\n"),
        "c.yaml:1:1: the field apiVersion is missing\nc.yaml:1:1: the field kind is missing"
    );
    assert_eq!(
        of(" \n"),
        "c.yaml:1:1: holds no configuration; leave the flag out for the default one"
    );
    assert_eq!(
        of("just text"),
        "c.yaml:1:1: expected a group of fields, not the text \"just text\""
    );
}

#[test]
fn all_mistakes_are_reported_together_and_none_twice() {
    let text = "plugins:\n- type: queue-scorre\n- type: decode-filter\n  colour: red\nschedulingProfiles:\n- name: p\n  plugins:\n  - pluginRef: queue-scorre\n  - pluginRef: decode-filtre\n    weight: []\n";
    let errors = errors(text);
    let lines: Vec<&str> = errors.lines().map(|line| &line[..10]).collect();
    assert_eq!(
        lines,
        ["c.yaml:4:9", "c.yaml:6:3", "c.yaml:11:", "c.yaml:12:"],
        "{errors}"
    );
}

#[test]
fn reports_are_bounded() {
    let many = "- type: nonsense\n".repeat(100);
    let errors = errors(&format!("plugins:\n{many}"));
    assert_eq!(errors.lines().count(), 21);
    assert!(errors.ends_with("and 80 more"), "{errors}");
}
