//! `latency-slo-admitter`: refuses sheddable requests whose targets no endpoint can meet.
//!
//! Only a request below priority 0 that names a target, and only when every candidate is predicted to
//! miss it, none is idle, and none is cold: with less than 2 % of its KV cache in use an endpoint has
//! done too little to be predicted. While nothing is predicted everything is admitted.

use serde::{Deserialize, Serialize};

use super::super::latency::{Prediction, Targets};
use super::super::plugin::{Context, Maker};
use super::Admitter;
use crate::config::plugins::{self, PluginKind, PluginType, Stage};

/// The plugin's type name.
pub const TYPE_NAME: &str = "latency-slo-admitter";

/// KV usage below which an endpoint is cold.
const COLD_USAGE: f32 = 0.02;

/// The field's parameters.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
pub struct Parameters {
    /// There is one model, so any name is accepted and means it.
    pub latency_prediction_info_producer_name: String,
}

impl plugins::Parameters for Parameters {}

/// The plugin type.
pub const MAKER: Maker<dyn Admitter> = Maker {
    plugin: PluginType {
        name: TYPE_NAME,
        kind: PluginKind::Admitter,
        stage: Stage::Beta,
        check: plugins::check::<Parameters>,
    },
    make: |given| {
        plugins::read::<Parameters>(given)?;
        Ok(Box::new(LatencySloAdmitter::default()))
    },
};

/// See the module.
#[derive(Clone, Copy, Default, Debug)]
pub struct LatencySloAdmitter {}

impl Admitter for LatencySloAdmitter {
    fn type_name(&self) -> &'static str {
        TYPE_NAME
    }

    fn admit(&self, context: &Context<'_>, candidates: &[usize]) -> Result<(), String> {
        let request = context.request;
        if request.priority >= 0 || !Targets::new(request.slo_ttft_ms, request.slo_tpot_ms).any() {
            return Ok(());
        }
        let Some(predictions) = request.predictions.filter(|found| !found.is_empty()) else {
            return Ok(());
        };
        let may_serve = |at: &usize| {
            let live = context.live(*at);
            let is_idle = live.running == 0 && live.in_flight_requests == 0;
            let is_cold = live.kv_usage < COLD_USAGE;
            let meets = predictions.get(*at).is_none_or(Prediction::meets_targets);
            is_idle || is_cold || meets
        };
        if candidates.is_empty() || candidates.iter().any(may_serve) {
            return Ok(());
        }
        Err("no endpoint is expected to meet the latency that was asked for".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::fixtures::{request, snapshot};
    use super::super::super::latency::Predictions;
    use super::super::super::plugin::Request;
    use super::*;
    use crate::fleet::{Live, Matches};

    fn busy() -> Live {
        Live {
            running: 3,
            kv_usage: 0.5,
            ..Live::default()
        }
    }

    /// Two endpoints, the second busy and too slow.
    fn is_admitted(first: Live, headroom: f32, change: impl Fn(&mut Request<'_>)) -> bool {
        let mut predictions = Predictions::default();
        for ttft_headroom_ms in [headroom, -50.0] {
            predictions.push(Prediction {
                ttft_headroom_ms,
                ..Prediction::default()
            });
        }
        let snapshot = snapshot(&[first, busy()]);
        let matches = Matches::default();
        let mut request = request(64, &matches, 0);
        request.priority = -1;
        request.slo_ttft_ms = Some(100.0);
        request.predictions = Some(&predictions);
        change(&mut request);
        let context = Context {
            snapshot: &snapshot,
            request: &request,
            now_ms: 0,
        };
        LatencySloAdmitter::default()
            .admit(&context, &[0, 1])
            .is_ok()
    }

    #[test]
    fn a_sheddable_request_that_nobody_serves_in_time_is_refused() {
        assert!(!is_admitted(busy(), -1.0, |_| {}));
        assert!(is_admitted(busy(), 0.0, |_| {}));
    }

    #[test]
    fn others_and_those_without_a_target_are_admitted() {
        assert!(is_admitted(busy(), -1.0, |request| request.priority = 0));
        assert!(is_admitted(busy(), -1.0, |request| request.slo_ttft_ms = None));
        assert!(is_admitted(busy(), -1.0, |request| request.predictions = None));
    }

    #[test]
    fn an_idle_or_cold_endpoint_is_given_a_chance() {
        let idle = Live {
            running: 0,
            ..busy()
        };
        assert!(is_admitted(idle, -1.0, |_| {}));
        let on_its_way = Live {
            in_flight_requests: 1,
            ..idle
        };
        assert!(!is_admitted(on_its_way, -1.0, |_| {}));
        let cold = Live {
            kv_usage: 0.01,
            ..busy()
        };
        assert!(is_admitted(cold, -1.0, |_| {}));
    }
}
