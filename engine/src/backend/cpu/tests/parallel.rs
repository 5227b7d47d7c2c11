//! A tensor-parallel group of threads computes the tokens that one rank computes, and nearly its logits.

use std::sync::Arc;

use super::*;
use crate::backend::Sampled;
use crate::backend::exchange::ThreadRank;
use crate::backend::parallel::TensorParallel;
use crate::sample::TokenLogprob;

/// Prompts in two chunks, then tokens one at a time, each from the one before.
fn generate(backend: &mut dyn Backend, mut sequences: Vec<Sequence>, count: usize) -> Vec<Sampled> {
    let mut sampled = Vec::new();
    let mut out = StepOutput::default();
    let lengths: Vec<usize> = sequences
        .iter()
        .map(|sequence| sequence.tokens.len())
        .collect();
    let first: Vec<usize> = lengths.iter().map(|length| length / 2).collect();
    let rest: Vec<usize> = lengths
        .iter()
        .zip(&first)
        .map(|(length, first)| length - first)
        .collect();
    for counts in [first, rest]
        .into_iter()
        .chain(vec![vec![1; lengths.len()]; count])
    {
        let work = step(&mut sequences, &counts, BLOCK);
        backend.forward(&work, &mut out).unwrap();
        for (sequence, sampled) in sequences.iter_mut().zip(&out.sampled) {
            if sequence.computed == sequence.tokens.len() {
                sequence.tokens.push(sampled.token.unwrap());
            }
        }
        sampled.append(&mut out.sampled);
    }
    sampled
}

const BLOCK: u32 = 4;

/// Sequences that have room for what they are going to get.
fn sequences(rig: &Rig) -> Vec<Sequence> {
    let mut sequences = rig.sequences(&[30, 17, 42], 9);
    for (sequence, prompt) in sequences.iter_mut().zip([18, 5, 30]) {
        sequence.tokens.truncate(prompt);
    }
    sequences
}

fn group(rig: &Rig, ranks: usize) -> TensorParallel<CpuBackend> {
    let ranks = ThreadRank::group(ranks).into_iter();
    let mut ranks = ranks.map(|rank| CpuBackend::of_rank(&rig.model, 1, Arc::new(rank)).unwrap());
    let mut group = TensorParallel::new(ranks.next().unwrap(), ranks);
    let layout = KvLayout {
        block_size: BLOCK,
        blocks: 64,
        host_blocks: 0,
    };
    group.allocate(&layout).unwrap();
    group
}

fn same(found: &TokenLogprob, expected: &TokenLogprob) {
    let by_token = |logprob: &TokenLogprob| {
        let mut top = logprob.top.clone();
        top.sort_by_key(|pair| pair.0);
        top
    };
    assert_eq!(found.top.len(), expected.top.len());
    for (found, expected) in by_token(found).iter().zip(by_token(expected)) {
        assert!(
            (found.1 - expected.1).abs() < 1e-4,
            "{found:?} {expected:?}"
        );
    }
}

#[test]
fn ranks_as_threads_give_the_tokens_of_one_rank() {
    for kind in [Kind::Llama, Kind::Phi3, Kind::Qwen2(9), Kind::Qwen3Moe(2)] {
        // A vocabulary that cannot be dealt out evenly.
        let shape = Shape {
            kind,
            head_dim: 8,
            ..small()
        };
        let mut rig = Rig::new(&shape, 1, BLOCK);
        let prompts = sequences(&rig);
        let expected = generate(&mut rig.backend, prompts, 12);
        // With four ranks, two share a key-value head.
        for ranks in [2, 4] {
            let found = generate(&mut group(&rig, ranks), sequences(&rig), 12);
            assert_eq!(found.len(), expected.len());
            for (found, expected) in found.iter().zip(&expected) {
                assert_eq!(found.token, expected.token, "{ranks} ranks");
                same(
                    found.logprob.as_ref().unwrap(),
                    expected.logprob.as_ref().unwrap(),
                );
            }
        }
    }
}

#[test]
fn a_group_has_the_memory_of_all_its_ranks() {
    let rig = Rig::new(&small(), 1, BLOCK);
    let group = group(&rig, 2);
    assert_eq!(
        group.info().kv_bytes_per_token,
        rig.backend.info().kv_bytes_per_token
    );
    assert!(group.info().device.starts_with("2 ranks, each "));
}

#[test]
fn a_model_that_cannot_be_dealt_out_is_refused() {
    let rig = Rig::new(&small(), 1, BLOCK);
    let rank = ThreadRank::group(3).remove(1);
    let error = CpuBackend::of_rank(&rig.model, 1, Arc::new(rank)).unwrap_err();
    let reason = "the cpu backend cannot run this model: the model cannot be shared by 3 ranks: 4 attention heads cannot be \
                  dealt out evenly";
    assert_eq!(error.to_string(), reason);
}
