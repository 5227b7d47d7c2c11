//! How long a step takes on a GPU that is not there: pure arithmetic on FLOP and byte counts.
//!
//! ```text
//! step = layers * LAYER + sequences * SEQUENCE                     launches, norms, sampling, the host's work
//!      + max(matrix FLOP / rate, weight bytes / bandwidth)         products: compute-bound for many tokens
//!      + max(attention FLOP / rate, KV bytes / bandwidth)          attention: quadratic in the prompt, linear in decode
//!      + tensor-parallel exchange + copies from and to the host
//! ```
//!
//! Rates are shares of the GPU's peaks. The shares and the two overheads are fitted to published steps of vLLM (see
//! the tests, which print the table): 8B models on one H100, batches of 8 to 512, and on B200. They say what a good
//! engine reaches today, not what this one does. Weights are read once a step, each context once a step; a
//! prompt's cached prefix costs attention but no products.
//!
//! There is no clock in here. The backend waits as long as this says; a simulator in virtual time just adds it up.

use std::time::Duration;

use super::gpu::Gpu;
use super::model_shape::{ELEMENT_BYTES, ModelShape};
use crate::backend::Step;

/// Share of the peak FLOP/s that large bf16 products reach within a whole forward pass. GEMMs alone reach 0.78-0.80
/// on an H200 (769-798 of 989 TFLOP/s); a pass loses some of it to its other kernels.
pub const MATRIX_SHARE: f64 = 0.60;

/// Share of the peak bandwidth at which weights are read in decode.
pub const WEIGHT_SHARE: f64 = 0.75;

/// Share of the peak FLOP/s that attention over a prompt reaches: 350-450 TFLOP/s on Hopper for kernels without
/// warp-group products, 600-740 with them.
pub const ATTENTION_SHARE: f64 = 0.50;

/// Share of the peak bandwidth at which decode's attention reads the KV cache.
pub const KV_SHARE: f64 = 0.80;

/// What a layer takes however little it computes: launches, norms, rotation, activation.
pub const LAYER_OVERHEAD_S: f64 = 50e-6;

/// What a sequence takes besides products and attention: sampling over the vocabulary, and the host's work.
pub const SEQUENCE_OVERHEAD_S: f64 = 10e-6;

/// One all-reduce of a tensor-parallel group, without its bytes. A layer has two.
pub const EXCHANGE_LATENCY_S: f64 = 8e-6;

/// Share of the GPU's memory that weights and KV cache may fill; vLLM's `gpu_memory_utilization`.
pub const MEMORY_SHARE: f64 = 0.9;

/// What of a step its time depends on. Sums, so that it is made without memory, from a [`Step`] or by hand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StepShape {
    /// Sequences in the batch.
    pub sequences: u64,
    /// Tokens computed.
    pub tokens: u64,
    /// Sequences that get a token out of it.
    pub sampled: u64,
    /// Contexts read from the KV cache, in tokens: each sequence's once.
    pub context: u64,
    /// Pairs of a computed token and a token it looks at, itself included.
    pub pairs: u64,
    /// Tokens whose KV is copied between device and host.
    pub copied: u64,
}

impl StepShape {
    /// Counts a sequence: `tokens` new ones, `context` tokens once they are in it.
    pub fn add(&mut self, tokens: u32, context: u32, sampled: bool) {
        let (tokens, context) = (u64::from(tokens), u64::from(context));
        self.sequences += 1;
        self.tokens += tokens;
        self.sampled += u64::from(sampled);
        self.context += context;
        // The last new token looks at the whole context, the one before at one less, and so on.
        let less = tokens * tokens.saturating_sub(1) / 2;
        self.pairs += (tokens * context).saturating_sub(less);
    }

    /// The step after this one, if both are decodes alone: each context is one token longer.
    #[must_use]
    pub fn next_decode(self) -> Self {
        Self {
            context: self.context + self.sequences,
            pairs: self.pairs + self.sequences,
            ..self
        }
    }

    /// The shape of a formed step, with blocks of `block_size` tokens.
    pub fn of(step: &Step, block_size: u32) -> Self {
        let mut shape = Self {
            copied: step.copies.len() as u64 * u64::from(block_size),
            ..Self::default()
        };
        for sequence in &step.sequences {
            let tokens = sequence.tokens.end - sequence.tokens.start;
            shape.add(tokens, sequence.context_len, sequence.sample.is_some());
        }
        shape
    }
}

/// A model on a GPU, or on a group of them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TimeModel {
    model: ModelShape,
    gpu: Gpu,
    gpus: u32,
}

/// A model that its GPUs have no room for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{model} has {weights_gib} GiB of weights, and {gpus} x {gpu} have room for {room_gib} GiB of weights and KV cache"
)]
pub struct DoesNotFit {
    model: &'static str,
    gpu: &'static str,
    gpus: u32,
    weights_gib: u64,
    room_gib: u64,
}

impl TimeModel {
    /// `model` on a group of `gpus` GPUs, each of which holds an equal part of every matrix (0 counts as 1).
    ///
    /// # Errors
    /// When the weights leave no room for a KV cache.
    pub fn new(model: ModelShape, gpu: Gpu, gpus: u32) -> Result<Self, DoesNotFit> {
        let this = Self {
            model,
            gpu,
            gpus: gpus.max(1),
        };
        if this.kv_memory() == 0 {
            return Err(DoesNotFit {
                model: model.name,
                gpu: gpu.name,
                gpus: this.gpus,
                weights_gib: model.weight_bytes() >> 30,
                room_gib: this.room() >> 30,
            });
        }
        Ok(this)
    }

    /// The model.
    pub fn model(&self) -> &ModelShape {
        &self.model
    }

    /// The GPU.
    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// GPUs in the group.
    pub fn gpus(&self) -> u32 {
        self.gpus
    }

    /// Bytes for weights and KV cache.
    fn room(&self) -> u64 {
        (self.gpu.memory as f64 * f64::from(self.gpus) * MEMORY_SHARE) as u64
    }

    /// Bytes that the weights leave for the KV cache.
    pub fn kv_memory(&self) -> u64 {
        self.room().saturating_sub(self.model.weight_bytes())
    }

    /// How long the step takes; nothing for an empty one.
    pub fn step_time(&self, shape: &StepShape) -> Duration {
        if shape.tokens == 0 {
            return Duration::from_secs_f64(self.copy_s(shape));
        }
        let fixed = self.model.layers as f64 * LAYER_OVERHEAD_S
            + shape.sequences as f64 * SEQUENCE_OVERHEAD_S;
        let seconds = fixed
            + self.products_s(shape)
            + self.attention_s(shape)
            + self.exchange_s(shape)
            + self.copy_s(shape);
        Duration::from_secs_f64(seconds)
    }

    fn products_s(&self, shape: &StepShape) -> f64 {
        let (model, gpus) = (&self.model, f64::from(self.gpus));
        let products =
            model.layer_products() * shape.tokens + model.head_products() * shape.sampled;
        let compute = 2.0 * products as f64 / (self.gpu.flops * MATRIX_SHARE);
        let bytes = model.bytes_read(shape.tokens, shape.sampled > 0);
        compute.max(bytes / (self.gpu.bandwidth * WEIGHT_SHARE)) / gpus
    }

    fn attention_s(&self, shape: &StepShape) -> f64 {
        let (model, gpus) = (&self.model, f64::from(self.gpus));
        let flop = 2.0 * model.attention_products() as f64 * shape.pairs as f64;
        let compute = flop / (self.gpu.flops * ATTENTION_SHARE);
        let bytes = model.kv_bytes_per_token() as f64 * shape.context as f64;
        compute.max(bytes / (self.gpu.bandwidth * KV_SHARE)) / gpus
    }

    /// Two all-reduces a layer over the residual stream, each moving `2 (n-1)/n` of it.
    fn exchange_s(&self, shape: &StepShape) -> f64 {
        if self.gpus == 1 {
            return 0.0;
        }
        let gpus = f64::from(self.gpus);
        let stream = (self.model.hidden_size * ELEMENT_BYTES * shape.tokens) as f64;
        let moved = stream * 2.0 * (gpus - 1.0) / gpus / self.gpu.link;
        2.0 * self.model.layers as f64 * (EXCHANGE_LATENCY_S + moved)
    }

    fn copy_s(&self, shape: &StepShape) -> f64 {
        let bytes = (self.model.kv_bytes_per_token() * shape.copied) as f64;
        bytes / f64::from(self.gpus) / self.gpu.host
    }
}

#[cfg(test)]
mod tests;
