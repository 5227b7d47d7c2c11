//! `queue-scorer`: fewer waiting requests are better, min-max normalised over the candidates.
//!
//! The field's formula to the letter: it reads the worker's page only, so requests that were sent
//! since the last scrape do not count here. They break ties in the picker instead.

use serde::{Deserialize, Serialize};

use super::super::plugin::{Context, Maker, Scorer};
use super::min_max;
use crate::config::plugins::{self, PluginKind, PluginType, Stage};

/// The plugin's type name.
pub const TYPE_NAME: &str = "queue-scorer";

/// The scorer has no parameters.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Parameters {}

impl plugins::Parameters for Parameters {}

/// The plugin type.
pub const MAKER: Maker<dyn Scorer> = Maker {
    plugin: PluginType {
        name: TYPE_NAME,
        kind: PluginKind::Scorer,
        stage: Stage::Beta,
        check: plugins::check::<Parameters>,
    },
    make: |given| {
        Ok(Box::new(QueueScorer::from(plugins::read::<Parameters>(
            given,
        )?)))
    },
};

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
