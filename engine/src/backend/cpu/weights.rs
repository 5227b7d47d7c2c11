//! The model's weights as the CPU wants them: packed, and fused where products share their input.

use super::Quantization;
use super::matrix::Matrix;
use super::packing::Storage;
use super::team::Team;
use crate::backend::BackendError;
use crate::model::{ElementType, Model, llama};

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
    pub(super) o: Matrix,
    pub(super) post_norm: Vec<f32>,
    /// Gates, then ups.
    pub(super) gate_up: Matrix,
    pub(super) down: Matrix,
}

impl CpuWeights {
    /// Packs the weights of `model`, as int8 when that is asked for.
    pub(super) fn load(
        team: &Team,
        model: &Model,
        quantization: Option<Quantization>,
    ) -> Result<Self, BackendError> {
        let tensors = llama::tensors(&model.config, &model.weights).map_err(wrong)?;
        // Only bf16 can stay as it is without losing anything.
        let large = model.config.parameters() > WIDEN_UP_TO;
        let storage = match quantization {
            Some(Quantization::Int8) => Storage::Int8,
            None if large && tensors.embedding.element == ElementType::Bf16 => Storage::Bf16,
            None => Storage::F32,
        };
        Self::load_as(team, model, storage)
    }

    /// Packs the weights as they are to be stored.
    pub(super) fn load_as(
        team: &Team,
        model: &Model,
        storage: Storage,
    ) -> Result<Self, BackendError> {
        let tensors = llama::tensors(&model.config, &model.weights).map_err(wrong)?;
        let pack = |tensors: &[_]| Matrix::pack(team, tensors, storage).map_err(wrong);
        let layers = tensors.layers.iter().map(|layer| {
            Ok(CpuLayer {
                input_norm: layer.input_norm.to_vec(),
                qkv: pack(&[layer.q, layer.k, layer.v])?,
                o: pack(&[layer.o])?,
                post_norm: layer.post_norm.to_vec(),
                gate_up: pack(&[layer.gate, layer.up])?,
                down: pack(&[layer.down])?,
            })
        });
        let layers = layers.collect::<Result<_, BackendError>>()?;
        let embedding = tensors.head.map(|_| pack(&[tensors.embedding]));
        Ok(Self {
            storage,
            layers,
            norm: tensors.norm.to_vec(),
            head: pack(&[tensors.head.unwrap_or(tensors.embedding)])?,
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

fn wrong(error: impl std::fmt::Display) -> BackendError {
    BackendError::Model {
        backend: "cpu",
        reason: error.to_string(),
    }
}
