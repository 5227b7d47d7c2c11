//! No index: takes events and prompts as the others do, and finds nothing.
//!
//! Shows what the harness itself costs: its clock, its copies, its resident tables.

use super::Subject;
use crate::workload::{BlockId, Event, Workload};

/// See the module.
#[derive(Debug)]
pub struct Nothing;

impl Subject for Nothing {
    type Payload = Vec<u64>;
    type Lane = ();
    type Prompt = Vec<u64>;

    fn new(_workers: u32, _lanes: usize) -> Self {
        Self
    }

    fn lane(&self) {}

    fn payload(workload: &Workload, event: &Event) -> Vec<u64> {
        let (crate::workload::Change::Store { blocks, .. }
        | crate::workload::Change::Remove { blocks }) = &event.change;
        workload.blocks(blocks).map(|block| block.name).collect()
    }

    fn apply(&self, (): &mut (), payload: &mut Vec<u64>) {
        std::hint::black_box(payload);
    }

    fn ask(workload: &Workload, path: &[BlockId], prompt: &mut Vec<u64>) {
        prompt.clear();
        prompt.extend(path.iter().map(|id| workload.block(*id).key));
    }

    fn find(&self, prompt: &mut Vec<u64>, scores: &mut [u32]) {
        std::hint::black_box((prompt, scores));
    }

    fn hash(_tokens: &[u32], _prompt: &mut Vec<u64>) -> u64 {
        0
    }
}
