//! Configurations as checkpoints have them, and as they must be refused, with the field that is wrong.

use std::path::Path;

use serde_json::{Value, json};

use super::*;
use crate::model::{GenerationDefaults, RopeScaling};

fn llama() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 1000, "hidden_size": 64, "intermediate_size": 96,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "max_position_embeddings": 128, "rms_norm_eps": 1e-5, "rope_theta": 50000.0,
        "tie_word_embeddings": true, "eos_token_id": 2, "something_new": {"a": 1}
    })
}

/// Null itself, in place of a field.
const NULL: Value = Value::Null;

/// What removes a field.
fn gone() -> Value {
    json!("(gone)")
}

/// The config with some fields replaced, or removed where the value is [`gone`].
#[expect(clippy::needless_pass_by_value, reason = "reads better at the calls")]
fn load(changes: Value) -> Result<ModelConfig, ModelError> {
    let mut config = llama();
    for (field, value) in changes.as_object().unwrap() {
        if *value == gone() {
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
    let rope = Rope {
        theta: 50_000.0,
        dim: 16,
        amplitude: 1.0,
        scaling: RopeScaling::Default,
    };
    assert_eq!(config.rope, rope);
    assert_eq!((config.window(1), config.layer_experts(1)), (None, None));
    assert_eq!(config.eos_token_ids, [2]);
    let layer = 64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 96 + 128;
    assert_eq!(config.parameters(), 2 * layer + 1000 * 64 + 64);
    let defaults = load(json!({"num_key_value_heads": gone(), "rope_theta": gone()})).unwrap();
    assert_eq!((defaults.kv_heads, defaults.rope.theta), (4, 10_000.0));
}

#[test]
fn errors_name_file_and_field() {
    assert_eq!(
        error(json!({"hidden_size": gone()})),
        "field hidden_size: is missing"
    );
    assert_eq!(
        error(json!({"vocab_size": 0})),
        "field vocab_size: 0 is out of range"
    );
    assert_eq!(
        error(json!({"architectures": ["MambaForCausalLM"]})),
        "field architectures: [\"MambaForCausalLM\"] is not supported; supported: [\"LlamaForCausalLM\", \
         \"MistralForCausalLM\", \"Phi3ForCausalLM\", \"Qwen2ForCausalLM\", \"Qwen3ForCausalLM\", \
         \"Qwen3MoeForCausalLM\"]"
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
fn windows_are_what_each_family_means() {
    let windows = |changes: Value| load(changes).unwrap().windows;
    let mistral = |sliding_window: Value| {
        let mut config = json!({"architectures": ["MistralForCausalLM"]});
        config["sliding_window"] = sliding_window;
        windows(config)
    };
    assert_eq!(mistral(json!(8)), [Some(8), Some(8)]);
    assert_eq!(mistral(NULL), [None, None], "null is no window");
    let unwritten = json!({"architectures": ["MistralForCausalLM"]});
    assert_eq!(windows(unwritten), [Some(4096), Some(4096)]);
    let qwen2 = |use_it: bool, first: usize| {
        windows(json!({
            "architectures": ["Qwen2ForCausalLM"], "sliding_window": 8, "use_sliding_window": use_it,
            "max_window_layers": first
        }))
    };
    assert_eq!(qwen2(false, 0), [None, None]);
    assert_eq!(qwen2(true, 1), [None, Some(8)]);
    let by_type = json!({
        "architectures": ["Qwen3ForCausalLM"], "sliding_window": 8, "use_sliding_window": true,
        "layer_types": ["sliding_attention", "full_attention"]
    });
    assert_eq!(windows(by_type), [Some(8), None]);
    let phi3 = json!({"architectures": ["Phi3ForCausalLM"]});
    assert_eq!(windows(phi3), [None, None]);
    assert_eq!(
        windows(json!({"sliding_window": 8})),
        [None, None],
        "a Llama has none"
    );
}

#[test]
fn layer_types_that_do_not_fit_are_refused() {
    let types =
        |types: Value| error(json!({"architectures": ["Qwen3ForCausalLM"], "layer_types": types}));
    assert_eq!(
        types(json!(["full_attention"])),
        "field layer_types: has 1 entries for 2 layers"
    );
    assert!(types(json!(["full_attention", "linear_attention"])).contains("linear_attention"));
    let empty = error(json!({"architectures": ["MistralForCausalLM"], "sliding_window": 0}));
    assert_eq!(empty, "field sliding_window: 0 is out of range");
}

#[test]
fn a_mixture_of_experts_says_which_layers_have_them() {
    let moe = |changes: Value| {
        let mut config = json!({
            "architectures": ["Qwen3MoeForCausalLM"], "num_hidden_layers": 4, "num_experts": 6,
            "num_experts_per_tok": 2, "moe_intermediate_size": 24, "norm_topk_prob": true
        });
        for (field, value) in changes.as_object().unwrap() {
            config[field] = value.clone();
        }
        config
    };
    let config = load(moe(
        json!({"decoder_sparse_step": 2, "mlp_only_layers": [3]}),
    ))
    .unwrap();
    let experts = config.experts.as_ref().unwrap();
    assert_eq!(experts.layers, [false, true, false, false]);
    assert_eq!(
        (experts.count, experts.per_token, experts.normalised),
        (6, 2, true)
    );
    assert!(config.layer_experts(0).is_none() && config.layer_experts(1).is_some());
    assert_eq!(
        config.parameters() - config.active_parameters(),
        4 * 3 * 64 * 24
    );
    let renamed = load(moe(json!({"num_experts": NULL, "num_local_experts": 6}))).unwrap();
    assert_eq!(renamed.experts.unwrap().layers, [true; 4]);
    assert_eq!(
        error(moe(json!({"num_experts_per_tok": 7}))),
        "field num_experts_per_tok: 7 is more than the 6 experts"
    );
    assert_eq!(
        error(moe(json!({"moe_intermediate_size": NULL}))),
        "field moe_intermediate_size: is missing"
    );
}

#[test]
fn families_have_their_own_options() {
    let of = |name: &str| load(json!({"architectures": [name]})).unwrap();
    let options = |config: &ModelConfig| (config.qkv_bias, config.qk_norm, config.head_dim);
    assert_eq!(options(&of("LlamaForCausalLM")), (false, false, 16));
    assert_eq!(options(&of("Qwen2ForCausalLM")), (true, false, 16));
    assert_eq!(options(&of("Qwen3ForCausalLM")), (false, true, 128));
    let yarn = json!({"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 64});
    let text = error(json!({"architectures": ["Phi3ForCausalLM"], "rope_scaling": yarn}));
    assert!(text.contains("but default and longrope"), "{text}");
    let long = load(json!({"rope_scaling": yarn})).unwrap();
    assert_eq!(
        (long.max_position_embeddings, long.max_model_len),
        (128, 128)
    );
}

#[test]
fn any_spelling_of_the_element_type_is_read_over() {
    for field in ["torch_dtype", "dtype"] {
        let mut config = json!({});
        config[field] = json!("bfloat16");
        assert!(load(config).is_ok());
    }
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
