//! Products of packed matrices: against plain loops, and the same bits however they are cut.

#![expect(clippy::float_cmp, reason = "small integers are exact in f32")]

use super::*;
use crate::model::ElementType;

/// The bytes of a matrix of small integers, whose products f32 holds exactly.
fn tensor_bytes(outputs: usize, inputs: usize) -> Vec<u8> {
    let value = |i: usize| ((i * 7 + i / 5) % 9) as f32 - 4.0;
    (0..outputs * inputs)
        .flat_map(|i| value(i).to_le_bytes())
        .collect()
}

fn tensor<'a>(bytes: &'a [u8], shape: &'a [usize; 2]) -> Tensor<'a> {
    Tensor {
        element: ElementType::F32,
        shape,
        bytes,
        scales: None,
    }
}

fn unpacked(matrix: &Matrix, inputs: usize) -> Vec<Vec<f32>> {
    let row = |output| {
        let mut row = vec![0.0; inputs];
        matrix.unpack_row(output, &mut row);
        row
    };
    (0..matrix.outputs()).map(row).collect()
}

#[test]
fn products_are_exact_for_every_shape() {
    for threads in [1, 3] {
        let team = Team::new(threads).unwrap();
        for (outputs, inputs, rows) in [
            (1, 1, 1),
            (16, 4, 2),
            (17, 33, 3),
            (70, 64, 1),
            (70, 20, 50),
            (900, 300, 5),
            (130, 700, 211),
        ] {
            let (first, second) = (outputs / 3, outputs - outputs / 3);
            let bytes = tensor_bytes(outputs, inputs);
            let (upper, lower) = bytes.split_at(first * inputs * 4);
            let shapes = [[first, inputs], [second, inputs]];
            let parts = [tensor(upper, &shapes[0]), tensor(lower, &shapes[1])];
            let x: Vec<f32> = (0..rows * inputs).map(|i| (i % 5) as f32 - 2.0).collect();
            for storage in [Storage::F32, Storage::Bf16] {
                let matrix = Matrix::pack(&team, &parts, storage).unwrap();
                let weights = unpacked(&matrix, inputs);
                for isa in Isa::all() {
                    let mut y = vec![1.0; rows * outputs];
                    matrix.multiply(&team, isa, &x, &mut y, Store::Add);
                    for (x, y) in x.chunks(inputs).zip(y.chunks(outputs)) {
                        for (weights, y) in weights.iter().zip(y) {
                            let dot: f32 = x.iter().zip(weights).map(|(a, b)| a * b).sum();
                            assert_eq!(*y, dot + 1.0, "{isa:?}");
                        }
                    }
                }
            }
        }
    }
}

/// Values without a pattern, between -1 and 1.
fn noise(count: usize, seed: u32) -> Vec<f32> {
    let hash = |i: u32| {
        (i ^ seed)
            .wrapping_mul(0x9e37_79b9)
            .rotate_left(9)
            .wrapping_mul(0x85eb_ca6b)
    };
    (0..count as u32)
        .map(|i| (hash(i) >> 8) as f32 / (1 << 23) as f32 - 1.0)
        .collect()
}

fn bytes_of(values: &[f32]) -> Vec<u8> {
    values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect()
}

#[test]
fn a_row_has_the_same_bits_in_every_batch_and_on_any_threads() {
    let (outputs, inputs) = (215, 515);
    let bytes = bytes_of(&noise(outputs * inputs, 1));
    let shape = [outputs, inputs];
    let x = noise(40 * inputs, 2);
    let (alone, together) = (Team::new(1).unwrap(), Team::new(4).unwrap());
    for storage in [Storage::F32, Storage::Bf16, Storage::Int8] {
        let matrix = Matrix::pack(&together, &[tensor(&bytes, &shape)], storage).unwrap();
        for isa in Isa::all() {
            let mut single = vec![0.0; 40 * outputs];
            for (x, y) in x.chunks(inputs).zip(single.chunks_mut(outputs)) {
                matrix.multiply(&alone, isa, x, y, Store::Replace);
            }
            for rows in 1..=40 {
                let mut y = vec![0.0; rows * outputs];
                matrix.multiply(&together, isa, &x[..rows * inputs], &mut y, Store::Replace);
                assert_eq!(y, single[..rows * outputs], "{storage:?} {isa:?} {rows}");
            }
        }
    }
}

#[test]
#[cfg(target_arch = "x86_64")]
fn avx2_and_avx512_give_the_same_bits() {
    let isas = Isa::all();
    let [_, avx2, avx512] = isas[..] else {
        println!("skipped: this machine has {isas:?}");
        return;
    };
    let (outputs, inputs) = (64, 301);
    let bytes = bytes_of(&noise(outputs * inputs, 3));
    let x = noise(9 * inputs, 4);
    let team = Team::new(2).unwrap();
    for storage in [Storage::F32, Storage::Bf16, Storage::Int8] {
        let shape = [outputs, inputs];
        let matrix = Matrix::pack(&team, &[tensor(&bytes, &shape)], storage).unwrap();
        let [mut narrow, mut wide] = [vec![0.0; 9 * outputs], vec![0.0; 9 * outputs]];
        matrix.multiply(&team, avx2, &x, &mut narrow, Store::Replace);
        matrix.multiply(&team, avx512, &x, &mut wide, Store::Replace);
        assert_eq!(narrow, wide);
    }
}

#[test]
fn int8_is_off_by_half_a_step_at_most_and_computes_what_it_holds() {
    let (outputs, inputs) = (33, 70);
    let mut values = noise(outputs * inputs, 5);
    values[..inputs].fill(0.0);
    values[inputs..2 * inputs]
        .iter_mut()
        .for_each(|value| *value *= 1e-3);
    let bytes = bytes_of(&values);
    let shape = [outputs, inputs];
    let team = Team::new(2).unwrap();
    let matrix = Matrix::pack(&team, &[tensor(&bytes, &shape)], Storage::Int8).unwrap();
    let weights = unpacked(&matrix, inputs);
    for (row, weights) in values.chunks(inputs).zip(&weights) {
        let step = row
            .iter()
            .fold(0.0_f32, |most, value| most.max(value.abs()))
            / 127.0;
        for (value, weight) in row.iter().zip(weights) {
            assert!((value - weight).abs() <= step * 0.5001);
        }
    }
    let x = noise(3 * inputs, 6);
    for isa in Isa::all() {
        let mut y = vec![0.5; 3 * outputs];
        matrix.multiply(&team, isa, &x, &mut y, Store::Add);
        for (x, y) in x.chunks(inputs).zip(y.chunks(outputs)) {
            for (weights, y) in weights.iter().zip(y) {
                let dot: f64 = x.iter().zip(weights).map(|(a, b)| f64::from(a * b)).sum();
                assert!((f64::from(*y) - 0.5 - dot).abs() < 1e-5);
            }
        }
    }
}

#[test]
fn bf16_tensors_stay_as_they_are() {
    let values = noise(20 * 7, 7).into_iter().map(half::bf16::from_f32);
    let values: Vec<half::bf16> = values.collect();
    let bytes: Vec<u8> = values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect();
    let tensor = Tensor {
        element: ElementType::Bf16,
        shape: &[20, 7],
        bytes: &bytes,
        scales: None,
    };
    let team = Team::new(1).unwrap();
    for storage in [Storage::F32, Storage::Bf16] {
        let matrix = Matrix::pack(&team, &[tensor], storage).unwrap();
        let rows = unpacked(&matrix, 7).concat();
        assert_eq!(
            rows,
            values
                .iter()
                .map(|value| value.to_f32())
                .collect::<Vec<_>>()
        );
    }
}
