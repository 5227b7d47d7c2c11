//! A backend that computes one step right after it got its memory.
//!
//! A first step pays for what later ones find ready: pages of the weights that were mapped and never read, threads
//! that were never woken, kernels that were never loaded. Paid here, it is paid before the port opens; and because
//! the engine does not know of the step, no metric counts it. The step writes into KV block 0, which no request
//! ever holds.

use tracing::debug;

use crate::backend::{
    Backend, BackendError, BackendInfo, KvLayout, SleepLevel, Step, StepOutput, StepSequence,
};

/// Wraps a backend; everything but [`Backend::allocate`] is passed on.
pub(super) struct WarmedUp(pub(super) Box<dyn Backend>);

impl Backend for WarmedUp {
    fn info(&self) -> &BackendInfo {
        self.0.info()
    }

    fn allocate(&mut self, layout: &KvLayout) -> Result<(), BackendError> {
        self.0.allocate(layout)?;
        debug!(blocks = layout.blocks, "kv memory allocated");
        let step = Step {
            tokens: vec![0],
            positions: vec![0],
            slots: vec![0],
            sequences: vec![StepSequence {
                tokens: 0..1,
                context_len: 1,
                block_table: 0..1,
                sample: None,
                embed: false,
            }],
            block_tables: vec![0],
            ..Step::default()
        };
        self.0.forward(&step, &mut StepOutput::default())
    }

    fn begin(&mut self, step: &Step) -> Result<(), BackendError> {
        self.0.begin(step)
    }

    fn finish(&mut self, out: &mut StepOutput) -> Result<(), BackendError> {
        self.0.finish(out)
    }

    fn sleep(&mut self, level: SleepLevel) -> Result<(), BackendError> {
        self.0.sleep(level)
    }

    fn wake(&mut self) -> Result<(), BackendError> {
        self.0.wake()
    }

    fn another(&self) -> Result<Box<dyn Backend>, BackendError> {
        Ok(Box::new(Self(self.0.another()?)))
    }
}
