//! `config.json` as written: everything optional, nothing believed.
//!
//! Files of transformers 4 (`rope_theta`, `rope_scaling`) and of 5 (`rope_parameters`) are read alike. The type of the
//! weights (`torch_dtype`, `dtype`) is not read at all: each tensor says its own.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer};

use super::ModelError;
use super::rope::RawRope;

/// Files larger than this are not configurations.
const MAX_CONFIG_BYTES: u64 = 16 << 20;

/// The fields of all families.
#[derive(Debug, Deserialize)]
pub(super) struct Raw {
    pub(super) architectures: Option<Vec<String>>,
    pub(super) vocab_size: Option<usize>,
    pub(super) hidden_size: Option<usize>,
    pub(super) intermediate_size: Option<usize>,
    pub(super) num_hidden_layers: Option<usize>,
    pub(super) num_attention_heads: Option<usize>,
    pub(super) num_key_value_heads: Option<usize>,
    pub(super) head_dim: Option<usize>,
    pub(super) hidden_act: Option<String>,
    pub(super) max_position_embeddings: Option<usize>,
    pub(super) rms_norm_eps: Option<f64>,
    pub(super) rope_theta: Option<f64>,
    pub(super) rope_scaling: Option<RawRope>,
    /// Newer files keep `rope_theta` and the scaling together here.
    pub(super) rope_parameters: Option<RawRope>,
    pub(super) partial_rotary_factor: Option<f64>,
    pub(super) original_max_position_embeddings: Option<f64>,
    pub(super) tie_word_embeddings: Option<bool>,
    pub(super) attention_bias: Option<bool>,
    pub(super) mlp_bias: Option<bool>,
    pub(super) quantization_config: Option<serde_json::Value>,
    pub(super) eos_token_id: Option<OneOrMore>,
    #[serde(default)]
    pub(super) sliding_window: Window,
    pub(super) use_sliding_window: Option<bool>,
    pub(super) max_window_layers: Option<usize>,
    pub(super) layer_types: Option<Vec<String>>,
    pub(super) num_experts: Option<usize>,
    /// What newer files call the same.
    pub(super) num_local_experts: Option<usize>,
    pub(super) num_experts_per_tok: Option<usize>,
    pub(super) moe_intermediate_size: Option<usize>,
    pub(super) norm_topk_prob: Option<bool>,
    pub(super) decoder_sparse_step: Option<usize>,
    pub(super) mlp_only_layers: Option<Vec<usize>>,
}

/// `sliding_window`, where null and nothing mean different things.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Window {
    /// It is not written.
    #[default]
    Unwritten,
    /// It is null.
    Null,
    /// A number of tokens.
    Tokens(usize),
}

impl<'de> Deserialize<'de> for Window {
    fn deserialize<D: Deserializer<'de>>(value: D) -> Result<Self, D::Error> {
        let tokens = Option::deserialize(value)?;
        Ok(tokens.map_or(Self::Null, Self::Tokens))
    }
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

/// The file that errors are about.
#[derive(Debug)]
pub(super) struct File(pub(super) PathBuf);

impl File {
    pub(super) fn wrong(&self, field: &'static str, reason: String) -> ModelError {
        ModelError::Field {
            path: self.0.clone(),
            field,
            reason,
        }
    }

    pub(super) fn need<T>(&self, field: &'static str, value: Option<T>) -> Result<T, ModelError> {
        value.ok_or_else(|| self.wrong(field, "is missing".to_owned()))
    }

    /// A size.
    pub(super) fn positive(
        &self,
        field: &'static str,
        value: Option<usize>,
    ) -> Result<usize, ModelError> {
        match self.need(field, value)? {
            // Sizes are multiplied with each other later; this keeps the products in range.
            value if (1..=1 << 24).contains(&value) => Ok(value),
            value => Err(self.wrong(field, format!("{value} is out of range"))),
        }
    }

    /// Refuses a field that is set and would change what is computed.
    pub(super) fn refuse(&self, field: &'static str, set: bool) -> Result<(), ModelError> {
        if set {
            return Err(self.wrong(field, "is set, and not supported".to_owned()));
        }
        Ok(())
    }
}

/// Reads a JSON file of the model folder.
pub(super) fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T, ModelError> {
    let bytes = read_small(path)?;
    serde_json::from_slice(&bytes).map_err(|error| ModelError::Malformed {
        path: path.to_owned(),
        reason: error.to_string(),
    })
}

/// Reads a file that is refused when it is too large for what it should be.
pub(super) fn read_small(path: &Path) -> Result<Vec<u8>, ModelError> {
    let read = |source| ModelError::Read {
        path: path.to_owned(),
        source,
    };
    let length = std::fs::metadata(path).map_err(read)?.len();
    if length > MAX_CONFIG_BYTES {
        return Err(ModelError::Malformed {
            path: path.to_owned(),
            reason: format!("{length} bytes; at most {MAX_CONFIG_BYTES} are read"),
        });
    }
    std::fs::read(path).map_err(read)
}
