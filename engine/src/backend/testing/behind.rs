//! A backend whose device is behind the host, for tests of everything that goes ahead of it.
//!
//! A step is kept as it was begun and computed only when somebody waits for it, so whoever counts on its outcome or its
//! writes too early finds nothing. Tokens that were not known when it was begun are those that the step finished before
//! it has sampled, and until then no token at all.

use std::collections::{BTreeSet, VecDeque};
use std::ops::Deref;

use crate::backend::{Backend, BackendError, BackendInfo, KvLayout, SleepLevel, Step, StepOutput};

/// See the module's description.
#[derive(Debug)]
pub(crate) struct Behind<B> {
    inner: B,
    info: BackendInfo,
    begun: VecDeque<Step>,
    /// What the step that was finished last has sampled.
    sampled: Vec<Option<u32>>,
    /// Steps that were begun while another was under way.
    pub(crate) ahead: usize,
}

impl<B: Backend> Behind<B> {
    pub(crate) fn new(inner: B) -> Self {
        Self {
            info: BackendInfo {
                ahead: true,
                ..inner.info().clone()
            },
            inner,
            begun: VecDeque::new(),
            sampled: Vec::new(),
            ahead: 0,
        }
    }

    /// Steps that are begun and not finished.
    pub(crate) fn under_way(&self) -> usize {
        self.begun.len()
    }

    /// The slots that steps will write which are begun and not finished.
    pub(crate) fn slots_to_write(&self) -> impl Iterator<Item = u32> {
        self.begun
            .iter()
            .flat_map(|step| step.slots.iter().copied())
    }

    /// What must hold for any step that is begun while `before` is not finished.
    fn check_ahead(before: &Step, step: &Step) {
        assert!(step.copies.is_empty(), "copies would have to wait");
        assert!(step.layers.is_none() && before.layers.is_none());
        assert_eq!(step.sources.len(), step.tokens.len());
        let unknown = step.sources.iter().filter(|source| **source != Step::KNOWN);
        let samples: BTreeSet<u32> = unknown.clone().copied().collect();
        assert_eq!(
            samples.len(),
            unknown.count(),
            "one sample for two requests"
        );
        let last = samples.last().copied().unwrap_or(0);
        assert!((last as usize) < before.samples.len(), "no such sample");
    }
}

impl<B> Deref for Behind<B> {
    type Target = B;

    fn deref(&self) -> &B {
        &self.inner
    }
}

impl<B: Backend> Backend for Behind<B> {
    fn info(&self) -> &BackendInfo {
        &self.info
    }

    fn allocate(&mut self, layout: &KvLayout) -> Result<(), BackendError> {
        assert_eq!(self.begun.len(), 0, "a step is under way");
        self.inner.allocate(layout)
    }

    fn begin(&mut self, step: &Step) -> Result<(), BackendError> {
        assert!(self.begun.len() < 2, "two steps are under way");
        match self.begun.back() {
            Some(before) => {
                Self::check_ahead(before, step);
                self.ahead += 1;
            }
            None => assert!(step.sources.is_empty(), "all tokens are known by now"),
        }
        let slots: BTreeSet<u32> = step.slots.iter().copied().collect();
        assert_eq!(slots.len(), step.slots.len(), "a slot is written twice");
        let mut step = step.clone();
        for (token, source) in step.tokens.iter_mut().zip(&step.sources) {
            if *source != Step::KNOWN {
                *token = u32::MAX;
            }
        }
        self.begun.push_back(step);
        Ok(())
    }

    fn finish(&mut self, out: &mut StepOutput) -> Result<(), BackendError> {
        let mut step = self.begun.pop_front().expect("no step is under way");
        let sources = std::mem::take(&mut step.sources);
        for (token, source) in step.tokens.iter_mut().zip(sources) {
            if source != Step::KNOWN {
                // What a request that ends for want of a token would go on with is nobody's business.
                *token = self.sampled[source as usize].unwrap_or(0);
            }
        }
        self.inner.forward(&step, out)?;
        self.sampled.clear();
        let tokens = out.sampled.iter().map(|sampled| sampled.token);
        self.sampled.extend(tokens);
        Ok(())
    }

    fn sleep(&mut self, level: SleepLevel) -> Result<(), BackendError> {
        assert_eq!(self.begun.len(), 0, "a step is under way");
        self.inner.sleep(level)
    }

    fn wake(&mut self) -> Result<(), BackendError> {
        assert_eq!(self.begun.len(), 0, "a step is under way");
        self.inner.wake()
    }
}
