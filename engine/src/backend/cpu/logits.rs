//! From hidden states to tokens: final norm, head, log probabilities, sampling.
//!
//! Only the rows of a step that somebody asks for get here: the last token of a sequence that samples, the places of
//! a prompt whose log probabilities are wanted, the last token of a prompt that is embedded. Logits are computed for a
//! few rows at a time, so they need `LOGIT_ROWS * vocab_size` floats however large the batch is, and each row of them
//! depends on its own hidden state alone, so a prompt's log probabilities do not depend on how it was cut into chunks.
//!
//! Ranks of a tensor-parallel group compute a part of each row, and rank 0 puts them together and decides.
//!
//! A row is decided by one thread; the rows of a large vocabulary are dealt out to several, each with a sampler of its
//! own.

use super::columns::each_chunk;
use super::forward::Context;
use super::matrix::Store;
use super::ops::rms_norm;
use super::weights::CpuWeights;
use super::{Step, StepOutput};
use crate::backend::{PromptRow, SampleSpec, Sampled};
use crate::sample::{History, Sampler, TokenLogprob};

/// Rows whose logits are computed together.
const LOGIT_ROWS: usize = 16;

/// Multiply-adds that a logit counts as when it is sampled from, in the decision to use more threads.
const LOGIT_WORK: usize = 4;

/// The scratch memory of the last part of a step; it grows to what was needed and stays.
#[derive(Debug, Default)]
pub(super) struct Logits {
    /// `[LOGIT_ROWS, hidden_size]`, after the final norm.
    normed: Vec<f32>,
    /// `[LOGIT_ROWS, vocab_size]`.
    rows: Vec<f32>,
    /// `[LOGIT_ROWS, vocabulary of this rank]`; empty where that is all.
    part: Vec<f32>,
    /// One for each thread that decides rows.
    samplers: Vec<Sampler>,
    /// Of the rows at hand, until they are moved to the output in order.
    decided: [Decided; LOGIT_ROWS],
}

/// What a row of logits is for.
#[derive(Clone, Copy)]
enum Wanted<'a> {
    Token(&'a SampleSpec),
    Prompt(&'a PromptRow),
}

/// What came of it.
#[derive(Debug)]
enum Decided {
    Token(Sampled),
    Prompt(TokenLogprob),
}

impl Default for Decided {
    fn default() -> Self {
        Self::Token(Sampled::default())
    }
}

impl Logits {
    /// Fills `out` from the `[tokens, hidden_size]` hidden states behind the last layer.
    pub(super) fn compute(
        &mut self,
        context: &Context<'_>,
        weights: &CpuWeights,
        hidden: &[f32],
        out: &mut StepOutput,
    ) {
        let step = context.step;
        out.clear();
        let decides = context.exchange.rank() == 0;
        if decides {
            embed(context, weights, hidden, out);
        }
        let samples = step.sequences.iter().filter_map(|sequence| {
            let spec = &step.samples[sequence.sample? as usize];
            Some((sequence.tokens.end as usize - 1, Wanted::Token(spec)))
        });
        let places = step.prompt_rows.iter();
        let places = places.map(|place| (place.token as usize, Wanted::Prompt(place)));
        let mut rows = samples.chain(places).peekable();
        while rows.peek().is_some() {
            let (batch, count) = self.batch(context, weights, hidden, &mut rows);
            if decides {
                self.decide(context, &batch[..count], out);
            }
        }
    }

    /// Computes the logits of the next rows; which they are, and how many.
    fn batch<'a>(
        &mut self,
        context: &Context<'_>,
        weights: &CpuWeights,
        hidden: &[f32],
        rows: impl Iterator<Item = (usize, Wanted<'a>)>,
    ) -> ([Option<Wanted<'a>>; LOGIT_ROWS], usize) {
        let (hidden_size, vocab_size) = (context.config.hidden_size, context.config.vocab_size);
        self.normed.resize(LOGIT_ROWS * hidden_size, 0.0);
        self.rows.resize(LOGIT_ROWS * vocab_size, 0.0);
        let mut batch = [None; LOGIT_ROWS];
        let mut count = 0;
        // The slot comes first: the row after the last slot must stay in the iterator.
        for (slot, (row, wanted)) in batch.iter_mut().zip(rows) {
            let hidden = &hidden[row * hidden_size..(row + 1) * hidden_size];
            let normed = &mut self.normed[count * hidden_size..(count + 1) * hidden_size];
            rms_norm(hidden, &weights.norm, context.config.rms_norm_eps, normed);
            *slot = Some(wanted);
            count += 1;
        }
        let normed = &self.normed[..count * hidden_size];
        let logits = &mut self.rows[..count * vocab_size];
        multiply_head(context, weights, normed, &mut self.part, logits);
        (batch, count)
    }

    /// Decides the rows whose logits are at hand.
    fn decide(
        &mut self,
        context: &Context<'_>,
        wanted: &[Option<Wanted<'_>>],
        out: &mut StepOutput,
    ) {
        let (count, vocab_size) = (wanted.len(), self.rows.len() / LOGIT_ROWS);
        let work = count * vocab_size * LOGIT_WORK;
        let parts = context.team.parts(work).min(count);
        if self.samplers.len() < parts {
            self.samplers.resize_with(parts, Sampler::default);
        }
        let mut rest = Share {
            wanted,
            logits: &mut self.rows[..count * vocab_size],
            decided: &mut self.decided[..count],
        };
        let mut shares: [Option<(Share<'_>, &mut Sampler)>; LOGIT_ROWS] =
            [const { None }; LOGIT_ROWS];
        for (part, (slot, sampler)) in shares
            .iter_mut()
            .zip(&mut self.samplers[..parts])
            .enumerate()
        {
            let rows = count * (part + 1) / parts - count * part / parts;
            let (share, others) = rest.split_at(rows, vocab_size);
            *slot = Some((share, sampler));
            rest = others;
        }
        each_chunk(context.team, &mut shares[..parts], 1, |_, share| {
            if let Some((share, sampler)) = share.first_mut().and_then(Option::take) {
                share.decide(context.step, sampler);
            }
        });
        for decided in &mut self.decided[..count] {
            match std::mem::take(decided) {
                Decided::Token(sampled) => out.sampled.push(sampled),
                Decided::Prompt(logprob) => out.prompt_logprobs.push(logprob),
            }
        }
    }
}

/// The logits of a few rows: of all tokens, on rank 0.
fn multiply_head(
    context: &Context<'_>,
    weights: &CpuWeights,
    normed: &[f32],
    part: &mut Vec<f32>,
    logits: &mut [f32],
) {
    let (team, isa, vocab_size) = (context.team, context.isa, context.config.vocab_size);
    let multiply = |y: &mut [f32]| weights.head.multiply(team, isa, normed, y, Store::Replace);
    if context.exchange.ranks() == 1 {
        return multiply(logits);
    }
    let count = logits.len() / vocab_size.max(1);
    part.resize(count * weights.head.outputs(), 0.0);
    multiply(part);
    let mut first = 0;
    context.exchange.collect(part, &mut |_, part| {
        let width = part.len() / count.max(1);
        let rows = part.chunks_exact(width.max(1));
        for (row, part) in logits.chunks_exact_mut(vocab_size).zip(rows) {
            row[first..first + width].copy_from_slice(part);
        }
        first += width;
    });
}

/// Rows that one sampler decides.
struct Share<'a> {
    wanted: &'a [Option<Wanted<'a>>],
    logits: &'a mut [f32],
    decided: &'a mut [Decided],
}

impl Share<'_> {
    /// Cuts off the first `rows` rows, of `width` logits each.
    fn split_at(self, rows: usize, width: usize) -> (Self, Self) {
        let wanted = self.wanted.split_at(rows);
        let logits = self.logits.split_at_mut(rows * width);
        let decided = self.decided.split_at_mut(rows);
        let share = |wanted, logits, decided| Share {
            wanted,
            logits,
            decided,
        };
        (
            share(wanted.0, logits.0, decided.0),
            share(wanted.1, logits.1, decided.1),
        )
    }

    fn decide(self, step: &Step, sampler: &mut Sampler) {
        let rows = self.wanted.len();
        if rows == 0 {
            return;
        }
        let width = self.logits.len() / rows;
        let rows = self.wanted.iter().flatten();
        let rows = rows.zip(self.logits.chunks_exact_mut(width));
        for ((wanted, logits), decided) in rows.zip(self.decided) {
            *decided = match *wanted {
                Wanted::Token(spec) => {
                    Decided::Token(sampler.sample(spec, history(step, spec), logits))
                }
                Wanted::Prompt(place) => {
                    Decided::Prompt(sampler.logprob(logits, place.target, place.top))
                }
            };
        }
    }
}

/// The normed hidden state behind the last token of each sequence that wants it.
fn embed(context: &Context<'_>, weights: &CpuWeights, hidden: &[f32], out: &mut StepOutput) {
    let size = context.config.hidden_size;
    let sequences = context.step.sequences.iter();
    for sequence in sequences.filter(|sequence| sequence.embed) {
        let row = sequence.tokens.end as usize - 1;
        let mut embedding = vec![0.0; size];
        let hidden = &hidden[row * size..(row + 1) * size];
        rms_norm(
            hidden,
            &weights.norm,
            context.config.rms_norm_eps,
            &mut embedding,
        );
        out.embeddings.push(embedding);
    }
}

fn history<'a>(step: &'a Step, spec: &SampleSpec) -> History<'a> {
    let of = |range: &std::ops::Range<u32>| range.start as usize..range.end as usize;
    History {
        prompt: &step.history[of(&spec.prompt)],
        output: &step.history[of(&spec.output)],
        banned: &step.banned[of(&spec.banned)],
        biases: &step.biases[of(&spec.biases)],
        allowed: &step.allowed[of(&spec.allowed)],
        asked: &step.asked[of(&spec.asked)],
    }
}
