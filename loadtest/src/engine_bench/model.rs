//! The model that is measured: SmolLM-135M's shape with random weights, as a Hugging Face folder.
//!
//! Speed does not depend on what weights say, so none are downloaded. They are uniform, with the variance that keeps the
//! residual stream in range, from a fixed seed. The tokenizer is the demo model's: the benchmark speaks in token ids,
//! and a worker needs some tokenizer to turn them into text. The context is longer than SmolLM's, for the long prompt.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};

use crate::stack::workspace_root;

const HIDDEN: usize = 576;
const INTERMEDIATE: usize = 1536;
const LAYERS: usize = 30;
const HEADS: usize = 9;
const KV_HEADS: usize = 3;
const HEAD_DIM: usize = 64;
const VOCABULARY: usize = 49_152;
/// Positions of the longest request.
pub(super) const CONTEXT: usize = 32_768;
/// What a complete folder holds, so that an interrupted one is written again.
const COMPLETE: &str = "complete";

/// The folder and its size.
#[derive(Clone, Debug)]
pub(super) struct BenchModel {
    pub(super) folder: PathBuf,
    /// Bytes of all weights: what a step reads, as the head is tied to the embedding.
    pub(super) bytes: u64,
    pub(super) parameters: u64,
}

impl BenchModel {
    /// Writes the model into `home`, unless it is there.
    pub(super) fn make(home: &Path) -> Result<Self> {
        let folder = home.join("model-135m");
        let parameters: usize = tensors().iter().map(|(_, shape)| elements(shape)).sum();
        if !folder.join(COMPLETE).is_file() {
            write(&folder).with_context(|| format!("cannot write {}", folder.display()))?;
        }
        Ok(Self {
            folder,
            bytes: 2 * parameters as u64,
            parameters: parameters as u64,
        })
    }
}

fn write(folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder)?;
    let config = json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "torch_dtype": "bfloat16",
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "hidden_act": "silu",
        "vocab_size": VOCABULARY,
        "max_position_embeddings": CONTEXT,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10_000.0,
        "tie_word_embeddings": true,
        "bos_token_id": 0,
        "eos_token_id": 1,
    });
    std::fs::write(folder.join("config.json"), config.to_string())?;
    let demo = workspace_root().join("engine/demo-model");
    for file in [
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
    ] {
        std::fs::copy(demo.join(file), folder.join(file))?;
    }
    write_weights(&folder.join("model.safetensors"))?;
    std::fs::write(folder.join(COMPLETE), "")?;
    Ok(())
}

/// `[header length][header][data]`, one tensor behind the other.
fn write_weights(path: &Path) -> Result<()> {
    let mut header = Map::new();
    let mut end = 0;
    for (name, shape) in tensors() {
        let start = end;
        end += 2 * elements(&shape);
        let entry = json!({ "dtype": "BF16", "shape": shape, "data_offsets": [start, end] });
        header.insert(name, entry);
    }
    let header = Value::Object(header).to_string();
    let mut file = BufWriter::new(File::create(path)?);
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(header.as_bytes())?;
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    for (_, shape) in tensors() {
        for _ in 0..elements(&shape) {
            let value = match shape.as_slice() {
                [_] => 1.0,
                shape => next_uniform(&mut random) * (3.0 / shape[1] as f32).sqrt(),
            };
            // A bf16 is the upper half of an f32.
            let bits = (value.to_bits() >> 16) as u16;
            file.write_all(&bits.to_le_bytes())?;
        }
    }
    file.flush()?;
    Ok(())
}

/// Names and shapes, in the order of the file.
fn tensors() -> Vec<(String, Vec<usize>)> {
    let mut all = vec![(
        "model.embed_tokens.weight".to_owned(),
        vec![VOCABULARY, HIDDEN],
    )];
    let (queries, keys) = (HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM);
    for layer in 0..LAYERS {
        let parts: [(&str, &[usize]); 9] = [
            ("input_layernorm", &[HIDDEN]),
            ("self_attn.q_proj", &[queries, HIDDEN]),
            ("self_attn.k_proj", &[keys, HIDDEN]),
            ("self_attn.v_proj", &[keys, HIDDEN]),
            ("self_attn.o_proj", &[HIDDEN, queries]),
            ("post_attention_layernorm", &[HIDDEN]),
            ("mlp.gate_proj", &[INTERMEDIATE, HIDDEN]),
            ("mlp.up_proj", &[INTERMEDIATE, HIDDEN]),
            ("mlp.down_proj", &[HIDDEN, INTERMEDIATE]),
        ];
        for (part, shape) in parts {
            all.push((
                format!("model.layers.{layer}.{part}.weight"),
                shape.to_vec(),
            ));
        }
    }
    all.push(("model.norm.weight".to_owned(), vec![HIDDEN]));
    all
}

fn elements(shape: &[usize]) -> usize {
    shape.iter().product()
}

/// Xorshift64*, scaled to -1..1.
fn next_uniform(state: &mut u64) -> f32 {
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    let bits = state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 40;
    bits as f32 / (1 << 23) as f32 - 1.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shape_is_that_of_135_million_parameters() {
        let parameters: usize = tensors().iter().map(|(_, shape)| elements(shape)).sum();
        assert_eq!(parameters, 134_515_008);
    }

    #[test]
    fn random_weights_are_spread_over_their_range() {
        let mut state = 1;
        let values: Vec<f32> = (0..10_000).map(|_| next_uniform(&mut state)).collect();
        assert!(values.iter().all(|value| (-1.0..1.0).contains(value)));
        let mean = values.iter().sum::<f32>() / 10_000.0;
        assert!(mean.abs() < 0.03, "the mean is {mean}");
    }
}
