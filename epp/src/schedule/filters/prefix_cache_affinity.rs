//! `prefix-cache-affinity-filter`: stays with the endpoints that hold most of the prompt, until they
//! are too slow.
//!
//! Endpoints that hold at least `affinityThreshold` of the prompt's whole blocks are sticky, and only
//! they are kept; without any, all stay. When the fastest sticky endpoint would take
//! `maxTTFTPenaltyMs` longer to the first token than the fastest other one, all stay. The time comes
//! from the latency model, or is estimated as tokens of ours in flight there divided by
//! `peakPrefillThroughput`.

use serde::{Deserialize, Serialize};

use super::super::latency::{draw, prefix_share};
use super::super::plugin::{Context, Filter, Maker};
use crate::config::plugins::{self, ParameterError, PluginKind, PluginType, Stage};

/// The plugin's type name.
pub const TYPE_NAME: &str = "prefix-cache-affinity-filter";

/// Makes this plugin's draws its own.
const SALT: u64 = 0x6166_6669_6e69_7479;

/// Where the time to first token comes from.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum TtftSource {
    /// Tokens in flight over the peak throughput.
    #[default]
    PrefillThroughput,
    /// The latency model.
    #[serde(alias = "predictor")]
    LatencyPredictor,
}

/// The field's parameters.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
pub struct Parameters {
    /// The share of the prompt that makes an endpoint sticky, 0 to 1; 0 switches the filter off.
    pub affinity_threshold: f64,
    /// How often all stay whatever is cached, 0 to 1.
    pub exploration_probability: f64,
    /// 0 = sticky endpoints are kept however slow they are.
    #[serde(rename = "maxTTFTPenaltyMs")]
    pub max_ttft_penalty_ms: f64,
    pub ttft_source: TtftSource,
    /// Tokens a second.
    pub peak_prefill_throughput: f64,
    /// There is one index, one model and one count of requests in flight, so any name is accepted and
    /// means it.
    pub prefix_match_info_producer_name: String,
    pub latency_prediction_info_producer_name: String,
    pub in_flight_load_producer_name: String,
}

impl Default for Parameters {
    fn default() -> Self {
        Self {
            affinity_threshold: 0.80,
            exploration_probability: 0.0,
            max_ttft_penalty_ms: 18_000.0,
            ttft_source: TtftSource::PrefillThroughput,
            peak_prefill_throughput: 15_928.0,
            prefix_match_info_producer_name: String::new(),
            latency_prediction_info_producer_name: String::new(),
            in_flight_load_producer_name: String::new(),
        }
    }
}

impl plugins::Parameters for Parameters {
    fn validate(&self) -> Result<(), ParameterError> {
        for (field, share) in [
            ("affinityThreshold", self.affinity_threshold),
            ("explorationProbability", self.exploration_probability),
        ] {
            if !(0.0..=1.0).contains(&share) {
                let reason = format!("must be between 0 and 1, not {share}");
                return Err(ParameterError::new(field, reason));
            }
        }
        let penalty = self.max_ttft_penalty_ms;
        if !penalty.is_finite() || penalty < 0.0 {
            let reason = format!("must be a number from 0, not {penalty}");
            return Err(ParameterError::new("maxTTFTPenaltyMs", reason));
        }
        let throughput = self.peak_prefill_throughput;
        if !throughput.is_finite() || throughput <= 0.0 {
            let reason = format!("must be more than 0, not {throughput}");
            return Err(ParameterError::new("peakPrefillThroughput", reason));
        }
        Ok(())
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
        Ok(Box::new(PrefixCacheAffinityFilter { parameters }))
    },
};

/// See the module.
#[derive(Clone, Debug)]
pub struct PrefixCacheAffinityFilter {
    parameters: Parameters,
}

impl Filter for PrefixCacheAffinityFilter {
    fn type_name(&self) -> &'static str {
        TYPE_NAME
    }

    fn filter(&self, context: &Context<'_>, candidates: &mut Vec<usize>) {
        let threshold = self.parameters.affinity_threshold;
        if candidates.len() < 2 || threshold <= 0.0 {
            return;
        }
        if draw(context, SALT) < self.parameters.exploration_probability {
            return;
        }
        let is_sticky = |at: usize| prefix_share(context, at) >= threshold;
        let sticky = candidates.iter().filter(|at| is_sticky(**at)).count();
        if sticky == 0 || sticky == candidates.len() {
            return;
        }
        if self.sticky_are_too_slow(context, candidates, is_sticky) {
            return;
        }
        candidates.retain(|at| is_sticky(*at));
    }
}

impl PrefixCacheAffinityFilter {
    /// Also where the time is not known: then nothing is given up for a guess.
    fn sticky_are_too_slow(
        &self,
        context: &Context<'_>,
        candidates: &[usize],
        is_sticky: impl Fn(usize) -> bool,
    ) -> bool {
        let penalty = self.parameters.max_ttft_penalty_ms;
        if penalty <= 0.0 {
            return false;
        }
        let fastest = |sticky: bool| {
            candidates
                .iter()
                .filter(|at| is_sticky(**at) == sticky)
                .filter_map(|at| self.ttft_ms(context, *at))
                .reduce(f64::min)
        };
        match (fastest(true), fastest(false)) {
            (Some(sticky), Some(other)) => sticky - other > penalty,
            _ => true,
        }
    }

    fn ttft_ms(&self, context: &Context<'_>, position: usize) -> Option<f64> {
        match self.parameters.ttft_source {
            TtftSource::PrefillThroughput => {
                let tokens = f64::from(context.live(position).in_flight_tokens);
                Some(tokens / self.parameters.peak_prefill_throughput * 1_000.0)
            }
            TtftSource::LatencyPredictor => {
                let found = context.request.predictions?.get(position)?;
                Some(f64::from(found.ttft_ms))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::super::fixtures::{request, snapshot};
    use super::super::super::latency::{Prediction, Predictions};
    use super::*;
    use crate::fleet::{Live, Matches};

    /// Endpoints with so many tokens cached of 100, in flight, and predicted milliseconds; an empty
    /// list of those = no predictions.
    fn filtered(
        cached: [u32; 3],
        tokens: [u32; 3],
        ttft: &[f32],
        parameters: &Value,
    ) -> Vec<usize> {
        let live = tokens.map(|in_flight_tokens| Live {
            block_size: 10,
            in_flight_tokens,
            ..Live::default()
        });
        let snapshot = snapshot(&live);
        let mut matches = Matches::default();
        for (member, cached) in snapshot.members.iter().zip(cached) {
            matches.record(member.id, member.generation, cached, cached);
        }
        let mut predictions = Predictions::default();
        for ttft_ms in ttft {
            predictions.push(Prediction {
                ttft_ms: *ttft_ms,
                ..Prediction::default()
            });
        }
        let mut request = request(105, &matches, 3);
        request.predictions = Some(&predictions);
        let context = Context {
            snapshot: &snapshot,
            request: &request,
            now_ms: 0,
        };
        let mut candidates = vec![2, 1, 0];
        (MAKER.make)(parameters)
            .unwrap()
            .filter(&context, &mut candidates);
        candidates
    }

    const ALL: [usize; 3] = [2, 1, 0];

    #[test]
    fn endpoints_that_hold_most_of_the_prompt_are_kept() {
        let default = Value::Null;
        assert_eq!(filtered([80, 70, 90], [0; 3], &[], &default), [2, 0]);
        assert_eq!(filtered([70, 70, 0], [0; 3], &[], &default), ALL);
        assert_eq!(filtered([90; 3], [0; 3], &[], &default), ALL);
        let off = json!({"affinityThreshold": 0});
        assert_eq!(filtered([0, 70, 90], [0; 3], &[], &off), ALL);
        let explore = json!({"explorationProbability": 1});
        assert_eq!(filtered([0, 70, 90], [0; 3], &[], &explore), ALL);
    }

    #[test]
    fn a_sticky_endpoint_that_is_too_slow_is_not_waited_for() {
        let at = |tokens: u32| filtered([90, 0, 0], [tokens, 0, 500], &[], &Value::Null);
        // 15,928 tokens are a second; 18 s are the limit.
        assert_eq!(at(15_928 * 18), [0]);
        assert_eq!(at(15_928 * 18 + 100), ALL);
        let always = json!({"maxTTFTPenaltyMs": 0});
        assert_eq!(filtered([90, 0, 0], [u32::MAX, 0, 0], &[], &always), [0]);
    }

    #[test]
    fn the_model_may_say_how_slow() {
        for source in ["latencyPredictor", "predictor"] {
            let model = json!({"ttftSource": source, "maxTTFTPenaltyMs": 100});
            let of = |ttft: &[f32]| filtered([90, 0, 0], [u32::MAX, 0, 0], ttft, &model);
            assert_eq!(of(&[190.0, 500.0, 100.0]), [0]);
            assert_eq!(of(&[210.0, 500.0, 100.0]), ALL);
            assert_eq!(of(&[]), ALL, "nothing predicted");
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        let wrong = |value| (MAKER.make)(&value).unwrap_err().path;
        assert_eq!(wrong(json!({"affinityThreshold": 2})), "affinityThreshold");
        assert_eq!(wrong(json!({"maxTTFTPenaltyMs": -1})), "maxTTFTPenaltyMs");
        assert_eq!(
            wrong(json!({"peakPrefillThroughput": 0})),
            "peakPrefillThroughput"
        );
        assert_eq!(wrong(json!({"ttftSource": "guess"})), "ttftSource");
    }
}
