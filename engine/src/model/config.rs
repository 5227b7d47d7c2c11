//! What a configuration means: the sizes and options that every backend computes by.
//!
//! [`super::raw`] is the file as written; what comes out of here has been checked, and all fields hold. Fields that
//! would change the arithmetic and are not supported are errors, not ignored: a model that loads is a model that
//! computes what its authors meant. What differs from family to family is set by the family's own file.

use std::path::Path;

use super::family::{self, Family};
use super::fp8::{self, Fp8Config};
use super::raw::{File, OneOrMore, Raw, read_json};
use super::rope::{self, Rope};
use super::{ModelError, window};

/// A decoder, without a word of which family it is of but its name.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ModelConfig {
    /// As `architectures` names it.
    pub architecture: &'static str,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the feed-forward layer, where it is dense.
    pub intermediate_size: usize,
    /// Number of layers.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of a head; even.
    pub head_dim: usize,
    /// Added to the mean square before its root.
    pub rms_norm_eps: f32,
    /// Position encoding.
    pub rope: Rope,
    /// Longest context that the model was made for.
    pub max_position_embeddings: usize,
    /// Longest context that will be computed: the model's own, unless the worker's is shorter.
    pub max_model_len: usize,
    /// The head shares the embedding's weights.
    pub tie_word_embeddings: bool,
    /// End-of-sequence tokens.
    pub eos_token_ids: Vec<u32>,
    /// Queries, keys and values have something added to them before anything else.
    pub qkv_bias: bool,
    /// Each head's queries and keys are normalised (RMS) before they are rotated.
    pub qk_norm: bool,
    /// For each layer: how many tokens a token sees, itself included; none for all before it.
    pub windows: Vec<Option<usize>>,
    /// The mixture of experts, in models that have one.
    pub experts: Option<ExpertsConfig>,
    /// How weights of 8 bits are scaled, in models that have any.
    pub quantization: Option<Fp8Config>,
}

/// A mixture of experts: each token goes through the few experts that the router likes best for it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ExpertsConfig {
    /// Experts of a layer.
    pub count: usize,
    /// Experts that compute a token; at most `count`.
    pub per_token: usize,
    /// Width of an expert.
    pub intermediate_size: usize,
    /// The weights of a token's experts are made to add up to 1.
    pub normalised: bool,
    /// For each layer: whether it has experts in place of a dense feed-forward.
    pub layers: Vec<bool>,
}

impl ModelConfig {
    /// Reads `config.json` of a model folder.
    ///
    /// # Errors
    /// Names the file, and the field that is missing, impossible or not supported.
    pub fn load(folder: &Path) -> Result<Self, ModelError> {
        let path = folder.join("config.json");
        let raw: Raw = read_json(&path)?;
        let file = File(path);
        let family = family::named(&raw, &file)?;
        check(family, raw, &file)
    }

    /// Angular frequency of each of the `rope.dim / 2` rotations of a head, in radians per position.
    pub fn rope_frequencies(&self) -> Vec<f32> {
        self.rope.frequencies(self.max_model_len)
    }

    /// How many tokens a token of this layer sees, itself included; none for all before it.
    pub fn window(&self, layer: usize) -> Option<usize> {
        self.windows.get(layer).copied().flatten()
    }

    /// The mixture of experts of this layer, if it has one.
    pub fn layer_experts(&self, layer: usize) -> Option<&ExpertsConfig> {
        let experts = self.experts.as_ref()?;
        experts.layers.get(layer)?.then_some(experts)
    }

    /// Width of the widest feed-forward network of any layer.
    pub fn widest_feed_forward(&self) -> usize {
        let of_layer = |layer| {
            let experts = self.layer_experts(layer);
            experts.map_or(self.intermediate_size, |experts| experts.intermediate_size)
        };
        (0..self.layers).map(of_layer).max().unwrap_or(0)
    }

    /// Number of weights.
    pub fn parameters(&self) -> usize {
        self.count_parameters(|experts| experts.count)
    }

    /// Number of weights that a token meets: of the experts, only those that compute it.
    pub fn active_parameters(&self) -> usize {
        self.count_parameters(|experts| experts.per_token)
    }

    fn count_parameters(&self, counted: impl Fn(&ExpertsConfig) -> usize) -> usize {
        let hidden = self.hidden_size;
        let qkv = (self.heads + 2 * self.kv_heads) * self.head_dim;
        let mut attention = (qkv + self.heads * self.head_dim) * hidden + 2 * hidden;
        if self.qkv_bias {
            attention += qkv;
        }
        if self.qk_norm {
            attention += 2 * self.head_dim;
        }
        let feed_forward = |layer| match self.layer_experts(layer) {
            Some(experts) => {
                let each = 3 * hidden * experts.intermediate_size;
                experts.count * hidden + counted(experts) * each
            }
            None => 3 * hidden * self.intermediate_size,
        };
        let layers: usize = (0..self.layers)
            .map(|layer| attention + feed_forward(layer))
            .sum();
        let embeddings = if self.tie_word_embeddings { 1 } else { 2 };
        layers + (embeddings * self.vocab_size + 1) * hidden
    }
}

fn check(family: &dyn Family, raw: Raw, file: &File) -> Result<ModelConfig, ModelError> {
    let act = raw.hidden_act.as_deref().unwrap_or("silu");
    if !matches!(act, "silu" | "swish") {
        let reason = format!("{act} is not supported; supported: silu");
        return Err(file.wrong("hidden_act", reason));
    }
    file.refuse("attention_bias", raw.attention_bias == Some(true))?;
    file.refuse("mlp_bias", raw.mlp_bias == Some(true))?;
    let heads = file.positive("num_attention_heads", raw.num_attention_heads)?;
    let hidden_size = file.positive("hidden_size", raw.hidden_size)?;
    let layers = file.positive("num_hidden_layers", raw.num_hidden_layers)?;
    let head_dim = head_dim(family, &raw, hidden_size / heads, file)?;
    let rope = rope::read(&raw, head_dim, file)?;
    let written = file.positive("max_position_embeddings", raw.max_position_embeddings)?;
    let max_position_embeddings = rope.stretched_context(written);
    let mut config = ModelConfig {
        architecture: family.architecture(),
        vocab_size: file.positive("vocab_size", raw.vocab_size)?,
        hidden_size,
        intermediate_size: file.positive("intermediate_size", raw.intermediate_size)?,
        layers,
        heads,
        kv_heads: kv_heads(&raw, heads, file)?,
        head_dim,
        rms_norm_eps: rms_norm_eps(&raw, file)?,
        rope,
        max_position_embeddings,
        max_model_len: max_position_embeddings,
        tie_word_embeddings: raw.tie_word_embeddings.unwrap_or(false),
        eos_token_ids: Vec::new(),
        qkv_bias: false,
        qk_norm: false,
        windows: window::none(layers),
        experts: None,
        quantization: fp8::read(raw.quantization_config.as_ref(), file)?,
    };
    family.configure(&raw, &mut config, file)?;
    config.eos_token_ids = raw
        .eos_token_id
        .map(OneOrMore::into_vec)
        .unwrap_or_default();
    Ok(config)
}

fn head_dim(
    family: &dyn Family,
    raw: &Raw,
    by_division: usize,
    file: &File,
) -> Result<usize, ModelError> {
    let head_dim = raw.head_dim.or(family.head_dim()).unwrap_or(by_division);
    if !(1..=1 << 16).contains(&head_dim) || !head_dim.is_multiple_of(2) {
        let reason = format!("{head_dim} is not a positive even number");
        return Err(file.wrong("head_dim", reason));
    }
    Ok(head_dim)
}

fn kv_heads(raw: &Raw, heads: usize, file: &File) -> Result<usize, ModelError> {
    let kv_heads = raw.num_key_value_heads.unwrap_or(heads);
    if kv_heads == 0 || !heads.is_multiple_of(kv_heads) {
        let reason = format!("{kv_heads} does not divide the {heads} attention heads");
        return Err(file.wrong("num_key_value_heads", reason));
    }
    Ok(kv_heads)
}

fn rms_norm_eps(raw: &Raw, file: &File) -> Result<f32, ModelError> {
    let eps = file.need("rms_norm_eps", raw.rms_norm_eps)?;
    if !(eps.is_finite() && eps >= 0.0) {
        let reason = format!("{eps} is not a positive number");
        return Err(file.wrong("rms_norm_eps", reason));
    }
    Ok(eps as f32)
}

#[cfg(test)]
mod tests;
