//! The backend against a forward pass written from the model's definition in f64, without cache, batch or tiles.

mod allocation;
mod fp8;
mod logits;
mod naive;
mod parallel;
mod tier;

use proptest::prelude::*;
use tempfile::TempDir;

use self::naive::{Kind, Shape};
use super::packing::Storage;
use super::*;
use crate::backend::{SampleSpec, StepSequence};

/// Largest difference between a logit here and in f64. Logits of the random models are of the order of 1.
const LOGIT_TOLERANCE: f64 = 2e-4;

/// A sequence as a scheduler would run it.
struct Sequence {
    tokens: Vec<u32>,
    computed: usize,
    table: Vec<u32>,
}

/// A backend, and the model it was made from.
struct Rig {
    _folder: TempDir,
    model: Model,
    backend: CpuBackend,
    block_size: u32,
}

impl Rig {
    fn new(shape: &Shape, threads: usize, block_size: u32) -> Self {
        Self::with(shape, threads, block_size)
    }

    fn with(shape: &Shape, options: impl Into<CpuOptions>, block_size: u32) -> Self {
        let folder = tempfile::tempdir().unwrap();
        naive::write_model(folder.path(), shape);
        let model = Model::open(folder.path()).unwrap();
        let mut backend = CpuBackend::new(&model, options).unwrap();
        backend
            .allocate(&KvLayout {
                host_blocks: 0,
                block_size,
                blocks: 64,
            })
            .unwrap();
        backend.kv.poison();
        Self {
            _folder: folder,
            model,
            backend,
            block_size,
        }
    }

    /// Sequences whose blocks are dealt out of order from all over the pool.
    fn sequences(&self, lengths: &[usize], seed: u32) -> Vec<Sequence> {
        let mut free: Vec<u32> = (1..64).collect();
        free.sort_by_key(|block| (block ^ seed).wrapping_mul(0x9e37_79b9));
        let vocab = self.model.config.vocab_size as u32;
        let sequences = lengths.iter().enumerate().map(|(index, length)| {
            let token = |i: usize| ((i * 31 + index * 17) as u32 ^ seed) % vocab;
            let blocks = length.div_ceil(self.block_size as usize);
            Sequence {
                tokens: (0..*length).map(token).collect(),
                computed: 0,
                table: free.drain(..blocks).collect(),
            }
        });
        sequences.collect()
    }

    /// Computes the next `counts[i]` tokens of each sequence in one step; the logits behind the last of each.
    fn step(&mut self, sequences: &mut [Sequence], counts: &[usize]) -> Vec<Vec<f32>> {
        let step = step(sequences, counts, self.block_size);
        let mut out = StepOutput::default();
        self.backend.forward(&step, &mut out).unwrap();
        let vocab = self.model.config.vocab_size;
        assert_eq!(out.sampled.len(), step.samples.len());
        out.sampled
            .iter()
            .map(|sampled| logits(sampled, vocab))
            .collect()
    }
}

/// A step that computes the next `counts[i]` tokens of each sequence and asks for all log probabilities.
fn step(sequences: &mut [Sequence], counts: &[usize], block_size: u32) -> Step {
    let mut step = Step::default();
    for (sequence, &count) in sequences.iter_mut().zip(counts) {
        if count == 0 {
            continue;
        }
        let new = sequence.computed..sequence.computed + count;
        let (first, table) = (step.tokens.len() as u32, step.block_tables.len() as u32);
        step.tokens.extend(&sequence.tokens[new.clone()]);
        step.positions
            .extend(new.clone().map(|position| position as u32));
        step.slots.extend(new.clone().map(|position| {
            let position = position as u32;
            sequence.table[(position / block_size) as usize] * block_size + position % block_size
        }));
        let blocks = new.end.div_ceil(block_size as usize);
        step.block_tables.extend(&sequence.table[..blocks]);
        sequence.computed = new.end;
        step.sequences.push(StepSequence {
            tokens: first..step.tokens.len() as u32,
            context_len: new.end as u32,
            block_table: table..step.block_tables.len() as u32,
            sample: Some(step.samples.len() as u32),
            embed: false,
        });
        step.samples.push(greedy(Some(u32::MAX)));
    }
    step
}

fn greedy(logprobs: Option<u32>) -> SampleSpec {
    SampleSpec {
        logprobs,
        ..SampleSpec::greedy()
    }
}

/// Log probabilities of all tokens, by token.
fn logits(sampled: &crate::backend::Sampled, vocab: usize) -> Vec<f32> {
    let mut row = vec![f32::NAN; vocab];
    for (token, logprob) in &sampled.logprob.as_ref().unwrap().top {
        row[*token as usize] = *logprob;
    }
    row
}

fn assert_close(got: &[f32], expected: &[f64]) {
    assert_eq!(got.len(), expected.len());
    for (token, (got, expected)) in got.iter().zip(expected).enumerate() {
        let error = (f64::from(*got) - expected).abs();
        assert!(
            error < LOGIT_TOLERANCE,
            "token {token}: {got} instead of {expected}"
        );
    }
}

fn small() -> Shape {
    Shape {
        vocab: 61,
        hidden: 24,
        inner: 40,
        layers: 2,
        heads: 4,
        kv_heads: 2,
        head_dim: 6,
        tied: true,
        llama3: false,
        kind: Kind::Llama,
        seed: 3,
    }
}

/// Every family, with windows shorter than the contexts of the tests.
const KINDS: [Kind; 8] = [
    Kind::Llama,
    Kind::Mistral(5),
    Kind::Mistral(17),
    Kind::Phi3,
    Kind::Qwen2(3),
    Kind::Qwen3,
    Kind::Qwen3Moe(1),
    Kind::Qwen3Moe(2),
];

#[test]
fn every_family_matches_the_definition_at_every_position() {
    for kind in KINDS {
        let shape = Shape {
            kind,
            head_dim: 8,
            ..small()
        };
        let mut rig = Rig::new(&shape, 1, 4);
        let mut sequences = rig.sequences(&[37], 5);
        let expected = naive::log_probabilities(&rig.model, &sequences[0].tokens);
        for expected in expected {
            let got = rig.step(&mut sequences, &[1]);
            assert_close(&got[0], &expected);
        }
    }
}

#[test]
fn a_window_hides_what_lies_before_it() {
    let shape = Shape {
        kind: Kind::Mistral(5),
        layers: 1,
        ..small()
    };
    let mut rig = Rig::new(&shape, 1, 4);
    let last = |rig: &mut Rig, first_token: u32| {
        let mut sequences = rig.sequences(&[20], 1);
        sequences[0].tokens[0] = first_token;
        sequences[0].tokens[14] = first_token;
        rig.step(&mut sequences, &[20]).remove(0)
    };
    assert_eq!(
        last(&mut rig, 1),
        last(&mut rig, 2),
        "both lie before the window"
    );
    let mut sequences = rig.sequences(&[20], 1);
    sequences[0].tokens[15] ^= 1;
    assert_ne!(rig.step(&mut sequences, &[20]).remove(0), last(&mut rig, 1));
}

#[test]
fn a_prompt_matches_the_definition_at_every_position() {
    for shape in [
        small(),
        Shape {
            tied: false,
            llama3: true,
            heads: 3,
            kv_heads: 1,
            ..small()
        },
    ] {
        let mut rig = Rig::new(&shape, 1, 4);
        let mut sequences = rig.sequences(&[19], 5);
        let expected = naive::log_probabilities(&rig.model, &sequences[0].tokens);
        for expected in expected {
            let got = rig.step(&mut sequences, &[1]);
            assert_close(&got[0], &expected);
        }
    }
}

#[test]
fn weights_that_stay_bf16_compute_the_same_model() {
    let shape = small();
    let mut rig = Rig::new(&shape, 1, 16);
    let team = &rig.backend.team;
    let weights = CpuWeights::load_as(team, &rig.model, Storage::Bf16, Shard::WHOLE).unwrap();
    rig.backend.weights = weights.into();
    let mut sequences = rig.sequences(&[20], 1);
    let expected = naive::log_probabilities(&rig.model, &sequences[0].tokens);
    let got = rig.step(&mut sequences, &[20]);
    assert_close(&got[0], &expected[19]);
}

#[test]
fn keys_and_values_in_bf16_take_half_the_memory_and_compute_nearly_the_same() {
    let options = |threads, kv_cache| CpuOptions {
        threads,
        kv_cache,
        ..CpuOptions::default()
    };
    // Blocks of an odd size end in half an item.
    for block_size in [16, 5] {
        let mut rig = Rig::with(&small(), options(2, KvCacheType::Bfloat16), block_size);
        let exact = Rig::with(&small(), options(1, KvCacheType::Float32), block_size);
        assert_eq!(
            rig.backend.info().kv_bytes_per_token * 2,
            exact.backend.info().kv_bytes_per_token
        );
        let mut whole = rig.sequences(&[37], 1);
        let expected = naive::log_probabilities(&rig.model, &whole[0].tokens);
        let got = rig.step(&mut whole, &[37]);
        for (got, expected) in got[0].iter().zip(&expected[36]) {
            let error = (f64::from(*got) - expected).abs();
            assert!(error < 1e-2 * (1.0 + expected.abs()), "{got} {expected}");
        }
        // And the same bits in chunks.
        let mut chunks = rig.sequences(&[37], 1);
        for count in [20, 1, 15] {
            rig.step(&mut chunks, &[count]);
        }
        assert_eq!(rig.step(&mut chunks, &[1]), got);
    }
}

#[test]
fn heads_that_are_too_wide_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    naive::write_model(
        folder.path(),
        &Shape {
            head_dim: 258,
            ..small()
        },
    );
    let model = Model::open(folder.path()).unwrap();
    let error = CpuBackend::new(&model, 1).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the cpu backend cannot run this model: head_dim is 258; at most 256"
    );
}

#[test]
fn a_backend_that_slept_computes_the_same() {
    let mut rig = Rig::new(&small(), 2, 4);
    let mut before = rig.sequences(&[9, 5], 3);
    let expected = rig.step(&mut before, &[9, 5]);
    let level = SleepLevel::DiscardAll;
    let error = rig.backend.sleep(level).unwrap_err();
    assert_eq!(error.to_string(), "the cpu backend cannot sleep at level 2");
    rig.backend.sleep(SleepLevel::KeepWeights).unwrap();
    rig.backend.wake().unwrap();
    rig.backend.kv.poison();
    let mut after = rig.sequences(&[9, 5], 3);
    assert_eq!(rig.step(&mut after, &[9, 5]), expected);
}

#[test]
fn a_step_cut_between_layers_computes_the_same_to_the_bit() {
    let shape = Shape {
        layers: 4,
        ..small()
    };
    let mut rig = Rig::new(&shape, 2, 4);
    let mut whole = rig.sequences(&[21, 9], 3);
    rig.step(&mut whole, &[8, 6]);
    let expected = rig.step(&mut whole, &[13, 0]);
    let other = rig.step(&mut whole, &[0, 1]);
    rig.backend.kv.poison();

    let mut cut = rig.sequences(&[21, 9], 3);
    rig.step(&mut cut, &[8, 6]);
    let mut out = StepOutput::default();
    for layers in [0..1, 1..3, 3..4] {
        cut[0].computed = 8;
        let mut part = step(&mut cut, &[13, 0], 4);
        if layers.end < 4 {
            part.ask_nothing();
        }
        part.layers = Some(layers.clone());
        out.clear();
        rig.backend.forward(&part, &mut out).unwrap();
        assert_eq!(out.sampled.len(), usize::from(layers.end == 4));
        if layers.start == 0 {
            assert_eq!(rig.step(&mut cut, &[0, 1]), other);
        } else if layers.end < 4 {
            rig.step(&mut cut, &[0, 1]);
        }
    }
    assert_eq!(logits(&out.sampled[0], shape.vocab), expected[0]);
}

#[test]
fn layers_that_do_not_follow_are_an_error() {
    let mut rig = Rig::new(&small(), 1, 4);
    let mut sequences = rig.sequences(&[9], 3);
    let mut forward = |count: usize, layers: std::ops::Range<u32>| {
        sequences[0].computed = 0;
        let mut part = step(&mut sequences, &[count], 4);
        part.layers = Some(layers);
        rig.backend.forward(&part, &mut StepOutput::default())
    };
    assert!(forward(9, 1..2).is_err(), "nothing stopped there");
    forward(9, 0..1).unwrap();
    assert!(forward(8, 1..2).is_err(), "another step");
    assert!(forward(9, 1..3).is_err(), "there are two");
    assert!(forward(9, 1..1).is_err(), "nothing to do");
    forward(9, 1..2).unwrap();
}

#[test]
fn a_pool_beyond_the_address_space_is_an_error() {
    let mut rig = Rig::new(&small(), 1, 4);
    let layout = KvLayout {
        host_blocks: 0,
        block_size: u32::MAX,
        blocks: u32::MAX,
    };
    let error = rig.backend.allocate(&layout).unwrap_err();
    assert!(error.to_string().contains("KV memory"), "{error}");
}

fn shape() -> impl Strategy<Value = Shape> {
    (
        1_usize..4,
        1_usize..4,
        1_usize..20,
        1_usize..50,
        1_usize..60,
        any::<bool>(),
        0_u32..1000,
        proptest::sample::select(KINDS.to_vec()),
    )
        .prop_map(
            |(kv_heads, shared, half, inner, hidden, tied, seed, kind)| Shape {
                vocab: 40 + inner,
                hidden,
                inner,
                // Some differ from others in their second layer.
                layers: match kind {
                    Kind::Qwen2(_) | Kind::Qwen3Moe(_) => 2,
                    _ => 1 + hidden % 2,
                },
                heads: kv_heads * shared,
                kv_heads,
                // Half of a head is rotated in one family, and that must be an even number.
                head_dim: if kind == Kind::Phi3 {
                    4 * half
                } else {
                    2 * half
                },
                tied,
                llama3: seed % 2 == 0 && kind != Kind::Phi3,
                kind,
                seed,
            },
        )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// Ragged batches in random chunks over shuffled blocks, in memory that was all NaN: each sequence's logits are
    /// those of the definition, and to the bit those of the same sequence computed alone, in one piece.
    #[test]
    fn batches_and_chunks_change_nothing(
        shape in shape(),
        lengths in proptest::collection::vec(1_usize..40, 1..5),
        chunks in proptest::collection::vec(0_usize..20, 12),
        block_size in 1_u32..20,
        threads in 1_usize..4,
        seed in 0_u32..1000,
    ) {
        let needed: usize = lengths.iter().map(|length| length.div_ceil(block_size as usize)).sum();
        prop_assume!(needed < 64);
        let mut rig = Rig::new(&shape, threads, block_size);
        let isas = Isa::all();
        rig.backend.isa = isas[seed as usize / 2 % isas.len()];
        let mut sequences = rig.sequences(&lengths, seed);
        let mut last: Vec<Vec<f32>> = vec![Vec::new(); lengths.len()];
        let mut chunk = chunks.iter().cycle();
        while sequences.iter().any(|sequence| sequence.computed < sequence.tokens.len()) {
            let counts: Vec<usize> = sequences
                .iter()
                .map(|sequence| {
                    let lag = sequence.tokens.len() - sequence.computed;
                    (*chunk.next().unwrap() + seed as usize % 2).clamp(0, lag)
                })
                .collect();
            // At least one moves on, so that this ends.
            let stuck = counts.iter().all(|count| *count == 0);
            let forced = sequences.iter().position(|s| s.computed < s.tokens.len()).unwrap();
            let counts: Vec<usize> = (counts.iter().enumerate())
                .map(|(index, count)| if stuck && index == forced { 1 } else { *count })
                .collect();
            let mut rows = rig.step(&mut sequences, &counts).into_iter();
            for (row, count) in last.iter_mut().zip(&counts) {
                if *count > 0 {
                    *row = rows.next().unwrap();
                }
            }
        }
        for (index, (sequence, got)) in sequences.iter().zip(&last).enumerate() {
            let expected = naive::log_probabilities(&rig.model, &sequence.tokens);
            assert_close(got, expected.last().unwrap());
            rig.backend.kv.poison();
            let mut alone = rig.sequences(&lengths, seed ^ 0x55).swap_remove(index);
            alone.tokens.clone_from(&sequence.tokens);
            let count = alone.tokens.len();
            let rows = rig.step(std::slice::from_mut(&mut alone), &[count]);
            prop_assert_eq!(&rows[0], got, "the same bits alone and in the batch");
        }
    }
}
