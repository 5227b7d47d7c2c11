//! The small operations between products: pure functions on slices.

/// `out = x / sqrt(mean(x²) + eps) * weight`, row by row of `weight.len()`.
pub(super) fn rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let width = weight.len();
    for (x, out) in x.chunks_exact(width).zip(out.chunks_exact_mut(width)) {
        let scale = 1.0 / (sum_of_squares(x) / width as f32 + eps).sqrt();
        for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
            *out = x * scale * weight;
        }
    }
}

/// The same, in place.
pub(super) fn rms_norm_in_place(x: &mut [f32], weight: &[f32], eps: f32) {
    for x in x.chunks_exact_mut(weight.len()) {
        let scale = 1.0 / (sum_of_squares(x) / weight.len() as f32 + eps).sqrt();
        for (x, weight) in x.iter_mut().zip(weight) {
            *x = *x * scale * weight;
        }
    }
}

/// Summed up in 16 interleaved parts, so that it vectorises, in an order that depends on the length alone.
fn sum_of_squares(x: &[f32]) -> f32 {
    let mut parts = [0.0_f32; 16];
    let chunks = x.chunks_exact(16);
    let rest = chunks.remainder();
    for chunk in chunks {
        for (part, value) in parts.iter_mut().zip(chunk) {
            *part += value * value;
        }
    }
    for (part, value) in parts.iter_mut().zip(rest) {
        *part += value * value;
    }
    parts.iter().sum()
}

/// Rotates a head in place: element `i` with element `i + half`, by the angle whose cosine and sine are given, of which
/// there are `half`. Elements behind those are left alone.
pub(super) fn rotate(head: &mut [f32], cosines: &[f32], sines: &[f32]) {
    let (first, second) = head.split_at_mut(cosines.len());
    for ((a, b), (cosine, sine)) in first.iter_mut().zip(second).zip(cosines.iter().zip(sines)) {
        (*a, *b) = (*a * cosine - *b * sine, *b * cosine + *a * sine);
    }
}

/// `out = silu(gate) * up`, where each row of `gate_up` is the gates followed by the ups.
pub(super) fn silu_multiply(gate_up: &[f32], width: usize, out: &mut [f32]) {
    for (gate_up, out) in gate_up
        .chunks_exact(2 * width)
        .zip(out.chunks_exact_mut(width))
    {
        let (gates, ups) = gate_up.split_at(width);
        for ((out, gate), up) in out.iter_mut().zip(gates).zip(ups) {
            *out = gate / (1.0 + exp(-gate)) * up;
        }
    }
}

/// e^x within two units in the last place, written so that a loop over it vectorises.
///
/// `x = n·ln 2 + r` with `|r| ≤ ln 2 / 2`; e^r by the polynomial of Cephes' `expf`, 2^n by exponent bits. Adding
/// 1.5·2^23 rounds to an integer and leaves it in the low bits. Arguments are clamped to where the result is a normal
/// number, so e^-∞ comes out as 1.2e-38.
#[inline]
pub(super) fn exp(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0;
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    // Two plain comparisons are two vector instructions, and let NaN through.
    let x = if x < -87.336 { -87.336 } else { x };
    let x = if x > 88.37 { 88.37 } else { x };
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = x - n * LN2_HIGH - n * LN2_LOW;
    let mut p = 1.987_569_1e-4;
    for coefficient in [
        1.398_199_9e-3,
        8.333_452e-3,
        4.166_579_6e-2,
        1.666_666_5e-1,
        0.5,
    ] {
        p = p * r + coefficient;
    }
    let power = shifted
        .to_bits()
        .wrapping_sub(ROUND.to_bits())
        .wrapping_add(127)
        << 23;
    (p * r * r + r + 1.0) * f32::from_bits(power)
}

/// 2^x for x of 0 or less, within two units in the last place, in fewer operations than [`exp`] takes: attention spends
/// a good part of its time here. Where the result would not be a normal number it is 0, for -∞ too.
///
/// `x = n + r` with `|r| ≤ 1/2`; 2^r by the polynomial of Cephes' `exp2f`, and `n` is added to the exponent's bits.
#[inline]
pub(super) fn exp2_falling(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0;
    const LEAST: f32 = -125.0;
    let shifted = x + ROUND;
    let r = x - (shifted - ROUND);
    let mut p = 1.535_336_2e-4;
    for coefficient in [
        1.339_887_4e-3,
        9.618_437e-3,
        5.550_332_5e-2,
        2.402_264_8e-1,
        6.931_472e-1,
        1.0,
    ] {
        p = p * r + coefficient;
    }
    let power = f32::from_bits(p.to_bits().wrapping_add(shifted.to_bits() << 23));
    if x < LEAST { 0.0 } else { power }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::float_cmp, reason = "zeros, ones and permutations are exact")]

    use super::*;

    #[test]
    fn exp_is_close_everywhere() {
        for step in -8_700..=8_800_i16 {
            let x = f32::from(step) / 100.0;
            let exact = f64::from(x).exp();
            let error = (f64::from(exp(x)) - exact).abs() / exact;
            assert!(error < 3e-7, "exp({x}) is off by {error:e}");
        }
        assert_eq!(exp(0.0), 1.0);
        assert!(exp(f32::NEG_INFINITY) < 2e-38 && exp(f32::INFINITY).is_finite());
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn exp2_is_close_wherever_it_is_not_zero() {
        for step in 0..=12_500_i16 {
            let x = f32::from(-step) / 100.0;
            let exact = f64::from(x).exp2();
            let error = (f64::from(exp2_falling(x)) - exact).abs() / exact;
            assert!(error < 3e-7, "2^{x} is off by {error:e}");
        }
        assert_eq!(exp2_falling(0.0), 1.0);
        for least in [-125.1, -130.0, -1e9, f32::MIN, f32::NEG_INFINITY] {
            assert_eq!(exp2_falling(least), 0.0);
        }
        assert!(exp2_falling(f32::NAN).is_nan());
    }

    #[test]
    fn rms_norm_of_known_rows() {
        let mut out = [0.0; 4];
        rms_norm(&[3.0, 4.0, 0.0, 0.0], &[1.0, 2.0], 0.0, &mut out);
        let rms = 12.5_f32.sqrt();
        assert!((out[0] - 3.0 / rms).abs() < 1e-6 && (out[1] - 8.0 / rms).abs() < 1e-6);
        assert!(
            out[2].is_nan(),
            "a row of zeros without epsilon has no direction"
        );
        rms_norm(&[0.0; 20], &[1.0; 20], 1e-5, &mut [0.0; 20]);
    }

    #[test]
    fn rotation_is_over_halves() {
        let mut head = [1.0, 2.0, 3.0, 4.0];
        rotate(&mut head, &[0.0, 1.0], &[1.0, 0.0]);
        assert_eq!(head, [-3.0, 2.0, 1.0, 4.0]);
    }

    #[test]
    fn rotation_of_a_part_leaves_the_rest_alone() {
        let mut head = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        rotate(&mut head, &[0.0, 1.0], &[1.0, 0.0]);
        assert_eq!(head, [-3.0, 2.0, 1.0, 4.0, 5.0, 6.0]);
    }

    #[test]
    fn norms_in_place_are_the_same() {
        let x: Vec<f32> = (0..60_i16).map(|i| f32::from(i * 7 % 11) - 4.0).collect();
        let weight: Vec<f32> = (0..20_i16).map(|i| 1.0 + f32::from(i) / 9.0).collect();
        let mut out = vec![0.0; 60];
        rms_norm(&x, &weight, 1e-6, &mut out);
        let mut in_place = x;
        rms_norm_in_place(&mut in_place, &weight, 1e-6);
        assert_eq!(in_place, out);
    }

    #[test]
    fn silu_of_known_values() {
        let mut out = [0.0; 2];
        silu_multiply(&[0.0, 20.0, 5.0, 3.0], 2, &mut out);
        assert_eq!(out[0], 0.0);
        assert!((out[1] - 60.0).abs() < 1e-4);
    }
}
