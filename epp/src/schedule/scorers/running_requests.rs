//! `running-requests-size-scorer`: fewer running requests are better, min-max normalised over the
//! candidates.

use serde::Deserialize;

use super::super::plugin::{Context, Scorer};
use super::min_max;

/// The plugin's type name.
pub const TYPE_NAME: &str = "running-requests-size-scorer";

/// The scorer has no parameters.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Parameters {}

/// See the module.
#[derive(Clone, Copy, Default, Debug)]
pub struct RunningRequestsScorer {}

impl From<Parameters> for RunningRequestsScorer {
    fn from(_: Parameters) -> Self {
        Self {}
    }
}

impl Scorer for RunningRequestsScorer {
    fn type_name(&self) -> &'static str {
        TYPE_NAME
    }

    fn score(&self, context: &Context<'_>, candidates: &[usize], scores: &mut [f32]) {
        let running = candidates.iter().map(|at| context.live(*at).running);
        min_max::smallest_best(running, scores);
    }
}
