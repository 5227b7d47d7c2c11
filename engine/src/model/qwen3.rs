//! Qwen3: Qwen2 without biases, but with each head's queries and keys normalised before they are rotated, and heads
//! whose width is not `hidden_size / heads`.

use super::family::Family;
use super::raw::{File, Raw};
use super::tensors::{Layer, LayerTensors};
use super::{ModelConfig, ModelError, window};

/// `Qwen3ForCausalLM`.
pub(super) struct Qwen3;

impl Family for Qwen3 {
    fn architecture(&self) -> &'static str {
        "Qwen3ForCausalLM"
    }

    fn head_dim(&self) -> Option<usize> {
        Some(128)
    }

    fn configure(
        &self,
        raw: &Raw,
        config: &mut ModelConfig,
        file: &File,
    ) -> Result<(), ModelError> {
        config.qk_norm = true;
        config.windows = window::qwen(raw, config.layers, file)?;
        Ok(())
    }

    fn layer<'a>(
        &self,
        config: &ModelConfig,
        tensors: &LayerTensors<'a>,
    ) -> Result<Layer<'a>, ModelError> {
        Ok(Layer {
            qk_norms: Some(tensors.qk_norms(config)?),
            ..tensors.plain_layer(config)?
        })
    }
}
