//! Min-max normalisation over the candidates, smallest best: `(max - value) / (max - min)`.
//!
//! This is the field's formula for counts. Where all candidates are equal it says nothing about any
//! of them, and all get 1.0, so that the criterion falls out of the sum instead of pulling every
//! total down.

/// Writes one score per value.
pub(super) fn smallest_best(values: impl Iterator<Item = u32> + Clone, scores: &mut [f32]) {
    let (least, most) = values.clone().fold((u32::MAX, 0), |(least, most), value| {
        (least.min(value), most.max(value))
    });
    for (value, score) in values.zip(scores) {
        *score = if most > least {
            (f64::from(most - value) / f64::from(most - least)) as f32
        } else {
            1.0
        };
    }
}
