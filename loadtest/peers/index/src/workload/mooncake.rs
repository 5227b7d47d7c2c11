//! Workload M: the Mooncake conversation trace, and what 64 engines of bounded memory make of it.
//!
//! The trace (FAST25, Apache-2.0) names the 512-token prefix blocks of 12,031 requests. Each is cut
//! into 32 blocks of 16 tokens here. A request goes to the worker that holds most of it, if that is
//! a quarter or more and the worker has not been given a quarter more blocks than the average, and
//! else to the worker that has been given least. Each worker keeps the 16,384 blocks that it used
//! last and evicts the deepest block of the oldest request first, as vLLM does. What comes out is a
//! stream of stored and removed events; the prompts asked in between are those of the requests that
//! arrive next.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustc_hash::FxHashMap;
use serde::Deserialize;

use super::{Block, BlockId, Change, Event, Letter, Stage, WORKERS, Workload, mix};
use crate::flags::Flags;

/// Blocks that a worker keeps.
const CAPACITY_BLOCKS: usize = 16_384;

/// Tokens that one id of the trace stands for, tokens in a block, and blocks in an event.
const ID_TOKENS: usize = 512;
const BLOCK_TOKENS: usize = 16;
const EVENT_BLOCKS: usize = 16;

/// Stages that the trace is cut into: nine seconds of traffic each.
const STAGES: usize = 384;

#[derive(Debug, Deserialize)]
struct Request {
    input_length: usize,
    hash_ids: Vec<u64>,
}

/// Builds M. `--scale` below 1 takes only the beginning of the trace.
pub fn build(flags: &Flags) -> Result<Workload> {
    let mut requests = read(&trace_path(flags))?;
    let kept = (requests.len() as f64 * flags.scale.min(1.0)).ceil() as usize;
    requests.truncate(kept.max(STAGES));
    let mut workload = Workload::empty(Letter::M);
    let paths = paths(&mut workload, &requests);
    let stage_requests = paths.len().div_ceil(STAGES);
    let mut fleet = Fleet::new();
    let stages: Vec<&[Vec<BlockId>]> = paths.chunks(stage_requests).collect();
    for (index, stage) in stages.iter().enumerate() {
        let mut events = Vec::new();
        for path in *stage {
            fleet.serve(path, &mut workload, &mut events);
        }
        let next = stages.get(index + 1).unwrap_or(stage);
        let asked = next.iter().filter(|path| !path.is_empty());
        let prompts = asked.map(|path| workload.push_ids(path)).collect();
        workload.stages.push(Stage { events, prompts });
    }
    Ok(workload)
}

fn trace_path(flags: &Flags) -> PathBuf {
    flags.trace.clone().unwrap_or_else(|| {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../traces/mooncake_conversation.jsonl.zst")
    })
}

fn read(path: &Path) -> Result<Vec<Request>> {
    let file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
    let plain: Box<dyn Read> = if path.extension().is_some_and(|end| end == "zst") {
        Box::new(zstd::Decoder::new(file)?)
    } else {
        Box::new(file)
    };
    let mut requests = Vec::new();
    for (number, line) in BufReader::new(plain).lines().enumerate() {
        let request = serde_json::from_str(&line?)
            .with_context(|| format!("{} line {}", path.display(), number + 1))?;
        requests.push(request);
    }
    Ok(requests)
}

/// The block path of each request. An id of the trace stands for a whole prefix, so a block's three
/// hashes follow from the id and the place in it.
fn paths(workload: &mut Workload, requests: &[Request]) -> Vec<Vec<BlockId>> {
    let mut known: FxHashMap<(u64, usize), BlockId> = FxHashMap::default();
    let mut paths = Vec::with_capacity(requests.len());
    for request in requests {
        let covered = request.hash_ids.len() * ID_TOKENS;
        let depth = request.input_length.min(covered) / BLOCK_TOKENS;
        let per_id = ID_TOKENS / BLOCK_TOKENS;
        let path = (0..depth).map(|place| {
            let part = (request.hash_ids[place / per_id], place % per_id);
            *known.entry(part).or_insert_with(|| {
                let seed = mix(part.0 * per_id as u64 + part.1 as u64 + 1);
                workload.blocks.push(Block {
                    name: mix(seed ^ 1),
                    content: mix(seed ^ 2),
                    key: mix(seed ^ 3),
                });
                (workload.blocks.len() - 1) as BlockId
            })
        });
        paths.push(path.collect());
    }
    paths
}

/// The engines: who holds what, and who gets the next request.
struct Fleet {
    workers: Vec<Engine>,
    given_blocks: usize,
}

impl Fleet {
    fn new() -> Self {
        Self {
            workers: (0..WORKERS).map(|_| Engine::default()).collect(),
            given_blocks: 0,
        }
    }

    fn serve(&mut self, path: &[BlockId], workload: &mut Workload, events: &mut Vec<Event>) {
        let worker = self.place(path);
        let engine = &mut self.workers[worker];
        let (held, evicted) = engine.serve(path);
        engine.given_blocks += path.len();
        self.given_blocks += path.len();
        for removed in evicted.chunks(EVENT_BLOCKS) {
            let blocks = workload.push_ids(removed);
            events.push(Event {
                worker: worker as u32,
                change: Change::Remove { blocks },
            });
        }
        let stored = workload.push_ids(&path[held..]);
        for first in (held..path.len()).step_by(EVENT_BLOCKS) {
            let start = stored.start + (first - held) as u32;
            let end = stored.end.min(start + EVENT_BLOCKS as u32);
            let parent = first.checked_sub(1).map(|place| path[place]);
            events.push(Event {
                worker: worker as u32,
                change: Change::Store {
                    parent,
                    blocks: start..end,
                },
            });
        }
    }

    fn place(&self, path: &[BlockId]) -> usize {
        let mean = self.given_blocks / self.workers.len();
        let given = |worker: &usize| self.workers[*worker].given_blocks;
        let warm = (0..self.workers.len())
            .filter(|worker| given(worker) <= mean + mean / 4)
            .map(|worker| (self.workers[worker].held(path), worker))
            .max();
        match warm {
            Some((held, worker)) if held > 0 && held >= path.len() / 4 => worker,
            _ => (0..self.workers.len()).min_by_key(given).unwrap_or(0),
        }
    }
}

/// One engine's cache. Unused blocks wait in order of eviction; an entry of the queue counts only
/// if its number is still the block's.
#[derive(Default)]
struct Engine {
    blocks: FxHashMap<BlockId, u32>,
    unused: VecDeque<(BlockId, u32)>,
    uses: u32,
    given_blocks: usize,
}

impl Engine {
    /// Leading blocks of `path` that the engine holds.
    fn held(&self, path: &[BlockId]) -> usize {
        let held = path.iter().take_while(|id| self.blocks.contains_key(id));
        held.count()
    }

    /// Computes a prompt; returns how many leading blocks it held and what it evicted for the rest.
    fn serve(&mut self, path: &[BlockId]) -> (usize, Vec<BlockId>) {
        let path = &path[..path.len().min(CAPACITY_BLOCKS)];
        let held = self.held(path);
        self.uses += 1;
        // Blocks of the prompt are in use: their old places in the queue no longer count.
        for id in path {
            self.blocks.entry(*id).and_modify(|uses| *uses = self.uses);
        }
        let mut evicted = Vec::new();
        let new = path[held..]
            .iter()
            .filter(|id| !self.blocks.contains_key(id));
        let excess = (self.blocks.len() + new.count()).saturating_sub(CAPACITY_BLOCKS);
        while evicted.len() < excess {
            let Some((id, uses)) = self.unused.pop_front() else {
                break;
            };
            if self.blocks.get(&id) == Some(&uses) {
                self.blocks.remove(&id);
                evicted.push(id);
            }
        }
        for id in path.iter().rev() {
            self.blocks.insert(*id, self.uses);
            self.unused.push_back((*id, self.uses));
        }
        (held, evicted)
    }
}
