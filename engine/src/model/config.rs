//! `config.json`: from what is written to what is meant.
//!
//! The file is read twice over: once as written (`Raw`, everything optional), once checked into [`ModelConfig`], whose
//! fields all hold. Fields that would change the arithmetic and are not supported are errors, not ignored: a model
//! that loads is a model that computes what its authors meant.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::ModelError;

/// The architectures this file's shape covers.
const ARCHITECTURES: [&str; 1] = ["LlamaForCausalLM"];

/// Files larger than this are not configurations.
const MAX_CONFIG_BYTES: u64 = 16 << 20;

/// A Llama-shaped decoder.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the feed-forward layer.
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
    /// The head shares the embedding's weights.
    pub tie_word_embeddings: bool,
    /// End-of-sequence tokens.
    pub eos_token_ids: Vec<u32>,
}

/// Rotary position encoding over halves (NeoX order).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rope {
    /// Base of the wave lengths.
    pub theta: f64,
    /// Llama 3's stretch of the long waves.
    pub scaling: Option<Llama3Scaling>,
}

/// `rope_type: llama3`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Llama3Scaling {
    /// Long waves are stretched by this.
    pub factor: f64,
    /// Waves longer than `original_context / low_freq_factor` are stretched in full.
    pub low_freq_factor: f64,
    /// Waves shorter than `original_context / high_freq_factor` are left alone.
    pub high_freq_factor: f64,
    /// Context length of the pre-training.
    pub original_context: f64,
}

impl ModelConfig {
    /// Reads `config.json` of a model folder.
    ///
    /// # Errors
    /// Names the file, and the field that is missing, impossible or not supported.
    pub fn load(folder: &Path) -> Result<Self, ModelError> {
        let path = folder.join("config.json");
        let raw: Raw = read_json(&path)?;
        raw.check(path)
    }

    /// Angular frequency of each of a head's `head_dim / 2` rotations, in radians per position.
    pub fn rope_frequencies(&self) -> Vec<f32> {
        let half = self.head_dim / 2;
        (0..half)
            .map(|index| {
                let exponent = index as f64 / half as f64;
                let frequency = self.rope.theta.powf(-exponent);
                self.rope
                    .scaling
                    .map_or(frequency, |scaling| scaling.apply(frequency)) as f32
            })
            .collect()
    }

    /// Number of weights.
    pub fn parameters(&self) -> usize {
        let heads = (self.heads + self.kv_heads) * 2 * self.head_dim * self.hidden_size;
        let layer = heads + 3 * self.hidden_size * self.intermediate_size + 2 * self.hidden_size;
        let embeddings = if self.tie_word_embeddings { 1 } else { 2 };
        self.layers * layer + (embeddings * self.vocab_size + 1) * self.hidden_size
    }
}

impl Llama3Scaling {
    fn apply(&self, frequency: f64) -> f64 {
        let wave_length = 2.0 * std::f64::consts::PI / frequency;
        if wave_length < self.original_context / self.high_freq_factor {
            return frequency;
        }
        if wave_length > self.original_context / self.low_freq_factor {
            return frequency / self.factor;
        }
        let smooth = (self.original_context / wave_length - self.low_freq_factor)
            / (self.high_freq_factor - self.low_freq_factor);
        (1.0 - smooth) * frequency / self.factor + smooth * frequency
    }
}

/// The file as written.
#[derive(Debug, Deserialize)]
struct Raw {
    architectures: Option<Vec<String>>,
    vocab_size: Option<usize>,
    hidden_size: Option<usize>,
    intermediate_size: Option<usize>,
    num_hidden_layers: Option<usize>,
    num_attention_heads: Option<usize>,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    hidden_act: Option<String>,
    max_position_embeddings: Option<usize>,
    rms_norm_eps: Option<f64>,
    rope_theta: Option<f64>,
    rope_scaling: Option<RawRope>,
    /// Newer files keep `rope_theta` and the scaling together here.
    rope_parameters: Option<RawRope>,
    #[serde(default)]
    tie_word_embeddings: bool,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
    quantization_config: Option<serde_json::Value>,
    eos_token_id: Option<OneOrMore>,
}

#[derive(Debug, Deserialize)]
struct RawRope {
    #[serde(alias = "type")]
    rope_type: Option<String>,
    rope_theta: Option<f64>,
    factor: Option<f64>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    original_max_position_embeddings: Option<f64>,
}

/// A token id, or several.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum OneOrMore {
    One(u32),
    More(Vec<u32>),
}

impl OneOrMore {
    pub(super) fn into_vec(self) -> Vec<u32> {
        match self {
            Self::One(id) => vec![id],
            Self::More(ids) => ids,
        }
    }
}

impl Raw {
    fn check(self, path: PathBuf) -> Result<ModelConfig, ModelError> {
        let file = File(path);
        let architectures = file.need("architectures", self.architectures.as_ref())?;
        if !architectures
            .iter()
            .any(|name| ARCHITECTURES.contains(&name.as_str()))
        {
            let reason =
                format!("{architectures:?} is not supported; supported: {ARCHITECTURES:?}");
            return Err(file.wrong("architectures", reason));
        }
        self.refuse_unsupported(&file)?;
        let heads = file.positive("num_attention_heads", self.num_attention_heads)?;
        let hidden_size = file.positive("hidden_size", self.hidden_size)?;
        let kv_heads = self.num_key_value_heads.unwrap_or(heads);
        if kv_heads == 0 || !heads.is_multiple_of(kv_heads) {
            let reason = format!("{kv_heads} does not divide the {heads} attention heads");
            return Err(file.wrong("num_key_value_heads", reason));
        }
        let head_dim = self.head_dim.unwrap_or(hidden_size / heads);
        if head_dim == 0 || !head_dim.is_multiple_of(2) {
            return Err(file.wrong(
                "head_dim",
                format!("{head_dim} is not a positive even number"),
            ));
        }
        let rms_norm_eps = file.need("rms_norm_eps", self.rms_norm_eps)?;
        if !(rms_norm_eps.is_finite() && rms_norm_eps >= 0.0) {
            return Err(file.wrong(
                "rms_norm_eps",
                format!("{rms_norm_eps} is not a positive number"),
            ));
        }
        Ok(ModelConfig {
            vocab_size: file.positive("vocab_size", self.vocab_size)?,
            hidden_size,
            intermediate_size: file.positive("intermediate_size", self.intermediate_size)?,
            layers: file.positive("num_hidden_layers", self.num_hidden_layers)?,
            heads,
            kv_heads,
            head_dim,
            rms_norm_eps: rms_norm_eps as f32,
            rope: self.rope(&file)?,
            max_position_embeddings: file
                .positive("max_position_embeddings", self.max_position_embeddings)?,
            tie_word_embeddings: self.tie_word_embeddings,
            eos_token_ids: self
                .eos_token_id
                .map(OneOrMore::into_vec)
                .unwrap_or_default(),
        })
    }

    fn refuse_unsupported(&self, file: &File) -> Result<(), ModelError> {
        let act = self.hidden_act.as_deref().unwrap_or("silu");
        if !matches!(act, "silu" | "swish") {
            return Err(file.wrong(
                "hidden_act",
                format!("{act} is not supported; supported: silu"),
            ));
        }
        let flags = [
            ("attention_bias", self.attention_bias),
            ("mlp_bias", self.mlp_bias),
            ("quantization_config", self.quantization_config.is_some()),
        ];
        match flags.into_iter().find(|(_, set)| *set) {
            Some((field, _)) => Err(file.wrong(field, "is set, and not supported".to_owned())),
            None => Ok(()),
        }
    }

    fn rope(&self, file: &File) -> Result<Rope, ModelError> {
        let (field, raw) = match (&self.rope_parameters, &self.rope_scaling) {
            (Some(raw), _) => ("rope_parameters", Some(raw)),
            (None, raw) => ("rope_scaling", raw.as_ref()),
        };
        // Before it was written at all, the base was always this.
        let theta = raw
            .and_then(|raw| raw.rope_theta)
            .or(self.rope_theta)
            .unwrap_or(10_000.0);
        if !(theta.is_finite() && theta > 0.0) {
            return Err(file.wrong("rope_theta", format!("{theta} is not a positive number")));
        }
        let scaling = match raw.map(|raw| (raw, raw.rope_type.as_deref().unwrap_or("default"))) {
            None | Some((_, "default")) => None,
            Some((raw, "llama3")) => Some(raw.llama3(field, file)?),
            Some((_, other)) => {
                let reason =
                    format!("rope_type {other} is not supported; supported: default, llama3");
                return Err(file.wrong(field, reason));
            }
        };
        Ok(Rope { theta, scaling })
    }
}

impl RawRope {
    fn llama3(&self, field: &'static str, file: &File) -> Result<Llama3Scaling, ModelError> {
        let need = |name: &str, value: Option<f64>| match value {
            Some(value) if value.is_finite() && value > 0.0 => Ok(value),
            Some(value) => {
                Err(file.wrong(field, format!("{name} is {value}, not a positive number")))
            }
            None => Err(file.wrong(field, format!("{name} is missing"))),
        };
        let scaling = Llama3Scaling {
            factor: need("factor", self.factor)?,
            low_freq_factor: need("low_freq_factor", self.low_freq_factor)?,
            high_freq_factor: need("high_freq_factor", self.high_freq_factor)?,
            original_context: need(
                "original_max_position_embeddings",
                self.original_max_position_embeddings,
            )?,
        };
        if scaling.high_freq_factor <= scaling.low_freq_factor {
            let reason = "high_freq_factor is not above low_freq_factor".to_owned();
            return Err(file.wrong(field, reason));
        }
        Ok(scaling)
    }
}

/// The file that errors are about.
struct File(PathBuf);

impl File {
    fn wrong(&self, field: &'static str, reason: String) -> ModelError {
        ModelError::Field {
            path: self.0.clone(),
            field,
            reason,
        }
    }

    fn need<T>(&self, field: &'static str, value: Option<T>) -> Result<T, ModelError> {
        value.ok_or_else(|| self.wrong(field, "is missing".to_owned()))
    }

    fn positive(&self, field: &'static str, value: Option<usize>) -> Result<usize, ModelError> {
        match self.need(field, value)? {
            // Sizes are multiplied with each other later; this keeps the products in range.
            value if (1..=1 << 24).contains(&value) => Ok(value),
            value => Err(self.wrong(field, format!("{value} is out of range"))),
        }
    }
}

/// Reads a JSON file of the model folder.
pub(super) fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T, ModelError> {
    let read = |source| ModelError::Read {
        path: path.to_owned(),
        source,
    };
    let malformed = |reason: String| ModelError::Malformed {
        path: path.to_owned(),
        reason,
    };
    let length = std::fs::metadata(path).map_err(read)?.len();
    if length > MAX_CONFIG_BYTES {
        return Err(malformed(format!(
            "{length} bytes; at most {MAX_CONFIG_BYTES} are read"
        )));
    }
    let bytes = std::fs::read(path).map_err(read)?;
    serde_json::from_slice(&bytes).map_err(|error| malformed(error.to_string()))
}

#[cfg(test)]
mod tests;
