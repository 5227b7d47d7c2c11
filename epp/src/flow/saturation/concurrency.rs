//! `concurrency-detector`: what we have in flight, over what the pool is meant to hold.
//!
//! `sum(in flight) / (endpoints * limit)`, in requests, in prompt tokens, or the larger of both. It
//! reads our own counts only, so it is exact at once and blind to what others send to the pool.

use serde::{Deserialize, Serialize};

use super::BYTES_PER_TOKEN;
use crate::config::plugins::{self, ParameterError, PluginKind, PluginType, Stage};
use crate::fleet::Live;

/// The plugin's type name.
pub const TYPE_NAME: &str = "concurrency-detector";

/// The plugin type.
pub const PLUGIN: PluginType = PluginType {
    name: TYPE_NAME,
    kind: PluginKind::SaturationDetector,
    stage: Stage::Beta,
    check: plugins::check::<Parameters>,
};

/// What is counted.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    #[default]
    Requests,
    Tokens,
    /// The larger of the two ratios.
    Hybrid,
}

/// Parameters of the plugin.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
pub struct Parameters {
    pub concurrency_mode: Mode,
    /// Requests in flight that fill one endpoint.
    pub max_concurrency: u64,
    /// Prompt tokens in flight that fill one endpoint.
    pub max_token_concurrency: u64,
    /// Burst above the limits that scheduling may allow one endpoint, as a share of them.
    pub headroom: f64,
}

impl Default for Parameters {
    fn default() -> Self {
        Self {
            concurrency_mode: Mode::Requests,
            max_concurrency: 100,
            max_token_concurrency: 1_000_000,
            headroom: 0.0,
        }
    }
}

impl plugins::Parameters for Parameters {
    fn validate(&self) -> Result<(), ParameterError> {
        if self.max_concurrency == 0 {
            return Err(ParameterError::new("maxConcurrency", "must be more than 0"));
        }
        if self.max_token_concurrency == 0 {
            let reason = "must be more than 0";
            return Err(ParameterError::new("maxTokenConcurrency", reason));
        }
        if !self.headroom.is_finite() || self.headroom < 0.0 {
            return Err(ParameterError::new("headroom", "must be 0 or more"));
        }
        Ok(())
    }
}

/// See the module.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct ConcurrencyDetector(Parameters);

impl From<Parameters> for ConcurrencyDetector {
    fn from(parameters: Parameters) -> Self {
        Self(parameters)
    }
}

impl ConcurrencyDetector {
    /// Whether an endpoint is below its limits, headroom included.
    pub fn has_room(&self, live: &Live) -> bool {
        let [requests, tokens] = self.load(live);
        requests.max(tokens) < 1.0 + self.0.headroom
    }

    /// Requests and tokens in flight over their limits; 0 for what the mode does not count.
    pub(super) fn load(&self, live: &Live) -> [f64; 2] {
        let (requests, tokens) = self.units();
        [
            f64::from(live.in_flight_requests) * requests,
            f64::from(live.in_flight_tokens) * tokens,
        ]
    }

    /// What a request adds to one endpoint: for itself, and for each byte of it.
    pub(super) fn weight_of_a_request(&self) -> (f64, f64) {
        let (requests, tokens) = self.units();
        (requests, tokens / BYTES_PER_TOKEN)
    }

    fn units(&self) -> (f64, f64) {
        let requests = 1.0 / self.0.max_concurrency as f64;
        let tokens = 1.0 / self.0.max_token_concurrency as f64;
        match self.0.concurrency_mode {
            Mode::Requests => (requests, 0.0),
            Mode::Tokens => (0.0, tokens),
            Mode::Hybrid => (requests, tokens),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{SaturationDetector, Stages};
    use super::*;
    use crate::fleet::Snapshot;

    fn effective(mode: Mode) -> f64 {
        let live = |requests, tokens| Live {
            in_flight_requests: requests,
            in_flight_tokens: tokens,
            ..Live::default()
        };
        let snapshot = Snapshot {
            live: vec![live(10, 100), live(0, 1_500)],
            ..Snapshot::default()
        };
        let detector = ConcurrencyDetector(Parameters {
            concurrency_mode: mode,
            max_concurrency: 10,
            max_token_concurrency: 1_000,
            headroom: 0.0,
        });
        let read = SaturationDetector::Concurrency(detector).read(&snapshot, |_| Stages::BOTH, 1);
        assert_eq!(read.stale, 0);
        read.effective
    }

    #[test]
    fn the_pools_load_is_set_against_the_pools_limit() {
        assert!((effective(Mode::Requests) - 0.5).abs() < 1e-9);
        assert!((effective(Mode::Tokens) - 0.8).abs() < 1e-9);
        assert!((effective(Mode::Hybrid) - 0.8).abs() < 1e-9);
    }

    #[test]
    fn headroom_is_for_one_endpoint() {
        let detector = |headroom| {
            ConcurrencyDetector(Parameters {
                max_concurrency: 10,
                headroom,
                ..Parameters::default()
            })
        };
        let full = Live {
            in_flight_requests: 10,
            ..Live::default()
        };
        assert!(!detector(0.0).has_room(&full));
        assert!(detector(0.2).has_room(&full));
    }

    #[test]
    fn parameters_are_strict() {
        let check = |value| (PLUGIN.check)(&value).map_err(|error| error.path);
        assert!(check(serde_json::json!({"concurrencyMode": "hybrid"})).is_ok());
        assert!(check(serde_json::json!({"concurrencyMode": "both"})).is_err());
        let zero = serde_json::json!({"maxConcurrency": 0});
        assert_eq!(check(zero), Err("maxConcurrency".to_owned()));
    }
}
