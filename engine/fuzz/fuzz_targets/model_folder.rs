//! No file of a model folder makes the loader panic, or take memory that the file does not have.
//!
//! The first byte says which file the rest of the input is. The others are a small model's, so that what lies behind
//! the first check of each file is reached.

#![no_main]

use std::fs;
use std::path::Path;

use libfuzzer_sys::fuzz_target;
use pointsman_engine::model::Model;

const FILES: &[&str] = &[
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "SHA256SUMS",
    "manifest.json",
];

/// A model of one small layer.
const CONFIG: &str = r#"{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 4,
    "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 1, "max_position_embeddings": 16, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
    "tie_word_embeddings": true, "eos_token_id": 1, "bos_token_id": 0}"#;

/// The names and shapes of its tensors.
const TENSORS: &[(&str, &[usize])] = &[
    ("model.embed_tokens.weight", &[4, 8]),
    ("model.norm.weight", &[8]),
    ("model.layers.0.input_layernorm.weight", &[8]),
    ("model.layers.0.post_attention_layernorm.weight", &[8]),
    ("model.layers.0.self_attn.q_proj.weight", &[8, 8]),
    ("model.layers.0.self_attn.k_proj.weight", &[4, 8]),
    ("model.layers.0.self_attn.v_proj.weight", &[4, 8]),
    ("model.layers.0.self_attn.o_proj.weight", &[8, 8]),
    ("model.layers.0.mlp.gate_proj.weight", &[8, 8]),
    ("model.layers.0.mlp.up_proj.weight", &[8, 8]),
    ("model.layers.0.mlp.down_proj.weight", &[8, 8]),
];

/// The tensors as a safetensors file of zeros.
fn weights() -> Vec<u8> {
    let mut header = serde_json::Map::new();
    let mut at = 0;
    for (name, shape) in TENSORS {
        let bytes = 2 * shape.iter().product::<usize>();
        let tensor = serde_json::json!({"dtype": "BF16", "shape": shape, "data_offsets": [at, at + bytes]});
        header.insert((*name).to_owned(), tensor);
        at += bytes;
    }
    let header = serde_json::Value::Object(header).to_string();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header.as_bytes());
    file.resize(file.len() + at, 0);
    file
}

fn open(folder: &Path, file: &str, bytes: &[u8]) {
    fs::write(folder.join("config.json"), CONFIG).expect("a writable folder");
    if !file.contains("index") {
        fs::write(folder.join("model.safetensors"), weights()).expect("a writable folder");
    } else {
        fs::write(folder.join("model-1.safetensors"), weights()).expect("a writable folder");
    }
    fs::write(folder.join(file), bytes).expect("a writable folder");
    if let Err(error) = Model::open(folder) {
        assert!(error.to_string().len() < bytes.len() + 4096, "{error}");
    }
}

fuzz_target!(|input: &[u8]| {
    let Some((which, bytes)) = input.split_first() else {
        return;
    };
    let folder = tempfile::tempdir().expect("a temporary folder");
    open(folder.path(), FILES[usize::from(*which) % FILES.len()], bytes);
});
