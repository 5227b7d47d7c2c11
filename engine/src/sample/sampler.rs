//! The sampler: one row of logits in, one token out.
//!
//! Rows may hold anything, as they come from arithmetic on weights that nobody vouches for: what is not a finite
//! number counts as impossible, and a row without any finite number has no token.

use std::cmp::Ordering;

use super::TokenLogprob;
use super::philox::Gumbel;
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
    raw: Vec<f32>,
    candidates: Vec<u32>,
}

/// What a draw looks back on.
#[derive(Clone, Copy, Debug, Default)]
pub struct History<'a> {
    /// The prompt's tokens; needed only when penalties are on.
    pub prompt: &'a [u32],
    /// The tokens generated so far; needed only when penalties are on.
    pub output: &'a [u32],
    /// Tokens that must not come.
    pub banned: &'a [u32],
}

impl Sampler {
    /// Samples from `logits`, which are overwritten.
    pub fn sample(
        &mut self,
        spec: &SampleSpec,
        history: History<'_>,
        logits: &mut [f32],
    ) -> Sampled {
        for logit in logits.iter_mut() {
            if !logit.is_finite() {
                *logit = f32::NEG_INFINITY;
            }
        }
        if spec.logprobs.is_some() {
            self.raw.clear();
            self.raw.extend_from_slice(logits);
        }
        for &token in history.banned {
            if let Some(logit) = logits.get_mut(token as usize) {
                *logit = f32::NEG_INFINITY;
            }
        }
        self.penalise(spec, history, logits);
        let token = if spec.temperature >= GREEDY_BELOW {
            self.draw(spec, logits)
        } else {
            argmax(logits)
        };
        let logprob = token
            .zip(spec.logprobs)
            .map(|(token, top)| self.logprob(token, top));
        Sampled { token, logprob }
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
            if !logit.is_finite() {
                *logit = f32::NEG_INFINITY;
            }
        }
        for &token in history.prompt.iter().chain(history.output) {
            if let Some(seen) = self.seen.get_mut(token as usize) {
                *seen = false;
            }
        }
    }

    /// Temperature, min-p, top-k, top-p, then a draw among what is left.
    fn draw(&mut self, spec: &SampleSpec, logits: &mut [f32]) -> Option<u32> {
        let best = logits[argmax(logits)? as usize];
        // The most likely token goes to 0, so that a tiny temperature cannot overflow the others upwards.
        for logit in logits.iter_mut() {
            *logit = (*logit - best) / spec.temperature;
        }
        let floor = if spec.min_p > 0.0 {
            spec.min_p.min(1.0).ln()
        } else {
            f32::MIN
        };
        let candidates = &mut self.candidates;
        candidates.clear();
        candidates
            .extend((0..logits.len() as u32).filter(|token| logits[*token as usize] >= floor));
        keep_top_k(candidates, logits, spec.top_k as usize);
        keep_top_p(candidates, logits, spec.top_p);
        let mut gumbel = Gumbel::new(spec.seed, spec.position);
        let mut winner: Option<(f32, u32)> = None;
        for &token in candidates.iter() {
            let value = logits[token as usize] + gumbel.noise(token);
            if winner.is_none_or(|(best, _)| value > best) {
                winner = Some((value, token));
            }
        }
        winner.map(|(_, token)| token)
    }

    /// The log probability of `token` in the raw row, and the `top` most likely ones.
    fn logprob(&mut self, token: u32, top: u32) -> TokenLogprob {
        let raw = &self.raw;
        let best = raw.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = raw.iter().map(|logit| f64::from(logit - best).exp()).sum();
        let normaliser = best + sum.ln() as f32;
        let chosen = raw
            .get(token as usize)
            .copied()
            .unwrap_or(f32::NEG_INFINITY);
        let tokens = &mut self.candidates;
        tokens.clear();
        tokens.extend(0..raw.len() as u32);
        let count = (top as usize).min(tokens.len());
        if count > 0 && count < tokens.len() {
            tokens.select_nth_unstable_by(count - 1, |a, b| likelier(raw, *a, *b));
        }
        tokens.truncate(count);
        tokens.sort_unstable_by(|a, b| likelier(raw, *a, *b));
        TokenLogprob {
            logprob: chosen - normaliser,
            rank: raw.iter().filter(|logit| **logit >= chosen).count() as u32,
            top: tokens
                .iter()
                .map(|token| (*token, raw[*token as usize] - normaliser))
                .collect(),
        }
    }
}

/// The first of the largest logits; none when no logit is finite.
fn argmax(logits: &[f32]) -> Option<u32> {
    let mut best: Option<(f32, usize)> = None;
    for (token, &logit) in logits.iter().enumerate() {
        if logit > best.map_or(f32::NEG_INFINITY, |(best, _)| best) {
            best = Some((logit, token));
        }
    }
    best.map(|(_, token)| token as u32)
}

/// Keeps the `k` likeliest, and those as likely as the last of them; ascending order of tokens is kept.
fn keep_top_k(candidates: &mut Vec<u32>, logits: &[f32], k: usize) {
    if k == 0 || k >= candidates.len() {
        return;
    }
    let (_, &mut last, _) =
        candidates.select_nth_unstable_by(k - 1, |a, b| likelier(logits, *a, *b));
    let threshold = logits[last as usize];
    candidates.retain(|token| logits[*token as usize] >= threshold);
    candidates.sort_unstable();
}

/// Keeps the likeliest whose probabilities, among the candidates, add up to `top_p`; at least one.
fn keep_top_p(candidates: &mut Vec<u32>, logits: &[f32], top_p: f32) {
    if top_p.is_nan() || top_p >= 1.0 {
        return;
    }
    let weight = |token: u32| f64::from(logits[token as usize]).exp();
    candidates.sort_unstable_by(|a, b| likelier(logits, *a, *b));
    let goal = f64::from(top_p) * candidates.iter().map(|token| weight(*token)).sum::<f64>();
    let mut sum = 0.0;
    let kept = candidates.iter().take_while(|token| {
        let before = sum;
        sum += weight(**token);
        before < goal
    });
    let kept = kept.count().max(1);
    candidates.truncate(kept);
    candidates.sort_unstable();
}

/// Higher logit first, then lower token id: a total order, so results never depend on how a sort went about it.
fn likelier(logits: &[f32], a: u32, b: u32) -> Ordering {
    logits[b as usize]
        .total_cmp(&logits[a as usize])
        .then(a.cmp(&b))
}

#[cfg(test)]
mod tests;
