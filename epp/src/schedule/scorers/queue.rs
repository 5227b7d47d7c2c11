//! `queue-scorer`: fewer waiting requests are better, min-max normalised over the candidates.
//!
//! The field's formula to the letter: it reads the worker's page only, so requests that were sent
//! since the last scrape do not count here. They break ties in the picker instead.

use serde::Deserialize;

use super::super::plugin::{Context, Scorer};
use super::min_max;

/// The plugin's type name.
pub const TYPE_NAME: &str = "queue-scorer";

/// The scorer has no parameters.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Parameters {}

/// See the module.
#[derive(Clone, Copy, Default, Debug)]
pub struct QueueScorer {}

impl From<Parameters> for QueueScorer {
    fn from(_: Parameters) -> Self {
        Self {}
    }
}

impl Scorer for QueueScorer {
    fn type_name(&self) -> &'static str {
        TYPE_NAME
    }

    fn score(&self, context: &Context<'_>, candidates: &[usize], scores: &mut [f32]) {
        let waiting = candidates.iter().map(|at| context.live(*at).waiting);
        min_max::smallest_best(waiting, scores);
    }
}
