//! Phi-3, Phi-3.5 and Phi-4-mini: queries, keys and values in one tensor, gates and ups in another, only part of a head
//! rotated, and LongRoPE for long contexts.

use super::family::Family;
use super::raw::{File, Raw};
use super::rope::RopeScaling;
use super::tensors::{FeedForward, Layer, LayerTensors, Mlp};
use super::{ModelConfig, ModelError, window};

/// `Phi3ForCausalLM`.
pub(super) struct Phi3;

impl Family for Phi3 {
    fn architecture(&self) -> &'static str {
        "Phi3ForCausalLM"
    }

    fn configure(
        &self,
        raw: &Raw,
        config: &mut ModelConfig,
        file: &File,
    ) -> Result<(), ModelError> {
        config.windows = window::everywhere(raw, config.layers, None, file)?;
        match config.rope.scaling {
            RopeScaling::Default | RopeScaling::LongRope(_) => Ok(()),
            // Early files of this family say `yarn` and mean LongRoPE; nobody can know what the others mean.
            _ => {
                let reason = "this family has no rope_type but default and longrope";
                Err(file.wrong("rope_scaling", reason.to_owned()))
            }
        }
    }

    fn layer<'a>(
        &self,
        config: &ModelConfig,
        tensors: &LayerTensors<'a>,
    ) -> Result<Layer<'a>, ModelError> {
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let qkv = (config.heads + 2 * config.kv_heads) * config.head_dim;
        let feed_forward = FeedForward::Dense(Mlp {
            gate_up: vec![tensors.matrix("mlp.gate_up_proj", [2 * inner, hidden])?],
            down: tensors.matrix("mlp.down_proj", [hidden, inner])?,
        });
        let qkv = tensors.matrix("self_attn.qkv_proj", [qkv, hidden])?;
        tensors.layer_around(config, vec![qkv], feed_forward)
    }
}
