//! Frequencies and amplitudes of every scaling, against numbers that `transformers` 5.23 computes for the same fields;
//! they may differ in the last place.

use std::path::PathBuf;

use serde_json::{Value, json};

use super::*;

/// A rope of heads of 16 elements, out of a configuration with these fields.
fn rope(fields: &Value) -> Result<Rope, ModelError> {
    let mut config = json!({"rope_theta": 10000.0, "max_position_embeddings": 256});
    for (name, value) in fields.as_object().unwrap() {
        config[name] = value.clone();
    }
    let raw: Raw = serde_json::from_value(config).unwrap();
    read(&raw, 16, &File(PathBuf::from("config.json")))
}

fn assert_frequencies(rope: &Rope, max_model_len: usize, expected: &[f64], amplitude: f64) {
    let got = rope.frequencies(max_model_len);
    assert_eq!(got.len(), expected.len());
    for (index, (got, expected)) in got.iter().zip(expected).enumerate() {
        let error = (f64::from(*got) - expected).abs() / expected;
        assert!(
            error < 1.2e-7,
            "frequency {index}: {got} instead of {expected}"
        );
    }
    let error = (f64::from(rope.amplitude) - amplitude).abs();
    assert!(
        error < 1e-6,
        "amplitude {} instead of {amplitude}",
        rope.amplitude
    );
}

#[test]
fn linear_scaling_divides_all_frequencies() {
    let scaling = json!({"rope_type": "linear", "factor": 4.0});
    let expected = [
        0.25,
        0.079_056_941,
        0.025,
        0.007_905_694_66,
        0.0025,
        7.905_694_66e-4,
        2.5e-4,
        7.905_694_66e-5,
    ];
    let rope = rope(&json!({"rope_scaling": scaling})).unwrap();
    assert_frequencies(&rope, 256, &expected, 1.0);
    assert_eq!(rope.stretched_context(256), 1024);
}

#[test]
fn llama3_scaling_leaves_short_waves_and_stretches_long_ones() {
    let scaling = json!({
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64
    });
    let expected = [
        1.0,
        0.244_384_587,
        0.013_042_256_2,
        0.003_952_847_33,
        0.00125,
        3.952_847_33e-4,
        1.25e-4,
        3.952_847_33e-5,
    ];
    let rope = rope(&json!({"rope_scaling": scaling})).unwrap();
    assert_frequencies(&rope, 256, &expected, 1.0);
    assert_eq!(rope.stretched_context(256), 256);
}

#[test]
fn yarn_stretches_by_a_ramp() {
    let scaling = json!({"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64});
    let expected = [
        1.0,
        0.237_170_815,
        0.049_999_997,
        0.007_905_694_66,
        0.0025,
        7.905_694_66e-4,
        2.5e-4,
        7.905_694_66e-5,
    ];
    let plain = rope(&json!({"rope_scaling": scaling})).unwrap();
    assert_frequencies(&plain, 256, &expected, 1.138_629_436_111_989);
    assert_eq!(plain.stretched_context(64), 256);
    let scaling = json!({
        "rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 512, "beta_fast": 16.0,
        "beta_slow": 2.0, "mscale": 0.7, "mscale_all_dim": 0.4, "truncate": false
    });
    let expected = [
        1.0,
        0.316_227_764,
        0.071_608_461_4,
        0.007_324_998_27,
        0.00125,
        3.952_847_33e-4,
        1.25e-4,
        3.952_847_33e-5,
    ];
    let all_options = rope(&json!({"rope_scaling": scaling})).unwrap();
    assert_frequencies(&all_options, 256, &expected, 1.057_592_810_910_055_9);
}

#[test]
fn longrope_has_a_list_for_short_contexts_and_one_for_long_ones() {
    let scaling = json!({
        "rope_type": "longrope", "short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [1.5, 2.0, 4.0, 8.0]
    });
    let fields = json!({
        "rope_scaling": scaling, "partial_rotary_factor": 0.5, "original_max_position_embeddings": 64
    });
    let rope = rope(&fields).unwrap();
    assert_eq!(rope.dim, 8);
    let short = [1.0, 0.090_909_093_6, 0.008_333_332_84, 7.692_307_7e-4];
    let long = [
        0.666_666_687,
        0.050_000_000_7,
        0.002_499_999_94,
        1.250_000_06e-4,
    ];
    assert_frequencies(&rope, 64, &short, 1.154_700_538_379_251_7);
    assert_frequencies(&rope, 65, &long, 1.154_700_538_379_251_7);
}

#[test]
fn both_spellings_mean_the_same() {
    let scaling = json!({
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192
    });
    let mut parameters = scaling.clone();
    parameters["rope_theta"] = json!(50000.0);
    let old = rope(&json!({"rope_scaling": scaling, "rope_theta": 50000.0})).unwrap();
    let new = rope(&json!({"rope_parameters": parameters})).unwrap();
    assert_eq!(old, new);
    let Rope { theta, scaling, .. } = old;
    assert_eq!((theta, new.dim), (50_000.0, 16));
    assert!(matches!(scaling, RopeScaling::Llama3(_)));
    let plain = rope(&json!({"rope_scaling": {"type": "default"}})).unwrap();
    assert_eq!(plain.scaling, RopeScaling::Default);
    let within =
        json!({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.25}});
    assert_eq!(rope(&within).unwrap().dim, 4);
}

#[test]
fn what_is_missing_or_impossible_is_named() {
    let error = |fields: Value| {
        let text = rope(&fields).unwrap_err().to_string();
        text.strip_prefix("config.json: field ").unwrap().to_owned()
    };
    assert_eq!(
        error(json!({"rope_parameters": {"rope_type": "llama3", "factor": 8.0}})),
        "rope_parameters: low_freq_factor is missing"
    );
    assert_eq!(
        error(json!({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}})),
        "rope_scaling: rope_type dynamic is not supported; supported: default, linear, llama3, yarn, longrope"
    );
    assert_eq!(
        error(json!({"rope_scaling": {"rope_type": "linear", "factor": -2.0}})),
        "rope_scaling: factor is -2, not a positive number"
    );
    assert_eq!(
        error(json!({"rope_scaling": {"rope_type": "longrope", "short_factor": [1.0]}})),
        "rope_scaling: short_factor has 1 numbers instead of 8"
    );
    assert_eq!(
        error(json!({"rope_scaling": {"rope_type": "default", "mrope_section": [2, 3, 3]}})),
        "rope_scaling: mrope_section is set, and not supported"
    );
    assert_eq!(
        error(json!({"rope_theta": 0.5})),
        "rope_theta: 0.5 is not a number above 1"
    );
    assert_eq!(
        error(json!({"partial_rotary_factor": 0.2})),
        "partial_rotary_factor: 0.2 of 16 elements is not a positive even number of them"
    );
    let swapped = json!({
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 1.0,
        "original_max_position_embeddings": 64
    });
    assert_eq!(
        error(json!({"rope_scaling": swapped})),
        "rope_scaling: high_freq_factor is not above low_freq_factor"
    );
}
