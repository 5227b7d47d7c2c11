//! A group of devices that share a model: as threads that meet in their steps, against one rank on the CPU in f32.

use serde_json::Value;

use super::super::backend::CudaBackend;
use super::device::CpuDevice;
use super::fp8::narrow;
use super::model::{LAYOUT, OPTIONS, Pair, compare, folder, scheduled_on, spec, steps};
use crate::backend::{Backend, Step, StepOutput};
use crate::model::Model;
use crate::model::checkpoints::{Form, read, write};

/// Largest difference of a log probability: parts of sums are rounded before they are added up, so single values may be
/// further off than on one device, though on the whole they are not.
const TOLERANCE: f32 = 0.25;

fn group(model: &Model, ranks: usize) -> Box<dyn Backend> {
    CudaBackend::group(CpuDevice::group(ranks), model, OPTIONS).unwrap()
}

fn follow(pair: &mut Pair<CpuDevice>, ranks: usize) {
    let mut group = group(&pair.model, ranks);
    group.allocate(&LAYOUT).unwrap();
    let mut found = StepOutput::default();
    steps(pair, |step: &Step, expected: &StepOutput| {
        group.forward(step, &mut found).unwrap();
        compare(&found, expected, TOLERANCE);
        for (found, expected) in found.prompt_logprobs.iter().zip(&expected.prompt_logprobs) {
            let difference = (found.logprob - expected.logprob).abs();
            assert!(difference < 0.5, "{found:?} {expected:?}");
        }
    });
}

/// The demo model without its last tokens, so that ranks have unequal parts of its vocabulary.
fn uneven() -> Model {
    let mut tensors = read(&folder());
    let embedding = tensors
        .iter_mut()
        .find(|tensor| tensor.name.contains("embed_tokens"));
    let embedding = embedding.unwrap();
    embedding.shape[0] -= 5;
    let rows = embedding.shape[0];
    embedding.bytes.truncate(rows * embedding.shape[1] * 2);
    let config = std::fs::read(folder().join("config.json")).unwrap();
    let mut config: Value = serde_json::from_slice(&config).unwrap();
    config["vocab_size"] = rows.into();
    Model::open(write(&config, &tensors).path()).unwrap()
}

#[test]
fn ranks_compute_what_the_cpu_computes() {
    // As many ranks as key-value heads, and more: then some share one.
    for ranks in [2, 4] {
        let mut pair = Pair::of(uneven(), CpuDevice::default(), &[5, 70, 17]);
        assert_eq!(pair.model.config.kv_heads, 2);
        follow(&mut pair, ranks);
    }
}

#[test]
fn ranks_compute_with_weights_of_8_bits() {
    let mut pair = Pair::of(narrow(Form::Tensor), CpuDevice::default(), &[5, 70, 17]);
    follow(&mut pair, 2);
}

#[test]
fn ranks_go_ahead_together() {
    let model = Model::open(&folder()).unwrap();
    let (tokens, _) = scheduled_on(group(&model, 2), &model, false, &[]);
    let lengths: Vec<usize> = tokens.values().map(Vec::len).collect();
    assert_eq!(lengths, [12, 9, 4, 6]);
    let (found, steps_ahead) = scheduled_on(group(&model, 2), &model, true, &[]);
    assert_eq!(found, tokens);
    assert!(steps_ahead >= 5, "{steps_ahead}");
}

#[test]
fn a_group_has_the_memory_of_all_its_ranks() {
    let model = Model::open(&folder()).unwrap();
    let one = CudaBackend::new(CpuDevice::default(), &model, OPTIONS).unwrap();
    let (one, two) = (one.info(), group(&model, 2));
    let two = two.info();
    assert_eq!(two.kv_bytes_per_token, one.kv_bytes_per_token);
    let bytes = one.kv_memory_bytes.unwrap();
    assert_eq!(two.kv_memory_bytes, Some(2 * bytes));
    assert_eq!(two.device, "2 ranks, each this CPU, bf16 weights");
    assert!(two.ahead);
}

#[test]
fn a_model_that_cannot_be_dealt_out_is_refused() {
    let model = Model::open(&folder()).unwrap();
    let error = CudaBackend::group(CpuDevice::group(3), &model, OPTIONS);
    let error = error.err().unwrap();
    let reason = "the cuda backend cannot run this model: the model cannot be shared by 3 ranks: ";
    assert!(error.to_string().starts_with(reason), "{error}");
}

#[test]
fn a_rank_that_fails_leaves_its_group() {
    let mut pair = Pair::new(CpuDevice::default(), &[5]);
    let step = pair.step(&[5], &spec());
    pair.cuda.device_mut().fails_after = Some(3);
    let error = pair.cuda.begin(&step).unwrap_err().to_string();
    let left = &pair.cuda.device_mut().left;
    assert_eq!(left.len(), 1);
    assert!(left[0].ends_with(": it fell off"), "{left:?}");
    assert!(error.contains(&left[0]), "{error}");
}
