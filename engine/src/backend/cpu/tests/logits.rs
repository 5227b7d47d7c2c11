//! What is computed from hidden states: prompt log probabilities, embeddings, and rows that several threads share.

use super::*;
use crate::backend::{PromptRow, SampleSpec};
use crate::sample::TokenLogprob;

/// The log probabilities of a prompt's tokens but the first, computed in chunks of `counts` tokens.
fn prompt_logprobs(rig: &mut Rig, sequence: &mut Sequence, counts: &[usize]) -> Vec<TokenLogprob> {
    let mut logprobs = Vec::new();
    for &count in counts {
        let first = sequence.computed;
        let mut step = step(std::slice::from_mut(sequence), &[count], rig.block_size);
        let targets = (0..count).filter_map(|index| {
            let target = *sequence.tokens.get(first + index + 1)?;
            Some(PromptRow {
                token: index as u32,
                target,
                top: 3,
            })
        });
        step.prompt_rows.extend(targets);
        let mut out = StepOutput::default();
        rig.backend.forward(&step, &mut out).unwrap();
        assert_eq!(out.prompt_logprobs.len(), step.prompt_rows.len());
        logprobs.append(&mut out.prompt_logprobs);
    }
    logprobs
}

#[test]
fn prompt_log_probabilities_are_those_of_the_definition() {
    let mut rig = Rig::new(&small(), 1, 4);
    let mut sequence = rig.sequences(&[37], 9).remove(0);
    let expected = naive::log_probabilities(&rig.model, &sequence.tokens);
    let got = prompt_logprobs(&mut rig, &mut sequence, &[37]);
    assert_eq!(got.len(), 36);
    for (index, (got, expected)) in got.iter().zip(&expected).enumerate() {
        let target = sequence.tokens[index + 1] as usize;
        assert!(
            (f64::from(got.logprob) - expected[target]).abs() < LOGIT_TOLERANCE,
            "{index}"
        );
        let at_least = expected
            .iter()
            .filter(|logprob| **logprob >= expected[target]);
        assert_eq!(got.rank as usize, at_least.count(), "{index}");
        let best = expected.iter().copied().fold(f64::MIN, f64::max);
        assert_eq!(got.top.len(), 3);
        assert!(
            (f64::from(got.top[0].1) - best).abs() < LOGIT_TOLERANCE,
            "{index}"
        );
        assert!(got.top.is_sorted_by(|a, b| a.1 >= b.1));
    }
}

#[test]
fn prompt_log_probabilities_do_not_depend_on_chunks_or_threads() {
    let mut rig = Rig::new(&small(), 1, 4);
    let mut sequence = rig.sequences(&[50], 2).remove(0);
    let whole = prompt_logprobs(&mut rig, &mut sequence, &[50]);
    for (threads, counts) in [(1, vec![1; 50]), (1, vec![17, 16, 17]), (3, vec![33, 17])] {
        let mut rig = Rig::new(&small(), threads, 4);
        let sequence = &mut rig.sequences(&[50], 2).remove(0);
        assert_eq!(
            prompt_logprobs(&mut rig, sequence, &counts),
            whole,
            "{threads} {counts:?}"
        );
    }
}

#[test]
fn rows_shared_by_threads_are_decided_in_order() {
    // So wide that sixteen rows are worth two threads, and more rows than are computed together.
    let shape = Shape {
        vocab: 9_001,
        ..small()
    };
    let sampled = |threads| {
        let mut rig = Rig::new(&shape, threads, 16);
        let mut sequences = rig.sequences(&[1; 21], 4);
        let mut step = step(&mut sequences, &[1; 21], 16);
        for (index, spec) in step.samples.iter_mut().enumerate() {
            *spec = SampleSpec {
                temperature: 1.0,
                seed: index as u64,
                logprobs: (index % 2 == 0).then_some(2),
                ..SampleSpec::greedy()
            };
        }
        let mut out = StepOutput::default();
        rig.backend.forward(&step, &mut out).unwrap();
        out.sampled
    };
    let alone = sampled(1);
    assert_eq!(alone.len(), 21);
    assert!(alone.iter().enumerate().all(|(index, sampled)| {
        sampled.token.is_some() && sampled.logprob.is_some() == (index % 2 == 0)
    }));
    assert_eq!(sampled(3), alone);
}

#[test]
fn an_embedding_is_the_state_that_the_head_would_see() {
    let mut rig = Rig::new(&small(), 1, 4);
    let embeddings = |rig: &mut Rig, counts: &[usize]| {
        let mut sequence = rig.sequences(&[12], 6);
        let mut out = StepOutput::default();
        for &count in counts {
            let mut step = step(&mut sequence, &[count], 4);
            let last = sequence[0].computed == 12;
            step.sequences[0].embed = last;
            rig.backend.forward(&step, &mut out).unwrap();
            assert_eq!(out.embeddings.len(), usize::from(last));
        }
        let logits = logits(&out.sampled[0], rig.model.config.vocab_size);
        (out.embeddings.remove(0), logits)
    };
    let (state, logits) = embeddings(&mut rig, &[12]);
    assert_eq!(embeddings(&mut rig, &[5, 7]).0, state);
    let score = |token: u32| {
        let mut row = vec![0.0; state.len()];
        rig.backend.weights.embed(token, &mut row);
        row.iter().zip(&state).map(|(a, b)| a * b).sum::<f32>()
    };
    for token in 1..60 {
        let (got, expected) = (score(token) - score(0), logits[token as usize] - logits[0]);
        assert!(
            (got - expected).abs() < 1e-4,
            "{token}: {got} and {expected}"
        );
    }
}
