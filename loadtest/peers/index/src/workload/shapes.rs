//! Workloads A to F: a million entries each, in shapes that stress an index differently.
//!
//! Each shape is a list of chains (a worker and the path of blocks that it holds). What follows is
//! the same for all: chains arrive in shuffled order, a worker stores of each what it does not hold
//! yet, and then every distinct path is asked, among some that nobody holds or that leave a held
//! path half way.

use rustc_hash::FxHashSet;

use super::{BlockId, Chain, Change, Event, Letter, Random, Span, Stage, WORKERS, Workload};
use crate::flags::Flags;

/// Blocks that one event stores or removes, except in D.
const EVENT_BLOCKS: usize = 16;

/// One asked path in so many is one that nobody holds, and as many leave a held one half way.
const MISS_EVERY: usize = 16;

/// Workers that share a prefix in A, D and F.
const PREFIX_HOLDERS: u32 = 8;

/// Nodes of a trunk in E, blocks in a node, and workers that leave at each.
const TRUNK_NODES: usize = 16;
const NODE_BLOCKS: usize = 16;
const LEAVERS: u32 = WORKERS / TRUNK_NODES as u32;

/// Builds one of A to F.
pub fn build(letter: Letter, flags: &Flags) -> Workload {
    let mut random = Random::new(flags.seed);
    let mut workload = Workload::empty(letter);
    let scaled = |count: f64| ((count * flags.scale).round() as usize).max(1);
    let mut chains = match letter {
        Letter::B => everywhere(&mut workload, &mut random, scaled(61.0)),
        Letter::C => disjoint(&mut workload, &mut random, scaled(61.0)),
        Letter::E => trunks(&mut workload, &mut random, scaled(104.0)),
        Letter::F => shared(&mut workload, &mut random, (8, 1_024, scaled(14.0))),
        _ => shared(&mut workload, &mut random, (64, 128, scaled(14.0))),
    };
    random.shuffle(&mut chains);
    let event_blocks = if letter == Letter::D { 1 } else { EVENT_BLOCKS };
    let events = store_all(&mut workload, &chains, event_blocks);
    let prompts = prompts(&mut workload, &mut random, &chains);
    workload.churn = churn(&mut workload, &chains, event_blocks);
    workload.stages = vec![Stage { events, prompts }];
    workload
}

/// `prefixes` of `depth` blocks on eight workers each; every holder adds `suffixes` of `depth`.
fn shared(
    workload: &mut Workload,
    random: &mut Random,
    (prefixes, depth, suffixes): (usize, usize, usize),
) -> Vec<Chain> {
    let mut chains = Vec::new();
    let mut deck: Vec<u32> = Vec::new();
    for _ in 0..prefixes {
        if deck.is_empty() {
            deck = (0..WORKERS).collect();
            random.shuffle(&mut deck);
        }
        let prefix = grow(workload, random, &[], depth);
        for worker in deck.split_off(deck.len() - PREFIX_HOLDERS as usize) {
            for _ in 0..suffixes {
                let path = grow(workload, random, &prefix, depth);
                let path = workload.push_ids(&path);
                chains.push(Chain { worker, path });
            }
        }
    }
    chains
}

fn everywhere(workload: &mut Workload, random: &mut Random, count: usize) -> Vec<Chain> {
    let mut chains = Vec::new();
    for _ in 0..count {
        let path = grow(workload, random, &[], 256);
        let path = workload.push_ids(&path);
        chains.extend((0..WORKERS).map(|worker| Chain {
            worker,
            path: path.clone(),
        }));
    }
    chains
}

fn disjoint(workload: &mut Workload, random: &mut Random, count: usize) -> Vec<Chain> {
    let mut chains = Vec::new();
    for worker in 0..WORKERS {
        for _ in 0..count {
            let path = grow(workload, random, &[], 256);
            let path = workload.push_ids(&path);
            chains.push(Chain { worker, path });
        }
    }
    chains
}

fn trunks(workload: &mut Workload, random: &mut Random, count: usize) -> Vec<Chain> {
    let mut chains = Vec::new();
    for trunk in 0..count as u32 {
        let path = grow(workload, random, &[], TRUNK_NODES * NODE_BLOCKS);
        for worker in 0..WORKERS {
            // Turned by one place a trunk, so that every worker holds about as much as another.
            let node = ((worker + trunk) % WORKERS / LEAVERS) as usize;
            let held = &path[..(node + 1) * NODE_BLOCKS];
            let held = if held.len() < path.len() {
                grow(workload, random, held, NODE_BLOCKS)
            } else {
                held.to_vec()
            };
            let path = workload.push_ids(&held);
            chains.push(Chain { worker, path });
        }
    }
    chains
}

/// The path `prefix` and `depth` fresh blocks after it.
fn grow(
    workload: &mut Workload,
    random: &mut Random,
    prefix: &[BlockId],
    depth: usize,
) -> Vec<BlockId> {
    let mut path = prefix.to_vec();
    for _ in 0..depth {
        let block = workload.push_block(path.last().copied(), random);
        path.push(block);
    }
    path
}

fn store_all(workload: &mut Workload, chains: &[Chain], event_blocks: usize) -> Vec<Event> {
    let mut held: FxHashSet<(u32, BlockId)> = FxHashSet::default();
    let mut events = Vec::new();
    for chain in chains {
        let path = workload.ids(&chain.path);
        let new = path
            .iter()
            .position(|id| !held.contains(&(chain.worker, *id)));
        let Some(new) = new else { continue };
        held.extend(path[new..].iter().map(|id| (chain.worker, *id)));
        events.extend(stores(workload, chain, new, event_blocks));
    }
    events
}

/// The events that store a chain from its block `from` on.
fn stores(workload: &Workload, chain: &Chain, from: usize, event_blocks: usize) -> Vec<Event> {
    let depth = chain.path.len();
    (from..depth)
        .step_by(event_blocks)
        .map(|first| Event {
            worker: chain.worker,
            change: Change::Store {
                parent: first
                    .checked_sub(1)
                    .map(|place| workload.ids(&chain.path)[place]),
                blocks: part(&chain.path, first..depth.min(first + event_blocks)),
            },
        })
        .collect()
}

/// Each chain's last 16 blocks out, and in again. In no shape do two chains of one worker share
/// them, so no hole is left in another.
fn churn(workload: &mut Workload, chains: &[Chain], event_blocks: usize) -> Vec<Event> {
    let mut events = Vec::new();
    for chain in chains {
        let depth = chain.path.len();
        let tail = depth - EVENT_BLOCKS;
        // The deepest first, as engines evict.
        events.extend(
            (tail..depth)
                .step_by(event_blocks)
                .rev()
                .map(|first| Event {
                    worker: chain.worker,
                    change: Change::Remove {
                        blocks: part(&chain.path, first..first + event_blocks),
                    },
                }),
        );
        events.extend(stores(workload, chain, tail, event_blocks));
    }
    events
}

fn prompts(workload: &mut Workload, random: &mut Random, chains: &[Chain]) -> Vec<Span> {
    let mut seen = FxHashSet::default();
    let mut prompts: Vec<Span> = Vec::new();
    for chain in chains {
        if seen.insert(workload.ids(&chain.path).last().copied()) {
            prompts.push(chain.path.clone());
        }
    }
    for place in (0..prompts.len()).step_by(MISS_EVERY) {
        let path = workload.ids(&prompts[place]).to_vec();
        let missed = grow(workload, random, &[], path.len());
        prompts.push(workload.push_ids(&missed));
        let kept = random.below(path.len());
        let left = grow(workload, random, &path[..kept], path.len() - kept);
        prompts.push(workload.push_ids(&left));
    }
    random.shuffle(&mut prompts);
    prompts
}

fn part(span: &Span, part: std::ops::Range<usize>) -> Span {
    span.start + part.start as u32..span.start + part.end as u32
}
