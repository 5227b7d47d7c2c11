//! Questions about a row of logits, answered in few passes over it.
//!
//! A vocabulary has some 150,000 tokens and nearly all of them are out of the question. So the first pass notes the
//! largest logit of each block of [`BLOCK`]; whoever looks for large logits afterwards passes over the blocks whose
//! peak is too small, and never sorts more than a few hundred tokens.

use std::cmp::Ordering;

use super::math::exp;

/// Logits that share a peak.
pub(super) const BLOCK: usize = 64;

/// Makes impossible what is no finite number, and notes the peak of each block.
pub(super) fn scan(logits: &mut [f32], peaks: &mut Vec<f32>) {
    peaks.clear();
    peaks.extend(logits.chunks_mut(BLOCK).map(|block| {
        for logit in block.iter_mut() {
            *logit = if logit.is_finite() {
                *logit
            } else {
                f32::NEG_INFINITY
            };
        }
        peak(block)
    }));
}

/// The largest of a block. Sixteen at a time, so that it vectorises.
fn peak(block: &[f32]) -> f32 {
    let larger = |a: f32, b: f32| if a > b { a } else { b };
    let mut lanes = [f32::NEG_INFINITY; 16];
    for logits in block.chunks(16) {
        for (lane, logit) in lanes.iter_mut().zip(logits) {
            *lane = larger(*logit, *lane);
        }
    }
    lanes.into_iter().fold(f32::NEG_INFINITY, larger)
}

/// The first of the largest logits; none when no logit is finite.
pub(super) fn argmax(logits: &[f32], peaks: &[f32]) -> Option<u32> {
    let mut best: Option<(f32, usize)> = None;
    for (block, &peak) in peaks.iter().enumerate() {
        if peak > best.map_or(f32::NEG_INFINITY, |(best, _)| best) {
            best = Some((peak, block));
        }
    }
    let (best, block) = best?;
    let start = block * BLOCK;
    let within = logits[start..].iter().position(|logit| *logit >= best)?;
    Some((start + within) as u32)
}

/// What turns the logits of a row into log probabilities.
#[derive(Clone, Copy, Debug)]
pub(super) struct Normaliser {
    best: f32,
    /// Logarithm of the sum of e^(logit - best).
    log_sum: f64,
}

impl Normaliser {
    pub(super) fn of(logits: &[f32], peaks: &[f32]) -> Self {
        let best = peaks.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        if best == f32::NEG_INFINITY {
            return Self { best, log_sum: 0.0 };
        }
        let blocks = logits.chunks(BLOCK).map(|block| {
            let mut lanes = [0.0_f32; 16];
            for logits in block.chunks(16) {
                for (lane, logit) in lanes.iter_mut().zip(logits) {
                    *lane += exp(logit - best);
                }
            }
            lanes.into_iter().map(f64::from).sum::<f64>()
        });
        Self {
            best,
            log_sum: blocks.sum::<f64>().ln(),
        }
    }

    /// The log probability of a token with this logit.
    pub(super) fn logprob(&self, logit: f32) -> f32 {
        if logit == f32::NEG_INFINITY {
            return f32::NEG_INFINITY;
        }
        (f64::from(logit) - f64::from(self.best) - self.log_sum) as f32
    }
}

/// How many logits are at least `threshold`.
pub(super) fn count_at_least(logits: &[f32], threshold: f32) -> u32 {
    let blocks = logits.chunks(BLOCK);
    blocks
        .map(|block| {
            block
                .iter()
                .map(|logit| u32::from(*logit >= threshold))
                .sum::<u32>()
        })
        .sum()
}

/// The tokens whose logits pass, in ascending order. A logit passes if a smaller one does.
pub(super) fn gather(
    logits: &[f32],
    peaks: &[f32],
    tokens: &mut Vec<u32>,
    passes: impl Fn(f32) -> bool,
) {
    tokens.clear();
    for (block, (logits, peak)) in logits.chunks(BLOCK).zip(peaks).enumerate() {
        if passes(*peak) {
            let start = block * BLOCK;
            let passing = logits
                .iter()
                .enumerate()
                .filter(|(_, logit)| passes(**logit));
            tokens.extend(passing.map(|(within, _)| (start + within) as u32));
        }
    }
}

/// A number that at least `count` logits reach, unless there are fewer: the `count`th peak. Not far from the `count`th
/// logit, because large logits are seldom in one block.
pub(super) fn reached_by(peaks: &[f32], count: usize, scratch: &mut Vec<f32>) -> f32 {
    if count == 0 || count > peaks.len() {
        return f32::MIN;
    }
    scratch.clear();
    scratch.extend_from_slice(peaks);
    let (_, threshold, _) = scratch.select_nth_unstable_by(count - 1, |a, b| b.total_cmp(a));
    threshold.max(f32::MIN)
}

/// The likeliest tokens, at most `count` and only possible ones, best first and ties by token.
pub(super) fn likeliest(
    logits: &[f32],
    peaks: &[f32],
    count: usize,
    tokens: &mut Vec<u32>,
    scratch: &mut Vec<f32>,
) {
    tokens.clear();
    if count == 0 {
        return;
    }
    let threshold = reached_by(peaks, count, scratch);
    gather(logits, peaks, tokens, |logit| logit >= threshold);
    if count < tokens.len() {
        tokens.select_nth_unstable_by(count - 1, |a, b| likelier(logits, *a, *b));
        tokens.truncate(count);
    }
    tokens.sort_unstable_by(|a, b| likelier(logits, *a, *b));
}

/// Higher logit first, then lower token id: a total order, so results never depend on how a sort went about it.
fn likelier(logits: &[f32], a: u32, b: u32) -> Ordering {
    logits[b as usize]
        .total_cmp(&logits[a as usize])
        .then(a.cmp(&b))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Rows over several blocks, with ties and impossible tokens.
    fn rows() -> impl Strategy<Value = Vec<f32>> {
        let logit = prop_oneof![
            6 => -20.0_f32..20.0,
            3 => (-4_i8..4).prop_map(f32::from),
            1 => Just(f32::NEG_INFINITY),
            1 => Just(f32::NAN),
        ];
        proptest::collection::vec(logit, 0..400)
    }

    proptest! {
        #[test]
        fn blocks_hide_nothing(mut logits in rows(), count in 0_usize..300, threshold in -5.0_f32..5.0) {
            let mut peaks = Vec::new();
            scan(&mut logits, &mut peaks);
            prop_assert!(logits.iter().all(|logit| !logit.is_nan()));
            let mut sorted: Vec<u32> = (0..logits.len() as u32)
                .filter(|token| logits[*token as usize].is_finite())
                .collect();
            sorted.sort_by(|a, b| likelier(&logits, *a, *b));
            prop_assert_eq!(argmax(&logits, &peaks), sorted.first().copied());
            let (mut tokens, mut scratch) = (Vec::new(), Vec::new());
            likeliest(&logits, &peaks, count, &mut tokens, &mut scratch);
            prop_assert_eq!(&tokens, &sorted[..count.min(sorted.len())]);
            let mut passing: Vec<u32> = sorted.clone();
            passing.retain(|token| logits[*token as usize] >= threshold);
            prop_assert_eq!(count_at_least(&logits, threshold) as usize, passing.len());
            passing.sort_unstable();
            gather(&logits, &peaks, &mut tokens, |logit| logit >= threshold);
            prop_assert_eq!(tokens, passing);
        }

        #[test]
        fn log_probabilities_are_those_of_f64(mut logits in rows()) {
            let mut peaks = Vec::new();
            scan(&mut logits, &mut peaks);
            let normaliser = Normaliser::of(&logits, &peaks);
            let sum: f64 = logits.iter().map(|logit| f64::from(*logit).exp()).sum();
            for &logit in &logits {
                let exact = f64::from(logit) - sum.ln();
                let close = (f64::from(normaliser.logprob(logit)) - exact).abs() < 4e-6;
                prop_assert!(close || logit == f32::NEG_INFINITY);
            }
        }
    }
}
