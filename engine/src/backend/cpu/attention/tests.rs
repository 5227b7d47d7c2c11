//! Attention by itself, over contexts of several splits, against its definition in f64.

use half::bf16;

use super::super::kv_memory::KvGeometry;
use super::*;
use crate::backend::{KvLayout, StepSequence};

const HEADS: usize = 6;
const KV_HEADS: usize = 2;
const HEAD_DIM: usize = 20;
const STRIDE: usize = HEADS * HEAD_DIM + 3;

/// Values without a pattern, between -1 and 1.
fn noise(index: usize, seed: u32) -> f32 {
    let hash = (index as u32 ^ seed.wrapping_mul(0x85eb_ca6b)).wrapping_mul(0x9e37_79b9);
    (hash.rotate_left(11).wrapping_mul(0xc2b2_ae35) >> 8) as f32 / (1 << 23) as f32 - 1.0
}

fn vector(position: usize, head: usize, seed: u32) -> Vec<f32> {
    let first = (position * 16 + head) * HEAD_DIM;
    (first..first + HEAD_DIM).map(|i| noise(i, seed)).collect()
}

/// A pool that holds one context, in blocks that are not in order, and NaN everywhere else.
struct Context {
    kv: KvMemory,
    block_size: usize,
    table: Vec<u32>,
}

impl Context {
    fn new(element: KvElement, block_size: usize, length: usize) -> Self {
        let blocks = length.div_ceil(block_size);
        let pool = (blocks + 1).next_power_of_two();
        let table: Vec<u32> = (1..=blocks).map(|i| (i * 5 % pool) as u32).collect();
        let mut kv = KvMemory::new(KvGeometry::of(element, 1, KV_HEADS, HEAD_DIM));
        kv.allocate(KvLayout {
            block_size: block_size as u32,
            blocks: pool as u32,
            host_blocks: 0,
        })
        .unwrap();
        kv.poison();
        for position in 0..length {
            let block = table[position / block_size] as usize;
            let slot = (block * block_size + position % block_size) as u32;
            for head in 0..KV_HEADS {
                let (key, value) = (vector(position, head, 1), vector(position, head, 2));
                kv.write(0, slot, head, &key, &value);
            }
        }
        Self {
            kv,
            block_size,
            table,
        }
    }

    /// The last `tokens` of a context of `length`.
    fn attend(
        &self,
        threads: (&Team, Isa),
        tokens: usize,
        length: usize,
        window: Option<usize>,
    ) -> Vec<f32> {
        self.attend_all(threads, &[(tokens, length)], window)
    }

    /// The same for several sequences in one step, which share their blocks.
    fn attend_all(
        &self,
        (team, isa): (&Team, Isa),
        sequences: &[(usize, usize)],
        window: Option<usize>,
    ) -> Vec<f32> {
        let mut step = Step::default();
        let mut queries = Vec::new();
        for &(tokens, length) in sequences {
            let (first, table) = (queries.len() / STRIDE, step.block_tables.len() as u32);
            let blocks = length.div_ceil(self.block_size);
            step.block_tables.extend(&self.table[..blocks]);
            step.sequences.push(StepSequence {
                tokens: first as u32..(first + tokens) as u32,
                context_len: length as u32,
                block_table: table..step.block_tables.len() as u32,
                sample: None,
                embed: false,
            });
            for position in length - tokens..length {
                let heads = (0..HEADS).flat_map(|head| vector(position, head, 3));
                queries.extend(heads.chain([f32::NAN; STRIDE - HEADS * HEAD_DIM]));
            }
        }
        let tokens = queries.len() / STRIDE;
        let attention = Attention {
            isa,
            step: &step,
            kv: &self.kv,
            layer: 0,
            queries: &queries,
            query_stride: STRIDE,
            heads: HEADS,
            kv_heads: KV_HEADS,
            head_dim: HEAD_DIM,
            window,
        };
        let mut tiles = Tiles::default();
        tiles.cut(&step);
        let mut out = vec![f32::NAN; tokens * HEADS * HEAD_DIM];
        attention.compute(team, &tiles, &mut out);
        out
    }
}

/// What the token at `position` attends to, by definition, over keys and values as they are kept.
fn definition(element: KvElement, position: usize, window: Option<usize>) -> Vec<f64> {
    let first = window.map_or(0, |window| (position + 1).saturating_sub(window));
    let kept = move |value: f32, seed| match element {
        KvElement::Bf16 if seed < 3 => bf16::from_f32(value).to_f64(),
        _ => f64::from(value),
    };
    let wide = move |position, head, seed| {
        let values = vector(position, head, seed).into_iter();
        values.map(move |value| kept(value, seed))
    };
    let heads = (0..HEADS).flat_map(|head| {
        let kv_head = head / (HEADS / KV_HEADS);
        let weight = |at| {
            let products = wide(position, head, 3).zip(wide(at, kv_head, 1));
            products.map(|(q, k)| q * k).sum::<f64>().exp()
        };
        let weights: Vec<f64> = (first..=position).map(weight).collect();
        let sum: f64 = weights.iter().sum();
        let mut out = vec![0.0; HEAD_DIM];
        for (weight, at) in weights.iter().zip(first..) {
            for (out, value) in out.iter_mut().zip(wide(at, kv_head, 2)) {
                *out += weight / sum * value;
            }
        }
        out
    });
    heads.collect()
}

#[test]
fn contexts_of_several_splits_match_the_definition() {
    let team = Team::new(2).unwrap();
    for (block_size, length, tokens, window) in [
        (16, 700, 1, None),
        (16, 700, 70, None),
        (7, 530, 3, None),
        (48, 600, 40, Some(300)),
        (16, 520, 260, Some(5)),
        (600, 650, 2, None),
    ] {
        for (element, isa) in kinds() {
            let context = Context::new(element, block_size, length);
            let out = context.attend((&team, isa), tokens, length, window);
            let rows = out.chunks(HEADS * HEAD_DIM);
            for (row, position) in rows.zip(length - tokens..length) {
                let expected = definition(element, position, window);
                for (got, expected) in row.iter().zip(expected) {
                    let error = (f64::from(*got) - expected).abs();
                    assert!(
                        error < 1e-5,
                        "{isa:?} {element:?} {block_size} {position}: {got} {expected}"
                    );
                }
            }
        }
    }
}

/// Every type of keys and values, with every instruction set.
fn kinds() -> impl Iterator<Item = (KvElement, Isa)> {
    let elements = [KvElement::F32, KvElement::Bf16].into_iter();
    elements.flat_map(|element| Isa::all().into_iter().map(move |isa| (element, isa)))
}

#[test]
fn a_token_has_the_same_bits_in_any_chunk_and_on_any_threads() {
    let (alone, together) = (Team::new(1).unwrap(), Team::new(3).unwrap());
    for (block_size, window) in [(16, None), (5, None), (16, Some(270))] {
        let length = 600;
        for (element, isa) in kinds() {
            let context = Context::new(element, block_size, length);
            let whole = context.attend((&alone, isa), length, length, window);
            assert_eq!(
                whole,
                context.attend((&together, isa), length, length, window)
            );
            for (tokens, length) in [(1, 600), (1, 257), (2, 513), (33, 550), (100, 600)] {
                let width = HEADS * HEAD_DIM;
                let expected = &whole[(length - tokens) * width..length * width];
                for team in [&alone, &together] {
                    let out = context.attend((team, isa), tokens, length, window);
                    assert_eq!(
                        out, expected,
                        "{isa:?} {element:?} {block_size} {tokens} {length}"
                    );
                }
            }
        }
    }
}

#[test]
fn a_long_context_beside_short_ones_has_the_bits_that_it_has_alone() {
    let (alone, together) = (Team::new(1).unwrap(), Team::new(3).unwrap());
    let sequences = [(1, 40), (20, 900), (1, 300), (3, 20), (1, 880)];
    for (element, isa) in kinds() {
        let context = Context::new(element, 16, 900);
        let each = sequences
            .iter()
            .flat_map(|(tokens, length)| context.attend((&alone, isa), *tokens, *length, None));
        let each: Vec<f32> = each.collect();
        for team in [&alone, &together] {
            let all = context.attend_all((team, isa), &sequences, None);
            assert_eq!(all, each, "{isa:?} {element:?}");
        }
    }
}
