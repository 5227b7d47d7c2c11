//! Which token comes next where nothing is computed: a hash of the context's end.
//!
//! A token depends on the last token of the context and its length, and on the request's seed unless the request is
//! greedy. So it is the same alone and in a batch, in any chunking, after a prefix hit and after a preemption, as
//! with a real model. What a request forbids or insists on (banned and allowed tokens, a strong bias) holds; what
//! merely makes tokens likelier has no meaning without logits and changes nothing.
//!
//! The tokens are words of the model folder's vocabulary, so that answers look like text and pass through the
//! detokeniser as text does.

use std::ops::Range;

use tokenizers::Tokenizer;

use crate::backend::{SampleSpec, Sampled, Step, StepSequence};
use crate::sample::TokenLogprob;

/// Words that answers are made of, at most.
const WORDS_MAX: usize = 4096;

/// A bias at least this strong decides, either way; OpenAI says that 100 does.
const DECISIVE_BIAS: f32 = 20.0;

/// Temperatures below this are greedy, as in the sampler.
const GREEDY_BELOW: f32 = 1e-5;

/// A request that passed its length and cannot end is offered an end again after this many tokens.
const END_AGAIN_AFTER: u32 = 16;

/// What answers are made of.
#[derive(Clone, Debug)]
pub struct Tokens {
    /// Never empty.
    words: Vec<u32>,
    end: Option<u32>,
    /// Mean length of an answer that ends by itself.
    mean_length: Option<u32>,
}

impl Tokens {
    /// Answers made of `words`, which end by `end` after some `output_tokens` tokens if both are given: exactly then if
    /// greedy, and otherwise after half to one and a half times as many, by the request's seed.
    pub fn new(words: Vec<u32>, end: Option<u32>, output_tokens: Option<u32>) -> Self {
        let words = if words.is_empty() { vec![0] } else { words };
        Self {
            words,
            end,
            mean_length: output_tokens,
        }
    }

    /// The words of a vocabulary: tokens of two letters or more, with or without a space before them; where there are
    /// none, whatever else can be printed.
    pub fn words_of(tokenizer: &Tokenizer, vocab_size: u32) -> Vec<u32> {
        let pick = |accept: fn(&str) -> bool| {
            let tokens = (0..vocab_size).filter(|token| {
                let shown = tokenizer.decode(&[*token], true);
                shown.is_ok_and(|text| accept(&text))
            });
            tokens.take(WORDS_MAX).collect::<Vec<_>>()
        };
        let words = pick(is_word);
        if words.is_empty() {
            pick(is_printable)
        } else {
            words
        }
    }

    /// The token after `sequence`, whose sample is `spec`; none when the request forbids all.
    pub fn sample(&self, step: &Step, sequence: &StepSequence, spec: &SampleSpec) -> Sampled {
        let rules = Rules::new(step, spec);
        let seed = if spec.temperature >= GREEDY_BELOW {
            spec.seed
        } else {
            0
        };
        let last = (sequence.tokens.end as usize).checked_sub(1);
        let last = last.and_then(|last| step.tokens.get(last)).copied();
        let hash = mix(seed ^ mix(context_key(last.unwrap_or(0), sequence.context_len)));
        let forced = rules.forced();
        let token = forced
            .or_else(|| self.ending(spec, seed).filter(|end| rules.permit(*end)))
            .or_else(|| self.candidates(&rules, hash).next());
        let logprob = token.zip(spec.logprobs).map(|(token, top)| {
            let others = self
                .candidates(&rules, hash)
                .filter(|other| *other != token);
            let mut logprob = ranked(hash, 0, token, top, others);
            let asked = slice(&step.asked, &spec.asked).iter();
            let unseen = asked.filter(|asked| !logprob.top.iter().any(|(id, _)| id == *asked));
            let tail: Vec<_> = unseen.map(|id| (*id, unlikely(hash, *id))).collect();
            logprob.top.extend(tail);
            logprob
        });
        Sampled { token, logprob }
    }

    /// The log probability of `target` after the token at `index` of the step, with the `top` most likely ones.
    pub fn prompt_logprob(&self, step: &Step, index: usize, target: u32, top: u32) -> TokenLogprob {
        let token = step.tokens.get(index).copied().unwrap_or(0);
        let position = step.positions.get(index).copied().unwrap_or(0);
        let hash = mix(context_key(token, position + 1));
        let others = self.words_from(hash).filter(|other| *other != target);
        ranked(hash, (hash >> 56) as usize % 8, target, top, others)
    }

    /// The end of the answer, when it is time for it.
    fn ending(&self, spec: &SampleSpec, seed: u64) -> Option<u32> {
        let (end, mean) = self.end.zip(self.mean_length)?;
        let length = if spec.temperature >= GREEDY_BELOW {
            mean - mean / 2 + (mix(seed) % u64::from(mean.max(1))) as u32
        } else {
            mean
        };
        let over = (spec.position + 1).checked_sub(length)?;
        over.is_multiple_of(END_AGAIN_AFTER).then_some(end)
    }

    fn words_from(&self, hash: u64) -> impl Iterator<Item = u32> {
        from(&self.words, hash)
    }

    /// The tokens that may come, the first of them first.
    fn candidates<'a>(
        &'a self,
        rules: &Rules<'a>,
        hash: u64,
    ) -> impl Iterator<Item = u32> + use<'a> {
        let rules = *rules;
        let all = if rules.allowed.is_empty() {
            &self.words
        } else {
            rules.allowed
        };
        from(all, hash).filter(move |token| rules.permit(*token))
    }
}

/// What a request forbids and insists on.
#[derive(Clone, Copy)]
struct Rules<'a> {
    banned: &'a [u32],
    allowed: &'a [u32],
    biases: &'a [(u32, f32)],
}

impl<'a> Rules<'a> {
    fn new(step: &'a Step, spec: &SampleSpec) -> Self {
        Self {
            banned: slice(&step.banned, &spec.banned),
            allowed: slice(&step.allowed, &spec.allowed),
            biases: slice(&step.biases, &spec.biases),
        }
    }

    fn permit(&self, token: u32) -> bool {
        let biased = |(id, bias): &(u32, f32)| *id == token && *bias <= -DECISIVE_BIAS;
        !self.banned.contains(&token)
            && (self.allowed.is_empty() || self.allowed.contains(&token))
            && !self.biases.iter().any(biased)
    }

    /// The token with the strongest decisive bias.
    fn forced(&self) -> Option<u32> {
        let decisive = self
            .biases
            .iter()
            .filter(|(_, bias)| *bias >= DECISIVE_BIAS);
        decisive
            .filter(|(token, _)| self.permit(*token))
            .max_by(|a, b| a.1.total_cmp(&b.1))
            .map(|(token, _)| *token)
    }
}

/// `token` at `place` (0 is the most likely) of a falling list filled up with `others`.
fn ranked(
    hash: u64,
    place: usize,
    token: u32,
    top: u32,
    mut others: impl Iterator<Item = u32>,
) -> TokenLogprob {
    // A geometric distribution whose steepness differs from place to place.
    let ratio = 0.2 + 0.5 * (hash >> 32 & 0xffff) as f32 / 65_536.0;
    let logprob = |place: usize| (1.0 - ratio).ln() + place as f32 * ratio.ln();
    let top = (0..top as usize).map_while(|index| {
        let at = if index == place {
            Some(token)
        } else {
            others.next()
        };
        at.map(|id| (id, logprob(index)))
    });
    TokenLogprob {
        logprob: logprob(place),
        rank: place as u32 + 1,
        top: top.collect(),
    }
}

/// A log probability for a token that is not among the likely ones.
fn unlikely(hash: u64, token: u32) -> f32 {
    -12.0 - (mix(hash ^ u64::from(token)) % 1000) as f32 / 100.0
}

fn from(tokens: &[u32], hash: u64) -> impl Iterator<Item = u32> {
    let start = (hash % (tokens.len() as u64).max(1)) as usize;
    let (head, tail) = tokens.split_at(start.min(tokens.len()));
    tail.iter().chain(head).copied()
}

fn slice<'a, T>(all: &'a [T], range: &Range<u32>) -> &'a [T] {
    all.get(range.start as usize..range.end as usize)
        .unwrap_or_default()
}

fn context_key(last: u32, context_len: u32) -> u64 {
    u64::from(last) << 32 | u64::from(context_len)
}

/// SplitMix64's finaliser.
pub(super) fn mix(mut value: u64) -> u64 {
    value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

fn is_word(text: &str) -> bool {
    let letters = text.strip_prefix(' ').unwrap_or(text);
    letters.len() >= 2 && letters.bytes().all(|byte| byte.is_ascii_alphabetic())
}

fn is_printable(text: &str) -> bool {
    !text.is_empty() && !text.contains(|c: char| c.is_control() || c == '\u{FFFD}')
}

#[cfg(test)]
mod tests;
