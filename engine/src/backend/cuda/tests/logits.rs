//! Changes of logits, draws and log probabilities, against the CPU's sampler.

use std::ops::Range;

use super::super::kernels::{
    ChangesArguments, DrawArguments, LogprobArguments, NONE, ROW_THREADS, RowChanges, RowDraw,
    RowLogprobs,
};
use super::cpu_run::{Shape, arguments, launch};
use super::memory::{Array, Random};
use crate::backend::{SampleSpec, Sampled};
use crate::sample::{History, Sampler, TokenLogprob};

/// What is where a kernel should write.
const UNWRITTEN: u32 = 7_777_777;

/// A batch of rows and what is asked of each.
#[derive(Default)]
struct Batch {
    vocabulary: usize,
    rows: Vec<Vec<f32>>,
    specs: Vec<SampleSpec>,
    history: Vec<u32>,
    banned: Vec<u32>,
    biases: Vec<(u32, f32)>,
    allowed: Vec<u32>,
    asked: Vec<u32>,
}

fn tokens(random: &mut Random, all: &mut Vec<u32>, vocabulary: usize, most: usize) -> Range<u32> {
    let first = all.len() as u32;
    if random.chance(40) {
        let count = random.between(1, most);
        // Some of a larger vocabulary than the row has.
        all.extend((0..count).map(|_| random.between(0, vocabulary + 1) as u32));
    }
    first..all.len() as u32
}

fn row(random: &mut Random, vocabulary: usize) -> Vec<f32> {
    let (spread, steps) = (random.one_of(&[1.0, 6.0, 15.0]), random.chance(30));
    let logit = |random: &mut Random| match random.between(0, 40) {
        0 => f32::NAN,
        1 => f32::NEG_INFINITY,
        2 => f32::INFINITY,
        // Equal ones. The CPU lists 0 before -0, which no model tells apart.
        _ if steps => (random.unit() * spread).round() as f32 + 0.0,
        _ => (random.unit() * spread) as f32,
    };
    (0..vocabulary).map(|_| logit(random)).collect()
}

fn spec(random: &mut Random, batch: &mut Batch) -> SampleSpec {
    let vocabulary = batch.vocabulary;
    let prompt = tokens(random, &mut batch.history, vocabulary, 30);
    let output = tokens(random, &mut batch.history, vocabulary, 30);
    let off = |random: &mut Random, value: f64, neutral: f32| {
        if random.chance(50) {
            neutral
        } else {
            value as f32
        }
    };
    let (unit, wide) = (random.unit(), random.unit());
    SampleSpec {
        temperature: off(
            random,
            0.05 + 2.0 * unit.abs(),
            if unit > 0.0 { 0.0 } else { 1.0 },
        ),
        top_p: off(random, wide.abs(), 1.0),
        top_k: if random.chance(50) {
            0
        } else {
            random.between(1, vocabulary + 2) as u32
        },
        min_p: off(random, unit.abs() * 0.3, 0.0),
        repetition_penalty: off(random, 1.0 + wide * 0.5, 1.0),
        presence_penalty: off(random, unit, 0.0),
        frequency_penalty: off(random, wide, 0.0),
        seed: random.next(),
        position: random.between(0, 9) as u32,
        logprobs: random.chance(50).then(|| random.between(0, 30) as u32),
        prompt,
        output,
        banned: tokens(random, &mut batch.banned, vocabulary, 8),
        biases: {
            let first = batch.biases.len() as u32;
            if random.chance(30) {
                // The same token twice now and then.
                let of = |random: &mut Random| {
                    (
                        random.between(0, vocabulary) as u32,
                        (random.unit() * 20.0) as f32,
                    )
                };
                batch.biases.extend(
                    (0..random.between(1, 9))
                        .map(|_| of(random))
                        .collect::<Vec<_>>(),
                );
            }
            first..batch.biases.len() as u32
        },
        allowed: tokens(random, &mut batch.allowed, vocabulary, vocabulary),
        asked: tokens(random, &mut batch.asked, vocabulary, 5),
    }
}

impl Batch {
    fn new(random: &mut Random, rows: usize, vocabulary: usize) -> Self {
        let mut batch = Self {
            vocabulary,
            ..Self::default()
        };
        for _ in 0..rows {
            batch.rows.push(row(random, vocabulary));
            let spec = spec(random, &mut batch);
            batch.specs.push(spec);
        }
        batch
    }

    fn stride(&self) -> usize {
        self.vocabulary.next_multiple_of(4)
    }

    /// What the CPU's sampler makes of it.
    fn expected(&self) -> Vec<Sampled> {
        let mut sampler = Sampler::default();
        let of = |range: &Range<u32>| range.start as usize..range.end as usize;
        let rows = self.rows.iter().zip(&self.specs);
        rows.map(|(row, spec)| {
            let history = History {
                prompt: &self.history[of(&spec.prompt)],
                output: &self.history[of(&spec.output)],
                banned: &self.banned[of(&spec.banned)],
                biases: &self.biases[of(&spec.biases)],
                allowed: &self.allowed[of(&spec.allowed)],
                asked: &self.asked[of(&spec.asked)],
            };
            sampler.sample(spec, history, &mut row.clone())
        })
        .collect()
    }

    /// The rows as the kernels have them, with NaN between.
    fn logits(&self) -> Array<f32> {
        let mut logits = Array::poisoned(self.rows.len() * self.stride());
        for (to, row) in logits
            .values_mut()
            .chunks_mut(self.stride())
            .zip(&self.rows)
        {
            to[..self.vocabulary].copy_from_slice(row);
        }
        logits
    }

    fn changes(&self) -> (Vec<RowChanges>, Vec<u32>) {
        let words = self.vocabulary.div_ceil(32);
        let mut masks = Vec::new();
        let changes = self.specs.iter().enumerate().map(|(row, spec)| {
            let mask = (!spec.allowed.is_empty()).then(|| {
                let first = masks.len();
                masks.resize(first + words, 0);
                for &token in &self.allowed[spec.allowed.start as usize..spec.allowed.end as usize]
                {
                    if (token as usize) < self.vocabulary {
                        masks[first + token as usize / 32] |= 1 << (token % 32);
                    }
                }
                (first / words) as u32
            });
            RowChanges {
                row: row as u32,
                keep: row as u32,
                mask: mask.unwrap_or(NONE),
                banned_first: spec.banned.start,
                banned_count: spec.banned.len() as u32,
                biases_first: spec.biases.start,
                biases_count: spec.biases.len() as u32,
                prompt_first: spec.prompt.start,
                prompt_count: spec.prompt.len() as u32,
                output_first: spec.output.start,
                output_count: spec.output.len() as u32,
                repetition: spec.repetition_penalty,
                frequency: spec.frequency_penalty,
                presence: spec.presence_penalty,
            }
        });
        (changes.collect(), masks)
    }

    /// Runs the three kernels one after the other.
    fn run(&self, random: &mut Random) -> Vec<Sampled> {
        let (logits, raw) = (
            self.logits(),
            Array::poisoned(self.rows.len() * self.stride()),
        );
        self.change(random, &logits, &raw);
        let sampled = self.draw(random, &logits);
        self.logprobs(random, &raw, &sampled)
    }

    fn change(&self, random: &mut Random, logits: &Array<f32>, raw: &Array<f32>) {
        let (changes, masks) = self.changes();
        let pairs = self
            .biases
            .iter()
            .flat_map(|(token, bias)| [*token, bias.to_bits()]);
        let biases: Vec<u32> = pairs.collect();
        let (changes, masks, biases) = (Array::of(&changes), Array::of(&masks), Array::of(&biases));
        let (banned, history) = (Array::of(&self.banned), Array::of(&self.history));
        let blocks = random.between(1, 3);
        let counts = Array::of(&vec![0_u32; blocks * self.vocabulary]);
        let a = ChangesArguments {
            logits: logits.address(),
            raw: raw.address(),
            changes: changes.address(),
            masks: masks.address(),
            banned: banned.address(),
            biases: biases.address(),
            history: history.address(),
            counts: counts.address(),
            changes_count: self.rows.len() as u32,
            vocabulary: self.vocabulary as u32,
            stride: self.stride() as u32,
        };
        launch("change_logits", shape(random, blocks), arguments![a]);
        let zeros = counts.values().iter().all(|count| *count == 0);
        assert!(zeros, "counts are zeros again");
    }

    /// The tokens, in the reverse order of their rows.
    fn draw(&self, random: &mut Random, logits: &Array<f32>) -> Array<u32> {
        let rows = self.rows.len();
        let draws = self.specs.iter().enumerate();
        let draws: Vec<RowDraw> = draws.map(|(row, spec)| draw(row, spec, rows)).collect();
        let (draws, sampled) = (Array::of(&draws), Array::of(&vec![UNWRITTEN; rows]));
        let a = DrawArguments {
            logits: logits.address(),
            draws: draws.address(),
            sampled: sampled.address(),
            vocabulary: self.vocabulary as u32,
            stride: self.stride() as u32,
        };
        launch("sample", shape(random, rows), arguments![a]);
        sampled
    }

    fn logprobs(
        &self,
        random: &mut Random,
        raw: &Array<f32>,
        sampled: &Array<u32>,
    ) -> Vec<Sampled> {
        let (wanted, count) = self.wanted();
        let listed = Array::of(&vec![UNWRITTEN; 2 * count]);
        let chosen = Array::<u32>::poisoned(2 * wanted.len());
        let (on_device, asked) = (Array::of(&wanted), Array::of(&self.asked));
        let a = LogprobArguments {
            logits: raw.address(),
            wanted: on_device.address(),
            sampled: sampled.address(),
            asked: asked.address(),
            chosen: chosen.address(),
            listed: listed.address(),
            vocabulary: self.vocabulary as u32,
            stride: self.stride() as u32,
        };
        launch("logprobs", shape(random, wanted.len()), arguments![a]);
        let tokens = sampled.values().iter().rev();
        let mut answers: Vec<Sampled> = tokens
            .map(|token| Sampled {
                token: Some(*token).filter(|token| *token != NONE),
                logprob: None,
            })
            .collect();
        for (wanted, chosen) in wanted.iter().zip(chosen.values().chunks(2)) {
            let pairs = listed.values()[2 * wanted.listed as usize..].chunks(2);
            let top = pairs.take(wanted.entries() as usize);
            let top = top.map(|pair| (pair[0], f32::from_bits(pair[1])));
            let logprob = TokenLogprob {
                logprob: f32::from_bits(chosen[0]),
                rank: chosen[1],
                top: top.filter(|pair| pair.0 != NONE).collect(),
            };
            let answer = &mut answers[wanted.row as usize];
            answer.logprob = answer.token.map(|_| logprob);
        }
        answers
    }

    fn wanted(&self) -> (Vec<RowLogprobs>, usize) {
        let mut listed = 0;
        let wanted = self.specs.iter().enumerate().filter_map(|(row, spec)| {
            let wanted = RowLogprobs {
                row: row as u32,
                token: NONE,
                sampled: (self.rows.len() - 1 - row) as u32,
                top: spec.logprobs?,
                asked_first: spec.asked.start,
                asked_count: spec.asked.len() as u32,
                listed,
            };
            listed += if wanted.asked_count > 0 {
                wanted.asked_count
            } else {
                wanted.top
            };
            Some(wanted)
        });
        (wanted.collect(), listed as usize)
    }
}

fn shape(random: &mut Random, blocks: usize) -> Shape {
    Shape {
        grid: [blocks as u32, 1, 1],
        threads: ROW_THREADS,
        shared_bytes: 0,
        order: random.next(),
    }
}

/// Tokens go to the places in reverse, to see that they go where they are told.
fn draw(row: usize, spec: &SampleSpec, rows: usize) -> RowDraw {
    RowDraw {
        row: row as u32,
        out: (rows - 1 - row) as u32,
        temperature: spec.temperature,
        top_p: spec.top_p,
        min_p: spec.min_p,
        top_k: spec.top_k,
        seed_low: spec.seed as u32,
        seed_high: (spec.seed >> 32) as u32,
        position: spec.position,
    }
}

/// Rows where f32 sums in another order fall on the other side of a limit are few, and are counted.
fn check(random: &mut Random, rows: usize, vocabulary: usize) -> usize {
    let batch = Batch::new(random, rows, vocabulary);
    let (found, expected) = (batch.run(random), batch.expected());
    let mut others = 0;
    for ((found, expected), spec) in found.iter().zip(&expected).zip(&batch.specs) {
        if found.token != expected.token {
            assert!(
                spec.top_p < 1.0,
                "{found:?} is not {expected:?} for {spec:?}"
            );
            others += 1;
            continue;
        }
        assert_eq!(found.logprob.is_some(), expected.logprob.is_some());
        if let (Some(found), Some(expected)) = (&found.logprob, &expected.logprob) {
            same_logprob(found, expected);
        }
    }
    others
}

fn same_logprob(found: &TokenLogprob, expected: &TokenLogprob) {
    let close = |a: f32, b: f32| a == b || (a - b).abs() < 1e-5;
    assert_eq!(found.rank, expected.rank);
    assert!(
        close(found.logprob, expected.logprob),
        "{found:?} {expected:?}"
    );
    assert_eq!(
        found.top.len(),
        expected.top.len(),
        "{found:?} {expected:?}"
    );
    for (found, expected) in found.top.iter().zip(&expected.top) {
        assert!(
            found.0 == expected.0 && close(found.1, expected.1),
            "{found:?} {expected:?}"
        );
    }
}

#[test]
fn any_request_gets_the_cpus_token_and_log_probabilities() {
    let mut random = Random(12);
    let (mut rows, mut others) = (0, 0);
    for _ in 0..24 {
        let (count, vocabulary) = (random.between(1, 12), random.between(1, 700));
        others += check(&mut random, count, vocabulary);
        rows += count;
    }
    assert!(
        others * 50 <= rows,
        "{others} of {rows} rows have another token"
    );
}

#[test]
fn vocabularies_larger_than_a_block_of_threads_looks_at_once() {
    let mut random = Random(13);
    for vocabulary in [4_095, 4_096, 4_097, 20_000] {
        assert!(check(&mut random, 5, vocabulary) <= 1);
    }
}

#[test]
fn of_equal_tokens_top_p_keeps_the_first() {
    // Ten of the same: 0.25 of the sum is reached by the third.
    let mut random = Random(14);
    let mut batch = Batch {
        vocabulary: 10,
        ..Batch::default()
    };
    for seed in 0..24 {
        batch.rows.push(vec![0.5; 10]);
        batch.specs.push(SampleSpec {
            temperature: 1.0,
            top_p: 0.25,
            seed,
            ..SampleSpec::greedy()
        });
    }
    let (found, expected) = (batch.run(&mut random), batch.expected());
    assert_eq!(found, expected);
    assert!((0..3).all(|token| found.iter().any(|sampled| sampled.token == Some(token))));
}

#[test]
fn small_vocabularies_are_penalised_as_by_the_cpu() {
    let mut random = Random(15);
    for vocabulary in [3, 6, 12] {
        assert!(check(&mut random, 24, vocabulary) <= 1);
    }
}
