//! Prefill and decode attention over pages, against softmax in f64: ragged batches, cached prefixes, windows, groups.

use half::{bf16, f16};

use super::super::kernels::{
    ATTENTION_THREADS, AttentionArguments, DECODE_ROWS, HEAD_DIMS, PREFILL_ROWS, SPLITS_MAX,
    SequenceOfStep, attention_bytes,
};
use super::cpu_run::{Shape, arguments, launch};
use super::memory::{Array, Element, Random, assert_close, wide};

/// A batch over one layer's pages.
struct Batch<T> {
    head_dim: usize,
    kv_heads: usize,
    group: usize,
    window: usize,
    block_log2: u32,
    sequences: Vec<SequenceOfStep>,
    block_tables: Vec<u32>,
    queries: Array<T>,
    /// Of each sequence, [context, kv_heads, head_dim].
    contexts: Vec<[Vec<T>; 2]>,
    keys: Array<T>,
    values: Array<T>,
    tokens: usize,
}

impl<T: Element> Batch<T> {
    /// Sequences of these (new tokens, context) each, in blocks that lie anywhere. Memory that no context has is NaN.
    fn new(random: &mut Random, lengths: &[(usize, usize)], group: usize, window: usize) -> Self {
        let head_dim = random.one_of(&HEAD_DIMS) as usize;
        let (kv_heads, block_log2) = (random.between(1, 2), random.between(2, 5) as u32);
        let block_size = 1 << block_log2;
        let needed: usize = lengths
            .iter()
            .map(|(_, context)| context.div_ceil(block_size))
            .sum();
        let mut free: Vec<u32> = (0..needed as u32 + 3).collect();
        let tokens = lengths.iter().map(|(new, _)| new).sum();
        let width = (group + 2) * kv_heads * head_dim;
        let mut batch = Self {
            head_dim,
            kv_heads,
            group,
            window,
            block_log2,
            sequences: Vec::new(),
            block_tables: Vec::new(),
            queries: Array::of(&random.values::<T>(tokens * width, 4.0)),
            contexts: Vec::new(),
            keys: Array::poisoned((needed + 3) * block_size * kv_heads * head_dim),
            values: Array::poisoned((needed + 3) * block_size * kv_heads * head_dim),
            tokens,
        };
        let mut first_token = 0;
        for &(new_tokens, context) in lengths {
            let first_block = batch.block_tables.len();
            for _ in 0..context.div_ceil(block_size) {
                let taken = random.between(0, free.len() - 1);
                batch.block_tables.push(free.swap_remove(taken));
            }
            let contents = [0, 1].map(|_| random.values::<T>(context * kv_heads * head_dim, 1.0));
            batch.fill(first_block, &contents);
            batch.contexts.push(contents);
            batch.sequences.push(SequenceOfStep {
                first_token: first_token as u32,
                new_tokens: new_tokens as u32,
                context: context as u32,
                first_block: first_block as u32,
            });
            first_token += new_tokens;
        }
        batch
    }

    fn fill(&mut self, first_block: usize, contents: &[Vec<T>; 2]) {
        let (kv_heads, head_dim, block_size) = (self.kv_heads, self.head_dim, 1 << self.block_log2);
        for (pages, contents) in [&mut self.keys, &mut self.values].into_iter().zip(contents) {
            for (position, row) in contents.chunks(kv_heads * head_dim).enumerate() {
                let block = self.block_tables[first_block + position / block_size] as usize;
                for (head, values) in row.chunks(head_dim).enumerate() {
                    let place = (block * kv_heads + head) * block_size + position % block_size;
                    pages.values_mut()[place * head_dim..(place + 1) * head_dim]
                        .copy_from_slice(values);
                }
            }
        }
    }

    fn heads(&self) -> usize {
        self.group * self.kv_heads
    }

    fn query_stride(&self) -> usize {
        (self.group + 2) * self.kv_heads * self.head_dim
    }

    /// What one new token of a sequence should find: `[heads, head_dim]`.
    fn expected(&self, index: usize, token: usize) -> Vec<f64> {
        let sequence = &self.sequences[index];
        let position = (sequence.context - sequence.new_tokens) as usize + token;
        let first = if self.window > 0 {
            (position + 1).saturating_sub(self.window)
        } else {
            0
        };
        let row = (sequence.first_token as usize + token) * self.query_stride();
        let queries = wide(&self.queries.values()[row..row + self.heads() * self.head_dim]);
        let [keys, values] = self.contexts[index]
            .each_ref()
            .map(|contents| wide(contents));
        let of = |contents: &[f64], position: usize, head: usize| {
            let at = (position * self.kv_heads + head / self.group) * self.head_dim;
            contents[at..at + self.head_dim].to_vec()
        };
        let mut out = Vec::new();
        for (head, query) in queries.chunks(self.head_dim).enumerate() {
            let scores: Vec<f64> = (first..=position)
                .map(|seen| {
                    let key = of(&keys, seen, head);
                    query.iter().zip(&key).map(|(q, k)| q * k).sum::<f64>()
                        / (self.head_dim as f64).sqrt()
                })
                .collect();
            let best = scores.iter().copied().fold(f64::MIN, f64::max);
            let norm: f64 = scores.iter().map(|score| (score - best).exp()).sum();
            let mut sum = vec![0.0; self.head_dim];
            for (seen, score) in (first..=position).zip(&scores) {
                let value = of(&values, seen, head);
                let by = (score - best).exp() / norm;
                sum.iter_mut()
                    .zip(&value)
                    .for_each(|(sum, value)| *sum += by * value);
            }
            out.extend(sum);
        }
        out
    }

    /// Which sequences are decodes, and the tiles of the others.
    fn work(&self) -> (Vec<u32>, Vec<u32>) {
        let (mut tiles, mut decodes) = (Vec::new(), Vec::new());
        for (index, sequence) in self.sequences.iter().enumerate() {
            if sequence.new_tokens == 1 {
                decodes.push(index as u32);
                continue;
            }
            let rows = (0..sequence.new_tokens * self.group as u32).step_by(PREFILL_ROWS as usize);
            tiles.extend(rows.flat_map(|row| [index as u32, row]));
        }
        (decodes, tiles)
    }

    /// Runs the prompts through prefill and the rest through decode, and compares.
    fn check(&self, random: &mut Random) {
        let out = Array::<T>::poisoned(self.tokens * self.heads() * self.head_dim);
        let sequences = Array::of(&self.sequences);
        let tables = Array::of(&self.block_tables);
        let (decodes, tiles) = self.work();
        let partial = decodes.len() * self.heads() * SPLITS_MAX as usize;
        let sums = Array::<f32>::poisoned(partial * self.head_dim);
        let norms = Array::<f32>::poisoned(partial * 2);
        let a = AttentionArguments {
            queries: self.queries.address(),
            keys: self.keys.address(),
            values: self.values.address(),
            out: out.address(),
            partial_sums: sums.address(),
            partial_norms: norms.address(),
            sequences: sequences.address(),
            block_tables: tables.address(),
            work: 0,
            query_stride: self.query_stride() as u32,
            heads: self.heads() as u32,
            kv_heads: self.kv_heads as u32,
            block_log2: self.block_log2,
            window: self.window as u32,
            scale: (std::f64::consts::LOG2_E / (self.head_dim as f64).sqrt()) as f32,
        };
        self.run(random, a, (&decodes, &tiles));
        // Their guards.
        let _ = (sums.values(), norms.values());
        let sequences = self.sequences.iter().enumerate();
        let tokens = sequences.flat_map(|(index, sequence)| {
            (0..sequence.new_tokens as usize).map(move |token| (index, token))
        });
        let expected: Vec<f64> = tokens
            .flat_map(|(index, token)| self.expected(index, token))
            .collect();
        let (found, what) = (wide(out.values()), self.name("attention"));
        assert_close(&found, &expected, 1.1 * T::EPSILON, T::EPSILON, &what);
    }

    fn name(&self, kernel: &str) -> String {
        format!("{kernel}_{}_{}", T::NAME, self.head_dim)
    }

    fn run(
        &self,
        random: &mut Random,
        a: AttentionArguments,
        (decodes, tiles): (&Vec<u32>, &Vec<u32>),
    ) {
        let mut shape = Shape {
            grid: [tiles.len() as u32 / 2, self.kv_heads as u32, 1],
            threads: ATTENTION_THREADS,
            shared_bytes: attention_bytes(self.head_dim as u32),
            order: random.next(),
        };
        let on_device = [tiles, decodes].map(|words| Array::of(words));
        let [tiles, decodes_at] = on_device.each_ref().map(Array::address);
        let of_tiles = AttentionArguments { work: tiles, ..a };
        launch(&self.name("prefill"), shape, arguments![of_tiles]);
        let a = AttentionArguments {
            work: decodes_at,
            ..a
        };
        let parts = self.group.div_ceil(DECODE_ROWS as usize);
        let count = decodes.len() as u32;
        shape.grid = [SPLITS_MAX, (self.kv_heads * parts) as u32, count];
        launch(&self.name("decode"), shape, arguments![a]);
        shape.grid = [self.heads() as u32, count, 1];
        shape.threads = self.head_dim as u32;
        launch(&self.name("combine"), shape, arguments![a]);
    }
}

fn check<T: Element>(random: &mut Random, lengths: &[(usize, usize)], group: usize, window: usize) {
    Batch::<T>::new(random, lengths, group, window).check(random);
}

#[test]
fn ragged_batches_of_prompts_and_decodes() {
    let mut random = Random(5);
    for round in 0..10 {
        let lengths: Vec<(usize, usize)> = (0..random.between(1, 4))
            .map(|_| {
                let new = if random.chance(50) {
                    1
                } else {
                    random.between(2, 50)
                };
                (
                    new,
                    new + if random.chance(30) {
                        0
                    } else {
                        random.between(0, 150)
                    },
                )
            })
            .collect();
        let group = random.one_of(&[1, 2, 3, 4, 7, 8]);
        let window = if random.chance(60) {
            0
        } else {
            random.between(1, 90)
        };
        match round % 2 {
            0 => check::<bf16>(&mut random, &lengths, group, window),
            _ => check::<f16>(&mut random, &lengths, group, window),
        }
    }
}

#[test]
fn contexts_around_the_ends_of_tiles_and_splits() {
    let mut random = Random(6);
    // One split, then more of them; as many as there are, and several tiles in each.
    for context in [1, 2, 63, 64, 65, 128, 1_023, 1_024, 1_025, 1_100] {
        check::<bf16>(&mut random, &[(1, context)], 4, 0);
    }
    for new in [16, 17, 63, 64, 65] {
        check::<f16>(&mut random, &[(new, new + 64)], 1, 0);
    }
}

#[test]
fn windows_shorter_than_a_tile_and_longer_than_the_context() {
    let mut random = Random(7);
    for (window, context) in [(1, 70), (5, 200), (64, 128), (65, 300), (1_000, 100)] {
        check::<bf16>(&mut random, &[(1, context), (20, context)], 2, window);
    }
}

#[test]
fn more_query_heads_than_share_a_block() {
    let mut random = Random(8);
    for group in [16, 17, 35] {
        check::<bf16>(&mut random, &[(1, 90), (3, 5)], group, 0);
    }
}
