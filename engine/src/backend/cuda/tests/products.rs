//! Products of few rows with weights of 16 and 8 bits, and widening of the latter, against f64.

use half::{bf16, f16};

use super::super::kernels::{SKINNY_COLUMNS, SKINNY_THREADS, Scaling, SkinnyArguments};
use super::cpu_run::{Shape, arguments, launch};
use super::memory::{Array, Element, Random, assert_close, wide};

/// The value of an e4m3, as its definition reads.
fn e4m3(bits: u8) -> f64 {
    let (exponent, fraction) = (i32::from(bits >> 3 & 15), f64::from(bits & 7));
    let size = match exponent {
        0 => fraction / 8.0 * 2_f64.powi(-6),
        _ => (1.0 + fraction / 8.0) * 2_f64.powi(exponent - 7),
    };
    if bits & 0x80 != 0 { -size } else { size }
}

/// Random e4m3, without those that are no numbers, and mostly of moderate size.
fn e4m3s(random: &mut Random, count: usize) -> Vec<u8> {
    (0..count)
        .map(|_| {
            let bits = random.next() as u8;
            if bits & 0x7f == 0x7f || random.chance(80) {
                bits & 0xbf
            } else {
                bits
            }
        })
        .collect()
}

/// Scales of an `[n, k]` matrix, and that of each of its elements.
struct Scales {
    scaling: Scaling,
    values: Vec<f32>,
}

impl Scales {
    fn new(random: &mut Random, n: usize, k: usize) -> Self {
        let scaling = random.one_of(&[Scaling::PerTensor, Scaling::PerChannel, Scaling::PerBlock]);
        let count = match scaling {
            Scaling::None | Scaling::PerTensor => 1,
            Scaling::PerChannel => n,
            Scaling::PerBlock => n.div_ceil(128) * k.div_ceil(128),
        };
        let values = (0..count)
            .map(|_| (0.01 + random.unit().abs()) as f32)
            .collect();
        Self { scaling, values }
    }

    fn at(&self, row: usize, column: usize, k: usize) -> f64 {
        let index = match self.scaling {
            Scaling::None => return 1.0,
            Scaling::PerTensor => 0,
            Scaling::PerChannel => row,
            Scaling::PerBlock => row / 128 * k.div_ceil(128) + column / 128,
        };
        f64::from(self.values[index])
    }
}

/// A product, with weights as they are meant and as they lie.
struct Product {
    m: usize,
    n: usize,
    k: usize,
    weight: Vec<f64>,
    scales: Option<Scales>,
}

impl Product {
    /// x·wᵀ for `[m, x_stride]` rows, and what its sums are made of: rounding is a part of that.
    fn of(&self, x: &[f64], x_stride: usize) -> (Vec<f64>, f64) {
        let (mut out, mut size) = (Vec::new(), 0.0_f64);
        for x in x.chunks(x_stride) {
            for weight in self.weight.chunks(self.k) {
                let terms = x.iter().zip(weight).map(|(x, weight)| x * weight);
                out.push(terms.clone().sum());
                size = size.max(terms.map(f64::abs).sum());
            }
        }
        (out, size)
    }

    fn check<T: Element, W: bytemuck::Pod, Y: bytemuck::Pod>(
        &self,
        random: &mut Random,
        weight: &[W],
        names: [&str; 2],
        read: fn(Y) -> f64,
        precision: f64,
    ) {
        let Self { m, n, k, .. } = *self;
        let (x_stride, y_stride) = (k + 8 * random.between(0, 3), n + random.between(0, 9));
        let x = random.values::<T>(m * x_stride, 1.0);
        let (mut expected, size) = self.of(&wide(&x), x_stride);
        let (x, weight) = (Array::of(&x), Array::of(weight));
        let scales = self.scales.as_ref().map(|scales| Array::of(&scales.values));
        let mut y = Array::<Y>::poisoned(m * y_stride);
        let add = random.chance(30);
        if add {
            y.values_mut().fill(bytemuck::Zeroable::zeroed());
        }
        let a = SkinnyArguments {
            y: y.address(),
            x: x.address(),
            weight: weight.address(),
            scales: scales.as_ref().map_or(0, Array::address),
            m: m as u32,
            n: n as u32,
            k: k as u32,
            x_stride: x_stride as u32,
            y_stride: y_stride as u32,
            scaling: self
                .scales
                .as_ref()
                .map_or(Scaling::None, |scales| scales.scaling) as u32,
            add: u32::from(add),
        };
        let shape = Shape {
            grid: [(n as u32).div_ceil(SKINNY_COLUMNS), 1, 1],
            threads: SKINNY_THREADS,
            shared_bytes: 0,
            order: random.next(),
        };
        let rows = if m <= 8 { 8 } else { 16 };
        let name = format!("skinny_{}_{}_{}_{rows}", T::NAME, names[0], names[1]);
        launch(&name, shape, arguments![a]);
        if add {
            launch(&name, shape, arguments![a]);
            for value in &mut expected {
                *value *= 2.0;
            }
        }
        let rows = y.values().chunks(y_stride);
        assert!(
            rows.clone()
                .all(|row| row[n..].iter().all(|y| add || read(*y).is_nan())),
            "written beside the columns"
        );
        let found: Vec<f64> = rows
            .flat_map(|row| row[..n].iter().map(|y| read(*y)))
            .collect();
        // Twice rounded where it was added to.
        assert_close(&found, &expected, 2.2 * precision, 2e-6 * size, &name);
    }
}

fn wide_weights<T: Element>(random: &mut Random) {
    let (m, n, k) = (
        random.between(1, 16),
        random.between(1, 70),
        8 * random.between(1, 300),
    );
    let weight = random.values::<T>(n * k, 1.0);
    let product = Product {
        m,
        n,
        k,
        weight: wide(&weight),
        scales: None,
    };
    if random.chance(50) {
        product.check::<T, T, T>(random, &weight, [T::NAME, T::NAME], T::to_f64, T::EPSILON);
    } else {
        product.check::<T, T, f32>(random, &weight, [T::NAME, "float"], f64::from, 1e-6);
    }
}

fn narrow_weights<T: Element>(random: &mut Random) {
    // Three blocks of scales downwards at most, for an answer is 16 columns wide and never crosses from one to the next.
    let (m, n, k) = (
        random.between(1, 16),
        random.between(1, 290),
        16 * random.between(1, 40),
    );
    let weight = e4m3s(random, n * k);
    let scales = Scales::new(random, n, k);
    let of = |(index, bits): (usize, &u8)| e4m3(*bits) * scales.at(index / k, index % k, k);
    let widened: Vec<f64> = weight.iter().enumerate().map(of).collect();
    let product = Product {
        m,
        n,
        k,
        weight: widened,
        scales: Some(scales),
    };
    if random.chance(50) {
        product.check::<T, u8, T>(random, &weight, ["e4m3", T::NAME], T::to_f64, T::EPSILON);
    } else {
        product.check::<T, u8, f32>(random, &weight, ["e4m3", "float"], f64::from, 1e-6);
    }
}

fn widening<T: Element>(random: &mut Random) {
    let (n, k) = (random.between(1, 300), 16 * random.between(1, 20));
    let mut weight = e4m3s(random, n * k);
    // Each value there is.
    let all = (0..=255_u8).filter(|bits| bits & 0x7f != 0x7f);
    weight
        .iter_mut()
        .zip(all)
        .for_each(|(weight, bits)| *weight = bits);
    let scales = Scales::new(random, n, k);
    let of = |(index, bits): (usize, &u8)| e4m3(*bits) * scales.at(index / k, index % k, k);
    let expected: Vec<f64> = weight.iter().enumerate().map(of).collect();
    let (weight, values) = (Array::of(&weight), Array::of(&scales.values));
    let out = Array::<T>::poisoned(n * k);
    let shape = Shape {
        grid: [3, 1, 1],
        threads: 64,
        shared_bytes: 0,
        order: random.next(),
    };
    launch(
        &format!("widen_e4m3_{}", T::NAME),
        shape,
        arguments![
            out.address(),
            weight.address(),
            values.address(),
            scales.scaling as u32,
            n as u32,
            k as u32
        ],
    );
    assert_close(
        &wide(out.values()),
        &expected,
        1.1 * T::EPSILON,
        3e-8,
        "widen_e4m3",
    );
}

#[test]
fn few_rows_with_wide_weights() {
    let mut random = Random(9);
    for _ in 0..12 {
        wide_weights::<bf16>(&mut random);
        wide_weights::<f16>(&mut random);
    }
}

#[test]
fn few_rows_with_weights_of_8_bits() {
    let mut random = Random(10);
    for _ in 0..12 {
        narrow_weights::<bf16>(&mut random);
        narrow_weights::<f16>(&mut random);
    }
}

#[test]
fn weights_of_8_bits_made_wide() {
    let mut random = Random(11);
    for _ in 0..6 {
        widening::<bf16>(&mut random);
        widening::<f16>(&mut random);
    }
}
