//! kv-index's `ChainIndex`: one lane map a worker, and `score_into`, which allocates nothing.
//!
//! It is called directly. Its gateway puts a queue before each lane, whose cost is not in the
//! figures here: they are the best that it can do.

use kv_index::{
    ChainBlockMap, ChainIndex, ContentHash, SequenceHash, StoredBlock,
    compute_request_content_hashes,
};

use super::Subject;
use crate::workload::{BlockId, Change, Event, Workload};

/// See the module.
pub struct Chain {
    index: ChainIndex,
    workers: u32,
}

/// An event in the index's own types.
#[derive(Debug)]
pub struct Payload {
    worker: u32,
    change: PayloadChange,
}

#[derive(Debug)]
enum PayloadChange {
    Store {
        parent: Option<SequenceHash>,
        blocks: Box<[StoredBlock]>,
    },
    Remove(Box<[SequenceHash]>),
}

impl Subject for Chain {
    type Payload = Payload;
    type Lane = Vec<ChainBlockMap>;
    type Prompt = Vec<ContentHash>;

    fn new(workers: u32, _lanes: usize) -> Self {
        let index = ChainIndex::with_max_workers(workers as usize);
        for worker in 0..workers {
            let id = index
                .intern_worker(&format!("worker-{worker}"))
                .expect("room for every worker of the workload");
            assert_eq!(id, worker, "ids are handed out in order");
        }
        Self { index, workers }
    }

    fn lane(&self) -> Vec<ChainBlockMap> {
        (0..self.workers).map(|_| ChainBlockMap::new()).collect()
    }

    fn payload(workload: &Workload, event: &Event) -> Payload {
        let change = match &event.change {
            Change::Store { parent, blocks } => PayloadChange::Store {
                parent: parent.map(|id| SequenceHash(workload.block(id).name)),
                blocks: workload
                    .blocks(blocks)
                    .map(|block| StoredBlock {
                        seq_hash: SequenceHash(block.name),
                        content_hash: ContentHash(block.content),
                    })
                    .collect(),
            },
            Change::Remove { blocks } => PayloadChange::Remove(
                workload
                    .blocks(blocks)
                    .map(|block| SequenceHash(block.name))
                    .collect(),
            ),
        };
        Payload {
            worker: event.worker,
            change,
        }
    }

    fn apply(&self, lane: &mut Vec<ChainBlockMap>, payload: &mut Payload) {
        let map = &mut lane[payload.worker as usize];
        match &payload.change {
            PayloadChange::Store { parent, blocks } => {
                // A refused event shows as wrong answers, which are counted.
                let _ = self
                    .index
                    .apply_stored(payload.worker, blocks, *parent, map);
            }
            PayloadChange::Remove(hashes) => {
                self.index.apply_removed(payload.worker, hashes, map);
            }
        }
    }

    fn ask(workload: &Workload, path: &[BlockId], prompt: &mut Vec<ContentHash>) {
        prompt.clear();
        prompt.extend(
            path.iter()
                .map(|id| ContentHash(workload.block(*id).content)),
        );
    }

    fn find(&self, prompt: &mut Vec<ContentHash>, scores: &mut [u32]) {
        self.index.score_into(
            prompt,
            |content| content.0,
            false,
            |worker, blocks| scores[worker as usize] = blocks,
        );
    }

    fn hash(tokens: &[u32], prompt: &mut Vec<ContentHash>) -> u64 {
        *prompt = compute_request_content_hashes(tokens, 16);
        prompt.last().map_or(0, |content| content.0)
    }
}
