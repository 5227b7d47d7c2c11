//! The demo model with weights of 8 bits: on the device as they are, on the CPU in f32.
//!
//! Its values begin in the middle of a block of scales and two of its matrices are not narrow, so some of what is joined
//! stays in pieces.

use std::path::Path;

use safetensors::tensor::Dtype;

use super::super::backend::CudaBackend;
use super::super::device::Activation;
use super::super::gpu::Gpu;
use super::super::kernels::Scaling;
use super::super::weights::{Weights, activation};
use super::device::CpuDevice;
use super::model::{Checked, OPTIONS, Pair, folder, spec};
use super::on_gpu;
use crate::backend::Backend;
use crate::model::checkpoints::{Checkpoints, Form, Written, read, small, write};
use crate::model::{Grain, Model, Shard};

const FORMS: [Form; 3] = [Form::Tensor, Form::Blocks, Form::Compressed(Grain::Row)];

pub(super) fn narrow(form: Form) -> Model {
    let [narrow, _] = Checkpoints::of(&folder(), form).open();
    narrow
}

/// A step of more rows than weights are left narrow for, one of several times 16, and decodes.
fn generate<D: Checked>(device: D, form: Form) -> Pair<D> {
    let mut pair = Pair::of(narrow(form), device, &[5, 90, 17]);
    for counts in [[5, 70, 2], [1, 20, 15], [1, 1, 1], [1, 1, 1]] {
        let step = pair.step(&counts, &spec());
        pair.run(&step);
    }
    pair
}

#[test]
fn weights_of_8_bits_compute_what_the_cpu_computes() {
    for form in FORMS {
        let mut pair = generate(CpuDevice::default(), form);
        let info = pair.cuda.info();
        assert_eq!(info.device, "this CPU, e4m3 and bf16 weights");
        let launches = &pair.cuda.device_mut().launches;
        for kernel in [
            "skinny_bf16_e4m3_bf16_8",
            "skinny_bf16_e4m3_bf16_16",
            "widen_e4m3_bf16",
            "library",
        ] {
            let count = launches.get(kernel);
            assert!(count.is_some(), "{form:?} {kernel}: {launches:?}");
        }
    }
}

#[test]
fn a_gpu_computes_weights_of_8_bits() {
    if on_gpu::wanted() {
        for form in FORMS {
            generate(Gpu::new(Activation::Bf16).unwrap(), form);
        }
    }
}

/// What each piece of a layer's queries, keys and values is, and its rows.
fn pieces(form: Form, layer: usize) -> Vec<(Option<Scaling>, u32)> {
    let mut device = CpuDevice::default();
    let weights =
        Weights::upload(&mut device, &narrow(form), Activation::Bf16, Shard::WHOLE).unwrap();
    // Gates and ups are the largest: 768 rows of 128.
    assert_eq!(weights.widened.bytes, 768 * 128 * 2);
    let pieces = weights.layers[layer].qkv.pieces.iter();
    pieces
        .map(|piece| (piece.scales.map(|scales| scales.0), piece.rows))
        .collect()
}

#[test]
fn what_can_be_joined_is_one_piece() {
    let rows = Form::Compressed(Grain::Row);
    assert_eq!(pieces(rows, 0), [(Some(Scaling::PerChannel), 256)]);
    // Each has a scale of its own.
    assert_eq!(pieces(Form::Tensor, 0), [(Some(Scaling::PerChannel), 256)]);
    let blocks = Some(Scaling::PerBlock);
    assert_eq!(pieces(Form::Blocks, 0), [(blocks, 192), (blocks, 64)]);
    let one = Some(Scaling::PerTensor);
    assert_eq!(pieces(Form::Tensor, 1), [(one, 128), (None, 64), (one, 64)]);
}

#[test]
fn activations_are_of_the_type_of_what_is_wide() {
    let folder = Checkpoints::of(&folder(), Form::Blocks).narrow;
    let config = std::fs::read(folder.path().join("config.json")).unwrap();
    let config = serde_json::from_slice(&config).unwrap();
    let of = |tensors: &[Written]| {
        let folder = write(&config, tensors);
        let model = Model::open(folder.path()).unwrap();
        activation(&model.tensors().unwrap())
    };
    let mut tensors = read(folder.path());
    assert_eq!(of(&tensors), Activation::Bf16);
    let wide = tensors.iter_mut();
    for tensor in wide.filter(|tensor| tensor.dtype == Dtype::BF16) {
        tensor.dtype = Dtype::F16;
    }
    assert_eq!(of(&tensors), Activation::F16);
}

#[test]
fn weights_without_kernels_are_refused() {
    let refused = |folder: &Path| {
        let model = Model::open(folder).unwrap();
        let error = CudaBackend::new(CpuDevice::default(), &model, OPTIONS).unwrap_err();
        error.to_string()
    };
    let odd = Checkpoints::of(small().path(), Form::Blocks).narrow;
    assert_eq!(
        refused(odd.path()),
        "the cuda backend cannot run this model: a matrix of 8 bits has 136 columns; kernels need a multiple of 16"
    );
    let folder = Checkpoints::of(&folder(), Form::Blocks).narrow;
    let config = std::fs::read(folder.path().join("config.json")).unwrap();
    let mut tensors = read(folder.path());
    let mut weights = tensors.iter_mut();
    let weight = weights.find(|tensor| tensor.dtype == Dtype::F8_E4M3);
    weight.unwrap().bytes[5] = 0xff;
    let broken = write(&serde_json::from_slice(&config).unwrap(), &tensors);
    assert_eq!(
        refused(broken.path()),
        "the cuda backend cannot run this model: a weight of 8 bits is not a number"
    );
}
