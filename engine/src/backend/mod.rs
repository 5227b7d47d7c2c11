//! What computes: one trait, a step begun and finished, and the choice of which implementation runs.
//!
//! A backend owns weights, KV memory and the whole layer loop. The engine thread hands it a [`Step`] (which tokens of
//! which sequences, and where their KV goes) and gets one sampled token for each sequence that asked for one. The cut
//! is made there, and not at single operations, so that each backend stays free to fuse, to capture graphs and to
//! lay out its memory as its device likes:
//!
//! - the **CPU** backend (`cpu`) runs plain loops over the same block tables and is the oracle for the others;
//! - a **CUDA** backend uploads the step's arrays as they lie here (they are flat u32 arrays for that reason), samples
//!   on the device with the same counter-based random numbers (`crate::sample::philox`), and allocates
//!   all of its memory in [`Backend::allocate`]. Graphs need fixed shapes: padding rows write into block 0, which no
//!   request ever holds;
//! - a **simulated** backend reads only the lengths in the step and answers with tokens drawn from the seed.
//!
//! A step is begun and finished by two calls, so that a device need not wait for the host between two steps: where
//! [`BackendInfo::ahead`] says so, the next step is begun while the one before still runs. Tokens that are not known by
//! then are named by where they come from ([`Step::sources`]), and the device itself puts them in. A backend that
//! computes on the host's own cores gains nothing by that; it computes when a step is begun.
//!
//! Nothing here decides what runs; that is `crate::scheduler`.

pub mod exchange;
pub mod parallel;
mod select;
mod step;
#[cfg(test)]
pub(crate) mod testing;

pub mod cpu;
pub mod cuda;
pub mod sim;

pub use select::{BackendChoice, select};
pub use step::{
    BlockCopy, BlockPlace, PromptRow, SampleSpec, Sampled, Step, StepOutput, StepSequence,
};

/// Computes steps. Lives on the engine thread.
pub trait Backend: Send {
    /// What the backend is and what it needs per token; constant.
    fn info(&self) -> &BackendInfo;

    /// Takes the KV memory for `layout`. Called once, before the first step.
    ///
    /// # Errors
    /// When the device does not have that much memory, or the layout is one the backend cannot address.
    fn allocate(&mut self, layout: &KvLayout) -> Result<(), BackendError>;

    /// Hands `step` to the device; its arrays may be reused when this returns.
    ///
    /// At most one step may be begun and not finished, or two where [`BackendInfo::ahead`] says so. Everything that a
    /// step does, its copies and its writes of KV, comes after everything that the step begun before it does.
    ///
    /// # Errors
    /// Any error ends all requests and marks the engine unhealthy, because the device's state is then unknown; nobody
    /// waits any more for a step that is under way. What concerns one sequence only (no finite logit) is answered in
    /// its [`Sampled`] instead.
    fn begin(&mut self, step: &Step) -> Result<(), BackendError>;

    /// Waits for the step begun first among those not finished, and fills `out` with one entry for each of its samples,
    /// in their order.
    ///
    /// The KV of every token of the step is written when this returns; the scheduler publishes blocks on the strength
    /// of that. A sequence's tokens depend on its own context and sampling alone, never on what shares the batch.
    ///
    /// # Errors
    /// As for [`Backend::begin`].
    fn finish(&mut self, out: &mut StepOutput) -> Result<(), BackendError>;

    /// Begins `step` and waits for it, for those who have no other step under way.
    ///
    /// # Errors
    /// As for [`Backend::begin`].
    fn forward(&mut self, step: &Step, out: &mut StepOutput) -> Result<(), BackendError> {
        self.begin(step)?;
        self.finish(out)
    }

    /// Gives memory back until [`Backend::wake`]. Nothing is computed in between, and what the KV memory held is lost:
    /// the caller has emptied the prefix cache and holds no block.
    ///
    /// # Errors
    /// When this backend cannot do it, or cannot do it at this level. Then nothing has changed.
    fn sleep(&mut self, level: SleepLevel) -> Result<(), BackendError> {
        Err(self.no_sleep(level))
    }

    /// Takes back what [`Backend::sleep`] gave away. The KV memory is as after [`Backend::allocate`].
    ///
    /// # Errors
    /// When the memory is not there any more. The backend is then of no further use.
    fn wake(&mut self) -> Result<(), BackendError> {
        Ok(())
    }

    /// A backend like this one for a further data-parallel rank: it shares what does not change (the weights) and has
    /// threads and KV memory of its own, which are yet to be allocated.
    ///
    /// # Errors
    /// When its threads cannot be started, or where a backend has one rank only.
    fn another(&self) -> Result<Box<dyn Backend>, BackendError> {
        Err(BackendError::Start {
            backend: self.info().name,
            reason: "it runs a single data-parallel rank".to_owned(),
        })
    }

    /// The error of a backend that does not sleep at `level`.
    fn no_sleep(&self, level: SleepLevel) -> BackendError {
        BackendError::Sleep {
            backend: self.info().name,
            level: level.number(),
        }
    }
}

/// How much memory a sleeping backend gives back; vLLM's levels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SleepLevel {
    /// Level 1: KV memory is dropped; weights stay somewhere from where they come back quickly.
    KeepWeights,
    /// Level 2: weights are dropped as well.
    DiscardAll,
}

impl SleepLevel {
    /// vLLM's number of the level.
    pub fn number(self) -> u32 {
        match self {
            Self::KeepWeights => 1,
            Self::DiscardAll => 2,
        }
    }
}

/// What a backend is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendInfo {
    /// `cpu`, `cuda` or `sim`.
    pub name: &'static str,
    /// The device in words, for the log.
    pub device: String,
    /// Bytes of KV memory for one token over all layers, with the padding of the default block size.
    pub kv_bytes_per_token: usize,
    /// Bytes that the device has for KV blocks; none where they are the host's, whose memory is not the worker's own.
    pub kv_memory_bytes: Option<u64>,
    /// Layers that a step can be cut between, see [`Step::layers`]; 1 where steps are computed whole.
    pub layers: u32,
    /// Whether a step may be begun while the one before is not finished; then tokens that the step before samples are
    /// found by [`Step::sources`].
    pub ahead: bool,
}

/// How the KV memory is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvLayout {
    /// Tokens per block.
    pub block_size: u32,
    /// Blocks, the null block (number 0) included.
    pub blocks: u32,
    /// Blocks of the second tier, in host memory; numbered from 0.
    pub host_blocks: u32,
}

/// A backend that cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// The KV pool does not fit.
    #[error("{bytes} bytes of KV memory for {blocks} blocks: {reason}")]
    KvMemory {
        /// What was asked for.
        bytes: usize,
        /// For how many blocks.
        blocks: u32,
        /// Why not.
        reason: String,
    },
    /// The model has a shape that the backend does not compute.
    #[error("the {backend} backend cannot run this model: {reason}")]
    Model {
        /// Which backend.
        backend: &'static str,
        /// Which property of the model.
        reason: String,
    },
    /// Worker threads or device contexts could not be made.
    #[error("the {backend} backend cannot start: {reason}")]
    Start {
        /// Which backend.
        backend: &'static str,
        /// Why not.
        reason: String,
    },
    /// The step cannot be computed.
    #[error("step: {0}")]
    Step(String),
    /// The backend does not sleep at this level.
    #[error("the {backend} backend cannot sleep at level {level}")]
    Sleep {
        /// Which backend.
        backend: &'static str,
        /// vLLM's number of the level.
        level: u32,
    },
}
