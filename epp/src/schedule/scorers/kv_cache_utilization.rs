//! `kv-cache-utilization-scorer`: `1 - usage`, so an endpoint with more free KV blocks is better.

use serde::{Deserialize, Serialize};

use super::super::plugin::{Context, Maker, Scorer};
use crate::config::plugins::{self, PluginKind, PluginType, Stage};

/// The plugin's type name.
pub const TYPE_NAME: &str = "kv-cache-utilization-scorer";

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
        Ok(Box::new(KvCacheUtilizationScorer::from(plugins::read::<
            Parameters,
        >(given)?)))
    },
};

/// See the module.
#[derive(Clone, Copy, Default, Debug)]
pub struct KvCacheUtilizationScorer {}

impl From<Parameters> for KvCacheUtilizationScorer {
    fn from(_: Parameters) -> Self {
        Self {}
    }
}

impl Scorer for KvCacheUtilizationScorer {
    fn type_name(&self) -> &'static str {
        TYPE_NAME
    }

    fn score(&self, context: &Context<'_>, candidates: &[usize], scores: &mut [f32]) {
        for (at, score) in candidates.iter().zip(scores) {
            *score = 1.0 - context.live(*at).kv_usage;
        }
    }
}
