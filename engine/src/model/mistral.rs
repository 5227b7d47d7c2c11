//! Mistral: a Llama whose layers all have the same sliding window, or none where `sliding_window` is null.
//!
//! A file that does not write `sliding_window` at all means the window of the first Mistral, 4096 tokens.

use super::family::Family;
use super::raw::{File, Raw};
use super::tensors::{Layer, LayerTensors};
use super::{ModelConfig, ModelError, window};

/// `MistralForCausalLM`.
pub(super) struct Mistral;

impl Family for Mistral {
    fn architecture(&self) -> &'static str {
        "MistralForCausalLM"
    }

    fn configure(
        &self,
        raw: &Raw,
        config: &mut ModelConfig,
        file: &File,
    ) -> Result<(), ModelError> {
        config.windows = window::everywhere(raw, config.layers, Some(window::DEFAULT_SIZE), file)?;
        Ok(())
    }

    fn layer<'a>(
        &self,
        config: &ModelConfig,
        tensors: &LayerTensors<'a>,
    ) -> Result<Layer<'a>, ModelError> {
        tensors.plain_layer(config)
    }
}
