//! Time to hash a prompt's blocks, for each algorithm of `--prefix-caching-hash-algo`.
//!
//! The prompt has 16,384 token ids of a vocabulary of 128k, in blocks of 16: what a long request costs before it is
//! queued.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use pointsman_engine::kv::{HashAlgorithm, HashRecipe};

const BLOCK_SIZE: u32 = 16;
const TOKENS: u32 = 16_384;

fn hash(criterion: &mut Criterion) {
    let tokens: Vec<u32> = (0..TOKENS)
        .map(|index| index.wrapping_mul(0x9e37_79b9) % 128_256)
        .collect();
    let mut group = criterion.benchmark_group("hash");
    group.throughput(Throughput::Elements(u64::from(TOKENS / BLOCK_SIZE)));
    for algorithm in HashAlgorithm::ALL {
        let recipe = HashRecipe::new(algorithm, "bench");
        let mut digests = Vec::with_capacity(tokens.len());
        group.bench_function(algorithm.name(), |bencher| {
            bencher.iter(|| {
                digests.clear();
                recipe.extend(&mut digests, &tokens, BLOCK_SIZE, None);
                digests.last().copied()
            });
        });
    }
    group.finish();
}

criterion_group!(benches, hash);
criterion_main!(benches);
