//! Norms, embedding, rotation, activation: what is done to rows, against f64.

use half::{bf16, f16};

use super::super::kernels::{NONE, RopeArguments};
use super::cpu_run::{Shape, arguments, launch};
use super::memory::{Array, Element, Random, assert_close, wide};

fn norm(row: &[f64], weight: &[f64], eps: f32) -> Vec<f64> {
    let mean = row.iter().map(|x| x * x).sum::<f64>() / row.len() as f64;
    let scale = 1.0 / (mean + f64::from(eps)).sqrt();
    row.iter()
        .zip(weight)
        .map(|(x, weight)| x * scale * weight)
        .collect()
}

fn shape(random: &mut Random, rows: usize, shared_bytes: usize) -> Shape {
    Shape {
        grid: [rows as u32, 1, 1],
        threads: 32 * random.between(1, 8) as u32,
        shared_bytes: shared_bytes as u32,
        order: random.next(),
    }
}

/// A table, and where each row's token is found: among those given, or among those sampled before.
struct Embedded<T> {
    width: usize,
    vocabulary: usize,
    table: Vec<T>,
    tokens: Vec<u32>,
    sources: Vec<u32>,
    /// One of them was not sampled.
    sampled: Vec<u32>,
}

impl<T: Element> Embedded<T> {
    fn new(random: &mut Random) -> Self {
        let (rows, width, vocabulary) = (
            random.between(1, 6),
            8 * random.between(1, 90),
            random.between(2, 40),
        );
        let token = |random: &mut Random| random.between(0, vocabulary - 1) as u32;
        let mut tokens = vec![NONE; rows];
        let mut sources = vec![NONE; rows];
        for (known, source) in tokens.iter_mut().zip(&mut sources) {
            if random.chance(50) {
                *known = token(random);
            } else {
                *source = random.between(0, 4) as u32;
            }
        }
        Self {
            width,
            vocabulary,
            table: random.values(vocabulary * width, 2.0),
            tokens,
            sources,
            sampled: (0..4).map(|_| token(random)).chain([NONE]).collect(),
        }
    }

    fn expected(&self, row: usize) -> Vec<f64> {
        let token = match self.sources[row] {
            NONE => self.tokens[row],
            source => self.sampled[source as usize],
        };
        let first = token as usize * self.width;
        let row = self.table.get(first..first + self.width);
        row.map_or(vec![0.0; self.width], wide)
    }
}

fn embed<T: Element>(random: &mut Random) {
    let embedded = Embedded::<T>::new(random);
    let (rows, width) = (embedded.tokens.len(), embedded.width);
    let weight = random.values::<T>(width, 1.0);
    let expected: Vec<Vec<f64>> = (0..rows).map(|row| embedded.expected(row)).collect();
    let norms = expected.iter().map(|row| norm(row, &wide(&weight), 1e-5));
    let normed: Vec<f64> = norms.flatten().collect();
    let all_known = embedded.sources.iter().all(|source| *source == NONE);
    let [tokens, sources, sampled] =
        [&embedded.tokens, &embedded.sources, &embedded.sampled].map(|words| Array::of(words));
    let (table, weight) = (Array::of(&embedded.table), Array::of(&weight));
    let [hidden_out, normed_out] = [0, 1].map(|_| Array::<T>::poisoned(rows * width));
    let sources_or_null = if all_known && random.chance(50) {
        0
    } else {
        sources.address()
    };
    launch(
        &format!("embed_norm_{}", T::NAME),
        shape(random, rows, width * 2),
        arguments![
            hidden_out.address(),
            normed_out.address(),
            tokens.address(),
            sources_or_null,
            sampled.address(),
            table.address(),
            weight.address(),
            width as u32,
            embedded.vocabulary as u32,
            1e-5_f32
        ],
    );
    assert_eq!(wide(hidden_out.values()), expected.concat());
    let found = wide(normed_out.values());
    assert_close(&found, &normed, 1.1 * T::EPSILON, 1e-7, "embed_norm");
}

/// A residual stream and what is added to it.
struct Sum<T> {
    width: usize,
    hidden: Array<T>,
    delta: Array<T>,
    weight: Array<T>,
    /// The sum as it is stored, and its rows' norms.
    stored: Vec<T>,
    norms: Vec<Vec<f64>>,
}

impl<T: Element> Sum<T> {
    fn new(random: &mut Random) -> Self {
        let (rows, width) = (random.between(1, 6), 8 * random.between(1, 90));
        let hidden = random.values::<T>(rows * width, 3.0);
        let delta = random.values::<T>(rows * width, 1.0);
        let weight = random.values::<T>(width, 1.0);
        let pairs = hidden.iter().zip(&delta);
        let sum: Vec<T> = pairs
            .map(|(x, y)| T::from_f64(x.to_f64() + y.to_f64()))
            .collect();
        let norms = sum
            .chunks(width)
            .map(|row| norm(&wide(row), &wide(&weight), 1e-6));
        Self {
            width,
            norms: norms.collect(),
            stored: sum,
            hidden: Array::of(&hidden),
            delta: Array::of(&delta),
            weight: Array::of(&weight),
        }
    }
}

fn gather<T: Element>(random: &mut Random, sum: &Sum<T>) {
    let (rows, width) = (sum.norms.len(), sum.width);
    let count = random.between(1, 2 * rows);
    let picked: Vec<u32> = (0..count)
        .map(|_| random.between(0, rows - 1) as u32)
        .collect();
    let (gathered, on_device) = (Array::<T>::poisoned(count * width), Array::of(&picked));
    let before = wide(sum.hidden.values());
    launch(
        &format!("gather_norm_{}", T::NAME),
        shape(random, count, width * 2),
        arguments![
            gathered.address(),
            sum.hidden.address(),
            sum.delta.address(),
            on_device.address(),
            sum.weight.address(),
            width as u32,
            1e-6_f32
        ],
    );
    let expected = picked
        .iter()
        .flat_map(|row| sum.norms[*row as usize].clone());
    let expected: Vec<f64> = expected.collect();
    let found = wide(gathered.values());
    assert_close(&found, &expected, 1.1 * T::EPSILON, 1e-7, "gather_norm");
    assert_eq!(
        wide(sum.hidden.values()),
        before,
        "gather_norm changes nothing"
    );
}

fn add<T: Element>(random: &mut Random) {
    let sum = Sum::<T>::new(random);
    gather(random, &sum);
    let (rows, width) = (sum.norms.len(), sum.width);
    let normed = Array::<T>::poisoned(rows * width);
    launch(
        &format!("add_norm_{}", T::NAME),
        shape(random, rows, width * 2),
        arguments![
            sum.hidden.address(),
            normed.address(),
            sum.delta.address(),
            sum.weight.address(),
            width as u32,
            1e-6_f32
        ],
    );
    assert_eq!(wide(sum.hidden.values()), wide(&sum.stored));
    let found = wide(normed.values());
    assert_close(
        &found,
        &sum.norms.concat(),
        1.1 * T::EPSILON,
        1e-7,
        "add_norm",
    );
}

fn silu<T: Element>(random: &mut Random) {
    let (rows, inner) = (random.between(1, 9), 8 * random.between(1, 60));
    let gate_up = random.values::<T>(rows * 2 * inner, 12.0);
    let expected: Vec<f64> = gate_up
        .chunks(2 * inner)
        .flat_map(|row| {
            let (gates, ups) = row.split_at(inner);
            let pairs = gates
                .iter()
                .zip(ups)
                .map(|(gate, up)| (gate.to_f64(), up.to_f64()));
            pairs
                .map(|(gate, up)| gate / (1.0 + (-gate).exp()) * up)
                .collect::<Vec<f64>>()
        })
        .collect();
    let (gate_up, out) = (Array::of(&gate_up), Array::<T>::poisoned(rows * inner));
    let blocks = random.between(1, 5);
    launch(
        &format!("silu_multiply_{}", T::NAME),
        shape(random, blocks, 0),
        arguments![out.address(), gate_up.address(), rows as u32, inner as u32],
    );
    // f16 has subnormal numbers in reach: 2^-25 is half of the smallest.
    assert_close(
        &wide(out.values()),
        &expected,
        1.1 * T::EPSILON,
        3e-8,
        "silu_multiply",
    );
}

/// What should become of one head of one token.
fn finished(
    head: &[f64],
    bias: Option<&[f64]>,
    norm_by: Option<&[f64]>,
    angles: &[f32],
    eps: f32,
) -> Vec<f64> {
    let mut x = head.to_vec();
    if let Some(bias) = bias {
        x.iter_mut().zip(bias).for_each(|(x, bias)| *x += bias);
    }
    if let Some(weight) = norm_by {
        x = norm(&x, weight, eps);
    }
    let half = angles.len() / 2;
    for (i, angle) in angles.chunks(2).enumerate() {
        let (cosine, sine) = (f64::from(angle[0]), f64::from(angle[1]));
        let (a, b) = (x[i], x[i + half]);
        (x[i], x[i + half]) = (a * cosine - b * sine, b * cosine + a * sine);
    }
    x
}

/// New tokens of a model, and the pages that they go to.
struct Tokens<T> {
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    rotated: usize,
    block_log2: u32,
    blocks: usize,
    qkv: Vec<T>,
    bias: Option<Vec<T>>,
    norms: Option<[Vec<T>; 2]>,
    angles: Vec<f32>,
    positions: Vec<u32>,
    slots: Vec<u32>,
}

impl<T: Element> Tokens<T> {
    fn new(random: &mut Random) -> Self {
        let head_dim = random.one_of(&[32, 64, 80, 96, 128, 256]);
        let kv_heads = random.between(1, 3);
        let heads = random.between(1, 4) * kv_heads;
        let part = 4 * random.between(1, head_dim / 4);
        let rotated = if random.chance(70) { head_dim } else { part };
        let (block_log2, blocks) = (random.between(0, 5) as u32, 4);
        // Different slots, in any order.
        let mut slots: Vec<u32> = (0..(blocks as u32) << block_log2).collect();
        let tokens = random.between(1, 5).min(slots.len());
        for i in 0..tokens {
            let other = random.between(i, slots.len() - 1);
            slots.swap(i, other);
        }
        slots.truncate(tokens);
        let width = (heads + 2 * kv_heads) * head_dim;
        Self {
            heads,
            kv_heads,
            head_dim,
            rotated,
            block_log2,
            blocks,
            qkv: random.values(tokens * width, 2.0),
            bias: random.chance(50).then(|| random.values(width, 1.0)),
            norms: random
                .chance(50)
                .then(|| [0, 1].map(|_| random.values(head_dim, 1.0))),
            angles: (0..9 * rotated).map(|_| random.unit() as f32).collect(),
            positions: (0..tokens).map(|_| random.between(0, 8) as u32).collect(),
            slots,
        }
    }

    fn width(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }

    /// Runs the kernel: queries, keys and values behind it, and the pages.
    fn run(&self, random: &mut Random) -> [Array<T>; 3] {
        let (qkv, slots) = (Array::of(&self.qkv), Array::of(&self.slots));
        let (angles, positions) = (Array::of(&self.angles), Array::of(&self.positions));
        let bias = self.bias.as_ref().map(|bias| Array::of(bias));
        let norms = self.norms.as_ref();
        let norms = norms.map(|norms| norms.each_ref().map(|norm| Array::of(norm)));
        let size = (self.blocks << self.block_log2) * self.kv_heads * self.head_dim;
        let [keys, values] = [0, 1].map(|_| Array::<T>::poisoned(size));
        let norm = |index: usize| norms.as_ref().map_or(0, |norms| norms[index].address());
        let a = RopeArguments {
            qkv: qkv.address(),
            bias: bias.as_ref().map_or(0, Array::address),
            q_norm: norm(0),
            k_norm: norm(1),
            angles: angles.address(),
            positions: positions.address(),
            slots: slots.address(),
            keys: keys.address(),
            values: values.address(),
            heads: self.heads as u32,
            kv_heads: self.kv_heads as u32,
            head_dim: self.head_dim as u32,
            rotated: self.rotated as u32,
            block_log2: self.block_log2,
            eps: 1e-6,
        };
        let name = format!("finish_qkv_{}", T::NAME);
        launch(&name, shape(random, self.slots.len(), 0), arguments![a]);
        [qkv, keys, values]
    }

    /// What should become of a head of a token.
    fn expected(&self, token: usize, head: usize) -> Vec<f64> {
        let at = head * self.head_dim..(head + 1) * self.head_dim;
        let is_value = head >= self.heads + self.kv_heads;
        let bias = self.bias.as_ref().map(|bias| wide(&bias[at.clone()]));
        let norms = self.norms.as_ref().filter(|_| !is_value);
        let norm = norms.map(|norms| wide(&norms[usize::from(head >= self.heads)]));
        let position = self.positions[token] as usize;
        let angles = &self.angles[position * self.rotated..(position + 1) * self.rotated];
        let angles = if is_value { &[] } else { angles };
        let row = &self.qkv[token * self.width()..(token + 1) * self.width()];
        finished(
            &wide(&row[at]),
            bias.as_deref(),
            norm.as_deref(),
            angles,
            1e-6,
        )
    }

    /// Where a token's key-value head lies in the pages.
    fn place(&self, token: usize, kv_head: usize) -> usize {
        let block = (self.slots[token] >> self.block_log2) as usize;
        let offset = self.slots[token] as usize & ((1 << self.block_log2) - 1);
        (((block * self.kv_heads + kv_head) << self.block_log2) + offset) * self.head_dim
    }
}

fn rope<T: Element>(random: &mut Random) {
    let tokens = Tokens::<T>::new(random);
    let [qkv, keys, values] = tokens.run(random);
    let tolerance = 1.1 * T::EPSILON;
    let mut pages = [&keys, &values].map(|pages| vec![None; pages.values().len()]);
    let rows = qkv.values().chunks(tokens.width());
    let before = tokens.qkv.chunks(tokens.width());
    for (token, (row, before)) in rows.zip(before).enumerate() {
        for (head, found) in row.chunks(tokens.head_dim).enumerate() {
            let expected = tokens.expected(token, head);
            if head < tokens.heads {
                assert_close(&wide(found), &expected, tolerance, 1e-6, "query");
                continue;
            }
            let before = &before[head * tokens.head_dim..][..tokens.head_dim];
            assert_eq!(
                wide(found),
                wide(before),
                "keys and values stay as they were"
            );
            let kv_head = head - tokens.heads;
            let first = tokens.place(token, kv_head % tokens.kv_heads);
            let page = &mut pages[kv_head / tokens.kv_heads][first..];
            page.iter_mut()
                .zip(expected)
                .for_each(|(at, expected)| *at = Some(expected));
        }
    }
    for (pages, expected) in [&keys, &values].into_iter().zip(&pages) {
        for (found, expected) in wide(pages.values()).iter().zip(expected) {
            match expected {
                Some(expected) => assert_close(&[*found], &[*expected], tolerance, 1e-6, "page"),
                None => assert!(found.is_nan(), "a slot of nobody was written"),
            }
        }
    }
}

#[test]
fn embeddings_and_their_norms() {
    let mut random = Random(1);
    for _ in 0..20 {
        embed::<bf16>(&mut random);
        embed::<f16>(&mut random);
    }
}

#[test]
fn sums_and_their_norms() {
    let mut random = Random(2);
    for _ in 0..20 {
        add::<bf16>(&mut random);
        add::<f16>(&mut random);
    }
}

#[test]
fn gated_activations() {
    let mut random = Random(3);
    for _ in 0..20 {
        silu::<bf16>(&mut random);
        silu::<f16>(&mut random);
    }
}

#[test]
fn queries_keys_and_values_are_made_ready_and_stored() {
    let mut random = Random(4);
    for _ in 0..40 {
        rope::<bf16>(&mut random);
        rope::<f16>(&mut random);
    }
}
