//! The CPU backend: f32 arithmetic over paged KV memory, for machines without a GPU and as the oracle for those with.
//!
//! ```text
//! model tensors ─▶ matrix (packed panels)                 once, at start
//! step ─▶ forward ─┬▶ matrix::multiply ──┐
//!                  ├▶ attention ▶ split ─┴▶ kernels::tile  the one hot loop
//!                  └▶ ops (norm, rope, silu), kv_memory
//! ```
//!
//! Every output element is summed up in an order that depends on nothing but its own row: sequentially along the inner
//! dimension for products, and over splits of the context from its start for attention. So a request gets
//! the same bits alone, in any batch, in any chunking, and after a prefix hit; tests compare for equality.
//!
//! A step may stop between two layers and be taken up there later; what it had come to is kept apart meanwhile.
//!
//! Scratch memory grows to the largest step seen and is kept: a step allocates nothing after warm-up.

mod attention;
mod columns;
mod experts;
mod feed_forward;
mod forward;
mod kernels;
mod kv_memory;
mod logits;
mod matrix;
mod merge;
mod ops;
mod packing;
mod pages;
mod split;
mod team;
#[cfg(test)]
mod tests;
mod weights;

use std::sync::Arc;

use crate::model::{Model, ModelConfig, Shard};

use self::forward::Forward;
use self::kernels::{Isa, LANES};
use self::kv_memory::{KvElement, KvGeometry, KvMemory};
use self::team::Team;
use self::weights::CpuWeights;

use super::exchange::{Alone, Exchange, ThreadRank};
use super::parallel::TensorParallel;
use super::{Backend, BackendError, BackendInfo, KvLayout, SleepLevel, Step, StepOutput};

/// Heads wider than this are refused; it bounds the attention's accumulators on the stack.
pub const MAX_HEAD_DIM: usize = 256;

/// Threads at most.
const MAX_THREADS: usize = 1024;

/// How the backend computes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuOptions {
    /// Threads of each rank; 0 for as many as the machine has.
    pub threads: usize,
    /// Tensor-parallel ranks that [`CpuBackend::group`] makes; 0 is 1.
    pub ranks: usize,
    /// What weights become; none for as they are.
    pub quantization: Option<Quantization>,
    /// What keys and values are kept as.
    pub kv_cache: KvCacheType,
}

/// The type of keys and values in KV memory. What is computed with them is f32 all the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KvCacheType {
    /// As computed.
    #[default]
    Float32,
    /// Half the memory, for logits that are off by up to some percent of the largest.
    Bfloat16,
}

impl KvCacheType {
    fn element(self, head_dim: usize) -> Result<KvElement, BackendError> {
        match self {
            Self::Float32 => Ok(KvElement::F32),
            // Two neighbouring dimensions of a key share an item.
            Self::Bfloat16 if head_dim.is_multiple_of(2) => Ok(KvElement::Bf16),
            Self::Bfloat16 => Err(BackendError::Model {
                backend: "cpu",
                reason: format!("head_dim is {head_dim}; a KV cache in bf16 needs an even one"),
            }),
        }
    }
}

/// Smaller weights than the model's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quantization {
    /// 8-bit integers with one scale for each output.
    Int8,
}

impl From<usize> for CpuOptions {
    fn from(threads: usize) -> Self {
        Self {
            threads,
            ..Self::default()
        }
    }
}

/// Computes models of all families on the CPU.
#[derive(Debug)]
pub struct CpuBackend {
    info: BackendInfo,
    team: Team,
    threads: usize,
    isa: Isa,
    /// One copy for all data-parallel ranks.
    weights: Arc<CpuWeights>,
    config: Arc<ModelConfig>,
    exchange: Arc<dyn Exchange>,
    kv: KvMemory,
    forward: Forward,
    /// What the step under way brings.
    brought: StepOutput,
    /// As allocated; a backend that wakes up takes the same again.
    layout: Option<KvLayout>,
}

impl CpuBackend {
    /// Packs the weights of `model`. A number stands for options with that many threads.
    ///
    /// # Errors
    /// When the model's heads are too wide, threads cannot be started, or the weights do not fit.
    pub fn new(model: &Model, options: impl Into<CpuOptions>) -> Result<Self, BackendError> {
        Self::of_rank(model, options, Arc::new(Alone))
    }

    /// As many ranks as the options say, each of which packs its part of `model`.
    ///
    /// # Errors
    /// As [`CpuBackend::of_rank`].
    pub fn group(model: &Model, options: CpuOptions) -> Result<Box<dyn Backend>, BackendError> {
        let mut ranks = ThreadRank::group(options.ranks.max(1))
            .into_iter()
            .map(|rank| Self::of_rank(model, options, Arc::new(rank)));
        let first = match (options.ranks, ranks.next()) {
            (2.., Some(first)) => first?,
            _ => return Ok(Box::new(Self::new(model, options)?)),
        };
        let others: Vec<Self> = ranks.collect::<Result<_, _>>()?;
        Ok(Box::new(TensorParallel::new(first, others)))
    }

    /// Packs what one rank of a tensor-parallel group holds of `model`. The ranks of `exchange` compute each step
    /// together, and rank 0 has the outcome.
    ///
    /// # Errors
    /// As [`CpuBackend::new`]; and when the model cannot be shared by so many.
    pub fn of_rank(
        model: &Model,
        options: impl Into<CpuOptions>,
        exchange: Arc<dyn Exchange>,
    ) -> Result<Self, BackendError> {
        let CpuOptions {
            threads,
            quantization,
            kv_cache,
            ..
        } = options.into();
        let wrong = |reason: String| BackendError::Model {
            backend: "cpu",
            reason,
        };
        let shard = Shard::new(exchange.rank(), exchange.ranks(), &model.config)
            .map_err(|error| wrong(error.to_string()))?;
        let config = &shard.config(&model.config);
        if config.head_dim > MAX_HEAD_DIM {
            let reason = format!("head_dim is {}; at most {MAX_HEAD_DIM}", config.head_dim);
            return Err(wrong(reason));
        }
        let isa = Isa::detect();
        let threads = match threads {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            threads => threads.min(MAX_THREADS),
        };
        let team = team(threads)?;
        let weights = CpuWeights::load(&team, model, quantization, shard)?;
        let geometry = KvGeometry::new(config, kv_cache.element(config.head_dim)?);
        Ok(Self {
            info: BackendInfo {
                name: "cpu",
                device: format!(
                    "{}, {threads} thread(s), {} weights, {} KV cache",
                    isa.name(),
                    weights.element(),
                    geometry.element.name()
                ),
                kv_bytes_per_token: geometry.bytes_per_block(LANES) / LANES,
                kv_memory_bytes: None,
                layers: config.layers as u32,
                ahead: false,
            },
            team,
            threads,
            isa,
            weights: Arc::new(weights),
            config: Arc::new(config.clone()),
            exchange,
            kv: KvMemory::new(geometry),
            forward: Forward::new(config),
            brought: StepOutput::default(),
            layout: None,
        })
    }
}

fn team(threads: usize) -> Result<Team, BackendError> {
    Team::new(threads).map_err(|reason| BackendError::Start {
        backend: "cpu",
        reason,
    })
}

impl Backend for CpuBackend {
    fn info(&self) -> &BackendInfo {
        &self.info
    }

    fn allocate(&mut self, layout: &KvLayout) -> Result<(), BackendError> {
        self.layout = Some(*layout);
        self.kv.allocate(*layout)
    }

    /// Weights stay packed: repacking takes longer than they are worth, and only their file could replace them.
    fn sleep(&mut self, level: SleepLevel) -> Result<(), BackendError> {
        match level {
            SleepLevel::KeepWeights => self.kv.release(),
            SleepLevel::DiscardAll => return Err(self.no_sleep(level)),
        }
        Ok(())
    }

    fn wake(&mut self) -> Result<(), BackendError> {
        self.layout
            .map_or(Ok(()), |layout| self.kv.allocate(layout))
    }

    fn begin(&mut self, step: &Step) -> Result<(), BackendError> {
        let Self {
            team,
            isa,
            weights,
            kv,
            forward,
            exchange,
            brought,
            ..
        } = self;
        forward.check(step).map_err(BackendError::Step)?;
        for copy in &step.copies {
            kv.copy(copy);
        }
        brought.clear();
        forward.compute(team, *isa, weights, kv, (step, exchange.as_ref()), brought);
        Ok(())
    }

    fn finish(&mut self, out: &mut StepOutput) -> Result<(), BackendError> {
        std::mem::swap(&mut self.brought, out);
        Ok(())
    }

    fn another(&self) -> Result<Box<dyn Backend>, BackendError> {
        if self.exchange.ranks() > 1 {
            return Err(BackendError::Start {
                backend: "cpu",
                reason: "a tensor-parallel rank has no other of its kind".to_owned(),
            });
        }
        Ok(Box::new(Self {
            info: self.info.clone(),
            team: team(self.threads)?,
            threads: self.threads,
            isa: self.isa,
            weights: Arc::clone(&self.weights),
            config: Arc::clone(&self.config),
            exchange: Arc::clone(&self.exchange),
            kv: KvMemory::new(self.kv.geometry),
            forward: Forward::new(&self.config),
            brought: StepOutput::default(),
            layout: None,
        }))
    }
}
