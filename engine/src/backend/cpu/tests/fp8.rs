//! Checkpoints of 8 bits compute what the same weights in f32 compute, to the bit; and so do all ranks together, nearly.

use std::sync::Arc;

use super::super::weights::only_bf16;
use super::*;
use crate::backend::exchange::ThreadRank;
use crate::backend::parallel::TensorParallel;
use crate::model::Model;
use crate::model::checkpoints::{Checkpoints, FORMS, Form};

const LAYOUT: KvLayout = KvLayout {
    block_size: 4,
    blocks: 64,
    host_blocks: 0,
};

/// Matrices with several blocks of scales each way, which two ranks can share.
fn shape(kind: Kind) -> Shape {
    Shape {
        hidden: 136,
        inner: 256,
        heads: 4,
        kv_heads: 4,
        head_dim: 64,
        kind,
        ..small()
    }
}

fn checkpoints(kind: Kind, form: Form) -> [Model; 2] {
    let folder = tempfile::tempdir().unwrap();
    naive::write_model(folder.path(), &shape(kind));
    Checkpoints::of(folder.path(), form).open()
}

/// Log probabilities behind a prompt in two chunks, and behind some tokens after it.
fn log_probabilities(rig: &Rig, backend: &mut dyn Backend) -> Vec<Vec<f32>> {
    backend.allocate(&LAYOUT).unwrap();
    let mut sequences = rig.sequences(&[24], 7);
    let mut rows = Vec::new();
    for count in [13, 7, 1, 3] {
        let work = step(&mut sequences, &[count], LAYOUT.block_size);
        let mut out = StepOutput::default();
        backend.forward(&work, &mut out).unwrap();
        rows.push(logits(&out.sampled[0], rig.model.config.vocab_size));
    }
    rows
}

#[test]
fn weights_of_8_bits_are_worth_what_they_are_worth_in_f32() {
    let rig = Rig::new(&small(), 1, 4);
    for form in FORMS {
        for kind in [Kind::Llama, Kind::Phi3, Kind::Qwen3Moe(2)] {
            let [narrow, wide] = checkpoints(kind, form).map(|model| {
                let mut backend = CpuBackend::new(&model, 2).unwrap();
                log_probabilities(&rig, &mut backend)
            });
            assert_eq!(narrow, wide, "{form:?} {kind:?}");
        }
    }
}

#[test]
fn large_models_of_8_bits_are_not_rounded_to_bf16() {
    let folder = tempfile::tempdir().unwrap();
    naive::write_model(folder.path(), &shape(Kind::Llama));
    let wide = Model::open(folder.path()).unwrap();
    assert!(only_bf16(&wide.tensors().unwrap()));
    let [narrow, _] = Checkpoints::of(folder.path(), Form::Blocks).open();
    assert!(!only_bf16(&narrow.tensors().unwrap()));
}

#[test]
fn ranks_share_weights_of_8_bits() {
    let rig = Rig::new(&small(), 1, 4);
    for form in FORMS {
        for kind in [Kind::Qwen3, Kind::Phi3] {
            let [narrow, _] = checkpoints(kind, form);
            let expected = log_probabilities(&rig, &mut CpuBackend::new(&narrow, 1).unwrap());
            let ranks = ThreadRank::group(2).into_iter();
            let mut ranks =
                ranks.map(|rank| CpuBackend::of_rank(&narrow, 1, Arc::new(rank)).unwrap());
            let mut group = TensorParallel::new(ranks.next().unwrap(), ranks);
            let found = log_probabilities(&rig, &mut group);
            for (found, expected) in found.iter().flatten().zip(expected.iter().flatten()) {
                assert!(
                    (found - expected).abs() < 1e-4,
                    "{form:?} {kind:?}: {found} {expected}"
                );
            }
        }
    }
}
