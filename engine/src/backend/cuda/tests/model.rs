//! The demo model, whole: the backend on a device that is this CPU, against the CPU backend in f32.
//!
//! Both are given the same tokens, so one near-tie does not part them for good. Activations of bf16 move log
//! probabilities by some hundredths; tokens must be the same wherever the two likeliest are further apart than that.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::super::backend::{CudaBackend, CudaOptions};
use super::super::device::{Activation, Device, Memory, StridedCopy};
use super::super::gpu::Gpu;
use super::super::graphs::Graphs;
use super::super::plan::GraphKey;
use super::device::CpuDevice;
use super::memory::Random;
use super::on_gpu;
use crate::backend::cpu::CpuBackend;
use crate::backend::{
    Backend, BlockCopy, BlockPlace, KvLayout, PromptRow, SampleSpec, Step, StepOutput, StepSequence,
};
use crate::model::Model;
use crate::sample::{SamplingParams, TokenLogprob};
use crate::scheduler::{NewRequest, Outcome, Scheduler, SchedulerConfig, SequenceNumber};

/// Largest difference of a log probability of a likely token.
const TOLERANCE: f32 = 0.12;

/// Likeliest tokens that are compared.
const TOP: u32 = 6;

pub(super) const LAYOUT: KvLayout = KvLayout {
    block_size: 8,
    blocks: 40,
    host_blocks: 4,
};

pub(super) const OPTIONS: CudaOptions = CudaOptions {
    memory_share: 0.5,
    ranks: 1,
    max_tokens: 3,
    max_sequences: 2,
};

/// A sequence as a scheduler would run it.
struct Sequence {
    tokens: Vec<u32>,
    computed: usize,
    table: Vec<u32>,
}

/// Both backends, and what they compute.
pub(super) struct Pair<D> {
    pub(super) model: Model,
    cpu: CpuBackend,
    pub(super) cuda: CudaBackend<D>,
    sequences: Vec<Sequence>,
}

/// The demo model; a machine that has only this test's binary says where it is.
pub(super) fn folder() -> PathBuf {
    let own = || Path::new(env!("CARGO_MANIFEST_DIR")).join("demo-model");
    std::env::var_os("DEMO_MODEL").map_or_else(own, PathBuf::from)
}

/// A device that tests can look into.
pub(super) trait Checked: Device {
    /// Makes NaN of everything in memory.
    fn poison(&mut self, memory: Memory);

    /// Fails if anything was written outside of any memory.
    fn check(&self) {}
}

impl Checked for CpuDevice {
    fn poison(&mut self, memory: Memory) {
        self.fill_with_nan(memory);
    }

    fn check(&self) {
        self.check_guards();
    }
}

impl Checked for Gpu {
    fn poison(&mut self, memory: Memory) {
        self.write(memory, 0, &vec![0xff; memory.bytes]).unwrap();
    }
}

impl<D: Checked> Pair<D> {
    pub(super) fn new(device: D, prompts: &[usize]) -> Self {
        Self::of(Model::open(&folder()).unwrap(), device, prompts)
    }

    pub(super) fn of(model: Model, device: D, prompts: &[usize]) -> Self {
        let mut cpu = CpuBackend::new(&model, 1).unwrap();
        let mut cuda = CudaBackend::new(device, &model, OPTIONS).unwrap();
        cpu.allocate(&LAYOUT).unwrap();
        cuda.allocate(&LAYOUT).unwrap();
        let [keys, values] = cuda.pages();
        cuda.device_mut().poison(keys);
        cuda.device_mut().poison(values);
        let mut random = Random(21);
        let mut free: Vec<u32> = (1..LAYOUT.blocks).collect();
        let last = model.config.vocab_size - 1;
        let sequences = prompts.iter().map(|length| Sequence {
            tokens: (0..*length)
                .map(|_| random.between(3, last) as u32)
                .collect(),
            computed: 0,
            // Room for what is generated.
            table: (0..(length + 14).div_ceil(8))
                .map(|_| free.swap_remove(random.between(0, free.len() - 1)))
                .collect(),
        });
        Self {
            sequences: sequences.collect(),
            model,
            cpu,
            cuda,
        }
    }

    /// A step of the next `counts[i]` tokens of each sequence, sampled as `spec` says where the prompt is at its end.
    pub(super) fn step(&mut self, counts: &[usize], spec: &SampleSpec) -> Step {
        let mut step = Step::default();
        for (sequence, &count) in self.sequences.iter_mut().zip(counts) {
            if count == 0 {
                continue;
            }
            let new = sequence.computed..sequence.computed + count;
            let (first, table) = (step.tokens.len() as u32, step.block_tables.len() as u32);
            step.tokens.extend(&sequence.tokens[new.clone()]);
            step.positions
                .extend(new.clone().map(|position| position as u32));
            step.slots.extend(
                new.clone()
                    .map(|at| sequence.table[at / 8] * 8 + at as u32 % 8),
            );
            step.block_tables
                .extend(&sequence.table[..new.end.div_ceil(8)]);
            sequence.computed = new.end;
            let samples = new.end == sequence.tokens.len();
            step.sequences.push(StepSequence {
                tokens: first..step.tokens.len() as u32,
                context_len: new.end as u32,
                block_table: table..step.block_tables.len() as u32,
                sample: samples.then_some(step.samples.len() as u32),
                embed: false,
            });
            if samples {
                step.samples.push(spec.clone());
            }
        }
        step
    }

    /// Computes a step on the device alone.
    fn compute(&mut self, step: &Step) -> StepOutput {
        let mut out = StepOutput::default();
        self.cuda.forward(step, &mut out).unwrap();
        self.cuda.device_mut().check();
        out
    }

    /// Computes a step on both, compares, and gives the sequences the CPU's tokens; what the CPU found.
    pub(super) fn run(&mut self, step: &Step) -> StepOutput {
        let mut expected = StepOutput::default();
        self.cpu.forward(step, &mut expected).unwrap();
        compare(&self.compute(step), &expected, TOLERANCE);
        let sequences = self
            .sequences
            .iter_mut()
            .filter(|sequence| sequence.computed == sequence.tokens.len());
        for (sequence, sampled) in sequences.zip(&expected.sampled) {
            sequence.tokens.push(sampled.token.unwrap());
        }
        expected
    }
}

/// Tokens are the same where the two likeliest are not near to each other, and so are log probabilities and embeddings.
pub(super) fn compare(found: &StepOutput, expected: &StepOutput, tolerance: f32) {
    assert_eq!(found.sampled.len(), expected.sampled.len());
    for (found, expected) in found.sampled.iter().zip(&expected.sampled) {
        let logprob = expected.logprob.as_ref().unwrap();
        close(
            found.logprob.as_ref().unwrap(),
            logprob,
            found.token == expected.token,
            tolerance,
        );
        let margin = logprob.top[0].1 - logprob.top[1].1;
        assert!(
            found.token == expected.token || margin < tolerance,
            "{found:?} {expected:?}"
        );
    }
    assert_eq!(found.prompt_logprobs.len(), expected.prompt_logprobs.len());
    for (found, expected) in found.prompt_logprobs.iter().zip(&expected.prompt_logprobs) {
        close(found, expected, true, tolerance);
    }
    assert_eq!(found.embeddings.len(), expected.embeddings.len());
    for (found, expected) in found.embeddings.iter().zip(&expected.embeddings) {
        let cosine = cosine(found, expected);
        assert!(cosine > 0.999, "embeddings differ: cosine {cosine}");
    }
}

pub(super) fn spec() -> SampleSpec {
    SampleSpec {
        logprobs: Some(TOP),
        ..SampleSpec::greedy()
    }
}

fn cosine(a: &[f32], b: &[f32]) -> f32 {
    let product = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
    product(a, b) / (product(a, a) * product(b, b)).sqrt()
}

/// The likeliest tokens of one have nearly the same log probabilities in the other, where it lists them.
fn close(found: &TokenLogprob, expected: &TokenLogprob, same_token: bool, tolerance: f32) {
    let near = |a: f32, b: f32| (a - b).abs() < tolerance || (a.exp() - b.exp()).abs() < 2e-3;
    if same_token {
        assert!(
            near(found.logprob, expected.logprob),
            "{found:?} {expected:?}"
        );
    }
    assert_eq!(found.top.len(), expected.top.len());
    for (token, logprob) in &expected.top {
        if let Some(found) = found.top.iter().find(|found| found.0 == *token) {
            assert!(near(found.1, *logprob), "{found:?} {expected:?}");
        }
    }
}

/// Prompts in two chunks, one of them beside decodes, and then decodes alone.
fn generate<D: Checked>(device: D) -> Pair<D> {
    let mut pair = Pair::new(device, &[5, 70, 17]);
    steps(&mut pair, |_, _| {});
    pair
}

/// The steps of that, each with what the CPU found.
pub(super) fn steps<D: Checked>(pair: &mut Pair<D>, mut each: impl FnMut(&Step, &StepOutput)) {
    let first = pair.step(&[5, 40, 2], &spec());
    each(&first, &pair.run(&first));
    let mut second = pair.step(&[1, 30, 15], &spec());
    second.sequences[2].embed = true;
    // Among them tokens at the ends of what two ranks or four have of the vocabulary.
    second.prompt_rows = [(3, 103), (9, 254), (20, 509), (21, 764), (22, 1_018)]
        .map(|(token, target)| PromptRow {
            token,
            target,
            top: 3,
        })
        .to_vec();
    each(&second, &pair.run(&second));
    for _ in 0..6 {
        let step = pair.step(&[1, 1, 1], &spec());
        each(&step, &pair.run(&step));
    }
}

#[test]
fn the_demo_model_computes_what_the_cpu_computes() {
    let mut pair = generate(CpuDevice::default());
    // Half of the device's memory, less nothing: this one does not count what it has given.
    assert_eq!(pair.cuda.info().kv_memory_bytes, Some(1 << 29));
    let launches = &pair.cuda.device_mut().launches;
    let layers = pair.model.config.layers;
    for kernel in [
        "prefill_bf16_32",
        "decode_bf16_32",
        "combine_bf16_32",
        "skinny_bf16_bf16_float_8",
        "library",
    ] {
        assert!(
            launches.get(kernel).is_some_and(|count| *count >= 1),
            "{kernel}: {launches:?}"
        );
    }
    // Eight steps, and the one that the memory was measured with.
    assert_eq!(launches["finish_qkv_bf16"], 9 * layers);
    // All decodes but the first, three of them in four rows.
    assert_eq!(launches["graph"], 5);
}

#[test]
fn a_gpu_computes_what_the_cpu_computes() {
    if on_gpu::wanted() {
        generate(Gpu::new(Activation::Bf16).unwrap());
    }
}

/// Greedy tokens of so many steps of decodes after a step of prompts, with each step begun before the one before it is
/// finished, or not.
fn tokens_of(ahead: bool, steps: usize) -> Vec<Vec<u32>> {
    let mut pair = Pair::new(CpuDevice::default(), &[5, 63, 17]);
    let step = pair.step(&[5, 63, 17], &SampleSpec::greedy());
    pair.cuda.start(&step).unwrap();
    let mut out = StepOutput::default();
    let mut finish = |pair: &mut Pair<CpuDevice>, unknown: usize| {
        out.clear();
        pair.cuda.complete(&mut out).unwrap();
        assert_eq!(out.sampled.len(), 3);
        for (sequence, sampled) in pair.sequences.iter_mut().zip(&out.sampled) {
            if unknown > 0 {
                let at = sequence.tokens.len() - unknown;
                sequence.tokens[at] = sampled.token.unwrap();
            } else {
                sequence.tokens.push(sampled.token.unwrap());
            }
        }
    };
    for _ in 0..steps {
        if !ahead {
            finish(&mut pair, 0);
        } else {
            // A token that would be seen at once if it were taken for the one that is not known.
            for sequence in &mut pair.sequences {
                sequence.tokens.push(1_000);
            }
        }
        let mut step = pair.step(&[1, 1, 1], &SampleSpec::greedy());
        if ahead {
            step.sources = vec![0, 1, 2];
        }
        pair.cuda.start(&step).unwrap();
        if ahead {
            finish(&mut pair, 1);
        }
    }
    finish(&mut pair, 0);
    pair.cuda.device_mut().check();
    assert_eq!(pair.cuda.device_mut().launches["graph"], steps - 2);
    pair.sequences
        .into_iter()
        .map(|sequence| sequence.tokens)
        .collect()
}

#[test]
fn tokens_are_taken_from_a_step_that_is_not_finished() {
    // The second context comes to lie in two splits with its second decode: two shapes, each once without a graph.
    let expected = tokens_of(false, 7);
    assert!(expected.iter().all(|tokens| tokens.len() >= 5 + 8));
    assert_eq!(tokens_of(true, 7), expected);
}

/// What requests of random prompts get by the scheduler, with steps ahead or without, and how many of those there were.
fn scheduled(ahead: bool, eos: &[u32]) -> (BTreeMap<SequenceNumber, Vec<u32>>, usize) {
    let model = Model::open(&folder()).unwrap();
    let backend = CudaBackend::new(CpuDevice::default(), &model, OPTIONS).unwrap();
    scheduled_on(Box::new(backend), &model, ahead, eos)
}

/// The same on a given backend.
pub(super) fn scheduled_on(
    mut backend: Box<dyn Backend>,
    model: &Model,
    ahead: bool,
    eos: &[u32],
) -> (BTreeMap<SequenceNumber, Vec<u32>>, usize) {
    backend.allocate(&LAYOUT).unwrap();
    let config = SchedulerConfig {
        block_size: LAYOUT.block_size,
        blocks: LAYOUT.blocks,
        max_num_seqs: 3,
        max_num_batched_tokens: 32,
        max_model_len: 128,
        vocab_size: model.config.vocab_size as u32,
        eos_token_ids: eos.to_vec(),
        ..SchedulerConfig::default()
    };
    let mut scheduler = Scheduler::new(config).unwrap();
    let mut random = Random(9);
    for (length, answer) in [(5, 12), (40, 9), (17, 4), (23, 6)] {
        let prompt = (0..length).map(|_| random.between(3, 1_023) as u32);
        let request = NewRequest::new("test", prompt.collect(), SamplingParams::greedy(answer));
        let prepared = scheduler.intake().prepare(request).unwrap();
        scheduler.add(prepared, Duration::ZERO);
    }
    let (mut step, mut out, mut outcome) =
        (Step::default(), StepOutput::default(), Outcome::default());
    let (mut begun, mut steps_ahead) = (0, 0);
    let mut tokens: BTreeMap<_, Vec<u32>> = BTreeMap::new();
    while begun > 0 || !scheduler.is_empty() {
        if begun == 0 && scheduler.schedule(Duration::ZERO, &mut step) {
            backend.begin(&step).unwrap();
            begun += 1;
        }
        if ahead && scheduler.schedule_ahead(Duration::ZERO, &mut step) {
            backend.begin(&step).unwrap();
            begun += 1;
            steps_ahead += 1;
        }
        backend.finish(&mut out).unwrap();
        begun -= 1;
        scheduler.complete(&mut out, Duration::ZERO, &mut outcome);
        for (number, update) in outcome.updates.drain(..) {
            tokens.entry(number).or_default().extend(update.token);
        }
    }
    (tokens, steps_ahead)
}

#[test]
fn steps_ahead_change_no_token() {
    let (tokens, _) = scheduled(false, &[]);
    let lengths: Vec<usize> = tokens.values().map(Vec::len).collect();
    assert_eq!(lengths, [12, 9, 4, 6]);
    assert_eq!(scheduled(true, &[]).0, tokens);
    // One that ends its request while a step is under way that goes on with it.
    let eos = [tokens[&1][4]];
    let (tokens, _) = scheduled(false, &eos);
    assert!(tokens[&1].len() <= 5, "{tokens:?}");
    let (found, steps_ahead) = scheduled(true, &eos);
    assert_eq!(found, tokens);
    assert!(steps_ahead >= 5, "{steps_ahead}");
}

#[test]
fn a_step_of_which_more_than_tokens_is_wanted_is_finished_first() {
    let mut pair = Pair::new(CpuDevice::default(), &[5]);
    let step = pair.step(&[5], &spec());
    pair.cuda.start(&step).unwrap();
    let error = pair.cuda.start(&step).unwrap_err().to_string();
    assert_eq!(
        error,
        "beginning a step: steps before it are to be finished first"
    );
    let mut out = StepOutput::default();
    pair.cuda.complete(&mut out).unwrap();
    assert!(out.sampled[0].logprob.is_some());
    let error = pair.cuda.complete(&mut out).unwrap_err().to_string();
    assert_eq!(error, "finishing a step: none was begun");
}

#[test]
fn graphs_go_when_what_they_name_has_moved() {
    let (mut device, mut graphs) = (CpuDevice::default(), Graphs::default());
    let key = GraphKey { rows: 4, splits: 1 };
    let memory = device.allocate(64).unwrap();
    let mut asked = 0;
    for places in [[1, 2], [1, 2], [1, 2], [1, 3], [1, 3]] {
        let work = |device: &mut CpuDevice| {
            asked += 1;
            let copy = StridedCopy {
                from: memory.address,
                to: memory.address + 32,
                rows: 1,
                bytes: 16,
                from_stride: 0,
                to_stride: 0,
            };
            device.copy(copy)
        };
        graphs.run(&mut device, key, &places, work).unwrap();
    }
    // Each set of places: once as it is, once recorded; a graph is replayed from when it is there.
    assert_eq!(asked, 4);
    assert_eq!(
        (device.launches["graph"], device.launches["forgotten"]),
        (3, 1)
    );
}

#[test]
fn requests_that_change_logits_get_the_cpus_tokens() {
    let mut pair = Pair::new(CpuDevice::default(), &[9, 12]);
    let changing = SampleSpec {
        repetition_penalty: 1.3,
        presence_penalty: 0.4,
        output: 0..3,
        prompt: 3..6,
        banned: 0..2,
        biases: 0..1,
        ..spec()
    };
    let mut step = pair.step(&[9, 12], &changing);
    step.history = vec![40, 41, 42, 7, 8, 2_000];
    step.banned = vec![2, 30];
    step.biases = vec![(17, 1.5)];
    pair.run(&step);
    // The only tokens that may come, and more likeliest ones than the device lists.
    let allowed = SampleSpec {
        allowed: 0..3,
        logprobs: Some(1_024 + 5),
        ..spec()
    };
    let mut step = pair.step(&[1, 1], &allowed);
    step.allowed = vec![90, 91, 600];
    pair.run(&step);
    let tokens: Vec<u32> = pair
        .sequences
        .iter()
        .map(|sequence| *sequence.tokens.last().unwrap())
        .collect();
    assert!(
        tokens.iter().all(|token| [90, 91, 600].contains(token)),
        "{tokens:?}"
    );
}

#[test]
fn blocks_move_between_places_and_tiers() {
    // Two of the same, of which one has its blocks moved: to the bit the same comes out.
    let [mut moved, mut stayed] = [0, 1].map(|_| Pair::new(CpuDevice::default(), &[20]));
    for pair in [&mut moved, &mut stayed] {
        let step = pair.step(&[20], &spec());
        pair.compute(&step);
    }
    // Its first block goes to the host, to another place of the host and back; its second goes straight.
    let table = moved.sequences[0].table.clone();
    let mut free = (1..LAYOUT.blocks).filter(|block| !table.contains(block));
    let places = [free.next().unwrap(), free.next().unwrap()];
    let copy = |from, to| BlockCopy { from, to };
    let copies = vec![
        copy(BlockPlace::Device(table[0]), BlockPlace::Host(1)),
        copy(BlockPlace::Host(1), BlockPlace::Host(3)),
        copy(BlockPlace::Host(3), BlockPlace::Device(places[0])),
        copy(BlockPlace::Device(table[1]), BlockPlace::Device(places[1])),
    ];
    moved.sequences[0].table[..2].copy_from_slice(&places);
    for pair in [&mut moved, &mut stayed] {
        pair.sequences[0].tokens.push(77);
    }
    let mut step = moved.step(&[1], &spec());
    step.copies = copies;
    let found = moved.compute(&step).sampled;
    let step = stayed.step(&[1], &spec());
    assert_eq!(found, stayed.compute(&step).sampled);
}

#[test]
fn shapes_without_kernels_are_refused() {
    let mut pair = Pair::new(CpuDevice::default(), &[3]);
    pair.model.config.head_dim = 48;
    let error = CudaBackend::new(CpuDevice::default(), &pair.model, OPTIONS).unwrap_err();
    let reason = "the cuda backend cannot run this model: head_dim is 48; there are kernels for [32, 64, 96, 128]";
    assert_eq!(error.to_string(), reason);
    let odd = KvLayout {
        block_size: 12,
        ..LAYOUT
    };
    let error = pair.cuda.allocate(&odd).unwrap_err().to_string();
    assert!(
        error.contains("the block size is 12; kernels need a power of two"),
        "{error}"
    );
}
