//! The model's weights as the CPU wants them: packed, and fused where products share their input.

use super::Quantization;
use super::matrix::Matrix;
use super::packing::Storage;
use super::team::Team;
use crate::backend::BackendError;
use crate::model::{ElementType, FeedForward, Layer, Mlp, Model, Shard, Tensor, Tensors};

/// Models of at most this many weights are widened to f32 at load. They stay in the caches, where widening on the
/// fly costs more than the bytes it saves; larger ones are read from memory, where the bytes are what counts.
const WIDEN_UP_TO: usize = 4 << 20;

/// All weights.
#[derive(Debug)]
pub(super) struct CpuWeights {
    storage: Storage,
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
    /// Packs this rank's weights of `model`, as int8 when that is asked for.
    pub(super) fn load(
        team: &Team,
        model: &Model,
        quantization: Option<Quantization>,
        shard: Shard,
    ) -> Result<Self, BackendError> {
        let large = model.config.parameters() > WIDEN_UP_TO;
        let storage = match quantization {
            Some(Quantization::Int8) => Storage::Int8,
            None if large && only_bf16(&model.tensors().map_err(wrong)?) => Storage::Bf16,
            None => Storage::F32,
        };
        Self::load_as(team, model, storage, shard)
    }

    /// Packs the weights as they are to be stored.
    pub(super) fn load_as(
        team: &Team,
        model: &Model,
        storage: Storage,
        shard: Shard,
    ) -> Result<Self, BackendError> {
        let tensors = model.tensors().map_err(wrong)?;
        let packer = Packer { team, storage };
        let layers = tensors.layers.iter().map(|layer| {
            let part = shard.layer(layer, &model.config);
            let layer = part.view();
            Ok(CpuLayer {
                input_norm: layer.input_norm.to_vec(),
                qkv: packer.pack(&layer.qkv)?,
                qkv_bias: layer.qkv_bias.iter().flat_map(Tensor::to_vec).collect(),
                qk_norms: layer
                    .qk_norms
                    .as_ref()
                    .map(|norms| norms.each_ref().map(Tensor::to_vec)),
                o: packer.pack(&[layer.o])?,
                post_norm: layer.post_norm.to_vec(),
                feed_forward: CpuFeedForward::load(&layer.feed_forward, packer)?,
            })
        });
        let layers = layers.collect::<Result<_, BackendError>>()?;
        // A rank embeds every token, and has some rows of the head only.
        let separate = tensors.head.is_some() || !shard.is_whole();
        let embedding = separate.then(|| packer.pack(&[tensors.embedding]));
        let head = tensors.head.as_ref().unwrap_or(&tensors.embedding);
        let head = shard.head(head, &model.config);
        Ok(Self {
            storage,
            layers,
            norm: tensors.norm.to_vec(),
            head: packer.pack(&[head.view()])?,
            embedding: embedding.transpose()?,
        })
    }

    /// The type of the weights in memory.
    pub(super) fn element(&self) -> &'static str {
        self.storage.name()
    }

    /// The embedding of a token.
    pub(super) fn embed(&self, token: u32, row: &mut [f32]) {
        let embedding = self.embedding.as_ref().unwrap_or(&self.head);
        embedding.unpack_row(token as usize, row);
    }
}

/// Packs matrices all in the same way.
#[derive(Clone, Copy)]
struct Packer<'a> {
    team: &'a Team,
    storage: Storage,
}

impl Packer<'_> {
    fn pack(self, tensors: &[Tensor<'_>]) -> Result<Matrix, BackendError> {
        Matrix::pack(self.team, tensors, self.storage).map_err(wrong)
    }
}

impl CpuFeedForward {
    fn load(tensors: &FeedForward<'_>, packer: Packer<'_>) -> Result<Self, BackendError> {
        let mlp = |mlp: &Mlp<'_>| {
            Ok(CpuMlp {
                gate_up: packer.pack(&mlp.gate_up)?,
                down: packer.pack(&[mlp.down])?,
            })
        };
        Ok(match tensors {
            FeedForward::Dense(dense) => Self::Dense(mlp(dense)?),
            FeedForward::Experts { router, experts } => Self::Experts {
                router: Matrix::pack(packer.team, &[*router], Storage::F32).map_err(wrong)?,
                experts: experts
                    .iter()
                    .map(mlp)
                    .collect::<Result<_, BackendError>>()?,
            },
        })
    }
}

fn wrong(error: impl std::fmt::Display) -> BackendError {
    BackendError::Model {
        backend: "cpu",
        reason: error.to_string(),
    }
}

/// Whether all matrices can stay bf16 without losing anything. f16 has more digits, and so has e4m3 with its scale: they
/// become f32.
pub(super) fn only_bf16(tensors: &Tensors<'_>) -> bool {
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
