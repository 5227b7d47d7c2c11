//! `load-aware-scorer`: fewer waiting requests are better, against a fixed threshold instead of the
//! other candidates: `0.5 * (1 - min(waiting, threshold) / threshold)`.
//!
//! The best score is 0.5, as in the field, which leaves the upper half to scorers of affinity.

use serde::{Deserialize, Serialize};

use super::super::plugin::{Context, Maker, Scorer};
use crate::config::plugins::{self, PluginKind, PluginType, Stage};

/// The plugin's type name.
pub const TYPE_NAME: &str = "load-aware-scorer";

/// The field's parameters.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
pub struct Parameters {
    /// Waiting requests from which an endpoint scores 0; 0 or less means the default.
    pub threshold: i64,
}

impl Default for Parameters {
    fn default() -> Self {
        Self { threshold: 128 }
    }
}

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
        Ok(Box::new(LoadAwareScorer::from(
            plugins::read::<Parameters>(given)?,
        )))
    },
};

/// See the module.
#[derive(Clone, Copy, Debug)]
pub struct LoadAwareScorer {
    threshold: f64,
}

impl From<Parameters> for LoadAwareScorer {
    fn from(parameters: Parameters) -> Self {
        let threshold = if parameters.threshold > 0 {
            parameters.threshold
        } else {
            Parameters::default().threshold
        };
        Self {
            threshold: threshold as f64,
        }
    }
}

impl Scorer for LoadAwareScorer {
    fn type_name(&self) -> &'static str {
        TYPE_NAME
    }

    fn score(&self, context: &Context<'_>, candidates: &[usize], scores: &mut [f32]) {
        for (at, score) in candidates.iter().zip(scores) {
            let waiting = f64::from(context.live(*at).waiting);
            *score = (0.5 * (1.0 - (waiting / self.threshold).min(1.0))) as f32;
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::super::fixtures::snapshot;
    use super::super::tests::{rounded, scored};
    use super::*;
    use crate::fleet::{Live, Matches};

    #[test]
    fn the_queue_is_compared_with_the_threshold() {
        let waiting = |waiting| Live {
            waiting,
            ..Live::default()
        };
        let fleet = snapshot(&[waiting(0), waiting(32), waiting(128), waiting(500)]);
        let of = |parameters: Value| {
            rounded(&scored(&MAKER, &parameters, &fleet, &Matches::default(), 0))
        };
        assert_eq!(of(Value::Null), [500, 375, 0, 0]);
        assert_eq!(of(json!({"threshold": 64})), [500, 250, 0, 0]);
        assert_eq!(of(json!({"threshold": 0})), [500, 375, 0, 0]);
        assert_eq!(of(json!({"threshold": -1})), [500, 375, 0, 0]);
    }
}
