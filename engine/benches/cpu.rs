//! How fast the CPU backend steps: decode at several batches and contexts, and prefill, beside the memory's bandwidth.
//!
//! `cargo bench -p pointsman-engine --bench cpu [-- [THREADS] [NAME]]` makes a model of SmolLM-135M's shape with random
//! weights. With a NAME, it runs only the cases whose name contains it, and only with the weights as they are.
//! All cases take turns in rounds, so that what else the machine does meanwhile happens to all of them; the table has
//! medians. Decode reads every weight once a step, so its bytes in a second are to be read beside the memory's.

#![expect(clippy::print_stdout, reason = "a table is what this is for")]

use std::collections::HashMap;
use std::hint::black_box;
use std::path::Path;
use std::time::Instant;

use half::bf16;
use pointsman_engine::backend::cpu::{CpuBackend, CpuOptions, Quantization};
use pointsman_engine::backend::{Backend, KvLayout, SampleSpec, Step, StepOutput, StepSequence};
use pointsman_engine::model::Model;
use safetensors::tensor::{Dtype, TensorView};

const HIDDEN: usize = 576;
const INNER: usize = 1536;
const LAYERS: usize = 30;
const HEADS: usize = 9;
const KV_HEADS: usize = 3;
const HEAD_DIM: usize = 64;
const VOCAB: usize = 49_152;

const BLOCK: u32 = 16;
const BLOCKS: u32 = 1_200;
const ROUNDS: usize = 5;
const SUMMED_BYTES: usize = 512 << 20;

/// Context of the chats that run beside something else.
const CHAT_CONTEXT: u32 = 64;

/// New tokens of each of so many sequences, which have so many before them, and chats of one new token beside them.
#[derive(Clone, Copy)]
struct Case {
    name: &'static str,
    sequences: u32,
    new: u32,
    before: u32,
    chats: u32,
}

const CASES: [Case; 12] = [
    case("decode 1", 1, 1, 64),
    case("decode 8", 8, 1, 64),
    case("decode 32", 32, 1, 64),
    case("decode 1 at 2k", 1, 1, 2_047),
    case("decode 1 at 16k", 1, 1, 16_383),
    case("prefill 4 at 12k", 1, 4, 12_284),
    case("prefill 4 at 12k + 4", 1, 4, 12_284).beside(4),
    case("prefill 16 at 12k + 4", 1, 16, 12_272).beside(4),
    case("prefill 64 at 12k", 1, 64, 12_224),
    case("prefill 64", 1, 64, 0),
    case("prefill 512", 1, 512, 0),
    case("prefill 512 at 16k", 1, 512, 15_872),
];

const fn case(name: &'static str, sequences: u32, new: u32, before: u32) -> Case {
    Case {
        name,
        sequences,
        new,
        before,
        chats: 0,
    }
}

impl Case {
    const fn beside(self, chats: u32) -> Self {
        Self { chats, ..self }
    }

    /// New tokens, and tokens before them, of every sequence.
    fn parts(self) -> impl Iterator<Item = (u32, u32)> {
        let chats = (0..self.chats).map(|_| (1, CHAT_CONTEXT));
        chats.chain((0..self.sequences).map(move |_| (self.new, self.before)))
    }
}

fn main() {
    let args = std::env::args().skip(1);
    let args: Vec<String> = args.filter(|arg| !arg.starts_with("--")).collect();
    let threads: usize = args.iter().find_map(|arg| arg.parse().ok()).unwrap_or(0);
    let name = args.iter().find(|arg| arg.parse::<usize>().is_err());
    let wanted = |case: &&Case| name.is_none_or(|name| case.name.contains(name.as_str()));
    let cases: Vec<Case> = CASES.iter().filter(wanted).copied().collect();
    let folder = tempfile::tempdir().expect("a folder for the model");
    write_model(folder.path());
    let model = Model::open(folder.path()).expect("the model that was just written");
    let words: Vec<u64> = (0..(SUMMED_BYTES / 8) as u64).collect();
    println!(
        "memory: {:.1} GB/s",
        median((0..5).map(|_| bandwidth(&words, threads))) / 1e9
    );
    let quantizations = [None, Some(Quantization::Int8)];
    for quantization in quantizations
        .into_iter()
        .take(if name.is_some() { 1 } else { 2 })
    {
        let started = Instant::now();
        let options = CpuOptions {
            threads,
            quantization,
            ..CpuOptions::default()
        };
        let mut backend = CpuBackend::new(&model, options).expect("a backend");
        let packed = started.elapsed().as_secs_f64();
        println!("{}: packed in {packed:.2} s", backend.info().device);
        backend
            .allocate(&KvLayout {
                block_size: BLOCK,
                blocks: BLOCKS,
                host_blocks: 0,
            })
            .expect("memory for the KV cache");
        let bytes = if quantization.is_some() { 1 } else { 2 };
        measure(&mut backend, &cases, bytes, model.config.parameters());
    }
}

fn measure(backend: &mut dyn Backend, cases: &[Case], bytes: usize, weights: usize) {
    let steps: Vec<Step> = cases.iter().map(|case| step(*case)).collect();
    let mut output = StepOutput::default();
    let mut seconds = vec![Vec::new(); cases.len()];
    for round in 0..=ROUNDS {
        for (step, seconds) in steps.iter().zip(&mut seconds) {
            let repeats = if step.tokens.len() < 16 { 10 } else { 1 };
            let started = Instant::now();
            for _ in 0..repeats {
                backend.forward(step, &mut output).expect("a step");
            }
            // The first round warms up.
            if round > 0 {
                seconds.push(started.elapsed().as_secs_f64() / f64::from(repeats));
            }
        }
    }
    for (case, seconds) in cases.iter().zip(seconds) {
        let seconds = median(seconds.into_iter());
        let tokens: f64 = case.parts().map(|(new, _)| f64::from(new)).sum();
        // What is multiplied with each weight but those of the head, which only the last rows meet, and with the context.
        let head = (VOCAB * HIDDEN) as f64;
        let body = weights as f64 - head;
        let pairs = |(new, before)| f64::from(new) * (f64::from(before) + f64::from(new) / 2.0);
        let pairs: f64 = case.parts().map(pairs).sum();
        let attention = pairs * (2 * LAYERS * HEADS * HEAD_DIM) as f64;
        let sequences = case.parts().count() as f64;
        let work = 2.0 * (tokens * body + attention + sequences * head);
        println!(
            "  {:<22} {:9.2} ms  {:8.1} tokens/s  {:6.1} GB/s of weights  {:6.1} GFLOP/s",
            case.name,
            seconds * 1e3,
            tokens / seconds,
            (bytes * weights) as f64 / seconds / 1e9,
            work / seconds / 1e9,
        );
    }
}

fn step(case: Case) -> Step {
    let mut step = Step::default();
    let mut first_block = 1;
    for (sequence, (new, before)) in (0..).zip(case.parts()) {
        let context = before + new;
        let blocks = context.div_ceil(BLOCK);
        let (tokens, table) = (step.tokens.len() as u32, step.block_tables.len() as u32);
        for position in before..context {
            step.tokens.push(position * 31 % VOCAB as u32);
            step.positions.push(position);
            step.slots.push(first_block * BLOCK + position);
        }
        step.block_tables.extend(first_block..first_block + blocks);
        step.sequences.push(StepSequence {
            tokens: tokens..step.tokens.len() as u32,
            context_len: context,
            block_table: table..step.block_tables.len() as u32,
            sample: Some(sequence),
            embed: false,
        });
        step.samples.push(SampleSpec::greedy());
        first_block += blocks;
    }
    step
}

/// Bytes in a second that all threads together read.
fn bandwidth(words: &[u64], threads: usize) -> f64 {
    let threads = match threads {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        threads => threads,
    };
    let started = Instant::now();
    std::thread::scope(|scope| {
        for part in words.chunks(words.len().div_ceil(threads)) {
            scope.spawn(move || {
                let mut sums = [0_u64; 32];
                for chunk in part.as_chunks::<32>().0 {
                    for (sum, word) in sums.iter_mut().zip(chunk) {
                        *sum = sum.wrapping_add(*word);
                    }
                }
                black_box(sums);
            });
        }
    });
    SUMMED_BYTES as f64 / started.elapsed().as_secs_f64()
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn write_model(folder: &Path) {
    let config = serde_json::json!({
        "architectures": ["LlamaForCausalLM"], "hidden_act": "silu",
        "vocab_size": VOCAB, "hidden_size": HIDDEN, "intermediate_size": INNER,
        "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM, "max_position_embeddings": 32_768, "rms_norm_eps": 1e-5,
        "rope_theta": 10_000.0, "tie_word_embeddings": true
    });
    std::fs::write(folder.join("config.json"), config.to_string()).expect("the configuration");
    let mut shapes = vec![
        ("model.embed_tokens".to_owned(), vec![VOCAB, HIDDEN]),
        ("model.norm".to_owned(), vec![HIDDEN]),
    ];
    let (q, kv) = (HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM);
    for layer in 0..LAYERS {
        let parts = [
            ("input_layernorm", vec![HIDDEN]),
            ("post_attention_layernorm", vec![HIDDEN]),
            ("self_attn.q_proj", vec![q, HIDDEN]),
            ("self_attn.k_proj", vec![kv, HIDDEN]),
            ("self_attn.v_proj", vec![kv, HIDDEN]),
            ("self_attn.o_proj", vec![HIDDEN, q]),
            ("mlp.gate_proj", vec![INNER, HIDDEN]),
            ("mlp.up_proj", vec![INNER, HIDDEN]),
            ("mlp.down_proj", vec![HIDDEN, INNER]),
        ];
        shapes.extend(parts.map(|(name, shape)| (format!("model.layers.{layer}.{name}"), shape)));
    }
    let mut state = 1_u64;
    let tensors: Vec<(String, Vec<usize>, Vec<u8>)> = shapes
        .into_iter()
        .map(|(name, shape)| {
            let width = *shape.last().unwrap_or(&1) as f32;
            let values = (0..shape.iter().product()).flat_map(|_: usize| {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                let random = (state >> 40) as f32 / (1 << 23) as f32 - 1.0;
                let value = if shape.len() == 1 {
                    1.0
                } else {
                    random / width.sqrt()
                };
                bf16::from_f32(value).to_le_bytes()
            });
            let bytes = values.collect();
            (format!("{name}.weight"), shape, bytes)
        })
        .collect();
    let views = tensors.iter().map(|(name, shape, bytes)| {
        let view = TensorView::new(Dtype::BF16, shape.clone(), bytes);
        (name.clone(), view.expect("as many bytes as the shape says"))
    });
    let path = folder.join("model.safetensors");
    safetensors::serialize_to_file(views, None::<HashMap<String, String>>, &path)
        .expect("the weights");
}
