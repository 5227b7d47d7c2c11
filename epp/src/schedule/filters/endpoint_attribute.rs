//! `endpoint-attribute-filter`: compares one signal of each endpoint with a threshold.
//!
//! The field's attributes come from whatever metrics an operator tells it to extract. Here they are
//! the live signals by name; see [`Signal`]. An endpoint of which the signal is not known yet
//! passes, unless `onMissing` says otherwise.

use serde::{Deserialize, Serialize};

use super::super::plugin::{Context, Filter, Maker};
use super::super::signal::Signal;
use crate::config::plugins::{self, ParameterError, PluginKind, PluginType, Stage};
use crate::fleet::Live;

/// The plugin's type name.
pub const TYPE_NAME: &str = "endpoint-attribute-filter";

/// The field's parameters. Without any, all endpoints pass.
#[derive(Clone, PartialEq, Default, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
pub struct Parameters {
    pub attribute: Option<Signal>,
    /// Who publishes the attribute. Signals have one source, so any name means it.
    pub producer: Option<String>,
    pub on_missing: OnMissing,
    /// Whether all pass where none would.
    pub fallback_on_empty: bool,
    pub algorithm: Option<Algorithm>,
}

/// What happens to endpoints without the attribute.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub enum OnMissing {
    #[default]
    Pass,
    Fail,
}

/// How the attribute is judged.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Algorithm {
    pub r#type: AlgorithmType,
    pub threshold: Threshold,
}

/// The one algorithm there is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum AlgorithmType {
    Threshold,
}

/// An endpoint passes where `attribute operator value` holds.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Threshold {
    pub operator: Operator,
    pub value: f64,
}

/// How the attribute is compared.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Operator {
    LessThan,
    LessThanOrEqual,
    GreaterThan,
    GreaterThanOrEqual,
    Equal,
    NotEqual,
}

impl plugins::Parameters for Parameters {
    fn validate(&self) -> Result<(), ParameterError> {
        match (self.attribute, self.algorithm) {
            (None, Some(_)) => Err(ParameterError::new("attribute", "must name a signal")),
            (Some(_), None) => Err(ParameterError::new(
                "algorithm",
                "must say how the attribute is compared",
            )),
            _ => Ok(()),
        }
    }
}

impl Threshold {
    /// Equality is meant for counts, which are exact; it is exact for shares, too.
    fn holds(self, value: f64) -> bool {
        let order = value.total_cmp(&self.value);
        match self.operator {
            Operator::LessThan => order.is_lt(),
            Operator::LessThanOrEqual => order.is_le(),
            Operator::GreaterThan => order.is_gt(),
            Operator::GreaterThanOrEqual => order.is_ge(),
            Operator::Equal => order.is_eq(),
            Operator::NotEqual => order.is_ne(),
        }
    }
}

/// The plugin type.
pub const MAKER: Maker<dyn Filter> = Maker {
    plugin: PluginType {
        name: TYPE_NAME,
        kind: PluginKind::Filter,
        stage: Stage::Alpha,
        check: plugins::check::<Parameters>,
    },
    make: |given| {
        let parameters: Parameters = plugins::read(given)?;
        Ok(Box::new(EndpointAttributeFilter::from(&parameters)))
    },
};

/// See the module.
#[derive(Clone, Copy, Debug)]
pub struct EndpointAttributeFilter {
    asked: Option<(Signal, Threshold)>,
    on_missing: OnMissing,
    fallback_on_empty: bool,
}

impl From<&Parameters> for EndpointAttributeFilter {
    fn from(parameters: &Parameters) -> Self {
        let algorithm = parameters.algorithm;
        Self {
            asked: parameters
                .attribute
                .zip(algorithm.map(|algorithm| algorithm.threshold)),
            on_missing: parameters.on_missing,
            fallback_on_empty: parameters.fallback_on_empty,
        }
    }
}

impl EndpointAttributeFilter {
    fn passes(&self, signal: Signal, threshold: Threshold, live: &Live) -> bool {
        signal
            .value(live)
            .map_or(self.on_missing == OnMissing::Pass, |value| {
                threshold.holds(value)
            })
    }
}

impl Filter for EndpointAttributeFilter {
    fn type_name(&self) -> &'static str {
        TYPE_NAME
    }

    fn filter(&self, context: &Context<'_>, candidates: &mut Vec<usize>) {
        let Some((signal, threshold)) = self.asked else {
            return;
        };
        let passes = |position: &usize| self.passes(signal, threshold, context.live(*position));
        if self.fallback_on_empty && !candidates.iter().any(passes) {
            return;
        }
        candidates.retain(passes);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::super::fixtures::snapshot;
    use super::super::tests::{Case, kept};
    use super::*;
    use crate::fleet::Snapshot;

    fn fleet() -> Snapshot {
        let live = |waiting, scraped_at_ms| Live {
            waiting,
            scraped_at_ms,
            ..Live::default()
        };
        snapshot(&[live(1, 1), live(2, 1), live(3, 1), live(0, 0)])
    }

    fn asking(operator: &str, value: f64) -> Value {
        json!({
            "attribute": "waiting",
            "algorithm": {"type": "threshold", "threshold": {"operator": operator, "value": value}},
        })
    }

    #[test]
    fn every_operator_compares() {
        let table: [(&str, &[usize]); 6] = [
            ("LessThan", &[0, 3]),
            ("LessThanOrEqual", &[0, 1, 3]),
            ("GreaterThan", &[2, 3]),
            ("GreaterThanOrEqual", &[1, 2, 3]),
            ("Equal", &[1, 3]),
            ("NotEqual", &[0, 2, 3]),
        ];
        for (operator, expected) in table {
            let kept = kept(&MAKER, &asking(operator, 2.0), &fleet(), &Case::default());
            assert_eq!(kept, expected, "{operator}");
        }
    }

    #[test]
    fn endpoints_without_the_attribute_pass_or_fail_as_asked() {
        let mut parameters = asking("LessThan", 1.0);
        let of = |parameters: &Value| kept(&MAKER, parameters, &fleet(), &Case::default());
        assert_eq!(of(&parameters), [3]);
        parameters["onMissing"] = "Fail".into();
        assert!(of(&parameters).is_empty());
        parameters["fallbackOnEmpty"] = true.into();
        assert_eq!(of(&parameters), [0, 1, 2, 3]);
        assert_eq!(of(&Value::Null), [0, 1, 2, 3]);
    }

    #[test]
    fn what_cannot_be_compared_is_refused() {
        let error = |parameters: Value| (MAKER.plugin.check)(&parameters).unwrap_err();
        let mut unknown = asking("LessThan", 1.0);
        unknown["attribute"] = "DCGM_FI_DEV_GPU_UTIL".into();
        let unknown = error(unknown);
        assert_eq!(unknown.path, "attribute");
        assert!(unknown.reason.contains("inFlightTokens"), "{unknown}");
        assert_eq!(error(json!({"attribute": "waiting"})).path, "algorithm");
        let mut nameless = asking("LessThan", 1.0);
        nameless.as_object_mut().unwrap().remove("attribute");
        assert_eq!(error(nameless).path, "attribute");
        assert_eq!(
            error(asking("Less", 1.0)).path,
            "algorithm.threshold.operator"
        );
        let other = json!({"attribute": "waiting", "algorithm": {"type": "range"}});
        assert_eq!(error(other).path, "algorithm.type");
    }
}
