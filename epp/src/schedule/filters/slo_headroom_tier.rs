//! `slo-headroom-tier-filter`: keeps the endpoints that are predicted to meet the client's targets.
//!
//! Where some do and some do not, one request in a hundred is sent to one that does not, so that an
//! endpoint with a bad prediction is tried again. Where all or none do, and while nothing is
//! predicted, all stay.

use serde::{Deserialize, Serialize};

use super::super::latency::{Prediction, draw};
use super::super::plugin::{Context, Filter, Maker};
use crate::config::plugins::{self, ParameterError, PluginKind, PluginType, Stage};

/// The plugin's type name.
pub const TYPE_NAME: &str = "slo-headroom-tier-filter";

/// Makes this plugin's draws its own.
const SALT: u64 = 0x736c_6f5f_7469_6572;

/// The field's parameters.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
pub struct Parameters {
    /// How often the endpoints that miss the targets are kept instead, 0 to 1.
    pub epsilon_explore_neg: f64,
}

impl Default for Parameters {
    fn default() -> Self {
        Self {
            epsilon_explore_neg: 0.01,
        }
    }
}

impl plugins::Parameters for Parameters {
    fn validate(&self) -> Result<(), ParameterError> {
        if (0.0..=1.0).contains(&self.epsilon_explore_neg) {
            return Ok(());
        }
        let reason = format!("must be between 0 and 1, not {}", self.epsilon_explore_neg);
        Err(ParameterError::new("epsilonExploreNeg", reason))
    }
}

/// The plugin type.
pub const MAKER: Maker<dyn Filter> = Maker {
    plugin: PluginType {
        name: TYPE_NAME,
        kind: PluginKind::Filter,
        stage: Stage::Beta,
        check: plugins::check::<Parameters>,
    },
    make: |given| {
        let parameters = plugins::read::<Parameters>(given)?;
        Ok(Box::new(SloHeadroomTierFilter::from(parameters)))
    },
};

/// See the module.
#[derive(Clone, Copy, Debug)]
pub struct SloHeadroomTierFilter {
    explore: f64,
}

impl From<Parameters> for SloHeadroomTierFilter {
    fn from(parameters: Parameters) -> Self {
        Self {
            explore: parameters.epsilon_explore_neg,
        }
    }
}

impl Filter for SloHeadroomTierFilter {
    fn type_name(&self) -> &'static str {
        TYPE_NAME
    }

    fn filter(&self, context: &Context<'_>, candidates: &mut Vec<usize>) {
        let predictions = context.request.predictions;
        let Some(predictions) = predictions.filter(|found| !found.is_empty()) else {
            return;
        };
        let meets = |at: &usize| predictions.get(*at).is_some_and(Prediction::meets_targets);
        let meeting = candidates.iter().filter(|at| meets(at)).count();
        if meeting == 0 || meeting == candidates.len() {
            return;
        }
        let keep_meeting = draw(context, SALT) >= self.explore;
        candidates.retain(|at| meets(at) == keep_meeting);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::super::fixtures::{request, snapshot};
    use super::super::super::latency::Predictions;
    use super::*;
    use crate::fleet::{Live, Matches};

    fn filtered(headrooms: &[(f32, f32)], seed: u64, parameters: &Value) -> Vec<usize> {
        let mut predictions = Predictions::default();
        for (ttft, tpot) in headrooms {
            predictions.push(Prediction {
                ttft_headroom_ms: *ttft,
                tpot_headroom_ms: *tpot,
                ..Prediction::default()
            });
        }
        let snapshot = snapshot(&[Live::default(); 3]);
        let matches = Matches::default();
        let mut request = request(0, &matches, seed);
        request.predictions = Some(&predictions);
        let context = Context {
            snapshot: &snapshot,
            request: &request,
            now_ms: 0,
        };
        let mut candidates = vec![2, 0, 1];
        (MAKER.make)(parameters)
            .unwrap()
            .filter(&context, &mut candidates);
        candidates
    }

    const MIXED: [(f32, f32); 3] = [(5.0, 0.0), (-5.0, 0.0), (5.0, -1.0)];

    #[test]
    fn endpoints_that_miss_a_target_go_while_another_meets_both() {
        let never = json!({"epsilonExploreNeg": 0});
        assert_eq!(filtered(&MIXED, 1, &never), [0]);
        assert_eq!(filtered(&[(-1.0, 0.0); 3], 1, &never), [2, 0, 1]);
        assert_eq!(filtered(&[(0.0, 0.0); 3], 1, &never), [2, 0, 1]);
        assert_eq!(filtered(&[], 1, &never), [2, 0, 1]);
    }

    #[test]
    fn now_and_then_the_others_are_tried() {
        let always = json!({"epsilonExploreNeg": 1});
        assert_eq!(filtered(&MIXED, 1, &always), [2, 1]);
        let explored = (0..10_000)
            .filter(|seed| filtered(&MIXED, *seed, &Value::Null).len() == 2)
            .count();
        assert!((50..200).contains(&explored), "{explored} of 10000");
    }

    #[test]
    fn what_is_wrong_is_named() {
        let error = (MAKER.make)(&json!({"epsilonExploreNeg": 1.5})).unwrap_err();
        assert_eq!(error.path, "epsilonExploreNeg");
    }
}
