//! `active-request-scorer`: fewer of our own requests in flight are better.
//!
//! An endpoint with at most `idleThreshold` of them is idle and scores 1. A busy one scores
//! `(most - count) / most * maxBusyScore`, where `most` is the largest count of any candidate, so a
//! `maxBusyScore` below 1 leaves a gap between the busy and the idle. The formula is that of
//! `pkg/epp/framework/plugins/scheduling/scorer/activerequest` of llm-d-router.

use serde::{Deserialize, Serialize};

use super::super::plugin::{Context, Maker, Scorer};
use crate::config::plugins::{self, ParameterError, PluginKind, PluginType, Stage};

/// The plugin's type name.
pub const TYPE_NAME: &str = "active-request-scorer";

/// The field's parameters.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
pub struct Parameters {
    /// Deprecated in the field, and without effect: a lease ends by its own bound.
    pub request_timeout: String,
    /// Most requests of an idle endpoint; below 0 means 0.
    pub idle_threshold: i64,
    /// Best score of a busy endpoint, 0 to 1.
    pub max_busy_score: f32,
    /// Whose in-flight counts to read. There is one producer, so any name means it.
    pub in_flight_load_producer_name: String,
}

impl Default for Parameters {
    fn default() -> Self {
        Self {
            request_timeout: String::new(),
            idle_threshold: 0,
            max_busy_score: 1.0,
            in_flight_load_producer_name: String::new(),
        }
    }
}

impl plugins::Parameters for Parameters {
    fn validate(&self) -> Result<(), ParameterError> {
        if !(0.0..=1.0).contains(&self.max_busy_score) {
            let reason = format!("must be between 0 and 1, not {}", self.max_busy_score);
            return Err(ParameterError::new("maxBusyScore", reason));
        }
        Ok(())
    }
}

/// The plugin type.
pub const MAKER: Maker<dyn Scorer> = Maker {
    plugin: PluginType {
        name: TYPE_NAME,
        kind: PluginKind::Scorer,
        stage: Stage::Beta,
        check: plugins::check::<Parameters>,
    },
    make: |given| {
        let parameters: Parameters = plugins::read(given)?;
        Ok(Box::new(ActiveRequestScorer::from(&parameters)))
    },
};

/// See the module.
#[derive(Clone, Copy, Debug)]
pub struct ActiveRequestScorer {
    idle_threshold: i64,
    max_busy_score: f32,
}

impl From<&Parameters> for ActiveRequestScorer {
    fn from(parameters: &Parameters) -> Self {
        Self {
            idle_threshold: parameters.idle_threshold.max(0),
            max_busy_score: parameters.max_busy_score,
        }
    }
}

impl Scorer for ActiveRequestScorer {
    fn type_name(&self) -> &'static str {
        TYPE_NAME
    }

    fn score(&self, context: &Context<'_>, candidates: &[usize], scores: &mut [f32]) {
        let count = |at: &usize| context.live(*at).in_flight_requests;
        let most = candidates.iter().map(count).max().unwrap_or(0);
        for (count, score) in candidates.iter().map(count).zip(scores) {
            *score = if i64::from(count) <= self.idle_threshold {
                1.0
            } else {
                (f64::from(most - count) / f64::from(most)) as f32 * self.max_busy_score
            };
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
    fn the_idle_score_one_and_the_busiest_nothing() {
        let of = |parameters: Value, counts: &[u32]| {
            let live: Vec<Live> = counts
                .iter()
                .map(|count| Live {
                    in_flight_requests: *count,
                    ..Live::default()
                })
                .collect();
            let fleet = snapshot(&live);
            rounded(&scored(&MAKER, &parameters, &fleet, &Matches::default(), 0))
        };
        assert_eq!(of(Value::Null, &[0, 1, 3, 4]), [1000, 750, 250, 0]);
        assert_eq!(of(Value::Null, &[5, 5]), [0, 0]);
        assert_eq!(of(Value::Null, &[0, 0]), [1000, 1000]);
        let gap = json!({"idleThreshold": 2, "maxBusyScore": 0.5});
        assert_eq!(of(gap, &[0, 2, 3, 4]), [1000, 1000, 125, 0]);
        assert_eq!(of(json!({"idleThreshold": -3}), &[0, 1]), [1000, 0]);
    }

    #[test]
    fn a_busy_score_beyond_one_is_refused() {
        let error = (MAKER.plugin.check)(&json!({"maxBusyScore": 1.5})).unwrap_err();
        assert_eq!(error.path, "maxBusyScore");
    }
}
