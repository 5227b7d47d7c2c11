//! `program-aware-fairness`: the program that got the least service goes next.
//!
//! A program is a fairness id. Its service is what it was given in tokens, with output counted
//! twice, and it halves with time, so that a program that paused is not made to wait for what it
//! got an hour ago. The score of a flow is
//!
//! `lasWeightService * (1 - norm(service)) + lasWeightHeadWait * norm(wait of its first request)`
//!
//! where `norm` is min-max over the waiting flows of the band. The weights make every flow's score
//! depend on all others, so the choice looks at each flow once: it is linear in the flows of the
//! band, of which there is a bound.

use serde::{Deserialize, Serialize};

use crate::config::plugins::{self, ParameterError, PluginKind, PluginType, Stage};

/// The plugin's type name.
pub const TYPE_NAME: &str = "program-aware-fairness";

/// The plugin type.
pub const PLUGIN: PluginType = PluginType {
    name: TYPE_NAME,
    kind: PluginKind::Fairness,
    stage: Stage::Beta,
    check: plugins::check::<Parameters>,
};

/// How programs are compared.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Strategy {
    /// Least attained service.
    #[default]
    Las,
}

/// Parameters of the plugin.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
pub struct Parameters {
    pub strategy: Strategy,
    /// Weight of having got little.
    pub las_weight_service: f64,
    /// Weight of having waited long.
    pub las_weight_head_wait: f64,
    /// Share of the service that is left after one second; used where the half-life is 0.
    pub las_decay_factor: f64,
    /// Seconds after which half of the service is left.
    pub las_half_life_seconds: f64,
    /// Seconds without a request or a served token after which a program is forgotten.
    pub eviction_ttl_seconds: f64,
    /// Accepted and without effect: programs are forgotten when their time comes, nothing sweeps.
    pub eviction_sweep_seconds: f64,
}

impl Default for Parameters {
    fn default() -> Self {
        Self {
            strategy: Strategy::Las,
            las_weight_service: 0.8,
            las_weight_head_wait: 0.2,
            las_decay_factor: 0.999_97,
            las_half_life_seconds: 60.0,
            eviction_ttl_seconds: 3_600.0,
            eviction_sweep_seconds: 300.0,
        }
    }
}

impl plugins::Parameters for Parameters {
    fn validate(&self) -> Result<(), ParameterError> {
        let at_least_0 = [
            ("lasWeightService", self.las_weight_service),
            ("lasWeightHeadWait", self.las_weight_head_wait),
            ("lasHalfLifeSeconds", self.las_half_life_seconds),
        ];
        for (path, value) in at_least_0 {
            if !value.is_finite() || value < 0.0 {
                return Err(ParameterError::new(path, "must be 0 or more"));
            }
        }
        let more_than_0 = [
            ("evictionTtlSeconds", self.eviction_ttl_seconds),
            ("evictionSweepSeconds", self.eviction_sweep_seconds),
        ];
        for (path, value) in more_than_0 {
            if !value.is_finite() || value <= 0.0 {
                return Err(ParameterError::new(path, "must be more than 0"));
            }
        }
        if !(self.las_decay_factor > 0.0 && self.las_decay_factor <= 1.0) {
            let reason = "must be more than 0 and at most 1";
            return Err(ParameterError::new("lasDecayFactor", reason));
        }
        Ok(())
    }
}

impl Parameters {
    /// Milliseconds in which the service halves; infinite where it never does.
    pub fn half_life_ms(&self) -> f64 {
        if self.las_half_life_seconds > 0.0 {
            return self.las_half_life_seconds * 1_000.0;
        }
        0.5_f64.ln() / self.las_decay_factor.ln() * 1_000.0
    }

    /// Milliseconds after which an unused account is dropped.
    pub fn ttl_ms(&self) -> u64 {
        (self.eviction_ttl_seconds * 1_000.0) as u64
    }
}

/// What is known of a waiting flow.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Standing {
    /// Service so far, in any unit that is the same for all flows of one choice.
    pub service: f64,
    /// When its first request came.
    pub head_arrived_ms: u64,
    /// Its place in the row; it decides between equal scores.
    pub turn: u64,
}

/// The position of the flow that goes next.
pub fn choose(
    parameters: &Parameters,
    flows: impl Iterator<Item = (u32, Standing)> + Clone,
) -> Option<u32> {
    let mut service = (f64::INFINITY, f64::NEG_INFINITY);
    let mut arrived = (u64::MAX, 0);
    for (_, flow) in flows.clone() {
        service = (service.0.min(flow.service), service.1.max(flow.service));
        arrived = (
            arrived.0.min(flow.head_arrived_ms),
            arrived.1.max(flow.head_arrived_ms),
        );
    }
    let service_range = (service.1 - service.0).max(f64::MIN_POSITIVE);
    let arrived_range = (arrived.1.saturating_sub(arrived.0)).max(1) as f64;
    let mut best: Option<(f64, u64, u32)> = None;
    for (position, flow) in flows {
        let little = (service.1 - flow.service) / service_range;
        let long = (arrived.1 - flow.head_arrived_ms) as f64 / arrived_range;
        let score = parameters.las_weight_service * little + parameters.las_weight_head_wait * long;
        let better = best
            .is_none_or(|(other, turn, _)| score > other || (score >= other && flow.turn < turn));
        if better {
            best = Some((score, flow.turn, position));
        }
    }
    best.map(|(_, _, position)| position)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn first(parameters: &Parameters, flows: &[(f64, u64)]) -> u32 {
        let standings = flows.iter().enumerate().map(|(at, (service, arrived))| {
            let standing = Standing {
                service: *service,
                head_arrived_ms: *arrived,
                turn: at as u64,
            };
            (at as u32, standing)
        });
        choose(parameters, standings).unwrap()
    }

    #[test]
    fn little_service_outweighs_a_long_wait() {
        let defaults = Parameters::default();
        assert_eq!(first(&defaults, &[(1_000.0, 10), (10.0, 500)]), 1);
        assert_eq!(first(&defaults, &[(10.0, 500), (10.0, 10)]), 1);
        assert_eq!(first(&defaults, &[(10.0, 10), (10.0, 10)]), 0);
        let patient = Parameters {
            las_weight_head_wait: 0.9,
            ..defaults
        };
        assert_eq!(first(&patient, &[(1_000.0, 10), (10.0, 500)]), 0);
    }

    #[test]
    fn a_decay_factor_is_a_half_life() {
        let parameters = Parameters {
            las_half_life_seconds: 0.0,
            las_decay_factor: 0.5,
            ..Parameters::default()
        };
        assert!((parameters.half_life_ms() - 1_000.0).abs() < 1e-6);
        let never = Parameters {
            las_decay_factor: 1.0,
            ..parameters
        };
        assert!(never.half_life_ms().is_infinite());
    }

    #[test]
    fn parameters_are_strict() {
        for (name, value) in [
            ("lasWeightService", -1.0),
            ("lasDecayFactor", 0.0),
            ("evictionTtlSeconds", 0.0),
        ] {
            let error = (PLUGIN.check)(&serde_json::json!({name: value})).unwrap_err();
            assert_eq!(error.path, name);
        }
    }
}
