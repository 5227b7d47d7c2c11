//! Configurations as checkpoints have them, and as they must be refused, with the field that is wrong.

#![expect(clippy::float_cmp, reason = "what is copied or left alone is exact")]

use std::path::Path;

use serde_json::{Value, json};

use super::*;
use crate::model::GenerationDefaults;

fn llama() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 1000, "hidden_size": 64, "intermediate_size": 96,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "max_position_embeddings": 128, "rms_norm_eps": 1e-5, "rope_theta": 50000.0,
        "tie_word_embeddings": true, "eos_token_id": 2, "something_new": {"a": 1}
    })
}

/// The config with some fields replaced, or removed where the value is null.
#[expect(clippy::needless_pass_by_value, reason = "reads better at the calls")]
fn load(changes: Value) -> Result<ModelConfig, ModelError> {
    let mut config = llama();
    for (field, value) in changes.as_object().unwrap() {
        if value.is_null() {
            config.as_object_mut().unwrap().shift_remove(field);
        } else {
            config[field] = value.clone();
        }
    }
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    ModelConfig::load(folder.path())
}

fn error(changes: Value) -> String {
    let text = load(changes).unwrap_err().to_string();
    let (path, rest) = text.split_once(": ").unwrap();
    assert!(path.ends_with("config.json"), "{text}");
    rest.to_owned()
}

#[test]
fn a_llama_config_is_read() {
    let config = load(json!({})).unwrap();
    assert_eq!(
        (
            config.heads,
            config.kv_heads,
            config.head_dim,
            config.layers
        ),
        (4, 2, 16, 2)
    );
    assert_eq!(
        config.rope,
        Rope {
            theta: 50_000.0,
            scaling: None
        }
    );
    assert_eq!(config.eos_token_ids, [2]);
    let layer = 64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 96 + 128;
    assert_eq!(config.parameters(), 2 * layer + 1000 * 64 + 64);
    let defaults = load(json!({"num_key_value_heads": null, "rope_theta": null})).unwrap();
    assert_eq!((defaults.kv_heads, defaults.rope.theta), (4, 10_000.0));
}

#[test]
fn errors_name_file_and_field() {
    assert_eq!(
        error(json!({"hidden_size": null})),
        "field hidden_size: is missing"
    );
    assert_eq!(
        error(json!({"vocab_size": 0})),
        "field vocab_size: 0 is out of range"
    );
    assert_eq!(
        error(json!({"architectures": ["MambaForCausalLM"]})),
        "field architectures: [\"MambaForCausalLM\"] is not supported; supported: [\"LlamaForCausalLM\"]"
    );
    assert_eq!(
        error(json!({"num_key_value_heads": 3})),
        "field num_key_value_heads: 3 does not divide the 4 attention heads"
    );
    assert_eq!(
        error(json!({"head_dim": 15})),
        "field head_dim: 15 is not a positive even number"
    );
    assert_eq!(
        error(json!({"hidden_act": "gelu"})),
        "field hidden_act: gelu is not supported; supported: silu"
    );
    assert_eq!(
        error(json!({"attention_bias": true})),
        "field attention_bias: is set, and not supported"
    );
    assert!(error(json!({"vocab_size": "many"})).contains("invalid type"));
    let nowhere = ModelConfig::load(Path::new("/nonexistent")).unwrap_err();
    assert!(
        nowhere
            .to_string()
            .starts_with("/nonexistent/config.json: ")
    );
}

#[test]
fn rope_is_read_in_both_spellings() {
    let scaling = json!({
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192
    });
    let old = load(json!({"rope_scaling": scaling})).unwrap();
    let mut parameters = scaling.clone();
    parameters["rope_theta"] = json!(50000.0);
    let new = load(json!({"rope_parameters": parameters, "rope_theta": null})).unwrap();
    assert_eq!(old.rope, new.rope);
    assert!(old.rope.scaling.is_some());
    let plain = load(json!({"rope_scaling": {"type": "default"}})).unwrap();
    assert_eq!(plain.rope.scaling, None);
    assert_eq!(
        error(json!({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}})),
        "field rope_scaling: rope_type yarn is not supported; supported: default, llama3"
    );
    assert_eq!(
        error(json!({"rope_parameters": {"rope_type": "llama3", "factor": 8.0}})),
        "field rope_parameters: low_freq_factor is missing"
    );
}

#[test]
fn llama3_scaling_leaves_short_waves_and_stretches_long_ones() {
    let scaling = Llama3Scaling {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_context: 8192.0,
    };
    let of_wave = |length: f64| 2.0 * std::f64::consts::PI / length;
    assert_eq!(scaling.apply(of_wave(100.0)), of_wave(100.0));
    assert_eq!(scaling.apply(of_wave(9000.0)), of_wave(9000.0) / 8.0);
    let between = scaling.apply(of_wave(4096.0)) / of_wave(4096.0);
    // The wave is half of the original context: smooth = (2 - 1) / (4 - 1).
    assert!((between - (2.0 / 3.0 / 8.0 + 1.0 / 3.0)).abs() < 1e-12);
}

#[test]
fn generation_defaults_are_optional_and_add_stop_tokens() {
    let folder = tempfile::tempdir().unwrap();
    let config = load(json!({})).unwrap();
    let none = GenerationDefaults::load(folder.path(), &config).unwrap();
    assert_eq!((none.temperature, none.eos_token_ids), (None, vec![2]));
    let path = folder.path().join("generation_config.json");
    std::fs::write(
        &path,
        r#"{"eos_token_id": [7, 2], "temperature": 0.7, "do_sample": true}"#,
    )
    .unwrap();
    let some = GenerationDefaults::load(folder.path(), &config).unwrap();
    assert_eq!(
        (some.temperature, some.eos_token_ids),
        (Some(0.7), vec![7, 2])
    );
    std::fs::write(&path, "{").unwrap();
    assert!(GenerationDefaults::load(folder.path(), &config).is_err());
}
