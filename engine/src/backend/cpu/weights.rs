//! The model's weights as the CPU wants them: packed, and fused where products share their input.

use super::matrix::Matrix;
use crate::model::{ElementType, Model, ModelError, llama};

/// Models of at most this many weights are widened to f32 at load. They stay in the caches, where widening on the
/// fly costs more than the bytes it saves; larger ones are read from memory, where the bytes are what counts.
const WIDEN_UP_TO: usize = 4 << 20;

/// All weights.
#[derive(Debug)]
pub(super) struct CpuWeights {
    narrow: bool,
    /// `[vocab_size, hidden_size]`; none when the head serves.
    embedding: Option<Matrix>,
    pub(super) layers: Vec<CpuLayer>,
    pub(super) norm: Vec<f32>,
    pub(super) head: Matrix,
}

/// One layer's weights.
#[derive(Debug)]
pub(super) struct CpuLayer {
    pub(super) input_norm: Vec<f32>,
    /// Queries, then keys, then values.
    pub(super) qkv: Matrix,
    pub(super) o: Matrix,
    pub(super) post_norm: Vec<f32>,
    /// Gates, then ups.
    pub(super) gate_up: Matrix,
    pub(super) down: Matrix,
}

impl CpuWeights {
    pub(super) fn load(model: &Model) -> Result<Self, ModelError> {
        let tensors = llama::tensors(&model.config, &model.weights)?;
        // Only bf16 can stay as it is without losing anything.
        let large = model.config.parameters() > WIDEN_UP_TO;
        Self::load_as(
            model,
            large && tensors.embedding.element == ElementType::Bf16,
        )
    }

    /// Packs the weights as bf16 when `narrow`, else as f32.
    pub(super) fn load_as(model: &Model, narrow: bool) -> Result<Self, ModelError> {
        let tensors = llama::tensors(&model.config, &model.weights)?;
        let pack = |tensors: &[_]| Matrix::pack(tensors, narrow);
        let layers = tensors.layers.iter().map(|layer| CpuLayer {
            input_norm: layer.input_norm.to_vec(),
            qkv: pack(&[layer.q, layer.k, layer.v]),
            o: pack(&[layer.o]),
            post_norm: layer.post_norm.to_vec(),
            gate_up: pack(&[layer.gate, layer.up]),
            down: pack(&[layer.down]),
        });
        Ok(Self {
            narrow,
            layers: layers.collect(),
            norm: tensors.norm.to_vec(),
            head: pack(&[tensors.head.unwrap_or(tensors.embedding)]),
            embedding: tensors.head.is_some().then(|| pack(&[tensors.embedding])),
        })
    }

    /// The type of the weights in memory.
    pub(super) fn element(&self) -> &'static str {
        if self.narrow { "bf16" } else { "f32" }
    }

    /// The embedding of a token.
    pub(super) fn embed(&self, token: u32, row: &mut [f32]) {
        let embedding = self.embedding.as_ref().unwrap_or(&self.head);
        embedding.unpack_row(token as usize, row);
    }
}
