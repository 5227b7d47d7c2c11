//! `endpoint-attribute-scorer`: rates one signal of each endpoint on a straight line.
//!
//! The line runs over a range that the operator fixes, beyond which it is flat, or else from the
//! least to the most of the candidates; where those are equal all score 1. An endpoint of which the
//! signal is not known scores 0. The formula is the field's
//! (`pkg/epp/framework/plugins/scheduling/scorer/endpointattribute` of llm-d-router); the
//! attributes are the live signals by name, see [`Signal`].

use serde::{Deserialize, Serialize};

use super::super::plugin::{Context, Maker, Scorer};
use super::super::signal::Signal;
use crate::config::plugins::{self, NoParameters, ParameterError, PluginKind, PluginType, Stage};

/// The plugin's type name.
pub const TYPE_NAME: &str = "endpoint-attribute-scorer";

/// The field's parameters. Without any, all endpoints score 0.
#[derive(Clone, PartialEq, Default, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
pub struct Parameters {
    pub attribute_key: Option<Signal>,
    /// Who publishes the attribute. Signals have one source, so any name means it.
    pub producer: Option<String>,
    pub algorithm: Option<Algorithm>,
}

/// How the attribute is rated.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Algorithm {
    pub r#type: AlgorithmType,
    #[serde(default)]
    pub normalization: Normalization,
}

/// Which end of the line is better.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AlgorithmType {
    LinearLowerIsBetter,
    LinearHigherIsBetter,
}

/// Where the line begins and ends: one of the two, and the candidates' own range without either.
#[derive(Clone, PartialEq, Default, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
pub struct Normalization {
    pub fixed_range: Option<FixedRange>,
    pub adaptive_range: Option<NoParameters>,
}

/// A range of an attribute, in its own unit.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FixedRange {
    pub min: f64,
    pub max: f64,
}

impl plugins::Parameters for Parameters {
    fn validate(&self) -> Result<(), ParameterError> {
        let refuse = |path: &str, reason: &str| Err(ParameterError::new(path, reason));
        match (self.attribute_key, &self.algorithm) {
            (None, Some(_)) => return refuse("attributeKey", "must name a signal"),
            (Some(_), None) => {
                return refuse("algorithm", "must say how the attribute is rated");
            }
            _ => {}
        }
        let normalization = self
            .algorithm
            .as_ref()
            .map(|algorithm| &algorithm.normalization);
        if let Some(Normalization {
            fixed_range: Some(range),
            adaptive_range,
        }) = normalization
        {
            if adaptive_range.is_some() {
                let reason = "has both fixedRange and adaptiveRange; give one";
                return refuse("algorithm.normalization", reason);
            }
            if range.min.partial_cmp(&range.max) != Some(std::cmp::Ordering::Less) {
                let path = "algorithm.normalization.fixedRange";
                return refuse(path, "min must be less than max");
            }
        }
        Ok(())
    }
}

/// The plugin type.
pub const MAKER: Maker<dyn Scorer> = Maker {
    plugin: PluginType {
        name: TYPE_NAME,
        kind: PluginKind::Scorer,
        stage: Stage::Alpha,
        check: plugins::check::<Parameters>,
    },
    make: |given| {
        let parameters: Parameters = plugins::read(given)?;
        Ok(Box::new(EndpointAttributeScorer::from(&parameters)))
    },
};

/// See the module.
#[derive(Clone, Copy, Debug)]
pub struct EndpointAttributeScorer {
    signal: Option<Signal>,
    lower_is_better: bool,
    fixed: Option<FixedRange>,
}

impl From<&Parameters> for EndpointAttributeScorer {
    fn from(parameters: &Parameters) -> Self {
        let algorithm = parameters.algorithm.as_ref();
        let is_lower =
            |algorithm: &Algorithm| algorithm.r#type == AlgorithmType::LinearLowerIsBetter;
        Self {
            signal: parameters.attribute_key,
            lower_is_better: algorithm.is_some_and(is_lower),
            fixed: algorithm.and_then(|algorithm| algorithm.normalization.fixed_range),
        }
    }
}

impl Scorer for EndpointAttributeScorer {
    fn type_name(&self) -> &'static str {
        TYPE_NAME
    }

    fn score(&self, context: &Context<'_>, candidates: &[usize], scores: &mut [f32]) {
        scores.fill(0.0);
        let Some(signal) = self.signal else {
            return;
        };
        let value = |at: &usize| signal.value(context.live(*at));
        let range = self.fixed.unwrap_or_else(|| {
            let known = candidates.iter().filter_map(value);
            let (min, max) = known.fold((f64::INFINITY, f64::NEG_INFINITY), |(min, max), value| {
                (value.min(min), value.max(max))
            });
            FixedRange { min, max }
        });
        for (at, score) in candidates.iter().zip(scores) {
            *score = value(at).map_or(0.0, |value| self.rate(value, range)) as f32;
        }
    }
}

impl EndpointAttributeScorer {
    fn rate(self, value: f64, range: FixedRange) -> f64 {
        let width = range.max - range.min;
        if width <= 0.0 {
            return 1.0;
        }
        let share = ((value - range.min) / width).clamp(0.0, 1.0);
        if self.lower_is_better {
            1.0 - share
        } else {
            share
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

    fn of(parameters: &Value, waiting: &[u32]) -> Vec<i32> {
        let mut live: Vec<Live> = waiting
            .iter()
            .map(|waiting| Live {
                waiting: *waiting,
                scraped_at_ms: 1,
                ..Live::default()
            })
            .collect();
        live.push(Live::default());
        let fleet = snapshot(&live);
        rounded(&scored(&MAKER, parameters, &fleet, &Matches::default(), 0))
    }

    fn asking(kind: &str, normalization: &Value) -> Value {
        json!({
            "attributeKey": "waiting",
            "algorithm": {"type": kind, "normalization": normalization},
        })
    }

    #[test]
    fn the_line_runs_over_the_candidates_or_a_fixed_range() {
        let lower = asking("linear_lower_is_better", &json!({}));
        assert_eq!(of(&lower, &[2, 4, 6]), [1000, 500, 0, 0]);
        assert_eq!(of(&lower, &[3, 3]), [1000, 1000, 0]);
        assert_eq!(of(&lower, &[]), [0]);
        let higher = asking("linear_higher_is_better", &json!({"adaptiveRange": {}}));
        assert_eq!(of(&higher, &[2, 4, 6]), [0, 500, 1000, 0]);
        let range = json!({"fixedRange": {"min": 0, "max": 10}});
        let fixed = asking("linear_lower_is_better", &range);
        assert_eq!(of(&fixed, &[0, 4, 20]), [1000, 600, 0, 0]);
        assert_eq!(of(&Value::Null, &[1, 2]), [0, 0, 0]);
    }

    #[test]
    fn what_cannot_be_rated_is_refused() {
        let path = |parameters: Value| (MAKER.plugin.check)(&parameters).unwrap_err().path;
        let range = |min: f64, max: f64| json!({"fixedRange": {"min": min, "max": max}});
        let lower = "linear_lower_is_better";
        assert_eq!(
            path(asking(lower, &range(1.0, 1.0))),
            "algorithm.normalization.fixedRange"
        );
        let mut both = range(0.0, 1.0);
        both["adaptiveRange"] = json!({});
        assert_eq!(path(asking(lower, &both)), "algorithm.normalization");
        assert_eq!(path(asking("log", &json!({}))), "algorithm.type");
        assert_eq!(path(json!({"attributeKey": "waiting"})), "algorithm");
        assert_eq!(path(json!({"attributeKey": "load"})), "attributeKey");
        let nameless = json!({"algorithm": {"type": lower}});
        assert_eq!(path(nameless), "attributeKey");
    }
}
