//! The definition of the model in f64: whole context each time, no cache. And random models in Hugging Face's format.

use std::collections::HashMap;
use std::path::Path;

use half::bf16;
use safetensors::tensor::{Dtype, TensorView};

use crate::model::{ExpertsConfig, FeedForward, Layer, Mlp, Model, ModelConfig, Tensor};

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
    pub(super) kind: Kind,
    pub(super) seed: u32,
}

/// Which family the random model is of: each has something that no other has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Llama,
    /// With this window.
    Mistral(usize),
    /// Half of each head is rotated.
    Phi3,
    /// The second layer has this window.
    Qwen2(usize),
    Qwen3,
    /// The second layer has three experts, of which each token takes this many.
    Qwen3Moe(usize),
}

impl Kind {
    fn architecture(self) -> &'static str {
        match self {
            Self::Llama => "LlamaForCausalLM",
            Self::Mistral(_) => "MistralForCausalLM",
            Self::Phi3 => "Phi3ForCausalLM",
            Self::Qwen2(_) => "Qwen2ForCausalLM",
            Self::Qwen3 => "Qwen3ForCausalLM",
            Self::Qwen3Moe(_) => "Qwen3MoeForCausalLM",
        }
    }

    /// What the family's configuration has beyond the common fields.
    fn options(self) -> serde_json::Value {
        match self {
            Self::Llama | Self::Qwen3 => serde_json::json!({}),
            Self::Mistral(window) => serde_json::json!({"sliding_window": window}),
            Self::Phi3 => serde_json::json!({"partial_rotary_factor": 0.5}),
            Self::Qwen2(window) => serde_json::json!({
                "use_sliding_window": true, "sliding_window": window, "max_window_layers": 1
            }),
            Self::Qwen3Moe(per_token) => serde_json::json!({
                "num_experts": 3, "num_experts_per_tok": per_token, "moe_intermediate_size": 8,
                "norm_topk_prob": per_token == 2, "decoder_sparse_step": 2
            }),
        }
    }
}

impl Shape {
    fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let (q, kv) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let hidden = self.hidden;
        let mut tensors = vec![
            ("model.embed_tokens".to_owned(), vec![self.vocab, hidden]),
            ("model.norm".to_owned(), vec![hidden]),
        ];
        if !self.tied {
            tensors.push(("lm_head".to_owned(), vec![self.vocab, hidden]));
        }
        for layer in 0..self.layers {
            let mut parts = vec![
                ("input_layernorm".to_owned(), vec![hidden]),
                ("post_attention_layernorm".to_owned(), vec![hidden]),
                ("self_attn.o_proj".to_owned(), vec![hidden, q]),
            ];
            parts.extend(self.attention(q, kv));
            parts.extend(self.feed_forward(layer));
            let named = |(name, shape)| (format!("model.layers.{layer}.{name}"), shape);
            tensors.extend(parts.into_iter().map(named));
        }
        let weight = |(name, shape): (String, _)| match name.strip_suffix("!bias") {
            Some(name) => (format!("{name}.bias"), shape),
            None => (format!("{name}.weight"), shape),
        };
        tensors.into_iter().map(weight).collect()
    }

    fn attention(&self, q: usize, kv: usize) -> Vec<(String, Vec<usize>)> {
        if self.kind == Kind::Phi3 {
            return vec![(
                "self_attn.qkv_proj".to_owned(),
                vec![q + 2 * kv, self.hidden],
            )];
        }
        let mut parts = Vec::new();
        for (name, rows) in [("q", q), ("k", kv), ("v", kv)] {
            parts.push((format!("self_attn.{name}_proj"), vec![rows, self.hidden]));
            if matches!(self.kind, Kind::Qwen2(_)) {
                parts.push((format!("self_attn.{name}_proj!bias"), vec![rows]));
            }
        }
        if matches!(self.kind, Kind::Qwen3 | Kind::Qwen3Moe(_)) {
            for name in ["q", "k"] {
                parts.push((format!("self_attn.{name}_norm"), vec![self.head_dim]));
            }
        }
        parts
    }

    fn feed_forward(&self, layer: usize) -> Vec<(String, Vec<usize>)> {
        let mlp = |name: &str, inner: usize| {
            [
                (format!("{name}.gate_proj"), vec![inner, self.hidden]),
                (format!("{name}.up_proj"), vec![inner, self.hidden]),
                (format!("{name}.down_proj"), vec![self.hidden, inner]),
            ]
        };
        match self.kind {
            Kind::Phi3 => vec![
                (
                    "mlp.gate_up_proj".to_owned(),
                    vec![2 * self.inner, self.hidden],
                ),
                ("mlp.down_proj".to_owned(), vec![self.hidden, self.inner]),
            ],
            Kind::Qwen3Moe(_) if layer % 2 == 1 => {
                let experts = (0..3).flat_map(|expert| mlp(&format!("mlp.experts.{expert}"), 8));
                let router = ("mlp.gate".to_owned(), vec![3, self.hidden]);
                std::iter::once(router).chain(experts).collect()
            }
            _ => mlp("mlp", self.inner).to_vec(),
        }
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
    let mut config = serde_json::json!({
        "architectures": [shape.kind.architecture()],
        "vocab_size": shape.vocab, "hidden_size": shape.hidden,
        "intermediate_size": shape.inner, "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads, "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim, "max_position_embeddings": 256, "rms_norm_eps": 1e-5,
        "rope_theta": 1000.0, "rope_scaling": rope_scaling, "tie_word_embeddings": shape.tied
    });
    for (field, value) in shape.kind.options().as_object().unwrap() {
        config[field] = value.clone();
    }
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
            (name, dims, bytes)
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
    fn of(tensors: &[Tensor<'_>]) -> Self {
        let values = tensors.iter().flat_map(Tensor::to_vec);
        Self {
            width: *tensors[0].shape.last().unwrap(),
            values: values.map(f64::from).collect(),
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

fn norm(x: &[f64], weight: &Tensor<'_>, eps: f64) -> Vec<f64> {
    let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
    x.iter()
        .zip(weight.to_vec())
        .map(|(x, w)| x / (mean + eps).sqrt() * f64::from(w))
        .collect()
}

/// Rotates the first `rope.dim` elements.
fn rotated(config: &ModelConfig, head: &[f64], position: usize, frequencies: &[f32]) -> Vec<f64> {
    let half = config.rope.dim / 2;
    let rotate = |i: usize| {
        if i >= config.rope.dim {
            return head[i];
        }
        let (sine, cosine) = (f64::from(frequencies[i % half]) * position as f64).sin_cos();
        let turned = if i < half {
            head[i] * cosine - head[i + half] * sine
        } else {
            head[i] * cosine + head[i - half] * sine
        };
        turned * f64::from(config.rope.amplitude)
    };
    (0..head.len()).map(rotate).collect()
}

fn softmax(scores: &[f64]) -> Vec<f64> {
    let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> = scores.iter().map(|score| (score - max).exp()).collect();
    let sum: f64 = weights.iter().sum();
    weights.iter().map(|weight| weight / sum).collect()
}

/// One layer's attention for all positions; `qkv` holds each position's queries, keys and values.
fn attention(
    config: &ModelConfig,
    layer: &Layer<'_>,
    index: usize,
    qkv: &[Vec<f64>],
) -> Vec<Vec<f64>> {
    let (dim, shared) = (config.head_dim, config.heads / config.kv_heads);
    let frequencies = config.rope_frequencies();
    // Heads are counted through: queries, then keys, then values.
    let head = |position: usize, head: usize| &qkv[position][head * dim..(head + 1) * dim];
    let encoded = |position: usize, number: usize| {
        let own = head(position, number);
        let eps = f64::from(config.rms_norm_eps);
        let normed = match &layer.qk_norms {
            Some([query, _]) if number < config.heads => norm(own, query, eps),
            Some([_, key]) => norm(own, key, eps),
            None => own.to_vec(),
        };
        rotated(config, &normed, position, &frequencies)
    };
    let one = |position: usize| {
        let window = config.window(index).unwrap_or(usize::MAX);
        let first = (position + 1).saturating_sub(window);
        let heads = (0..config.heads).flat_map(|query| {
            let of_kv = config.heads + query / shared;
            let q = encoded(position, query);
            let scores: Vec<f64> = (first..=position)
                .map(|j| {
                    let dot: f64 = q.iter().zip(encoded(j, of_kv)).map(|(a, b)| a * b).sum();
                    dot / (dim as f64).sqrt()
                })
                .collect();
            let weights = softmax(&scores);
            (0..dim)
                .map(|d| {
                    let values = (first..=position).map(|j| head(j, of_kv + config.kv_heads)[d]);
                    weights.iter().zip(values).map(|(w, v)| w * v).sum()
                })
                .collect::<Vec<f64>>()
        });
        heads.collect()
    };
    (0..qkv.len()).map(one).collect()
}

fn mlp(mlp: &Mlp<'_>, h: &[f64]) -> Vec<f64> {
    let gate_up = Rows::of(&mlp.gate_up).times(h);
    let (gates, ups) = gate_up.split_at(gate_up.len() / 2);
    let silu = |g: f64| g / (1.0 + (-g).exp());
    let activated: Vec<f64> = gates.iter().zip(ups).map(|(g, u)| silu(*g) * u).collect();
    Rows::of(&[mlp.down]).times(&activated)
}

/// The experts that like `h` best, each times its weight.
fn mixture(
    config: &ExpertsConfig,
    router: &Tensor<'_>,
    experts: &[Mlp<'_>],
    h: &[f64],
) -> Vec<f64> {
    let likes = softmax(&Rows::of(&[*router]).times(h));
    let mut order: Vec<usize> = (0..likes.len()).collect();
    order.sort_by(|a, b| likes[*b].total_cmp(&likes[*a]));
    order.truncate(config.per_token);
    let sum: f64 = order.iter().map(|expert| likes[*expert]).sum();
    let mut mixed = vec![0.0; h.len()];
    for expert in order {
        let weight = likes[expert] / if config.normalised { sum } else { 1.0 };
        let output = mlp(&experts[expert], h);
        add(
            &mut mixed,
            &output.iter().map(|x| x * weight).collect::<Vec<_>>(),
        );
    }
    mixed
}

/// Log probabilities of the token after each position.
pub(super) fn log_probabilities(model: &Model, tokens: &[u32]) -> Vec<Vec<f64>> {
    let config = &model.config;
    let eps = f64::from(config.rms_norm_eps);
    let weights = model.tensors().unwrap();
    let embedding = Rows::of(&[weights.embedding]);
    let embed = |token: &u32| embedding.row(*token as usize).to_vec();
    let mut x: Vec<Vec<f64>> = tokens.iter().map(embed).collect();
    for (index, layer) in weights.layers.iter().enumerate() {
        let qkv = Rows::of(&layer.qkv);
        let bias = layer.qkv_bias.iter().flat_map(Tensor::to_vec);
        let bias: Vec<f64> = bias.map(f64::from).collect();
        let project = |x: &Vec<f64>| {
            let mut row = qkv.times(&norm(x, &layer.input_norm, eps));
            add(&mut row, &bias);
            row
        };
        let qkv: Vec<Vec<f64>> = x.iter().map(project).collect();
        let attended = attention(config, layer, index, &qkv);
        let o = Rows::of(&[layer.o]);
        for (x, attended) in x.iter_mut().zip(attended) {
            add(x, &o.times(&attended));
            let h = norm(x, &layer.post_norm, eps);
            let output = match &layer.feed_forward {
                FeedForward::Dense(dense) => mlp(dense, &h),
                FeedForward::Experts { router, experts } => {
                    mixture(config.experts.as_ref().unwrap(), router, experts, &h)
                }
            };
            add(x, &output);
        }
    }
    let head = Rows::of(&[weights.head.unwrap_or(weights.embedding)]);
    let log_probabilities = |x: &Vec<f64>| {
        let logits = head.times(&norm(x, &weights.norm, eps));
        softmax(&logits).into_iter().map(f64::ln).collect()
    };
    x.iter().map(log_probabilities).collect()
}

fn add(x: &mut [f64], y: &[f64]) {
    x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
}
