//! From values to places on an axis, and where its ticks are. Pure.

/// How values become places.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// Equal differences are equal distances; 0 is on it.
    Linear,
    /// Equal ratios are equal distances. Values that are not above 0 have no place.
    Log,
}

/// An axis over the values that are to be shown.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Range {
    scale: Scale,
    low: f64,
    high: f64,
}

/// Ticks that an axis has at about most.
const TICKS: f64 = 6.0;

impl Range {
    /// The smallest range that holds all `values` and ends at round ones. Without values it is from 0 (or 1) to 1 (or
    /// 10).
    pub(super) fn over(scale: Scale, values: impl Iterator<Item = f64>) -> Self {
        let values = values.filter(|value| value.is_finite());
        match scale {
            Scale::Linear => {
                let (low, high) = extremes(values.chain([0.0]));
                let high = if high > low { high } else { low + 1.0 };
                let step = step(high - low);
                Self {
                    scale,
                    low: (low / step).floor() * step,
                    high: (high / step).ceil() * step,
                }
            }
            Scale::Log => {
                let (low, high) = extremes(values.filter(|value| *value > 0.0));
                let (low, high) = if low.is_finite() {
                    (low, high)
                } else {
                    (1.0, 10.0)
                };
                let low = 10_f64.powf(low.log10().floor());
                let high = 10_f64.powf(high.log10().ceil());
                Self {
                    scale,
                    low,
                    high: high.max(low * 10.0),
                }
            }
        }
    }

    /// From 0 at the low end to 1 at the high end.
    pub(super) fn place(&self, value: f64) -> Option<f64> {
        let place = match self.scale {
            Scale::Linear => (value - self.low) / (self.high - self.low),
            Scale::Log => (value / self.low).log10() / (self.high / self.low).log10(),
        };
        place.is_finite().then(|| place.clamp(0.0, 1.0))
    }

    pub(super) fn ticks(&self) -> Vec<f64> {
        match self.scale {
            Scale::Linear => {
                let step = step(self.high - self.low);
                let count = ((self.high - self.low) / step).round() as u32;
                (0..=count)
                    .map(|tick| self.low + f64::from(tick) * step)
                    .collect()
            }
            Scale::Log => {
                let decades = (self.high / self.low).log10().round() as i32;
                let every = (decades / TICKS as i32).max(1);
                let ticks = (0..=decades).filter(|decade| decade % every == 0);
                ticks.map(|decade| self.low * 10_f64.powi(decade)).collect()
            }
        }
    }
}

/// The round step (1, 2 or 5 times a power of ten) that cuts `span` into a handful of parts.
fn step(span: f64) -> f64 {
    let raw = span / TICKS;
    let power = 10_f64.powf(raw.log10().floor());
    let round = [1.0, 2.0, 5.0].map(|factor| factor * power);
    // A hair of tolerance: 0.1 * 6 / 6 is not 0.1.
    let fits = round.into_iter().find(|step| *step >= raw * (1.0 - 1e-9));
    fits.unwrap_or(10.0 * power)
}

fn extremes(values: impl Iterator<Item = f64>) -> (f64, f64) {
    values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| {
        (low.min(value), high.max(value))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ticks(scale: Scale, values: &[f64]) -> Vec<f64> {
        Range::over(scale, values.iter().copied()).ticks()
    }

    #[test]
    fn ticks_are_round_and_reach_over_all_values() {
        assert_eq!(
            ticks(Scale::Linear, &[3.0, 47.0]),
            [0.0, 10.0, 20.0, 30.0, 40.0, 50.0]
        );
        assert_eq!(ticks(Scale::Linear, &[]).first(), Some(&0.0));
        assert_eq!(ticks(Scale::Log, &[2.0, 150.0]), [1.0, 10.0, 100.0, 1000.0]);
        assert_eq!(ticks(Scale::Log, &[0.0, -3.0]), [1.0, 10.0]);
    }

    #[test]
    fn what_has_no_place_is_told_apart() {
        let log = Range::over(Scale::Log, [1.0, 100.0].into_iter());
        assert_eq!(log.place(10.0), Some(0.5));
        assert_eq!(log.place(0.0), None);
        assert_eq!(log.place(f64::NAN), None);
    }

    proptest! {
        #[test]
        fn every_value_has_its_place_between_the_ends(
            values in prop::collection::vec(1e-6..1e9_f64, 1..20),
            is_log in any::<bool>(),
        ) {
            let scale = if is_log { Scale::Log } else { Scale::Linear };
            let range = Range::over(scale, values.iter().copied());
            prop_assert!(range.ticks().len() <= 14, "{:?}", range.ticks());
            for value in values {
                prop_assert!(range.place(value).is_some());
                prop_assert!(range.low <= value * 1.000_001 && value <= range.high * 1.000_001);
            }
        }
    }
}
