//! Llama 2, 3 and their many kin: the layer that the other families vary.

use super::family::Family;
use super::raw::{File, Raw};
use super::tensors::{Layer, LayerTensors};
use super::{ModelConfig, ModelError};

/// `LlamaForCausalLM`.
pub(super) struct Llama;

impl Family for Llama {
    fn architecture(&self) -> &'static str {
        "LlamaForCausalLM"
    }

    fn configure(&self, _: &Raw, _: &mut ModelConfig, _: &File) -> Result<(), ModelError> {
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
