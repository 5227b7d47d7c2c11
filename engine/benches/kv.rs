//! Time of the block pool for one request's whole life, at 100,000 blocks and a full cache.
//!
//! A request has 128 blocks, of which the first 64 are one of 256 prefixes that stay in use, and the rest is new. Its
//! life is lookup, admission (which evicts 64 blocks), commit and release. Digests are counters: hashing has a
//! benchmark of its own. The throughput is in blocks.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use pointsman_engine::kv::{BlockPool, Run};

const BLOCKS: u32 = 100_000;
const BLOCK_SIZE: u32 = 16;
const PREFIXES: u64 = 256;
const SHARED: u64 = 64;
const LENGTH: usize = 128;

struct Load {
    pool: BlockPool,
    tokens: Vec<u32>,
    digests: Vec<[u8; 32]>,
    hits: Vec<pointsman_engine::kv::Hit>,
    table: Vec<pointsman_engine::kv::BlockId>,
    requests: u64,
}

impl Load {
    fn new(events: bool, host_blocks: u32) -> Self {
        let mut load = Self {
            pool: BlockPool::new(BLOCKS, BLOCK_SIZE, events).with_host(host_blocks),
            tokens: (0..LENGTH as u32 * BLOCK_SIZE).collect(),
            digests: Vec::new(),
            hits: Vec::new(),
            table: Vec::new(),
            requests: 0,
        };
        // Until every block holds something.
        for _ in 0..2 * BLOCKS as usize / LENGTH + 2 * PREFIXES as usize {
            load.request();
        }
        load
    }

    /// One request's life; how many of its blocks were found.
    fn request(&mut self) -> usize {
        self.requests += 1;
        let prefix = self.requests.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32 & (PREFIXES - 1);
        let shared = (0..SHARED).map(|block| digest(prefix, block));
        let own = (SHARED..LENGTH as u64).map(|block| digest(self.requests << 16, block));
        self.digests.clear();
        self.digests.extend(shared.chain(own));
        self.hits.clear();
        self.pool.lookup(&self.digests, &mut self.hits);
        assert!(self.pool.admit(&self.hits, LENGTH, &mut self.table));
        self.pool.take_transfers(drop);
        self.pool.transferred();
        let run = Run {
            digests: &self.digests,
            tokens: &self.tokens,
            first: self.hits.len(),
            cache_salt: None,
        };
        self.pool.commit(&run, &mut self.table);
        self.pool.release(&mut self.table);
        drop(self.pool.take_events());
        self.hits.len()
    }
}

/// Spread like a hash, so that the map has no easier work than it really has.
fn digest(owner: u64, block: u64) -> [u8; 32] {
    let mut digest = [0; 32];
    let mut state = owner.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ block;
    for bytes in digest.chunks_exact_mut(8) {
        state = (state ^ state >> 31).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bytes.copy_from_slice(&state.to_be_bytes());
    }
    digest
}

fn kv(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("kv");
    group.throughput(Throughput::Elements(LENGTH as u64));
    for (name, events, host_blocks) in [
        ("one tier", false, 0),
        ("one tier, events", true, 0),
        ("two tiers, events", true, BLOCKS),
    ] {
        let mut load = Load::new(events, host_blocks);
        group.bench_function(name, |bencher| bencher.iter(|| load.request()));
    }
    group.finish();
}

criterion_group!(benches, kv);
criterion_main!(benches);
