//! The definition of the model in f64: whole context each time, no cache. And random models in Hugging Face's format.

use std::collections::HashMap;
use std::path::Path;

use half::bf16;
use safetensors::tensor::{Dtype, TensorView};

use crate::model::{Model, ModelConfig};

/// A random model's sizes.
#[derive(Clone, Debug)]
pub(super) struct Shape {
    pub(super) vocab: usize,
    pub(super) hidden: usize,
    pub(super) inner: usize,
    pub(super) layers: usize,
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    pub(super) head_dim: usize,
    pub(super) tied: bool,
    pub(super) llama3: bool,
    pub(super) seed: u32,
}

impl Shape {
    fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let (q, kv) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let (hidden, inner) = (self.hidden, self.inner);
        let mut tensors = vec![
            ("model.embed_tokens".to_owned(), vec![self.vocab, hidden]),
            ("model.norm".to_owned(), vec![hidden]),
        ];
        if !self.tied {
            tensors.push(("lm_head".to_owned(), vec![self.vocab, hidden]));
        }
        for layer in 0..self.layers {
            let parts = [
                ("input_layernorm", vec![hidden]),
                ("post_attention_layernorm", vec![hidden]),
                ("self_attn.q_proj", vec![q, hidden]),
                ("self_attn.k_proj", vec![kv, hidden]),
                ("self_attn.v_proj", vec![kv, hidden]),
                ("self_attn.o_proj", vec![hidden, q]),
                ("mlp.gate_proj", vec![inner, hidden]),
                ("mlp.up_proj", vec![inner, hidden]),
                ("mlp.down_proj", vec![hidden, inner]),
            ];
            let parts = parts.map(|(name, shape)| (format!("model.layers.{layer}.{name}"), shape));
            tensors.extend(parts);
        }
        tensors
    }
}

/// Writes a model folder with weights from the shape's seed, scaled so that activations stay of the order of 1.
pub(super) fn write_model(folder: &Path, shape: &Shape) {
    let rope_scaling = shape.llama3.then(|| {
        serde_json::json!({
            "rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32
        })
    });
    let config = serde_json::json!({
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": shape.vocab, "hidden_size": shape.hidden,
        "intermediate_size": shape.inner, "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads, "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim, "max_position_embeddings": 256, "rms_norm_eps": 1e-5,
        "rope_theta": 1000.0, "rope_scaling": rope_scaling, "tie_word_embeddings": shape.tied
    });
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    let mut state = u64::from(shape.seed) << 8 | 1;
    let mut random = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1_u64 << 23) as f32 - 1.0
    };
    let tensors: Vec<_> = shape
        .tensors()
        .into_iter()
        .map(|(name, dims)| {
            let width = *dims.last().unwrap() as f32;
            let norm = dims.len() == 1;
            let value = |x: f32| {
                if norm {
                    1.0 + 0.3 * x
                } else {
                    x * 1.7 / width.sqrt()
                }
            };
            let count = dims.iter().product();
            let bytes: Vec<u8> = (0..count)
                .flat_map(|_| bf16::from_f32(value(random())).to_le_bytes())
                .collect();
            (format!("{name}.weight"), dims, bytes)
        })
        .collect();
    let views = tensors.iter().map(|(name, dims, bytes)| {
        (
            name.clone(),
            TensorView::new(Dtype::BF16, dims.clone(), bytes).unwrap(),
        )
    });
    let bytes = safetensors::serialize(views, None::<HashMap<String, String>>).unwrap();
    std::fs::write(folder.join("model.safetensors"), bytes).unwrap();
}

/// A matrix in f64.
struct Rows {
    width: usize,
    values: Vec<f64>,
}

impl Rows {
    fn of(model: &Model, name: &str, shape: &[usize]) -> Self {
        let tensor = model
            .weights
            .tensor(&format!("{name}.weight"), shape)
            .unwrap();
        Self {
            width: *shape.last().unwrap(),
            values: tensor.to_vec().into_iter().map(f64::from).collect(),
        }
    }

    fn row(&self, index: usize) -> &[f64] {
        &self.values[index * self.width..(index + 1) * self.width]
    }

    /// This matrix times a vector.
    fn times(&self, x: &[f64]) -> Vec<f64> {
        let rows = self.values.chunks_exact(self.width);
        rows.map(|row| row.iter().zip(x).map(|(a, b)| a * b).sum())
            .collect()
    }
}

fn norm(x: &[f64], weight: &Rows, eps: f64) -> Vec<f64> {
    let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
    x.iter()
        .zip(&weight.values)
        .map(|(x, w)| x / (mean + eps).sqrt() * w)
        .collect()
}

fn rotated(head: &[f64], position: usize, frequencies: &[f32]) -> Vec<f64> {
    let half = head.len() / 2;
    let rotate = |i: usize| {
        let (sine, cosine) = (f64::from(frequencies[i % half]) * position as f64).sin_cos();
        if i < half {
            head[i] * cosine - head[i + half] * sine
        } else {
            head[i] * cosine + head[i - half] * sine
        }
    };
    (0..head.len()).map(rotate).collect()
}

fn softmax(scores: &[f64]) -> Vec<f64> {
    let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> = scores.iter().map(|score| (score - max).exp()).collect();
    let sum: f64 = weights.iter().sum();
    weights.iter().map(|weight| weight / sum).collect()
}

fn attention(
    config: &ModelConfig,
    q: &[Vec<f64>],
    k: &[Vec<f64>],
    v: &[Vec<f64>],
) -> Vec<Vec<f64>> {
    let (dim, shared) = (config.head_dim, config.heads / config.kv_heads);
    let frequencies = config.rope_frequencies();
    let one = |position: usize| {
        let heads = (0..config.heads).flat_map(|head| {
            let own = |x: &[f64], head: usize| x[head * dim..(head + 1) * dim].to_vec();
            let query = rotated(&own(&q[position], head), position, &frequencies);
            let scores: Vec<f64> = (0..=position)
                .map(|j| {
                    let key = rotated(&own(&k[j], head / shared), j, &frequencies);
                    let dot: f64 = query.iter().zip(key).map(|(a, b)| a * b).sum();
                    dot / (dim as f64).sqrt()
                })
                .collect();
            let weights = softmax(&scores);
            (0..dim)
                .map(|d| {
                    let values = (0..=position).map(|j| own(&v[j], head / shared)[d]);
                    weights.iter().zip(values).map(|(w, v)| w * v).sum()
                })
                .collect::<Vec<f64>>()
        });
        heads.collect()
    };
    (0..q.len()).map(one).collect()
}

/// Log probabilities of the token after each position.
pub(super) fn log_probabilities(model: &Model, tokens: &[u32]) -> Vec<Vec<f64>> {
    let config = &model.config;
    let (hidden, inner) = (config.hidden_size, config.intermediate_size);
    let (q, kv) = (
        config.heads * config.head_dim,
        config.kv_heads * config.head_dim,
    );
    let eps = f64::from(config.rms_norm_eps);
    let embedding = Rows::of(model, "model.embed_tokens", &[config.vocab_size, hidden]);
    let mut x: Vec<Vec<f64>> = tokens
        .iter()
        .map(|token| embedding.row(*token as usize).to_vec())
        .collect();
    for layer in 0..config.layers {
        let weight = |name: &str, shape: &[usize]| {
            Rows::of(model, &format!("model.layers.{layer}.{name}"), shape)
        };
        let input_norm = weight("input_layernorm", &[hidden]);
        let project = |x: &[Vec<f64>], matrix: &Rows| -> Vec<Vec<f64>> {
            x.iter()
                .map(|x| matrix.times(&norm(x, &input_norm, eps)))
                .collect()
        };
        let attended = attention(
            config,
            &project(&x, &weight("self_attn.q_proj", &[q, hidden])),
            &project(&x, &weight("self_attn.k_proj", &[kv, hidden])),
            &project(&x, &weight("self_attn.v_proj", &[kv, hidden])),
        );
        let o = weight("self_attn.o_proj", &[hidden, q]);
        let post_norm = weight("post_attention_layernorm", &[hidden]);
        let gate = weight("mlp.gate_proj", &[inner, hidden]);
        let up = weight("mlp.up_proj", &[inner, hidden]);
        let down = weight("mlp.down_proj", &[hidden, inner]);
        for (x, attended) in x.iter_mut().zip(attended) {
            add(x, &o.times(&attended));
            let h = norm(x, &post_norm, eps);
            let silu = |g: f64| g / (1.0 + (-g).exp());
            let activated: Vec<f64> = gate
                .times(&h)
                .iter()
                .zip(up.times(&h))
                .map(|(g, u)| silu(*g) * u)
                .collect();
            add(x, &down.times(&activated));
        }
    }
    let last_norm = Rows::of(model, "model.norm", &[hidden]);
    let head = if config.tie_word_embeddings {
        "model.embed_tokens"
    } else {
        "lm_head"
    };
    let head = Rows::of(model, head, &[config.vocab_size, hidden]);
    x.iter()
        .map(|x| {
            let logits = head.times(&norm(x, &last_norm, eps));
            softmax(&logits).into_iter().map(f64::ln).collect()
        })
        .collect()
}

fn add(x: &mut [f64], y: &[f64]) {
    x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
}
