//! The sampler: one row of logits in, one token out.
//!
//! Rows may hold anything, as they come from arithmetic on weights that nobody vouches for: what is not a finite
//! number counts as impossible, and a row without any finite number has no token.

use super::TokenLogprob;
use super::candidates::Candidates;
use super::row::{self, Normaliser};
use crate::backend::{SampleSpec, Sampled};

/// Below this temperature sampling is greedy; vLLM's value.
const GREEDY_BELOW: f32 = 1e-5;

/// The sampler's memory, reused from row to row. Its size is a small multiple of the vocabulary.
#[derive(Debug, Default)]
pub struct Sampler {
    /// Times each token occurs in the output; zero between calls.
    counts: Vec<u32>,
    /// Whether each token occurs in prompt or output; false between calls.
    seen: Vec<bool>,
    /// The row before it was changed, where log probabilities are wanted and something changes it.
    raw: Vec<f32>,
    /// The logits of the allowed tokens, while all others are made impossible.
    allowed: Vec<f32>,
    peaks: Vec<f32>,
    tokens: Vec<u32>,
    scratch: Vec<f32>,
    candidates: Candidates,
}

/// What a draw looks back on, and what else the request says of single tokens.
#[derive(Clone, Copy, Debug, Default)]
pub struct History<'a> {
    /// The prompt's tokens; needed only when penalties are on.
    pub prompt: &'a [u32],
    /// The tokens generated so far; needed only when penalties are on.
    pub output: &'a [u32],
    /// Tokens that must not come.
    pub banned: &'a [u32],
    /// Tokens and what is added to their logits, before penalties.
    pub biases: &'a [(u32, f32)],
    /// When not empty, no other token may come.
    pub allowed: &'a [u32],
    /// When not empty, log probabilities are those of these tokens and not of the most likely ones.
    pub asked: &'a [u32],
}

impl Sampler {
    /// Samples from `logits`, which may be overwritten. In vLLM's order: raw log probabilities, allowed tokens, banned
    /// tokens, biases, penalties, temperature, min-p, top-k, top-p.
    pub fn sample(
        &mut self,
        spec: &SampleSpec,
        history: History<'_>,
        logits: &mut [f32],
    ) -> Sampled {
        row::scan(logits, &mut self.peaks);
        let raw = spec
            .logprobs
            .map(|top| self.raw_logprobs(top, history.asked, logits));
        if history.changes_logits() {
            if raw.is_some() {
                self.raw.clear();
                self.raw.extend_from_slice(logits);
            }
            self.change(spec, history, logits);
            row::scan(logits, &mut self.peaks);
        }
        let best = row::argmax(logits, &self.peaks);
        let token = match best {
            Some(best) if spec.temperature >= GREEDY_BELOW => {
                Some(self.candidates.draw(spec, logits, &self.peaks, best))
            }
            _ => best,
        };
        let logprob = token.zip(raw).map(|(token, (normaliser, top))| {
            let raw = if history.changes_logits() {
                &self.raw
            } else {
                &*logits
            };
            logprob_of(token, raw, normaliser, top)
        });
        Sampled { token, logprob }
    }

    /// The log probability of `target` in a row of logits, and the `top` most likely tokens.
    pub fn logprob(&mut self, logits: &mut [f32], target: u32, top: u32) -> TokenLogprob {
        row::scan(logits, &mut self.peaks);
        let (normaliser, top) = self.raw_logprobs(top, &[], logits);
        logprob_of(target, logits, normaliser, top)
    }

    fn raw_logprobs(
        &mut self,
        top: u32,
        asked: &[u32],
        logits: &[f32],
    ) -> (Normaliser, Vec<(u32, f32)>) {
        let normaliser = Normaliser::of(logits, &self.peaks);
        let with_logprob = |token: &u32| {
            let logit = logits.get(*token as usize).copied();
            let logprob = normaliser.logprob(logit.unwrap_or(f32::NEG_INFINITY));
            (*token, logprob)
        };
        if !asked.is_empty() {
            return (normaliser, asked.iter().map(with_logprob).collect());
        }
        let (tokens, scratch) = (&mut self.tokens, &mut self.scratch);
        row::likeliest(logits, &self.peaks, top as usize, tokens, scratch);
        (normaliser, tokens.iter().map(with_logprob).collect())
    }

    /// What the request says of single tokens.
    fn change(&mut self, spec: &SampleSpec, history: History<'_>, logits: &mut [f32]) {
        if !history.allowed.is_empty() {
            self.allow(history.allowed, logits);
        }
        for &token in history.banned {
            if let Some(logit) = logits.get_mut(token as usize) {
                *logit = f32::NEG_INFINITY;
            }
        }
        for &(token, bias) in history.biases {
            if let Some(logit) = logits.get_mut(token as usize) {
                *logit = finite_or_impossible(*logit + bias);
            }
        }
        self.penalise(spec, history, logits);
    }

    /// Makes all tokens impossible but the `allowed`.
    fn allow(&mut self, allowed: &[u32], logits: &mut [f32]) {
        let vocabulary = logits.len();
        let known = allowed
            .iter()
            .filter(|token| (**token as usize) < vocabulary);
        self.allowed.clear();
        let logits_of = known.clone().map(|token| logits[*token as usize]);
        self.allowed.extend(logits_of);
        logits.fill(f32::NEG_INFINITY);
        for (token, logit) in known.zip(&self.allowed) {
            logits[*token as usize] = *logit;
        }
    }

    /// Repetition, frequency and presence penalties, each token once, however often it occurs.
    fn penalise(&mut self, spec: &SampleSpec, history: History<'_>, logits: &mut [f32]) {
        if history.prompt.is_empty() && history.output.is_empty() {
            return;
        }
        self.counts.resize(logits.len().max(self.counts.len()), 0);
        self.seen.resize(logits.len().max(self.seen.len()), false);
        for &token in history.output {
            if let Some(count) = self.counts.get_mut(token as usize) {
                *count += 1;
            }
        }
        for &token in history.prompt.iter().chain(history.output) {
            let index = token as usize;
            let Some(logit) = logits.get_mut(index) else {
                continue;
            };
            if std::mem::replace(&mut self.seen[index], true) {
                continue;
            }
            let count = std::mem::take(&mut self.counts[index]);
            if *logit == f32::NEG_INFINITY {
                // Impossible stays impossible, whatever the signs of the penalties.
                continue;
            }
            if *logit > 0.0 {
                *logit /= spec.repetition_penalty;
            } else {
                *logit *= spec.repetition_penalty;
            }
            *logit -= spec.frequency_penalty * count as f32;
            if count > 0 {
                *logit -= spec.presence_penalty;
            }
            *logit = finite_or_impossible(*logit);
        }
        for &token in history.prompt.iter().chain(history.output) {
            if let Some(seen) = self.seen.get_mut(token as usize) {
                *seen = false;
            }
        }
    }
}

impl History<'_> {
    fn changes_logits(&self) -> bool {
        !(self.prompt.is_empty()
            && self.output.is_empty()
            && self.banned.is_empty()
            && self.biases.is_empty()
            && self.allowed.is_empty())
    }
}

fn finite_or_impossible(logit: f32) -> f32 {
    if logit.is_finite() {
        logit
    } else {
        f32::NEG_INFINITY
    }
}

fn logprob_of(
    token: u32,
    raw: &[f32],
    normaliser: Normaliser,
    top: Vec<(u32, f32)>,
) -> TokenLogprob {
    let logit = raw.get(token as usize).copied();
    let logit = logit.unwrap_or(f32::NEG_INFINITY);
    TokenLogprob {
        logprob: normaliser.logprob(logit),
        rank: row::count_at_least(raw, logit),
        top,
    }
}

#[cfg(test)]
mod tests;
