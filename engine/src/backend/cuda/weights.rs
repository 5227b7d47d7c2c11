//! A model's weights on a device: of the activations' type, and joined where products share their input.
//!
//! Matrices of 8 bits stay as they are, with their scales as f32. Where parts that are joined have a scale each, the joined
//! one has a scale for each row; where a part's blocks of scales would not begin where a block of the joined matrix does,
//! or a part is of another width, the matrix stays in pieces, each with its own rows of the product.

use half::{bf16, f16};

use super::device::{Activation, Device, DeviceError, Memory};
use super::kernels::Scaling;
use crate::backend::BackendError;
use crate::model::{ElementType, FeedForward, Grain, Layer, Model, Shard, Tensor, Tensors};

/// What columns of weights of 8 bits come in: a thread loads 16 bytes at a time.
const NARROW_COLUMNS: usize = 16;

/// All weights.
#[derive(Debug)]
pub struct Weights {
    /// `[vocabulary, hidden]`.
    pub embedding: Memory,
    pub layers: Vec<LayerWeights>,
    /// `[hidden]`.
    pub norm: Memory,
    /// `[vocabulary, hidden]`, or a rank's rows of it, which are as many in all ranks: those that are none are zeros.
    pub head: Memory,
    /// Room for the largest matrix that is not of the activations' type alone, made so; null when there is none.
    pub widened: Memory,
}

/// One layer's. What a model does not have is null.
#[derive(Debug)]
pub struct LayerWeights {
    pub input_norm: Memory,
    /// `[(heads + 2 * kv_heads) * head_dim, hidden]`.
    pub qkv: Matrix,
    pub qkv_bias: Memory,
    pub q_norm: Memory,
    pub k_norm: Memory,
    /// `[hidden, heads * head_dim]`.
    pub o: Matrix,
    pub post_norm: Memory,
    /// `[2 * inner, hidden]`.
    pub gate_up: Matrix,
    /// `[hidden, inner]`.
    pub down: Matrix,
}

/// A matrix `[n, k]`, in pieces that lie one below the other.
#[derive(Debug)]
pub struct Matrix {
    pub n: u32,
    pub k: u32,
    pub pieces: Vec<Piece>,
}

/// Some rows of a matrix.
#[derive(Clone, Copy, Debug)]
pub struct Piece {
    pub rows: u32,
    pub weight: Memory,
    /// Of weights of e4m3; none where they are of the activations' type.
    pub scales: Option<(Scaling, Memory)>,
}

impl Matrix {
    /// Where it lies, if all of it is of the activations' type.
    pub fn wide(&self) -> Option<Memory> {
        match self.pieces.as_slice() {
            [piece] if piece.scales.is_none() => Some(piece.weight),
            _ => None,
        }
    }
}

impl LayerWeights {
    fn matrices(&self) -> [&Matrix; 4] {
        [&self.qkv, &self.o, &self.gate_up, &self.down]
    }
}

/// What activations are of: f16 where all matrices of 16 bits are, bf16 otherwise.
pub fn activation(tensors: &Tensors<'_>) -> Activation {
    let wide = |tensor: &Tensor<'_>| tensor.element == ElementType::F16;
    let is = |tensor: &Tensor<'_>| wide(tensor) || tensor.element == ElementType::E4m3;
    let layer = |layer: &Layer<'_>| {
        let dense = match &layer.feed_forward {
            FeedForward::Dense(mlp) => mlp.gate_up.iter().all(is) && is(&mlp.down),
            FeedForward::Experts { .. } => false,
        };
        layer.qkv.iter().all(is) && is(&layer.o) && dense
    };
    if wide(&tensors.embedding) && tensors.layers.iter().all(layer) {
        Activation::F16
    } else {
        Activation::Bf16
    }
}

impl Weights {
    /// Copies one rank's part of a model to a device.
    ///
    /// # Errors
    /// When it does not fit, or the model has layers that there are no kernels for.
    pub fn upload(
        device: &mut dyn Device,
        model: &Model,
        activation: Activation,
        shard: Shard,
    ) -> Result<Self, BackendError> {
        let tensors = model.tensors().map_err(|error| wrong(error.to_string()))?;
        let mut uploader = Uploader {
            device,
            activation,
            bytes: Vec::new(),
        };
        let mut layers = Vec::with_capacity(tensors.layers.len());
        for layer in &tensors.layers {
            let part = shard.layer(layer, &model.config);
            layers.push(uploader.layer(&part.view())?);
        }
        let matrices = layers.iter().flat_map(LayerWeights::matrices);
        let narrow = matrices.filter(|matrix| matrix.wide().is_none());
        let largest = narrow.map(|matrix| matrix.n as usize * matrix.k as usize * 2);
        let widened = uploader.allocate(largest.max().unwrap_or(0))?;
        let embedding = uploader.join(&[tensors.embedding])?;
        let head = match (&tensors.head, shard.is_whole()) {
            (None, true) => embedding,
            (head, _) => {
                let head = head.as_ref().unwrap_or(&tensors.embedding);
                let rows = shard.vocabulary_of(0, &model.config).len();
                uploader.head(&shard.head(head, &model.config).view(), rows)?
            }
        };
        Ok(Self {
            embedding,
            layers,
            norm: uploader.join(&[tensors.norm])?,
            head,
            widened,
        })
    }

    /// What weights are of, in words.
    pub fn element(&self, activation: Activation) -> String {
        let mut matrices = self.layers.iter().flat_map(LayerWeights::matrices);
        if matrices.any(|matrix| matrix.wide().is_none()) {
            format!("e4m3 and {}", activation.name())
        } else {
            activation.name().to_owned()
        }
    }
}

struct Uploader<'a> {
    device: &'a mut dyn Device,
    activation: Activation,
    /// One tensor as it goes over; reused.
    bytes: Vec<u8>,
}

impl Uploader<'_> {
    fn layer(&mut self, layer: &Layer<'_>) -> Result<LayerWeights, BackendError> {
        let FeedForward::Dense(mlp) = &layer.feed_forward else {
            return Err(wrong(
                "there are no kernels for mixtures of experts".to_owned(),
            ));
        };
        let norms = layer.qk_norms.as_ref();
        Ok(LayerWeights {
            input_norm: self.join(&[layer.input_norm])?,
            qkv: self.matrix(&layer.qkv)?,
            qkv_bias: self.join(&layer.qkv_bias)?,
            q_norm: norms.map_or(Ok(Memory::default()), |norms| self.join(&norms[..1]))?,
            k_norm: norms.map_or(Ok(Memory::default()), |norms| self.join(&norms[1..]))?,
            o: self.matrix(&[layer.o])?,
            post_norm: self.join(&[layer.post_norm])?,
            gate_up: self.matrix(&mlp.gate_up)?,
            down: self.matrix(&[mlp.down])?,
        })
    }

    /// A matrix of 16 bits, with zeros below it up to so many rows.
    fn head(&mut self, head: &Tensor<'_>, rows: usize) -> Result<Memory, BackendError> {
        let memory = self.allocate(rows * columns_of(head) * 2)?;
        self.write(memory, 0, head).map_err(failed)?;
        Ok(memory)
    }

    /// Matrices one below the other, in as few pieces as may be.
    fn matrix(&mut self, tensors: &[Tensor<'_>]) -> Result<Matrix, BackendError> {
        let mut pieces = Vec::new();
        let mut rest = tensors;
        while !rest.is_empty() {
            let (piece, others) = rest.split_at(joined(rest));
            pieces.push(Piece {
                rows: rows_of(piece) as u32,
                weight: self.join(piece)?,
                scales: self.scales(piece)?,
            });
            rest = others;
        }
        Ok(Matrix {
            n: rows_of(tensors) as u32,
            k: tensors.first().map_or(0, columns_of) as u32,
            pieces,
        })
    }

    /// The scales of matrices one below the other.
    fn scales(
        &mut self,
        tensors: &[Tensor<'_>],
    ) -> Result<Option<(Scaling, Memory)>, BackendError> {
        let Some(first) = tensors.first().and_then(|tensor| tensor.scales) else {
            return Ok(None);
        };
        let mut values: Vec<f32> = Vec::new();
        for tensor in tensors {
            let Some(scales) = tensor.scales else {
                return Err(wrong("a matrix of 8 bits has no scales".to_owned()));
            };
            match scales.grain {
                Grain::Block => values.extend(scales.values()),
                Grain::Row | Grain::Tensor => {
                    values.extend((0..rows_of(&[*tensor])).map(|row| scales.at(row, 0)));
                }
            }
        }
        let one = values.iter().all(|value| Some(value) == values.first());
        let scaling = match first.grain {
            Grain::Block => Scaling::PerBlock,
            _ if one => Scaling::PerTensor,
            _ => Scaling::PerChannel,
        };
        if scaling == Scaling::PerTensor {
            values.truncate(1);
        }
        let bytes: &[u8] = bytemuck::cast_slice(&values);
        let memory = self.allocate(bytes.len())?;
        self.device.write(memory, 0, bytes).map_err(failed)?;
        Ok(Some((scaling, memory)))
    }

    fn allocate(&mut self, bytes: usize) -> Result<Memory, BackendError> {
        if bytes == 0 {
            return Ok(Memory::default());
        }
        let bytes = bytes.next_multiple_of(16);
        self.device.allocate(bytes).map_err(failed)
    }

    /// Tensors of one width, one below the other; null for none.
    fn join(&mut self, tensors: &[Tensor<'_>]) -> Result<Memory, BackendError> {
        let narrow = tensors.iter().find(|tensor| tensor.scales.is_some());
        if let Some(k) = narrow.map(columns_of).filter(|k| k % NARROW_COLUMNS != 0) {
            return Err(wrong(format!(
                "a matrix of 8 bits has {k} columns; kernels need a multiple of {NARROW_COLUMNS}"
            )));
        }
        // What kernels make of it would be a number.
        let is_number = |bits: &u8| bits & 0x7f != 0x7f;
        if narrow.is_some()
            && !tensors
                .iter()
                .all(|tensor| tensor.bytes.iter().all(is_number))
        {
            return Err(wrong("a weight of 8 bits is not a number".to_owned()));
        }
        let size = if narrow.is_some() { 1 } else { 2 };
        let bytes = |tensor: &Tensor<'_>| tensor.shape.iter().product::<usize>() * size;
        let memory = self.allocate(tensors.iter().map(bytes).sum())?;
        let mut offset = 0;
        for tensor in tensors {
            self.write(memory, offset, tensor).map_err(failed)?;
            offset += bytes(tensor);
        }
        Ok(memory)
    }

    fn write(&mut self, to: Memory, offset: usize, tensor: &Tensor<'_>) -> Result<(), DeviceError> {
        let as_it_is = matches!(
            (self.activation, tensor.element),
            (Activation::Bf16, ElementType::Bf16)
                | (Activation::F16, ElementType::F16)
                | (_, ElementType::E4m3)
        );
        if as_it_is {
            return self.device.write(to, offset, tensor.bytes);
        }
        self.bytes.clear();
        let values = (0..).map_while(|index| tensor.get(index));
        for value in values {
            let bits = match self.activation {
                Activation::Bf16 => bf16::from_f32(value).to_bits(),
                Activation::F16 => f16::from_f32(value).to_bits(),
            };
            self.bytes.extend(bits.to_le_bytes());
        }
        self.device.write(to, offset, &self.bytes)
    }
}

/// How many of these matrices can be one piece, from the first on.
fn joined(tensors: &[Tensor<'_>]) -> usize {
    let grain = |tensor: &Tensor<'_>| tensor.scales.map(|scales| scales.grain);
    let [block, _] = Grain::Block.each();
    let together = |at: &usize| match (grain(&tensors[at - 1]), grain(&tensors[*at])) {
        (None, None) => true,
        (Some(Grain::Block), Some(Grain::Block)) => rows_of(&tensors[..*at]).is_multiple_of(block),
        (Some(above), Some(below)) => above != Grain::Block && below != Grain::Block,
        _ => false,
    };
    1 + (1..tensors.len()).take_while(together).count()
}

/// Rows of matrices one below the other.
fn rows_of(tensors: &[Tensor<'_>]) -> usize {
    let rows = |tensor: &Tensor<'_>| tensor.shape.first().copied().unwrap_or(0);
    tensors.iter().map(rows).sum()
}

fn columns_of(tensor: &Tensor<'_>) -> usize {
    tensor.shape.get(1).copied().unwrap_or(1)
}

fn wrong(reason: String) -> BackendError {
    BackendError::Model {
        backend: "cuda",
        reason,
    }
}

fn failed(error: impl std::fmt::Display) -> BackendError {
    BackendError::Start {
        backend: "cuda",
        reason: error.to_string(),
    }
}
