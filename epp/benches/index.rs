//! The prefix index by itself: lookups, events and clears, at fleets of 8 to 1,000 endpoints.
//!
//! How it stands beside the published indexes is measured in `loadtest/peers/index`, where all run
//! in one process. Here only ours runs, so that a change can be seen against the run before it:
//! `cargo bench -p pointsman-epp --bench index`.
//!
//! Three shapes: *shared* prompts begin with a prefix that an eighth of the fleet holds and end in a
//! private suffix; *fan-out* prompts share a trunk that fewer and fewer endpoints hold to its end;
//! *turns* are conversations of 24 blocks a turn that one endpoint holds, under a system prompt that
//! all do.

use std::hint::black_box;
use std::time::Duration;

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use pointsman_epp::fleet::{EndpointId, Generation};
use pointsman_epp::index::chains::{Chains, Found, Holder, HolderTag, TokenKeys};
use pointsman_proto::block_hash::{KeyScope, RequestKey, request_keys};
use pointsman_proto::kv_events::{EngineHash, Medium};

const FLEETS: [u32; 4] = [8, 64, 256, 1_000];
const BLOCK_TOKENS: usize = 16;
const EVENT_BLOCKS: usize = 16;

/// A chain of keys that an endpoint holds.
struct Held {
    endpoint: u32,
    keys: Vec<RequestKey>,
}

/// Shapes of what a fleet holds, by name.
type Shape = (&'static str, fn(u32) -> Vec<Held>);

const SHAPES: [Shape; 3] = [("shared", shared), ("fan-out", fan_out), ("turns", turns)];

fn shared(endpoints: u32) -> Vec<Held> {
    let mut held = Vec::new();
    for prefix in 0..8 {
        let prefix_keys = chain(u64::from(prefix) + 1, &[], 128);
        for endpoint in (0..endpoints).filter(|endpoint| endpoint % 8 == prefix) {
            for suffix in 0..(4_096 / endpoints).clamp(4, 64) {
                let seed = u64::from(endpoint) << 32 | u64::from(suffix) << 8 | 1;
                held.push(Held {
                    endpoint,
                    keys: chain(seed, &prefix_keys, 128),
                });
            }
        }
    }
    held
}

fn fan_out(endpoints: u32) -> Vec<Held> {
    let mut held = Vec::new();
    for trunk in 0..32 {
        let keys = chain(trunk + 1, &[], 256);
        held.extend((0..endpoints).map(|endpoint| {
            let nodes = (endpoint as usize * 16 / endpoints as usize) + 1;
            Held {
                endpoint,
                keys: keys[..nodes * 16].to_vec(),
            }
        }));
    }
    held
}

fn turns(endpoints: u32) -> Vec<Held> {
    let system = chain(7, &[], 32);
    (0..4_096.max(endpoints))
        .map(|talk| {
            let turns = 1 + talk as usize % 12;
            Held {
                endpoint: talk % endpoints,
                keys: chain(u64::from(talk) << 8 | 2, &system, turns * 24),
            }
        })
        .collect()
}

/// `prefix` and `blocks` more keys drawn from a seed.
fn chain(seed: u64, prefix: &[RequestKey], blocks: usize) -> Vec<RequestKey> {
    let mut keys = prefix.to_vec();
    let mut key = prefix.last().copied().unwrap_or(RequestKey(0));
    for block in 0..blocks as u64 {
        let content = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ block;
        key = key.child(&[content as u32, (content >> 32) as u32], &[]);
        keys.push(key);
    }
    keys
}

/// An index and the holders that write to it.
struct Fleet {
    chains: Chains,
    holders: Vec<Holder>,
}

impl Fleet {
    fn new(endpoints: u32) -> Self {
        let chains = Chains::new(usize::MAX);
        let holders = (0..endpoints).map(|endpoint| join(&chains, endpoint));
        Self {
            holders: holders.collect(),
            chains,
        }
    }

    fn holding(endpoints: u32, held: &[Held]) -> Self {
        let mut fleet = Self::new(endpoints);
        for held in held {
            fleet.store(held, EVENT_BLOCKS);
        }
        fleet
    }

    fn store(&mut self, held: &Held, event_blocks: usize) {
        let holder = &mut self.holders[held.endpoint as usize];
        let mut parent = None;
        for keys in held.keys.chunks(event_blocks) {
            parent = store_event(&self.chains, holder, parent, keys);
        }
    }

    fn remove(&mut self, held: &Held) {
        let holder = &mut self.holders[held.endpoint as usize];
        let mut names = [EngineHash(0); EVENT_BLOCKS];
        for keys in held.keys.rchunks(EVENT_BLOCKS) {
            for (name, key) in names.iter_mut().zip(keys.iter().rev()) {
                *name = EngineHash(key.0);
            }
            self.chains
                .remove(holder, Medium::Gpu, &names[..keys.len()]);
        }
    }
}

fn join(chains: &Chains, endpoint: u32) -> Holder {
    let tag = HolderTag {
        endpoint: EndpointId(endpoint),
        generation: Generation(1),
        rank: 0,
    };
    chains.holder(tag).expect("a number for every endpoint")
}

/// Stores blocks under names equal to their keys; returns the last name.
fn store_event(
    chains: &Chains,
    holder: &mut Holder,
    parent: Option<EngineHash>,
    keys: &[RequestKey],
) -> Option<EngineHash> {
    let mut names = [EngineHash(0); EVENT_BLOCKS];
    for (name, key) in names.iter_mut().zip(keys) {
        *name = EngineHash(key.0);
    }
    let names = &names[..keys.len()];
    chains
        .store(holder, Medium::Gpu, parent, names, |_, out| {
            out.extend(keys.iter().map(|key| key.0));
        })
        .expect("a parent that was stored before");
    names.last().copied()
}

fn find(criterion: &mut Criterion) {
    for (name, shape) in SHAPES {
        let mut group = criterion.benchmark_group(format!("find/{name}"));
        for endpoints in FLEETS {
            let held = shape(endpoints);
            let fleet = Fleet::holding(endpoints, &held);
            let mut found = Found::default();
            let mut asked = held.iter().cycle();
            group.bench_function(BenchmarkId::from_parameter(endpoints), |bencher| {
                bencher.iter(|| {
                    // A stride that visits all of them in an order that no cache foresees.
                    let held = asked.nth(1_610).expect("a cycle has no end");
                    let keys = black_box(held.keys.as_slice());
                    fleet.chains.find(&mut &*keys, &mut found);
                    black_box(&found);
                });
            });
        }
        group.finish();
    }
}

fn store(criterion: &mut Criterion) {
    let held = shared(64);
    let blocks: usize = held.iter().map(|held| held.keys.len()).sum();
    let mut group = criterion.benchmark_group("store");
    group.throughput(Throughput::Elements(blocks as u64));
    for event_blocks in [EVENT_BLOCKS, 1] {
        let name = BenchmarkId::new("keys", format!("{event_blocks} an event"));
        group.bench_function(name, |bencher| {
            bencher.iter_batched_ref(
                || Fleet::new(64),
                |fleet| held.iter().for_each(|held| fleet.store(held, event_blocks)),
                BatchSize::PerIteration,
            );
        });
    }
    group.finish();
}

/// Events as they come: token ids, from which the keys are hashed.
fn store_tokens(criterion: &mut Criterion) {
    let tokens: Vec<u32> = (0..256 * BLOCK_TOKENS as u32).collect();
    let names: Vec<EngineHash> = (0..256).map(EngineHash).collect();
    let mut group = criterion.benchmark_group("store/tokens");
    group.throughput(Throughput::Elements(names.len() as u64 * 64));
    for event_blocks in [EVENT_BLOCKS, 1] {
        let name = BenchmarkId::from_parameter(format!("{event_blocks} an event"));
        group.bench_function(name, |bencher| {
            bencher.iter_batched_ref(
                || Fleet::new(64),
                |fleet| {
                    for (endpoint, holder) in (0..).zip(&mut fleet.holders) {
                        let events = names
                            .chunks(event_blocks)
                            .zip(tokens.chunks(event_blocks * BLOCK_TOKENS));
                        store_prompt(&fleet.chains, holder, endpoint, events);
                    }
                },
                BatchSize::PerIteration,
            );
        });
    }
    group.finish();
}

/// Stores a prompt of `endpoint`'s own, hashing each event's tokens.
fn store_prompt<'a>(
    chains: &Chains,
    holder: &mut Holder,
    endpoint: u64,
    events: impl Iterator<Item = (&'a [EngineHash], &'a [u32])>,
) {
    let mut parent = None;
    for (names, tokens) in events {
        chains
            .store(holder, Medium::Gpu, parent, names, |parent, keys| {
                let mut key = parent.unwrap_or(RequestKey(endpoint));
                keys.extend(tokens.chunks_exact(BLOCK_TOKENS).map(|block| {
                    key = key.child(block, &[]);
                    key.0
                }));
            })
            .expect("a parent that was stored before");
        parent = names.last().copied();
    }
}

fn remove(criterion: &mut Criterion) {
    let held = shared(64);
    // The prefix is removed with the first of its chains, so later ones find half of their names.
    let blocks = held.len() * 128;
    let mut group = criterion.benchmark_group("remove");
    group.throughput(Throughput::Elements(blocks as u64));
    group.bench_function("16 an event, the deepest first", |bencher| {
        bencher.iter_batched_ref(
            || Fleet::holding(64, &held),
            |fleet| held.iter().for_each(|held| fleet.remove(held)),
            BatchSize::PerIteration,
        );
    });
    group.finish();
}

/// An endpoint is cleared: what its readers wait for, and what the background does afterwards.
fn clear(criterion: &mut Criterion) {
    let held = shared(64);
    let mut group = criterion.benchmark_group("clear");
    group.bench_function("retire one of 64", |bencher| {
        bencher.iter_batched_ref(
            || Fleet::holding(64, &held),
            |fleet| {
                let holder = fleet.holders.pop().expect("64 of them");
                fleet.chains.retire(holder);
            },
            BatchSize::PerIteration,
        );
    });
    let blocks = held.iter().filter(|held| held.endpoint == 63).count() * 128;
    group.throughput(Throughput::Elements(blocks as u64));
    group.bench_function("reclaim one of 64", |bencher| {
        bencher.iter_batched_ref(
            || {
                let mut fleet = Fleet::holding(64, &held);
                let holder = fleet.holders.pop().expect("64 of them");
                fleet.chains.retire(holder);
                fleet
            },
            |fleet| while fleet.chains.reclaim(1_024) {},
            BatchSize::PerIteration,
        );
    });
    group.finish();
}

/// From token ids to an answer: 4,096 tokens, all of which are held.
fn matches(criterion: &mut Criterion) {
    let tokens: Vec<u32> = (0..4_096).collect();
    let root = RequestKey::root(&KeyScope {
        model: "model",
        adapter: None,
        cache_salt: None,
    });
    let mut keys = Vec::new();
    request_keys(root, &tokens, BLOCK_TOKENS, &mut keys);
    let mut group = criterion.benchmark_group("matches/4,096 tokens");
    for endpoints in FLEETS {
        let mut held = shared(endpoints);
        held.extend((0..endpoints).step_by(8).map(|endpoint| Held {
            endpoint,
            keys: keys.clone(),
        }));
        let fleet = Fleet::holding(endpoints, &held);
        let mut found = Found::default();
        let mut buffer = Vec::new();
        group.bench_function(BenchmarkId::from_parameter(endpoints), |bencher| {
            bencher.iter(|| {
                let tokens = black_box(tokens.as_slice());
                let mut keys = TokenKeys::new(root, tokens, BLOCK_TOKENS as u32, &mut buffer);
                fleet.chains.find(&mut keys, &mut found);
                black_box(&found);
            });
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2));
    targets = find, store, store_tokens, remove, clear, matches
}
criterion_main!(benches);
