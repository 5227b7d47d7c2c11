//! dynamo-kv-router's `ConcurrentRadixTreeCompressed` behind its `ThreadPoolIndexer`, which is how
//! its router runs it: events go over queues to threads of its own, lookups run on the caller.
//!
//! The queue takes events by value, so a payload is an owned event, spent when it is applied.

use dynamo_kv_router::indexer::{
    SyncIndexer, ThreadPoolIndexer, concurrent_radix_tree_compressed::ConcurrentRadixTreeCompressed,
};
use dynamo_kv_router::protocols::{
    BlockHashOptions, ExternalSequenceBlockHash, KvCacheEvent, KvCacheEventData, KvCacheRemoveData,
    KvCacheStoreData, KvCacheStoredBlockData, LocalBlockHash, RouterEvent,
    compute_block_hash_for_seq,
};
use tokio::runtime::{Builder, Runtime};

use super::Subject;
use crate::workload::{BlockId, Change, Event, Workload};

/// See the module.
pub struct Crtc {
    indexer: ThreadPoolIndexer<ConcurrentRadixTreeCompressed>,
    /// Waits for the queues to drain; nothing else runs on it.
    runtime: Runtime,
}

impl Subject for Crtc {
    type Payload = Option<RouterEvent>;
    type Lane = ();
    type Prompt = Vec<LocalBlockHash>;

    fn new(_workers: u32, lanes: usize) -> Self {
        Self {
            indexer: ThreadPoolIndexer::new(ConcurrentRadixTreeCompressed::new(), lanes, 16),
            runtime: Builder::new_current_thread()
                .build()
                .expect("a runtime without drivers needs nothing of the system"),
        }
    }

    fn lane(&self) {}

    fn payload(workload: &Workload, event: &Event) -> Option<RouterEvent> {
        let data = match &event.change {
            Change::Store { parent, blocks } => KvCacheEventData::Stored(KvCacheStoreData {
                parent_hash: parent.map(|id| ExternalSequenceBlockHash(workload.block(id).name)),
                start_position: None,
                blocks: workload
                    .blocks(blocks)
                    .map(|block| KvCacheStoredBlockData {
                        block_hash: ExternalSequenceBlockHash(block.name),
                        tokens_hash: LocalBlockHash(block.content),
                        mm_extra_info: None,
                    })
                    .collect(),
            }),
            Change::Remove { blocks } => KvCacheEventData::Removed(KvCacheRemoveData {
                block_hashes: workload
                    .blocks(blocks)
                    .map(|block| ExternalSequenceBlockHash(block.name))
                    .collect(),
            }),
        };
        let event_of_rank = KvCacheEvent {
            event_id: 0,
            data,
            dp_rank: 0,
        };
        Some(RouterEvent::new(u64::from(event.worker), event_of_rank))
    }

    fn apply(&self, (): &mut (), payload: &mut Option<RouterEvent>) {
        if let Some(event) = payload.take() {
            self.indexer
                .enqueue_event(event)
                .expect("the event threads run as long as the indexer");
        }
    }

    fn drain(&self) {
        self.runtime
            .block_on(self.indexer.flush_and_wait())
            .expect("the event threads run as long as the indexer");
    }

    /// Its sweep of nodes that nobody holds, due every five minutes.
    fn maintain(&self) {
        self.indexer.backend().run_cleanup_task();
    }

    fn ask(workload: &Workload, path: &[BlockId], prompt: &mut Vec<LocalBlockHash>) {
        prompt.clear();
        prompt.extend(
            path.iter()
                .map(|id| LocalBlockHash(workload.block(*id).content)),
        );
    }

    fn find(&self, prompt: &mut Vec<LocalBlockHash>, scores: &mut [u32]) {
        let found = self.indexer.backend().find_matches(prompt, false);
        for (worker, blocks) in found.scores {
            scores[worker.worker_id as usize] = blocks;
        }
    }

    fn hash(tokens: &[u32], prompt: &mut Vec<LocalBlockHash>) -> u64 {
        *prompt = compute_block_hash_for_seq(tokens, 16, BlockHashOptions::default());
        prompt.last().map_or(0, |content| content.0)
    }
}
