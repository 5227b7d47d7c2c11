//! `weighted-random-picker`: random, with a chance in proportion to the total (A-Res).
//!
//! Efraimidis and Spirakis' A-Res: each candidate draws `u` uniformly from (0, 1) and gets the key
//! `u^(1/total)`; the largest keys win, which samples without replacement in proportion to the
//! totals. Compared here as `ln(u) / total`, the same order without underflow for small totals.
//! Candidates with a total of 0 come last; where all are 0, each is equally likely.

use smallvec::SmallVec;

use super::super::plugin::{Context, Maker, Picker};
use super::{Parameters, draw, take_first};
use crate::config::plugins::{self, PluginKind, PluginType, Stage};

/// The plugin's type name.
pub const TYPE_NAME: &str = "weighted-random-picker";

/// The plugin type.
pub const MAKER: Maker<dyn Picker> = Maker {
    plugin: PluginType {
        name: TYPE_NAME,
        kind: PluginKind::Picker,
        stage: Stage::Beta,
        check: plugins::check::<Parameters>,
    },
    make: |given| {
        Ok(Box::new(WeightedRandomPicker::from(plugins::read::<
            Parameters,
        >(given)?)))
    },
};

/// See the module.
#[derive(Clone, Copy, Debug)]
pub struct WeightedRandomPicker {
    endpoints: usize,
}

impl Default for WeightedRandomPicker {
    fn default() -> Self {
        Parameters::default().into()
    }
}

impl From<Parameters> for WeightedRandomPicker {
    fn from(parameters: Parameters) -> Self {
        Self {
            endpoints: parameters.endpoints(),
        }
    }
}

impl Picker for WeightedRandomPicker {
    fn type_name(&self) -> &'static str {
        TYPE_NAME
    }

    fn endpoints(&self) -> usize {
        self.endpoints
    }

    fn pick(
        &self,
        context: &Context<'_>,
        candidates: &[usize],
        totals: &[f32],
        count: usize,
        chosen: &mut SmallVec<[usize; 4]>,
    ) -> &'static str {
        take_first(candidates, count, chosen, |left, right| {
            let left_draw = draw(context, candidates[left]);
            let right_draw = draw(context, candidates[right]);
            log_key(right_draw, totals[right])
                .total_cmp(&log_key(left_draw, totals[left]))
                .then_with(|| left_draw.cmp(&right_draw))
        });
        "drawn by score"
    }
}

/// `ln(u) / total`, where `u` is the middle of one of 2^53 equal parts of (0, 1).
fn log_key(draw: u64, total: f32) -> f64 {
    if total <= 0.0 {
        return f64::NEG_INFINITY;
    }
    let unit = ((draw >> 11) as f64 + 0.5) / (1_u64 << 53) as f64;
    unit.ln() / f64::from(total)
}
