//! Qwen2 and Qwen2.5: a Llama with something added to queries, keys and values, and, where it is switched on, a
//! sliding window in the upper layers.

use super::family::Family;
use super::raw::{File, Raw};
use super::tensors::{Layer, LayerTensors};
use super::{ModelConfig, ModelError, window};

/// `Qwen2ForCausalLM`.
pub(super) struct Qwen2;

impl Family for Qwen2 {
    fn architecture(&self) -> &'static str {
        "Qwen2ForCausalLM"
    }

    fn configure(
        &self,
        raw: &Raw,
        config: &mut ModelConfig,
        file: &File,
    ) -> Result<(), ModelError> {
        config.qkv_bias = true;
        config.windows = window::qwen(raw, config.layers, file)?;
        Ok(())
    }

    fn layer<'a>(
        &self,
        config: &ModelConfig,
        tensors: &LayerTensors<'a>,
    ) -> Result<Layer<'a>, ModelError> {
        Ok(Layer {
            qkv_bias: tensors.qkv_bias(config)?,
            ..tensors.plain_layer(config)?
        })
    }
}
