//! One step's work as flat arrays, and its outcome.
//!
//! ```text
//! tokens     [ t0 t1 t2 | t0 | t0 ]      all sequences one after the other
//! positions  [  0  1  2 |  9 | 40 ]      of each token in its context
//! slots      [ 16 17 18 | 41 |  8 ]      where its K and V go: block number * block_size + offset
//! sequences  [ {0..3} {3..4} {4..5} ]    each with its range of tokens and of block_tables
//! ```
//!
//! The scheduler reuses one `Step` for ever: after warm-up, forming a step allocates nothing.

use std::ops::Range;

use crate::sample::TokenLogprob;

/// What to compute.
#[derive(Clone, Debug, Default)]
pub struct Step {
    /// Token ids of all sequences, concatenated.
    pub tokens: Vec<u32>,
    /// Empty when every token is in `tokens`. Otherwise one entry for each token: which of the samples of the step before
    /// this one it is, as an index into that step's `samples`, or [`Step::KNOWN`] when it is in `tokens`. Where it is not,
    /// `tokens` has a 0 in its place.
    pub sources: Vec<u32>,
    /// The position of each token in its own context.
    pub positions: Vec<u32>,
    /// The KV slot of each token: `block * block_size + offset`.
    pub slots: Vec<u32>,
    /// The sequences, in the order of their tokens.
    pub sequences: Vec<StepSequence>,
    /// Block tables of all sequences, concatenated.
    pub block_tables: Vec<u32>,
    /// What to sample, in the order of the sequences that ask for it.
    pub samples: Vec<SampleSpec>,
    /// Tokens that penalties look back on; see [`SampleSpec::prompt`] and [`SampleSpec::output`].
    pub history: Vec<u32>,
    /// Tokens that must not be sampled; see [`SampleSpec::banned`].
    pub banned: Vec<u32>,
    /// Tokens and what is added to their logits; see [`SampleSpec::biases`].
    pub biases: Vec<(u32, f32)>,
    /// The only tokens that may be sampled; see [`SampleSpec::allowed`].
    pub allowed: Vec<u32>,
    /// Tokens whose log probabilities were asked for by id; see [`SampleSpec::asked`].
    pub asked: Vec<u32>,
    /// Places in prompts whose log probabilities are wanted, in the order of their tokens.
    pub prompt_rows: Vec<PromptRow>,
    /// Blocks to copy, in this order, before anything is computed.
    pub copies: Vec<BlockCopy>,
    /// The layers to compute; none for all. The tokens of a step that ends before the last layer come again with the
    /// layers behind it, other steps in between; nothing is asked of it before its last layers.
    pub layers: Option<Range<u32>>,
}

impl Step {
    /// In [`Step::sources`]: the token is in [`Step::tokens`].
    pub const KNOWN: u32 = u32::MAX;

    /// Empties the step and keeps its memory.
    pub fn clear(&mut self) {
        self.tokens.clear();
        self.sources.clear();
        self.positions.clear();
        self.slots.clear();
        self.sequences.clear();
        self.block_tables.clear();
        self.copies.clear();
        self.ask_nothing();
        self.layers = None;
    }

    /// Takes back whatever is asked about the step's tokens.
    pub fn ask_nothing(&mut self) {
        self.samples.clear();
        self.history.clear();
        self.banned.clear();
        self.biases.clear();
        self.allowed.clear();
        self.asked.clear();
        self.prompt_rows.clear();
        for sequence in &mut self.sequences {
            sequence.sample = None;
            sequence.embed = false;
        }
    }
}

/// One sequence's part of a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepSequence {
    /// Its new tokens in [`Step::tokens`]; at least one.
    pub tokens: Range<u32>,
    /// Its context in tokens once the new ones are in it.
    pub context_len: u32,
    /// Its block table in [`Step::block_tables`]: block `i` holds positions from `i * block_size`.
    pub block_table: Range<u32>,
    /// Index into [`Step::samples`] when a token is to be sampled after its last new one.
    pub sample: Option<u32>,
    /// Whether the hidden state of its last new token is wanted, after the final norm.
    pub embed: bool,
}

/// A token of a prompt whose successor's log probability is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PromptRow {
    /// Index into [`Step::tokens`]: the logits after this token are looked at.
    pub token: u32,
    /// The token that follows it in the prompt.
    pub target: u32,
    /// How many most likely tokens are wanted beside it.
    pub top: u32,
}

/// One block to copy, all layers of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockCopy {
    /// What is read.
    pub from: BlockPlace,
    /// What is overwritten.
    pub to: BlockPlace,
}

/// A block of one of the two tiers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockPlace {
    /// A block that steps compute with.
    Device(u32),
    /// A block of [`KvLayout::host_blocks`](super::KvLayout::host_blocks).
    Host(u32),
}

/// How to sample one token.
#[derive(Clone, Debug, PartialEq)]
pub struct SampleSpec {
    /// See [`crate::sample::SamplingParams::temperature`].
    pub temperature: f32,
    /// See [`crate::sample::SamplingParams::top_p`].
    pub top_p: f32,
    /// See [`crate::sample::SamplingParams::top_k`].
    pub top_k: u32,
    /// See [`crate::sample::SamplingParams::min_p`].
    pub min_p: f32,
    /// See [`crate::sample::SamplingParams::repetition_penalty`].
    pub repetition_penalty: f32,
    /// See [`crate::sample::SamplingParams::presence_penalty`].
    pub presence_penalty: f32,
    /// See [`crate::sample::SamplingParams::frequency_penalty`].
    pub frequency_penalty: f32,
    /// The request's seed.
    pub seed: u64,
    /// Tokens the request generated before this one; with the seed it fixes the random numbers.
    pub position: u32,
    /// Log probabilities wanted, with this many most likely tokens.
    pub logprobs: Option<u32>,
    /// The prompt in [`Step::history`]; empty unless a penalty is on.
    pub prompt: Range<u32>,
    /// The output so far in [`Step::history`]; empty unless a penalty is on.
    pub output: Range<u32>,
    /// Tokens in [`Step::banned`] that must not be sampled (stop tokens before `min_tokens`).
    pub banned: Range<u32>,
    /// In [`Step::biases`]: added to logits before penalties.
    pub biases: Range<u32>,
    /// In [`Step::allowed`]: when not empty, no other token may be sampled.
    pub allowed: Range<u32>,
    /// In [`Step::asked`]: tokens whose log probabilities are reported whatever their rank.
    pub asked: Range<u32>,
}

impl SampleSpec {
    /// The most likely token, and nothing else.
    pub fn greedy() -> Self {
        Self {
            temperature: 0.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            seed: 0,
            position: 0,
            logprobs: None,
            prompt: 0..0,
            output: 0..0,
            banned: 0..0,
            biases: 0..0,
            allowed: 0..0,
            asked: 0..0,
        }
    }
}

/// What a step brought. Reused, like [`Step`].
#[derive(Debug, Default)]
pub struct StepOutput {
    /// One entry for each of [`Step::samples`], in their order.
    pub sampled: Vec<Sampled>,
    /// One entry for each of [`Step::prompt_rows`], in their order.
    pub prompt_logprobs: Vec<TokenLogprob>,
    /// `[hidden_size]` for each sequence with [`StepSequence::embed`], in their order.
    pub embeddings: Vec<Vec<f32>>,
}

impl StepOutput {
    /// Empties the output and keeps its memory.
    pub fn clear(&mut self) {
        self.sampled.clear();
        self.prompt_logprobs.clear();
        self.embeddings.clear();
    }
}

/// One sampled token.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sampled {
    /// The token; none when no logit was a finite number, which ends that request alone.
    pub token: Option<u32>,
    /// Present when the spec asked for it.
    pub logprob: Option<TokenLogprob>,
}
