//! The kernels of every instruction set that this machine has, against sums in plain loops.

#![expect(
    clippy::float_cmp,
    reason = "what should be the same bits is compared as such"
)]

use super::*;

fn numbers(count: usize, seed: u32) -> Vec<f32> {
    let hash = |i: u32| (i + seed).wrapping_mul(0x9e37_79b9) >> 8;
    (0..count as u32)
        .map(|i| hash(i) as f32 / (1 << 23) as f32 - 1.0)
        .collect()
}

/// Panels of one kind, from `P` times `depth` rows of numbers.
fn check<W: Packed, const R: usize, const P: usize>(isa: Isa, depth: usize, panels: &[W]) {
    let left = numbers(R * depth, 1);
    let (left, _) = left.as_chunks::<R>();
    let items = depth / W::DEPTH;
    let panel = |p: usize| &panels[p * items..(p + 1) * items];
    let mut sums = [[[0.5; LANES]; R]; P];
    tile(
        isa,
        &[Product::new(left, std::array::from_fn(panel))],
        &mut sums,
    );
    for (p, sums) in sums.iter().enumerate() {
        for (r, sums) in sums.iter().enumerate() {
            for (l, sum) in sums.iter().enumerate() {
                let right = |k: usize| panel(p)[k / W::DEPTH].widen(k % W::DEPTH)[l];
                let products = (0..depth).map(|k| f64::from(left[k][r]) * f64::from(right(k)));
                let exact = 0.5 + products.sum::<f64>();
                let error = (f64::from(*sum) - exact).abs();
                assert!(
                    error < 1e-4 * (1.0 + exact.abs()),
                    "{isa:?} {R} {P} {p} {r} {l}"
                );
            }
        }
    }
}

fn check_all<const R: usize, const P: usize>(isa: Isa) {
    for depth in [0, 2, 8, 64, 130] {
        let values = numbers(P * depth * LANES, 2);
        let (wide, _) = values.as_chunks::<LANES>();
        check::<Lanes, R, P>(isa, depth, wide);
        let bits = |lanes: &Lanes| lanes.map(f32::to_bits);
        let pairs: Vec<Pairs> = wide.iter().map(bits).take(P * depth / 2).collect();
        // Whatever lies in the lower half is a bf16, too; infinite and NaN ones would hide a wrong one.
        let pairs: Vec<Pairs> = pairs
            .iter()
            .map(|p| p.map(|bits| bits & 0xffff_3fff))
            .collect();
        check::<Pairs, R, P>(isa, depth, &pairs);
        let quants: Vec<Quants> = wide.iter().map(|l| l.map(|x| (x * 127.0) as i8)).collect();
        check::<Quants, R, P>(isa, depth, &quants);
    }
}

#[test]
fn tiles_match_a_plain_sum() {
    for isa in Isa::all() {
        check_all::<1, 1>(isa);
        check_all::<1, 4>(isa);
        check_all::<2, 2>(isa);
        check_all::<6, 1>(isa);
        check_all::<6, 4>(isa);
        check_all::<12, 2>(isa);
    }
}

#[test]
fn a_row_is_the_same_in_every_tile() {
    let depth = 77;
    for isa in Isa::all() {
        let left = numbers(12 * depth, 3);
        let (left, _) = left.as_chunks::<12>();
        let right = numbers(2 * depth * LANES, 4);
        let (right, _) = right.as_chunks::<LANES>();
        let panels = [&right[..depth], &right[depth..]];
        let mut together = [[[0.0; LANES]; 12]; 2];
        tile(isa, &[Product::new(left, panels)], &mut together);
        for row in 0..12 {
            let alone: Vec<[f32; 1]> = left.iter().map(|column| [column[row]]).collect();
            for (panel, together) in panels.into_iter().zip(&together) {
                let mut sums = [[[0.0; LANES]]];
                tile(isa, &[Product::new(&alone[..], [panel])], &mut sums);
                assert_eq!(sums[0][0], together[row]);
            }
        }
    }
}

#[test]
fn short_rows_one_behind_the_other_multiply_as_long_ones_do() {
    for isa in Isa::all() {
        let rows: [Lanes; 3] =
            std::array::from_fn(|r| numbers(LANES, r as u32).try_into().unwrap_or([0.0; LANES]));
        let right = numbers(5 * LANES, 9);
        let (right, _) = right.as_chunks::<LANES>();
        let columns: Vec<[f32; 3]> = (0..5).map(|k| rows.map(|row| row[k])).collect();
        let short = |first: usize, count: usize| {
            let rows = rows.each_ref().map(|row| {
                let mut short = [f32::NAN; LANES];
                short[..count].copy_from_slice(&row[first..first + count]);
                short
            });
            (rows, &right[first..first + count])
        };
        let parts = [short(0, 3), short(3, 2)];
        let parts = parts.each_ref().map(|(rows, right)| {
            let count = right.len();
            Product::new(Short { rows, count }, [*right])
        });
        let (mut short, mut long) = ([[[0.0; LANES]; 3]], [[[0.0; LANES]; 3]]);
        tile(isa, &parts, &mut short);
        tile(isa, &[Product::new(&columns[..], [right])], &mut long);
        assert_eq!(short, long);
    }
}

#[test]
fn weights_of_scores_are_the_same_on_every_machine() {
    let scores =
        [numbers(LANES, 5), numbers(LANES, 6)].map(|s| [s.try_into().unwrap_or([0.0; LANES]); 1]);
    let weigh = |isa, before: f32| {
        let mut scores = scores;
        scores[1][0][3] = f32::NEG_INFINITY;
        let mut softmax = Softmax {
            max: [before],
            norm: [[0.125; LANES]],
            decay: [f32::NAN],
        };
        weigh(isa, &mut scores, &mut softmax);
        (scores, softmax.row(0), softmax.decay[0])
    };
    for before in [-3.0, 4.0] {
        let (weights, (max, norm), decay) = weigh(Isa::Portable, before);
        let largest = scores
            .as_flattened()
            .as_flattened()
            .iter()
            .fold(before, |a, b| a.max(*b));
        assert_eq!(max, largest);
        assert!((f64::from(decay) - f64::from(before - max).exp2()).abs() < 1e-6);
        let mut sum = 2.0 * f64::from(decay);
        for (group, lane) in (0..2).flat_map(|group| (0..LANES).map(move |lane| (group, lane))) {
            let exact = f64::from(scores[group][0][lane] - max).exp2();
            let exact = if (group, lane) == (1, 3) { 0.0 } else { exact };
            assert!((f64::from(weights[group][0][lane]) - exact).abs() < 1e-6);
            sum += exact;
        }
        assert!((f64::from(norm) - sum).abs() < 1e-5);
        for isa in Isa::all() {
            assert_eq!(weigh(isa, before), (weights, (max, norm), decay));
        }
    }
}

#[test]
fn a_row_without_scores_stays_as_it_was() {
    for isa in Isa::all() {
        let mut scores = [[[f32::NEG_INFINITY; LANES]; 2]; 3];
        let mut softmax = Softmax {
            max: [f32::NEG_INFINITY, 1.5],
            norm: [[0.0; LANES], [7.0; LANES]],
            decay: [0.0; 2],
        };
        weigh(isa, &mut scores, &mut softmax);
        assert_eq!(scores, [[[0.0; LANES]; 2]; 3]);
        assert_eq!(softmax.max, [f32::NEG_INFINITY, 1.5]);
        assert_eq!(softmax.norm, [[0.0; LANES], [7.0; LANES]]);
        assert_eq!(softmax.decay, [1.0; 2]);
    }
}
