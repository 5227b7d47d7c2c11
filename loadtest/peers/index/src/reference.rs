//! The plain reference: per worker the set of blocks that it holds, and a loop.
//!
//! It knows nothing of trees, runs or bit sets, so it cannot share a mistake with the subjects.

use rustc_hash::FxHashSet;

use crate::workload::{BlockId, Change, Event, Span, Workload};

/// See the module.
#[derive(Debug)]
pub struct Reference {
    held: Vec<FxHashSet<BlockId>>,
}

impl Reference {
    pub fn new(workers: u32) -> Self {
        Self {
            held: (0..workers).map(|_| FxHashSet::default()).collect(),
        }
    }

    pub fn apply(&mut self, workload: &Workload, event: &Event) {
        let held = &mut self.held[event.worker as usize];
        match &event.change {
            Change::Store { blocks, .. } => {
                held.extend(workload.ids(blocks));
            }
            Change::Remove { blocks } => {
                for id in workload.ids(blocks) {
                    held.remove(id);
                }
            }
        }
    }

    /// What each worker holds, in no order.
    pub fn held(&self) -> &[FxHashSet<BlockId>] {
        &self.held
    }

    /// Whether a worker holds a block.
    pub fn holds(&self, worker: u32, id: BlockId) -> bool {
        self.held[worker as usize].contains(&id)
    }

    /// Fills `scores` with the leading blocks of a prompt that each worker holds.
    pub fn find(&self, workload: &Workload, prompt: &Span, scores: &mut [u32]) {
        for (held, score) in self.held.iter().zip(scores) {
            let blocks = workload.ids(prompt).iter();
            *score = blocks.take_while(|id| held.contains(id)).count() as u32;
        }
    }
}
