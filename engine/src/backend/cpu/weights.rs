//! The model's weights as the CPU wants them: packed, and fused where products share their input.

use super::matrix::Matrix;
use crate::model::{ElementType, FeedForward, Layer, Mlp, Model, ModelError, Tensor, Tensors};

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
    /// Added to them; empty where nothing is.
    pub(super) qkv_bias: Vec<f32>,
    /// What normalises each head's queries and keys.
    pub(super) qk_norms: Option<[Vec<f32>; 2]>,
    pub(super) o: Matrix,
    pub(super) post_norm: Vec<f32>,
    pub(super) feed_forward: CpuFeedForward,
}

/// A layer's second half.
#[derive(Debug)]
pub(super) enum CpuFeedForward {
    Dense(CpuMlp),
    Experts {
        /// `[experts, hidden_size]`, always f32: what it decides is worth more than its bytes.
        router: Matrix,
        experts: Vec<CpuMlp>,
    },
}

/// A gated feed-forward network.
#[derive(Debug)]
pub(super) struct CpuMlp {
    /// Gates, then ups.
    pub(super) gate_up: Matrix,
    pub(super) down: Matrix,
}

impl CpuWeights {
    pub(super) fn load(model: &Model) -> Result<Self, ModelError> {
        let large = model.config.parameters() > WIDEN_UP_TO;
        let narrow = large && only_bf16(&model.tensors()?);
        Self::load_as(model, narrow)
    }

    /// Packs the weights as bf16 when `narrow`, else as f32.
    pub(super) fn load_as(model: &Model, narrow: bool) -> Result<Self, ModelError> {
        let tensors = model.tensors()?;
        let pack = |tensors: &[Tensor<'_>]| Matrix::pack(tensors, narrow);
        let layers = tensors.layers.iter().map(|layer| CpuLayer {
            input_norm: layer.input_norm.to_vec(),
            qkv: pack(&layer.qkv),
            qkv_bias: layer.qkv_bias.iter().flat_map(Tensor::to_vec).collect(),
            qk_norms: layer
                .qk_norms
                .as_ref()
                .map(|norms| norms.each_ref().map(Tensor::to_vec)),
            o: pack(&[layer.o]),
            post_norm: layer.post_norm.to_vec(),
            feed_forward: CpuFeedForward::load(&layer.feed_forward, &pack),
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

impl CpuFeedForward {
    fn load(tensors: &FeedForward<'_>, pack: &impl Fn(&[Tensor<'_>]) -> Matrix) -> Self {
        let mlp = |mlp: &Mlp<'_>| CpuMlp {
            gate_up: pack(&mlp.gate_up),
            down: pack(&[mlp.down]),
        };
        match tensors {
            FeedForward::Dense(dense) => Self::Dense(mlp(dense)),
            FeedForward::Experts { router, experts } => Self::Experts {
                router: Matrix::pack(&[*router], false),
                experts: experts.iter().map(mlp).collect(),
            },
        }
    }
}

/// Whether all matrices can stay bf16 without losing anything. f16 has more digits, so it becomes f32.
fn only_bf16(tensors: &Tensors<'_>) -> bool {
    let is = |tensor: &Tensor<'_>| tensor.element == ElementType::Bf16;
    let mlp = |mlp: &Mlp<'_>| mlp.gate_up.iter().all(is) && is(&mlp.down);
    let layer = |layer: &Layer<'_>| {
        let feed_forward = match &layer.feed_forward {
            FeedForward::Dense(dense) => mlp(dense),
            FeedForward::Experts { experts, .. } => experts.iter().all(mlp),
        };
        layer.qkv.iter().all(is) && is(&layer.o) && feed_forward
    };
    let head = tensors.head.as_ref().is_none_or(is);
    is(&tensors.embedding) && head && tensors.layers.iter().all(layer)
}
