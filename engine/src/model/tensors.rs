//! A model's tensors, whatever its family calls them.
//!
//! ```text
//! x = embedding[token]
//! each layer:  h = rms_norm(x, input_norm)
//!              q, k, v = h·qkvᵀ (+ qkv_bias)              q and k normalised head by head where there are norms,
//!                                                         then rotated by position
//!              x += attention(q, k, v)·oᵀ                 kv_heads shared by heads / kv_heads queries each; a layer
//!                                                         with a window sees that many tokens, itself included
//!              h = rms_norm(x, post_norm)
//!              x += mlp(h)                                dense
//!              x += Σ weight·expert(h)                    experts: weights are the softmax of h·routerᵀ, of which the
//!                                                         largest are kept, and divided by their sum if so configured
//! logits = rms_norm(x, norm)·headᵀ                        head = embedding when tied
//! mlp(h) = (silu(h·gateᵀ) * h·upᵀ)·downᵀ
//! ```
//!
//! All matrices are `[out, in]`, row-major, as Hugging Face writes them. Matrices that share their input come as a list
//! of parts that lie one below the other: families differ in what they write as one tensor, backends want it as one.
//! They alone may be of 8 bits, part by part; embedding, head, norms, biases and routers never are.

use super::{Fp8Config, ModelConfig, ModelError, Tensor, Weights, family};

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
    /// Together `[(heads + 2 * kv_heads) * head_dim, hidden_size]`: all queries, then keys, then values.
    pub qkv: Vec<Tensor<'a>>,
    /// Together `[(heads + 2 * kv_heads) * head_dim]`; empty when nothing is added.
    pub qkv_bias: Vec<Tensor<'a>>,
    /// Of queries and of keys, `[head_dim]` each.
    pub qk_norms: Option<[Tensor<'a>; 2]>,
    /// `[hidden_size, heads * head_dim]`.
    pub o: Tensor<'a>,
    /// `[hidden_size]`.
    pub post_norm: Tensor<'a>,
    /// What follows attention.
    pub feed_forward: FeedForward<'a>,
}

/// A layer's second half.
#[derive(Debug)]
pub enum FeedForward<'a> {
    /// Every token goes through the same.
    Dense(Mlp<'a>),
    /// Every token goes through a few of many.
    Experts {
        /// `[experts, hidden_size]`.
        router: Tensor<'a>,
        /// In order.
        experts: Vec<Mlp<'a>>,
    },
}

/// A gated feed-forward network of `inner` elements.
#[derive(Debug)]
pub struct Mlp<'a> {
    /// Together `[2 * inner, hidden_size]`: all gates, then ups.
    pub gate_up: Vec<Tensor<'a>>,
    /// `[hidden_size, inner]`.
    pub down: Tensor<'a>,
}

/// Finds every tensor and checks its shape.
pub(super) fn find<'a>(
    config: &'a ModelConfig,
    weights: &'a Weights,
) -> Result<Tensors<'a>, ModelError> {
    let Some(family) = family::by_architecture(config.architecture) else {
        return Err(ModelError::Malformed {
            path: weights.folder().to_owned(),
            reason: format!("architecture {:?} is not supported", config.architecture),
        });
    };
    let vocabulary = [config.vocab_size, config.hidden_size];
    let head = if config.tie_word_embeddings {
        None
    } else {
        Some(weights.tensor("lm_head.weight", &vocabulary)?)
    };
    let layers = (0..config.layers).map(|index| {
        let tensors = LayerTensors {
            weights,
            quantization: config.quantization.as_ref(),
            index,
        };
        family.layer(config, &tensors)
    });
    Ok(Tensors {
        embedding: weights.tensor("model.embed_tokens.weight", &vocabulary)?,
        layers: layers.collect::<Result<_, _>>()?,
        norm: weights.tensor("model.norm.weight", &[config.hidden_size])?,
        head,
    })
}

/// One layer's part of the weights, and the ways of naming tensors that several families share.
pub(super) struct LayerTensors<'a> {
    weights: &'a Weights,
    quantization: Option<&'a Fp8Config>,
    /// The layer's number.
    pub(super) index: usize,
}

impl<'a> LayerTensors<'a> {
    /// `model.layers.N.{name}`.
    pub(super) fn get(&self, name: &str, shape: &[usize]) -> Result<Tensor<'a>, ModelError> {
        self.weights.tensor(&self.full_name(name), shape)
    }

    /// The weight of `model.layers.N.{module}`, a matrix that may be of 8 bits.
    pub(super) fn matrix(&self, module: &str, shape: [usize; 2]) -> Result<Tensor<'a>, ModelError> {
        let module = self.full_name(module);
        self.weights.matrix(&module, shape, self.quantization)
    }

    /// Whether there is a `model.layers.N.{name}`.
    pub(super) fn has(&self, name: &str) -> bool {
        self.weights.contains(&self.full_name(name))
    }

    fn full_name(&self, name: &str) -> String {
        format!("model.layers.{}.{name}", self.index)
    }

    /// The layer that most families have: three projections, two norms, one gated network.
    pub(super) fn plain_layer(&self, config: &ModelConfig) -> Result<Layer<'a>, ModelError> {
        self.layer_around(
            config,
            self.separate_qkv(config)?,
            FeedForward::Dense(self.mlp("mlp", config, config.intermediate_size)?),
        )
    }

    /// A layer of these parts, without biases and norms inside of attention.
    pub(super) fn layer_around(
        &self,
        config: &ModelConfig,
        qkv: Vec<Tensor<'a>>,
        feed_forward: FeedForward<'a>,
    ) -> Result<Layer<'a>, ModelError> {
        let hidden = config.hidden_size;
        let attended = config.heads * config.head_dim;
        Ok(Layer {
            input_norm: self.get("input_layernorm.weight", &[hidden])?,
            qkv,
            qkv_bias: Vec::new(),
            qk_norms: None,
            o: self.matrix("self_attn.o_proj", [hidden, attended])?,
            post_norm: self.get("post_attention_layernorm.weight", &[hidden])?,
            feed_forward,
        })
    }

    /// `q_proj`, `k_proj`, `v_proj`.
    pub(super) fn separate_qkv(&self, config: &ModelConfig) -> Result<Vec<Tensor<'a>>, ModelError> {
        let parts = qkv_parts(config).into_iter().map(|(name, rows)| {
            let module = format!("self_attn.{name}");
            self.matrix(&module, [rows, config.hidden_size])
        });
        parts.collect()
    }

    /// The biases of `q_proj`, `k_proj`, `v_proj`.
    pub(super) fn qkv_bias(&self, config: &ModelConfig) -> Result<Vec<Tensor<'a>>, ModelError> {
        let parts = qkv_parts(config)
            .into_iter()
            .map(|(name, rows)| self.get(&format!("self_attn.{name}.bias"), &[rows]));
        parts.collect()
    }

    /// `q_norm` and `k_norm`.
    pub(super) fn qk_norms(&self, config: &ModelConfig) -> Result<[Tensor<'a>; 2], ModelError> {
        Ok([
            self.get("self_attn.q_norm.weight", &[config.head_dim])?,
            self.get("self_attn.k_norm.weight", &[config.head_dim])?,
        ])
    }

    /// `{prefix}.gate_proj`, `up_proj` and `down_proj` of a network of `inner` elements.
    pub(super) fn mlp(
        &self,
        prefix: &str,
        config: &ModelConfig,
        inner: usize,
    ) -> Result<Mlp<'a>, ModelError> {
        let hidden = config.hidden_size;
        Ok(Mlp {
            gate_up: vec![
                self.matrix(&format!("{prefix}.gate_proj"), [inner, hidden])?,
                self.matrix(&format!("{prefix}.up_proj"), [inner, hidden])?,
            ],
            down: self.matrix(&format!("{prefix}.down_proj"), [hidden, inner])?,
        })
    }
}

fn qkv_parts(config: &ModelConfig) -> [(&'static str, usize); 3] {
    let kv = config.kv_heads * config.head_dim;
    let q = config.heads * config.head_dim;
    [("q_proj", q), ("k_proj", kv), ("v_proj", kv)]
}
