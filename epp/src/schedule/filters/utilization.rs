//! `utilization-filter`: drops the endpoints on which a signal exceeds its limit.
//!
//! Every condition must hold for an endpoint to stay. A signal that is not known yet counts as 0,
//! as in the field (`pkg/epp/framework/plugins/scheduling/filter/utilization/filter.go` of
//! llm-d-router): an endpoint is dropped for what it said, not for its silence.

use serde::{Deserialize, Serialize};

use super::super::plugin::{Context, Filter, Maker};
use super::super::signal::Signal;
use crate::config::plugins::{self, ParameterError, PluginKind, PluginType, Stage};

/// The plugin's type name.
pub const TYPE_NAME: &str = "utilization-filter";

/// The field's parameters. Without conditions, all endpoints pass.
#[derive(Clone, PartialEq, Default, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
pub struct Parameters {
    pub conditions: Vec<Condition>,
    /// Whether all pass where none would.
    pub fallback_on_empty: bool,
    /// Whose in-flight counts to read. There is one producer, so any name means it.
    pub in_flight_load_producer_name: String,
}

/// A signal and the most that it may be.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Condition {
    pub metric: Metric,
    pub max_value: f64,
}

/// The field's names of the signals.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Metric {
    /// Requests of ours that are on their way or running there.
    ActiveRequests,
    RunningRequests,
    WaitingQueue,
    /// Share of KV blocks in use, 0 to 1.
    KvCacheUtilization,
}

impl Metric {
    fn signal(self) -> Signal {
        match self {
            Self::ActiveRequests => Signal::InFlightRequests,
            Self::RunningRequests => Signal::Running,
            Self::WaitingQueue => Signal::Waiting,
            Self::KvCacheUtilization => Signal::KvUsage,
        }
    }
}

impl plugins::Parameters for Parameters {
    fn validate(&self) -> Result<(), ParameterError> {
        for (at, condition) in self.conditions.iter().enumerate() {
            let max = condition.max_value;
            let refuse = |reason: String| {
                let path = format!("conditions[{at}].maxValue");
                Err(ParameterError::new(path, reason))
            };
            if !(max >= 0.0 && max.is_finite()) {
                return refuse(format!("must be 0 or more, not {max}"));
            }
            if condition.metric == Metric::KvCacheUtilization && max > 1.0 {
                return refuse(format!("is a share, so must be at most 1, not {max}"));
            }
        }
        Ok(())
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
        Ok(Box::new(UtilizationFilter {
            parameters: plugins::read(given)?,
        }))
    },
};

/// See the module.
#[derive(Clone, Debug)]
pub struct UtilizationFilter {
    parameters: Parameters,
}

impl Filter for UtilizationFilter {
    fn type_name(&self) -> &'static str {
        TYPE_NAME
    }

    fn filter(&self, context: &Context<'_>, candidates: &mut Vec<usize>) {
        let within = |position: &usize| {
            let live = context.live(*position);
            let holds = |condition: &Condition| {
                let value = condition.metric.signal().value(live).unwrap_or(0.0);
                value <= condition.max_value
            };
            self.parameters.conditions.iter().all(holds)
        };
        if self.parameters.fallback_on_empty && !candidates.iter().any(within) {
            return;
        }
        candidates.retain(within);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::super::fixtures::snapshot;
    use super::super::tests::{Case, kept};
    use super::*;
    use crate::fleet::Live;

    #[test]
    fn endpoints_over_a_limit_are_dropped() {
        let live = |in_flight_requests, running, waiting, kv_usage| Live {
            in_flight_requests,
            running,
            waiting,
            kv_usage,
            scraped_at_ms: 1,
            ..Live::default()
        };
        let mut readings = [
            live(1, 0, 0, 0.5),
            live(0, 2, 0, 0.25),
            live(0, 0, 3, 1.0),
            live(2, 9, 9, 1.0),
        ];
        readings[3].scraped_at_ms = 0;
        let fleet = snapshot(&readings);
        let at_most = |metric: &str, max: f64| json!({"metric": metric, "maxValue": max});
        let table: &[(Value, &[usize])] = &[
            (Value::Null, &[0, 1, 2, 3]),
            (
                json!({"conditions": [at_most("active-requests", 1.0)]}),
                &[0, 1, 2],
            ),
            (
                json!({"conditions": [at_most("running-requests", 1.0)]}),
                &[0, 2, 3],
            ),
            (
                json!({"conditions": [at_most("waiting-queue", 0.0)]}),
                &[0, 1, 3],
            ),
            (
                json!({"conditions": [at_most("kv-cache-utilization", 0.5)]}),
                &[0, 1, 3],
            ),
            (
                json!({"conditions": [at_most("active-requests", 0.0), at_most("waiting-queue", 0.0)]}),
                &[1],
            ),
        ];
        for (parameters, expected) in table {
            let kept = kept(&MAKER, parameters, &fleet, &Case::default());
            assert_eq!(kept, *expected, "{parameters}");
        }
    }

    #[test]
    fn nothing_or_all_is_left_where_none_is_within() {
        let busy = Live {
            in_flight_requests: 1,
            ..Live::default()
        };
        let fleet = snapshot(&[busy; 2]);
        let of = |fallback: bool| {
            let parameters = json!({
                "conditions": [{"metric": "active-requests", "maxValue": 0}],
                "fallbackOnEmpty": fallback,
            });
            kept(&MAKER, &parameters, &fleet, &Case::default())
        };
        assert!(of(false).is_empty());
        assert_eq!(of(true), [0, 1]);
    }

    #[test]
    fn limits_that_make_no_sense_are_refused() {
        let path = |condition: Value| {
            let parameters = json!({"conditions": [condition]});
            (MAKER.plugin.check)(&parameters).unwrap_err().path
        };
        let over = json!({"metric": "kv-cache-utilization", "maxValue": 1.5});
        assert_eq!(path(over), "conditions[0].maxValue");
        let under = json!({"metric": "waiting-queue", "maxValue": -1});
        assert_eq!(path(under), "conditions[0].maxValue");
        assert_eq!(path(json!({"metric": "waiting-queue"})), "conditions[0]");
        let unknown = json!({"metric": "waiting", "maxValue": 1});
        assert_eq!(path(unknown), "conditions[0].metric");
    }
}
