//! The Llama family: which tensors it has, how large they are, and how a layer uses them.
//!
//! ```text
//! x = embed_tokens[token]
//! each layer:  h = rms_norm(x, input_layernorm)
//!              q, k, v = h·q_projᵀ, h·k_projᵀ, h·v_projᵀ          q and k rotated by position
//!              x += attention(q, k, v)·o_projᵀ                    kv_heads shared by heads / kv_heads queries each
//!              h = rms_norm(x, post_attention_layernorm)
//!              x += (silu(h·gate_projᵀ) * h·up_projᵀ)·down_projᵀ
//! logits = rms_norm(x, norm)·lm_headᵀ                             lm_head = embed_tokens when tied
//! ```
//!
//! All matrices are `[out, in]`, row-major, as Hugging Face writes them.

use super::{ModelConfig, ModelError, Tensor, Weights};

/// The tensors of a model, checked against its configuration.
#[derive(Debug)]
pub struct Tensors<'a> {
    /// `[vocab_size, hidden_size]`.
    pub embedding: Tensor<'a>,
    /// In order.
    pub layers: Vec<Layer<'a>>,
    /// `[hidden_size]`.
    pub norm: Tensor<'a>,
    /// `[vocab_size, hidden_size]`; none when the embedding serves.
    pub head: Option<Tensor<'a>>,
}

/// The tensors of one layer.
#[derive(Debug)]
pub struct Layer<'a> {
    /// `[hidden_size]`.
    pub input_norm: Tensor<'a>,
    /// `[heads * head_dim, hidden_size]`.
    pub q: Tensor<'a>,
    /// `[kv_heads * head_dim, hidden_size]`.
    pub k: Tensor<'a>,
    /// `[kv_heads * head_dim, hidden_size]`.
    pub v: Tensor<'a>,
    /// `[hidden_size, heads * head_dim]`.
    pub o: Tensor<'a>,
    /// `[hidden_size]`.
    pub post_norm: Tensor<'a>,
    /// `[intermediate_size, hidden_size]`.
    pub gate: Tensor<'a>,
    /// `[intermediate_size, hidden_size]`.
    pub up: Tensor<'a>,
    /// `[hidden_size, intermediate_size]`.
    pub down: Tensor<'a>,
}

/// Finds every tensor and checks its shape.
///
/// # Errors
/// Names the file and the tensor that is missing or has another shape.
pub fn tensors<'a>(config: &ModelConfig, weights: &'a Weights) -> Result<Tensors<'a>, ModelError> {
    let hidden = config.hidden_size;
    let vocabulary = [config.vocab_size, hidden];
    let head = if config.tie_word_embeddings {
        None
    } else {
        Some(weights.tensor("lm_head.weight", &vocabulary)?)
    };
    Ok(Tensors {
        embedding: weights.tensor("model.embed_tokens.weight", &vocabulary)?,
        layers: (0..config.layers)
            .map(|index| layer(config, weights, index))
            .collect::<Result<_, _>>()?,
        norm: weights.tensor("model.norm.weight", &[hidden])?,
        head,
    })
}

fn layer<'a>(
    config: &ModelConfig,
    weights: &'a Weights,
    index: usize,
) -> Result<Layer<'a>, ModelError> {
    let hidden = config.hidden_size;
    let q = config.heads * config.head_dim;
    let kv = config.kv_heads * config.head_dim;
    let inner = config.intermediate_size;
    let tensor = |name: &str, shape: &[usize]| {
        weights.tensor(&format!("model.layers.{index}.{name}.weight"), shape)
    };
    Ok(Layer {
        input_norm: tensor("input_layernorm", &[hidden])?,
        q: tensor("self_attn.q_proj", &[q, hidden])?,
        k: tensor("self_attn.k_proj", &[kv, hidden])?,
        v: tensor("self_attn.v_proj", &[kv, hidden])?,
        o: tensor("self_attn.o_proj", &[hidden, q])?,
        post_norm: tensor("post_attention_layernorm", &[hidden])?,
        gate: tensor("mlp.gate_proj", &[inner, hidden])?,
        up: tensor("mlp.up_proj", &[inner, hidden])?,
        down: tensor("mlp.down_proj", &[hidden, inner])?,
    })
}
