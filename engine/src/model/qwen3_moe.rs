//! Qwen3-MoE: a Qwen3 whose layers, or some of them, have experts in place of the gated network.
//!
//! Checkpoints name the experts one by one (`mlp.experts.E.gate_proj`); what newer libraries keep in memory, and some
//! write, is one tensor for all (`mlp.experts.gate_up_proj`, `[experts, 2 * inner, hidden]`). Both are read.

use super::family::Family;
use super::raw::{File, Raw};
use super::tensors::{FeedForward, Layer, LayerTensors, Mlp};
use super::{ExpertsConfig, ModelConfig, ModelError, window};

/// `Qwen3MoeForCausalLM`.
pub(super) struct Qwen3Moe;

impl Family for Qwen3Moe {
    fn architecture(&self) -> &'static str {
        "Qwen3MoeForCausalLM"
    }

    fn configure(
        &self,
        raw: &Raw,
        config: &mut ModelConfig,
        file: &File,
    ) -> Result<(), ModelError> {
        config.qk_norm = true;
        if raw.use_sliding_window == Some(true) {
            config.windows =
                window::everywhere(raw, config.layers, Some(window::DEFAULT_SIZE), file)?;
        }
        config.experts = Some(experts(raw, config.layers, file)?);
        Ok(())
    }

    fn layer<'a>(
        &self,
        config: &ModelConfig,
        tensors: &LayerTensors<'a>,
    ) -> Result<Layer<'a>, ModelError> {
        let feed_forward = match config.layer_experts(tensors.index) {
            Some(experts) => FeedForward::Experts {
                router: tensors.get("mlp.gate.weight", &[experts.count, config.hidden_size])?,
                experts: expert_networks(config, experts, tensors)?,
            },
            None => FeedForward::Dense(tensors.mlp("mlp", config, config.intermediate_size)?),
        };
        Ok(Layer {
            qk_norms: Some(tensors.qk_norms(config)?),
            ..tensors.layer_around(config, tensors.separate_qkv(config)?, feed_forward)?
        })
    }
}

/// Which layers have experts: every `decoder_sparse_step`-th, but for those in `mlp_only_layers`.
fn experts(raw: &Raw, layers: usize, file: &File) -> Result<ExpertsConfig, ModelError> {
    let count = file.positive("num_experts", raw.num_experts.or(raw.num_local_experts))?;
    let per_token = file.positive("num_experts_per_tok", raw.num_experts_per_tok)?;
    if per_token > count {
        let reason = format!("{per_token} is more than the {count} experts");
        return Err(file.wrong("num_experts_per_tok", reason));
    }
    let step = file.positive("decoder_sparse_step", raw.decoder_sparse_step.or(Some(1)))?;
    let dense = raw.mlp_only_layers.as_deref().unwrap_or_default();
    let sparse = |layer: usize| (layer + 1).is_multiple_of(step) && !dense.contains(&layer);
    Ok(ExpertsConfig {
        count,
        per_token,
        intermediate_size: file.positive("moe_intermediate_size", raw.moe_intermediate_size)?,
        normalised: raw.norm_topk_prob.unwrap_or(false),
        layers: (0..layers).map(sparse).collect(),
    })
}

fn expert_networks<'a>(
    config: &ModelConfig,
    experts: &ExpertsConfig,
    tensors: &LayerTensors<'a>,
) -> Result<Vec<Mlp<'a>>, ModelError> {
    let (hidden, inner) = (config.hidden_size, experts.intermediate_size);
    if !tensors.has("mlp.experts.gate_up_proj") {
        let each = |index| tensors.mlp(&format!("mlp.experts.{index}"), config, inner);
        return (0..experts.count).map(each).collect();
    }
    let shape = [experts.count, 2 * inner, hidden];
    let gate_up = tensors.get("mlp.experts.gate_up_proj", &shape)?;
    let down = tensors.get("mlp.experts.down_proj", &[experts.count, hidden, inner])?;
    let networks = gate_up.parts().zip(down.parts());
    let network = |(gate_up, down)| Mlp {
        gate_up: vec![gate_up],
        down,
    };
    Ok(networks.map(network).collect())
}
