//! Schedulers from configurations.

use std::time::Duration;

use serde_json::{Value, json};

use super::*;
use crate::config::resolved::{
    BandSpec, DataLayerSpec, FeatureGates, FlowControlSpec, ProfilePluginSpec,
};

fn config(
    plugins: &[(&'static str, PluginKind, Value)],
    profiles: &[(&str, &[usize])],
    handler: usize,
) -> ResolvedConfig {
    let band = BandSpec {
        priority: 0,
        max_bytes: 1,
        max_requests: 1,
        fairness: 0,
        ordering: 0,
        request_ttl: None,
        min_share: 0.0,
    };
    ResolvedConfig {
        gates: FeatureGates {
            flow_control: false,
            ha_populate_non_leader_datastore: true,
        },
        plugins: plugins
            .iter()
            .map(|(type_name, kind, parameters)| PluginSpec {
                name: (*type_name).to_owned(),
                type_name,
                kind: *kind,
                parameters: parameters.clone(),
            })
            .collect(),
        profiles: profiles
            .iter()
            .map(|(name, places)| ProfileSpec {
                name: (*name).to_owned(),
                plugins: places
                    .iter()
                    .map(|plugin| ProfilePluginSpec {
                        plugin: *plugin,
                        weight: 2.0,
                    })
                    .collect(),
            })
            .collect(),
        handler,
        flow_control: FlowControlSpec {
            max_bytes: None,
            max_requests: None,
            default_request_ttl: Some(Duration::from_mins(1)),
            no_endpoint_request_ttl: None,
            default_band: band.clone(),
            default_negative_band: band,
            bands: Vec::new(),
            usage_limit: 0,
            saturation_detector: 0,
            eviction: false,
        },
        data_layer: DataLayerSpec {
            sources: Vec::new(),
            discovery: None,
        },
        parsers: Vec::new(),
        warnings: Vec::new(),
    }
}

use PluginKind::{Decider as D, Picker as P, ProfileHandler as H, Scorer as S};

#[test]
fn a_scheduler_is_what_the_configuration_says() {
    let config = config(
        &[
            ("queue-scorer", S, Value::Null),
            ("random-picker", P, json!({"maxNumOfEndpoints": 2})),
            ("always-disagg-pd-decider", D, Value::Null),
            (
                "disagg-profile-handler",
                H,
                json!({"deciders": {"prefill": "always-disagg-pd-decider"}}),
            ),
        ],
        &[("decode", &[0, 1]), ("prefill", &[0])],
        3,
    );
    let scheduler = build(&config, &[]).unwrap();
    let [decode, prefill] = scheduler.profiles() else {
        panic!("two profiles")
    };
    assert_eq!(decode.picker.type_name(), "random-picker");
    assert_eq!(decode.endpoints(), 2);
    assert_eq!(prefill.picker.type_name(), "max-score-picker");
    assert!((decode.scorers[0].weight - 2.0).abs() < f32::EPSILON);
    assert!(
        Arc::ptr_eq(&decode.scorers[0].scorer, &prefill.scorers[0].scorer),
        "one state for both profiles"
    );
}

#[test]
fn what_does_not_fit_is_named() {
    let handler = ("single-profile-handler", H, Value::Null);
    let two = config(
        &[("random-picker", P, Value::Null), handler.clone()],
        &[("default", &[0, 0])],
        1,
    );
    assert_eq!(
        build(&two, &[]).unwrap_err().to_string(),
        "scheduling profile \"default\" has two pickers"
    );
    let other = config(std::slice::from_ref(&handler), &[("default", &[0])], 0);
    assert!(
        build(&other, &[]).is_ok(),
        "a plugin of another kind is passed over"
    );
    let no_handler = config(
        &[("random-picker", P, Value::Null)],
        &[("default", &[0])],
        0,
    );
    assert!(matches!(
        build(&no_handler, &[]),
        Err(BuildError::NoHandler {
            type_name: "random-picker"
        })
    ));
}
