//! What is shown is what is loaded.

use std::fmt::Write as _;

use proptest::prelude::*;

use super::fixtures::catalogue;
use super::{DISAGGREGATED, FLOW, GAIE, PRECISE, loaded};
use crate::config::epc::{FIELD_TYPES, LoadOptions, load, show};
use crate::config::plugins::PluginKind;
use crate::config::resolved::ResolvedConfig;

const ALL: LoadOptions = LoadOptions {
    allow_experimental: true,
};

fn without_warnings(mut config: ResolvedConfig) -> ResolvedConfig {
    config.warnings.clear();
    config
}

fn shown_and_loaded(config: &ResolvedConfig) -> ResolvedConfig {
    let text = show(config);
    let again = load("shown", &text, &catalogue(), &ALL);
    without_warnings(again.unwrap_or_else(|errors| panic!("{errors}\n{text}")))
}

#[test]
fn examples_survive_being_shown() {
    for text in [DISAGGREGATED, PRECISE, FLOW, GAIE] {
        let config = loaded(text);
        assert_eq!(shown_and_loaded(&config), without_warnings(config));
    }
}

/// A configuration built of random plugins, profiles and bands, right or wrong.
fn any_config() -> impl Strategy<Value = String> {
    let plugin = (0..FIELD_TYPES.len(), "[a-z]{0,2}", any::<bool>());
    let plugins = proptest::collection::vec(plugin, 0..9);
    let weight = prop_oneof![Just(None), (0.0..10.0).prop_map(Some)];
    let profile = proptest::collection::vec((0_usize..9, weight), 0..5);
    let profiles = proptest::collection::vec(profile, 0..3);
    let band = (-3..4_i32, "[0-9]{1,3}(k|Mi|)", 0.0..0.4_f64, 0_u32..3);
    let bands = proptest::collection::vec(band, 0..3);
    (plugins, profiles, bands, any::<bool>(), any::<bool>()).prop_map(
        |(plugins, profiles, bands, inject, gate)| {
            let mut text = format!(
                "apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\nfeatureGates: [flowControl={gate}]\nplugins:\n"
            );
            let mut names = Vec::new();
            for (at, (of, name, named)) in plugins.iter().enumerate() {
                let type_name = FIELD_TYPES[*of].0;
                let name = if *named { format!("{name}{at}") } else { type_name.to_owned() };
                let _ = writeln!(text, "- {{type: {type_name}, name: \"{name}\"}}");
                names.push((name, FIELD_TYPES[*of].1));
            }
            if names.is_empty() {
                text += "  []\n";
            }
            let _ = write!(text, "dataLayer: {{injectDefaults: {inject}}}\nschedulingProfiles:\n");
            let listed: Vec<_> = profiles.iter().filter(|_| !names.is_empty()).collect();
            for (at, profile) in listed.iter().enumerate() {
                let _ = write!(text, "- name: p{at}\n  plugins:\n");
                for (plugin, weight) in *profile {
                    let (name, kind) = &names[plugin % names.len()];
                    if *kind == PluginKind::Picker {
                        continue;
                    }
                    let _ = writeln!(text, "  - pluginRef: \"{name}\"");
                    if let Some(weight) = weight {
                        let _ = writeln!(text, "    weight: {weight}");
                    }
                }
            }
            if listed.is_empty() {
                text += "  []\n";
            }
            text += "flowControl:\n  priorityBands:\n";
            for (priority, bytes, share, ttl) in &bands {
                let _ = writeln!(text, "  - {{priority: {priority}, maxBytes: {bytes}, minShare: {share}, requestTTL: {ttl}s}}");
            }
            if bands.is_empty() {
                text += "    []\n";
            }
            text
        },
    )
}

proptest! {
    #[test]
    fn whatever_loads_survives_being_shown(text in any_config()) {
        if let Ok(config) = load("c.yaml", &text, &catalogue(), &ALL) {
            let again = shown_and_loaded(&config);
            prop_assert_eq!(again, without_warnings(config), "{}", text);
        }
    }

    #[test]
    fn no_text_panics_and_what_is_said_is_bounded(
        noise in "\\PC{0,80}",
        text in any_config(),
        at in any::<prop::sample::Index>(),
    ) {
        let mut broken: Vec<char> = text.chars().collect();
        let at = at.index(broken.len());
        broken.splice(at..at, noise.chars());
        let broken: String = broken.into_iter().collect();
        for text in [&broken, &noise] {
            if let Err(errors) = load("c.yaml", text, &catalogue(), &ALL) {
                prop_assert!(!errors.problems.is_empty() && errors.problems.len() <= 20);
                prop_assert!(errors.to_string().len() < 40_000);
            }
        }
    }
}
