//! A tensor-parallel group as one backend: each rank a thread and a backend of its own, all of them computing every step.
//!
//! Ranks meet within their steps (see [`super::exchange`]), when these begin and when they are finished; rank 0 has the
//! outcome. A rank that fails leaves the others waiting for it, so backends that can fail in the middle of a step must
//! break the meeting off themselves.

use super::{Backend, BackendError, BackendInfo, KvLayout, SleepLevel, Step, StepOutput};

/// Ranks that compute one model together.
#[derive(Debug)]
pub struct TensorParallel<B> {
    info: BackendInfo,
    first: B,
    others: Vec<(B, StepOutput)>,
}

impl<B: Backend> TensorParallel<B> {
    /// The ranks in their order; `first` is rank 0. They must have been made for one exchange.
    pub fn new(first: B, others: impl IntoIterator<Item = B>) -> Self {
        let others: Vec<(B, StepOutput)> = others
            .into_iter()
            .map(|rank| (rank, StepOutput::default()))
            .collect();
        let own = first.info();
        let ranks = others.len() + 1;
        let kv_bytes = others.iter().map(|rank| rank.0.info().kv_bytes_per_token);
        let info = BackendInfo {
            device: format!("{ranks} ranks, each {}", own.device),
            kv_bytes_per_token: own.kv_bytes_per_token + kv_bytes.sum::<usize>(),
            // What the one with the least has is what all of them can use.
            kv_memory_bytes: std::iter::once(&first)
                .chain(others.iter().map(|rank| &rank.0))
                .map(|rank| rank.info().kv_memory_bytes)
                .min()
                .flatten()
                .map(|bytes| bytes.saturating_mul(ranks as u64)),
            ..own.clone()
        };
        Self {
            info,
            first,
            others,
        }
    }

    /// Every rank at once, each with a place for an outcome, of which `out` is rank 0's.
    fn together(
        &mut self,
        out: &mut StepOutput,
        work: impl Fn(&mut B, &mut StepOutput) -> Result<(), BackendError> + Sync,
    ) -> Result<(), BackendError> {
        let (Self { first, others, .. }, work) = (self, &work);
        std::thread::scope(|scope| {
            let others: Vec<_> = others
                .iter_mut()
                .map(|(rank, out)| scope.spawn(move || work(rank, out)))
                .collect();
            let own = work(first, out);
            for other in others {
                let panicked = || BackendError::Step("a tensor-parallel rank panicked".to_owned());
                other.join().map_err(|_| panicked())??;
            }
            own
        })
    }

    fn each(
        &mut self,
        work: impl Fn(&mut B) -> Result<(), BackendError>,
    ) -> Result<(), BackendError> {
        let others = self.others.iter_mut().map(|rank| &mut rank.0);
        std::iter::once(&mut self.first)
            .chain(others)
            .try_for_each(work)
    }
}

impl<B: Backend> Backend for TensorParallel<B> {
    fn info(&self) -> &BackendInfo {
        &self.info
    }

    fn allocate(&mut self, layout: &KvLayout) -> Result<(), BackendError> {
        self.each(|rank| rank.allocate(layout))
    }

    fn begin(&mut self, step: &Step) -> Result<(), BackendError> {
        self.together(&mut StepOutput::default(), |rank, _| rank.begin(step))
    }

    fn finish(&mut self, out: &mut StepOutput) -> Result<(), BackendError> {
        self.together(out, B::finish)
    }

    fn sleep(&mut self, level: SleepLevel) -> Result<(), BackendError> {
        self.each(|rank| rank.sleep(level))
    }

    fn wake(&mut self) -> Result<(), BackendError> {
        self.each(Backend::wake)
    }
}
