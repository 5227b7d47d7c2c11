//! `running-requests-size-scorer`: fewer running requests are better, min-max normalised over the
//! candidates.

use serde::{Deserialize, Serialize};

use super::super::plugin::{Context, Maker, Scorer};
use super::min_max;
use crate::config::plugins::{self, PluginKind, PluginType, Stage};

/// The plugin's type name.
pub const TYPE_NAME: &str = "running-requests-size-scorer";

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
        Ok(Box::new(RunningRequestsScorer::from(plugins::read::<
            Parameters,
        >(given)?)))
    },
};

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
