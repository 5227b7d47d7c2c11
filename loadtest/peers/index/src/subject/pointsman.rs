//! Our index: one holder a worker, and a lookup by chained keys.

use pointsman_epp::fleet::{EndpointId, Generation};
use pointsman_epp::index::chains::{Chains, Found, Holder, HolderTag};
use pointsman_proto::block_hash::{KeyScope, RequestKey, request_keys};
use pointsman_proto::kv_events::{EngineHash, Medium};

use super::Subject;
use crate::workload::{BlockId, Change, Event, Workload};

/// Room without end: the bound is not what is measured.
const BYTES_MAX: usize = 1 << 40;

/// See the module.
#[derive(Debug)]
pub struct Pointsman {
    chains: Chains,
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
        parent: Option<EngineHash>,
        names: Box<[EngineHash]>,
        keys: Box<[u64]>,
    },
    Remove(Box<[EngineHash]>),
}

/// A prompt's keys, and what the lookup found.
#[derive(Debug, Default)]
pub struct Prompt {
    keys: Vec<RequestKey>,
    found: Found,
}

impl Subject for Pointsman {
    type Payload = Payload;
    type Lane = Vec<Option<Holder>>;
    type Prompt = Prompt;

    fn new(workers: u32, _lanes: usize) -> Self {
        Self {
            chains: Chains::new(BYTES_MAX),
            workers,
        }
    }

    fn lane(&self) -> Vec<Option<Holder>> {
        (0..self.workers).map(|_| None).collect()
    }

    fn payload(workload: &Workload, event: &Event) -> Payload {
        let change = match &event.change {
            Change::Store { parent, blocks } => PayloadChange::Store {
                parent: parent.map(|id| EngineHash(workload.block(id).name)),
                names: workload
                    .blocks(blocks)
                    .map(|block| EngineHash(block.name))
                    .collect(),
                keys: workload.blocks(blocks).map(|block| block.key).collect(),
            },
            Change::Remove { blocks } => PayloadChange::Remove(
                workload
                    .blocks(blocks)
                    .map(|block| EngineHash(block.name))
                    .collect(),
            ),
        };
        Payload {
            worker: event.worker,
            change,
        }
    }

    fn apply(&self, lane: &mut Vec<Option<Holder>>, payload: &mut Payload) {
        let worker = payload.worker;
        let holder = lane[worker as usize].get_or_insert_with(|| {
            let tag = HolderTag {
                endpoint: EndpointId(worker),
                generation: Generation(1),
                rank: 0,
            };
            self.chains
                .holder(tag)
                .expect("a number for every worker of the workload")
        });
        match &payload.change {
            PayloadChange::Store {
                parent,
                names,
                keys,
            } => {
                // A refused event shows as wrong answers, which are counted.
                let write_keys = |_, out: &mut Vec<u64>| out.extend_from_slice(keys);
                let _ = self
                    .chains
                    .store(holder, Medium::Gpu, *parent, names, write_keys);
            }
            PayloadChange::Remove(names) => {
                self.chains.remove(holder, Medium::Gpu, names);
            }
        }
    }

    fn ask(workload: &Workload, path: &[BlockId], prompt: &mut Prompt) {
        prompt.keys.clear();
        let keys = path.iter().map(|id| RequestKey(workload.block(*id).key));
        prompt.keys.extend(keys);
    }

    fn find(&self, prompt: &mut Prompt, scores: &mut [u32]) {
        self.chains
            .find(&mut prompt.keys.as_slice(), &mut prompt.found);
        self.chains.report(&prompt.found, |tag, blocks, _| {
            scores[tag.endpoint.0 as usize] = blocks;
        });
    }

    fn hash(tokens: &[u32], prompt: &mut Prompt) -> u64 {
        let root = RequestKey::root(&KeyScope {
            model: "model",
            adapter: None,
            cache_salt: None,
        });
        request_keys(root, tokens, 16, &mut prompt.keys);
        prompt.keys.last().map_or(0, |key| key.0)
    }
}
