//! Whole folders: families whose tensors are all found, and what is said when something is wrong with one.

use std::collections::HashMap;
use std::path::Path;

use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;

type Tensors = Vec<(String, Vec<usize>)>;

fn config(architecture: &str) -> Value {
    json!({
        "architectures": [architecture], "vocab_size": 10, "hidden_size": 8, "intermediate_size": 6,
        "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4,
        "max_position_embeddings": 32, "rms_norm_eps": 1e-5, "num_experts": 3, "num_experts_per_tok": 2,
        "moe_intermediate_size": 5
    })
}

/// Tensors of all families' common part, and `more` in the layer.
fn tensors(more: &[(&str, &[usize])]) -> Tensors {
    let common: [(&str, &[usize]); 6] = [
        ("model.embed_tokens.weight", &[10, 8]),
        ("model.norm.weight", &[8]),
        ("lm_head.weight", &[10, 8]),
        ("model.layers.0.input_layernorm.weight", &[8]),
        ("model.layers.0.post_attention_layernorm.weight", &[8]),
        ("model.layers.0.self_attn.o_proj.weight", &[8, 8]),
    ];
    let common = common.map(|(name, shape)| (name.to_owned(), shape.to_vec()));
    let more = more.iter();
    let more = more.map(|(name, shape)| (format!("model.layers.0.{name}"), shape.to_vec()));
    common.into_iter().chain(more).collect()
}

const QKV: [(&str, &[usize]); 3] = [
    ("self_attn.q_proj.weight", &[8, 8]),
    ("self_attn.k_proj.weight", &[4, 8]),
    ("self_attn.v_proj.weight", &[4, 8]),
];
const MLP: [(&str, &[usize]); 3] = [
    ("mlp.gate_proj.weight", &[6, 8]),
    ("mlp.up_proj.weight", &[6, 8]),
    ("mlp.down_proj.weight", &[8, 6]),
];
const QK_NORMS: [(&str, &[usize]); 2] = [
    ("self_attn.q_norm.weight", &[4]),
    ("self_attn.k_norm.weight", &[4]),
];

fn llama() -> Tensors {
    tensors(&[&QKV[..], &MLP].concat())
}

/// Writes a folder in which every element of every tensor is different.
fn folder(config: &Value, tensors: &Tensors) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    let mut next = 0_u16;
    let data: Vec<Vec<u8>> = (tensors.iter())
        .map(|(_, shape)| {
            let element = |_| {
                next += 1;
                f32::from(next).to_le_bytes()
            };
            (0..shape.iter().product::<usize>())
                .flat_map(element)
                .collect()
        })
        .collect();
    let views = tensors.iter().zip(&data).map(|((name, shape), data)| {
        (
            name,
            TensorView::new(Dtype::F32, shape.clone(), data).unwrap(),
        )
    });
    let bytes = safetensors::serialize(views, None::<HashMap<String, String>>).unwrap();
    std::fs::write(folder.path().join("model.safetensors"), bytes).unwrap();
    folder
}

fn error(folder: &Path) -> String {
    let text = Model::open(folder).unwrap_err().to_string();
    let within = text.strip_prefix(&format!("{}/", folder.display()));
    within
        .unwrap_or_else(|| panic!("{text} names no file"))
        .to_owned()
}

#[test]
fn every_family_finds_its_tensors() {
    let qkv_bias: [(&str, &[usize]); 3] = [
        ("self_attn.q_proj.bias", &[8]),
        ("self_attn.k_proj.bias", &[4]),
        ("self_attn.v_proj.bias", &[4]),
    ];
    let fused: [(&str, &[usize]); 3] = [
        ("self_attn.qkv_proj.weight", &[16, 8]),
        ("mlp.gate_up_proj.weight", &[12, 8]),
        ("mlp.down_proj.weight", &[8, 6]),
    ];
    for (architecture, tensors) in [
        ("LlamaForCausalLM", llama()),
        ("MistralForCausalLM", llama()),
        ("Phi3ForCausalLM", tensors(&fused)),
        (
            "Qwen2ForCausalLM",
            tensors(&[&QKV[..], &MLP, &qkv_bias].concat()),
        ),
        (
            "Qwen3ForCausalLM",
            tensors(&[&QKV[..], &MLP, &QK_NORMS].concat()),
        ),
    ] {
        let folder = folder(&config(architecture), &tensors);
        let model = Model::open(folder.path()).unwrap();
        let found = model.tensors().unwrap();
        let layer = &found.layers[0];
        let rows = |tensors: &[Tensor<'_>]| tensors.iter().map(|part| part.shape[0]).sum::<usize>();
        assert_eq!(rows(&layer.qkv), 16, "{architecture}");
        assert_eq!(
            rows(&layer.qkv_bias),
            if architecture.starts_with("Qwen2") {
                16
            } else {
                0
            }
        );
        assert_eq!(layer.qk_norms.is_some(), architecture.starts_with("Qwen3"));
        let FeedForward::Dense(mlp) = &layer.feed_forward else {
            panic!("{architecture} has no experts");
        };
        assert_eq!(rows(&mlp.gate_up), 12);
        // Each is needed.
        for (without, (name, _)) in tensors.iter().enumerate() {
            let mut fewer = tensors.clone();
            fewer.remove(without);
            let folder = self::folder(&config(architecture), &fewer);
            assert_eq!(
                error(folder.path()),
                format!("model.safetensors: tensor {name}: is missing")
            );
        }
    }
}

#[test]
fn experts_are_found_one_by_one_and_in_stacks() {
    let attention = [&QKV[..], &QK_NORMS].concat();
    let router: (&str, &[usize]) = ("mlp.gate.weight", &[3, 8]);
    let mut single = tensors(&[&attention[..], &[router]].concat());
    for expert in 0..3 {
        for (name, shape) in [
            ("gate_proj", [5, 8]),
            ("up_proj", [5, 8]),
            ("down_proj", [8, 5]),
        ] {
            let name = format!("model.layers.0.mlp.experts.{expert}.{name}.weight");
            single.push((name, shape.to_vec()));
        }
    }
    let stacks: [(&str, &[usize]); 2] = [
        ("mlp.experts.gate_up_proj", &[3, 10, 8]),
        ("mlp.experts.down_proj", &[3, 8, 5]),
    ];
    let stacked = tensors(&[&attention[..], &[router], &stacks].concat());
    for tensors in [single, stacked] {
        let folder = folder(&config("Qwen3MoeForCausalLM"), &tensors);
        let model = Model::open(folder.path()).unwrap();
        let found = model.tensors().unwrap();
        let FeedForward::Experts { router, experts } = &found.layers[0].feed_forward else {
            panic!("no experts");
        };
        assert_eq!((router.shape, experts.len()), (&[3, 8][..], 3));
        for expert in experts {
            let rows: usize = expert.gate_up.iter().map(|part| part.shape[0]).sum();
            assert_eq!((rows, expert.down.shape), (10, &[8, 5][..]));
        }
        let firsts = experts.iter().map(|expert| expert.down.get(0).unwrap());
        let firsts: Vec<f32> = firsts.collect();
        assert!(firsts[0] < firsts[1] && firsts[1] < firsts[2], "{firsts:?}");
    }
}

#[test]
fn an_unknown_architecture_is_named_with_its_file() {
    let folder = folder(&config("MambaForCausalLM"), &llama());
    let text = error(folder.path());
    assert!(
        text.starts_with(
            "config.json: field architectures: [\"MambaForCausalLM\"] is not supported"
        ),
        "{text}"
    );
}

#[test]
fn a_wrong_shape_is_named_with_file_and_tensor() {
    let mut tensors = llama();
    tensors[3].1 = vec![7];
    let folder = folder(&config("LlamaForCausalLM"), &tensors);
    assert_eq!(
        error(folder.path()),
        "model.safetensors: tensor model.layers.0.input_layernorm.weight: has shape [7]; the configuration says [8]"
    );
}

#[test]
fn a_truncated_file_is_named() {
    let folder = folder(&config("LlamaForCausalLM"), &llama());
    let path = folder.path().join("model.safetensors");
    let whole = std::fs::read(&path).unwrap();
    std::fs::write(&path, &whole[..whole.len() - 3]).unwrap();
    let text = error(folder.path());
    assert!(text.starts_with("model.safetensors: "), "{text}");
    assert!(
        text.ends_with(&format!("(file of {} bytes)", whole.len() - 3)),
        "{text}"
    );
}

#[test]
fn weights_that_must_be_verified_are_refused_without_a_manifest() {
    let folder = folder(&config("LlamaForCausalLM"), &llama());
    assert_eq!(Model::open(folder.path()).unwrap().verified, None);
    let refused = Model::open_with(folder.path(), Verification::Required).unwrap_err();
    assert!(
        refused
            .to_string()
            .contains("verified weights are required"),
        "{refused}"
    );
    let sums = folder.path().join("SHA256SUMS");
    std::fs::write(&sums, format!("{}  model.safetensors\n", "0".repeat(64))).unwrap();
    let changed = Model::open(folder.path()).unwrap_err();
    assert!(
        matches!(changed, ModelError::Unverified { .. }),
        "{changed}"
    );
}
