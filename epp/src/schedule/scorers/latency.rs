//! `latency-scorer`: the room between the predicted latency and the client's targets.
//!
//! The field's rules. Endpoints that meet both targets go before all others, which then get 0. Where
//! none does, idle ones do; then those that miss only the time per output token, then those that
//! miss only the time to first token, then the rest. Within the best group, headrooms (without their
//! sign) are min-max normalised and blended by weight; where all are equal in one of the two, the
//! other decides alone:
//!
//! ```text
//! blend = ttftWeight · normalised TTFT headroom + tpotWeight · normalised TPOT headroom
//! least: score = (⌊100 · (1 - blend)⌋ + 1) / 100      most: (⌊100 · blend⌋ + 1) / 100
//! ```
//!
//! `least` (the default) fills up the endpoint that only just makes it, `most` spares it. Endpoints
//! that miss a target are always ranked by the least deficit, so without targets this minimises the
//! latency. Until something was learned, or with a `composite-` strategy, free KV cache, a short
//! queue and the cached share of the prompt are blended instead.

use serde::{Deserialize, Serialize};

use super::super::latency::{Prediction, prefix_share};
use super::super::plugin::{Context, Maker, Scorer};
use crate::config::plugins::{self, ParameterError, PluginKind, PluginType, Stage};

/// The plugin's type name.
pub const TYPE_NAME: &str = "latency-scorer";

/// Headrooms that differ by less, in milliseconds, are equal.
const EPSILON: f64 = 1e-9;

/// Which of the endpoints that meet the targets is preferred.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Strategy {
    /// The one with the least headroom.
    #[default]
    Least,
    /// The one with the most.
    Most,
    /// The one with the least composite score: the busiest that still makes it.
    CompositeLeast,
    /// The one with the most.
    CompositeMost,
    /// The composite score for every endpoint, whatever is predicted.
    CompositeOnly,
}

/// The field's parameters.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
pub struct Parameters {
    pub ttft_weight: f64,
    pub tpot_weight: f64,
    pub headroom_selection_strategy: Strategy,
    #[serde(rename = "compositeKVWeight")]
    pub composite_kv_weight: f64,
    pub composite_queue_weight: f64,
    pub composite_prefix_weight: f64,
    /// There is one model and one index, so any name is accepted and means it.
    pub latency_prediction_info_producer_name: String,
    pub prefix_match_info_producer_name: String,
}

impl Default for Parameters {
    fn default() -> Self {
        Self {
            ttft_weight: 0.8,
            tpot_weight: 0.2,
            headroom_selection_strategy: Strategy::Least,
            composite_kv_weight: 1.0,
            composite_queue_weight: 1.0,
            composite_prefix_weight: 1.0,
            latency_prediction_info_producer_name: String::new(),
            prefix_match_info_producer_name: String::new(),
        }
    }
}

impl plugins::Parameters for Parameters {
    fn validate(&self) -> Result<(), ParameterError> {
        for (field, weight) in [
            ("ttftWeight", self.ttft_weight),
            ("tpotWeight", self.tpot_weight),
            ("compositeKVWeight", self.composite_kv_weight),
            ("compositeQueueWeight", self.composite_queue_weight),
            ("compositePrefixWeight", self.composite_prefix_weight),
        ] {
            if !weight.is_finite() || weight < 0.0 {
                let reason = format!("must be a number from 0, not {weight}");
                return Err(ParameterError::new(field, reason));
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
        stage: Stage::Beta,
        check: plugins::check::<Parameters>,
    },
    make: |given| {
        let parameters = plugins::read::<Parameters>(given)?;
        Ok(Box::new(LatencyScorer::from(&parameters)))
    },
};

/// See the module.
#[derive(Clone, Copy, Debug)]
pub struct LatencyScorer {
    /// Sum to 1.
    ttft_weight: f64,
    tpot_weight: f64,
    strategy: Strategy,
    /// KV, queue, prefix; sum to 1.
    composite: [f64; 3],
}

impl From<&Parameters> for LatencyScorer {
    fn from(parameters: &Parameters) -> Self {
        let sum = parameters.ttft_weight + parameters.tpot_weight;
        let (ttft_weight, tpot_weight) = if sum > 0.0 {
            (parameters.ttft_weight / sum, parameters.tpot_weight / sum)
        } else {
            (1.0, 0.0)
        };
        let composite = [
            parameters.composite_kv_weight,
            parameters.composite_queue_weight,
            parameters.composite_prefix_weight,
        ];
        let sum: f64 = composite.iter().sum();
        Self {
            ttft_weight,
            tpot_weight,
            strategy: parameters.headroom_selection_strategy,
            composite: if sum > 0.0 {
                composite.map(|weight| weight / sum)
            } else {
                [1.0, 0.0, 0.0]
            },
        }
    }
}

/// How an endpoint stands to the targets; earlier is better.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Group {
    MeetsTargets,
    Idle,
    MissesTpot,
    MissesTtft,
    MissesBoth,
}

impl Group {
    fn of(prediction: &Prediction, is_idle: bool) -> Self {
        if prediction.meets_targets() {
            return Self::MeetsTargets;
        }
        if is_idle {
            return Self::Idle;
        }
        let misses_ttft = prediction.ttft_headroom_ms < 0.0;
        let misses_tpot = prediction.tpot_headroom_ms < 0.0;
        match (misses_ttft, misses_tpot) {
            (true, true) => Self::MissesBoth,
            (true, false) => Self::MissesTtft,
            _ => Self::MissesTpot,
        }
    }
}

impl Scorer for LatencyScorer {
    fn type_name(&self) -> &'static str {
        TYPE_NAME
    }

    fn score(&self, context: &Context<'_>, candidates: &[usize], scores: &mut [f32]) {
        let predictions = context.request.predictions;
        let known = predictions.filter(|found| !found.is_empty());
        let (Some(predictions), true) = (known, self.strategy != Strategy::CompositeOnly) else {
            return self.score_composite(context, candidates, scores, |_| true);
        };
        // A position without a prediction is one with no headroom and no deficit.
        let prediction = |at: usize| predictions.get(at).copied().unwrap_or_default();
        let group = |at: usize| {
            let is_idle = context.live(at).in_flight_requests == 0;
            Group::of(&prediction(at), is_idle)
        };
        let Some(best) = candidates.iter().map(|at| group(*at)).min() else {
            return;
        };
        let is_in = |at: usize| group(at) == best;
        let meets = best == Group::MeetsTargets;
        match self.strategy {
            Strategy::CompositeLeast | Strategy::CompositeMost if meets => {
                self.score_composite(context, candidates, scores, is_in);
            }
            strategy => {
                let most = meets && strategy == Strategy::Most;
                self.score_headroom(candidates, scores, prediction, is_in, most);
            }
        }
    }
}

impl LatencyScorer {
    /// Scores the candidates that are in the group by their headroom, the others 0.
    fn score_headroom(
        &self,
        candidates: &[usize],
        scores: &mut [f32],
        prediction: impl Fn(usize) -> Prediction,
        is_in: impl Fn(usize) -> bool,
        most: bool,
    ) {
        let ttft = |at: usize| f64::from(prediction(at).ttft_headroom_ms).abs();
        let tpot = |at: usize| f64::from(prediction(at).tpot_headroom_ms).abs();
        let group = || candidates.iter().copied().filter(|at| is_in(*at));
        let ttft_range = Range::of(group().map(ttft));
        let tpot_range = Range::of(group().map(tpot));
        let (ttft_weight, tpot_weight) = match (ttft_range.is_flat(), tpot_range.is_flat()) {
            (true, false) => (0.0, 1.0),
            (false, true) => (1.0, 0.0),
            _ => (self.ttft_weight, self.tpot_weight),
        };
        for (at, score) in candidates.iter().zip(scores) {
            if !is_in(*at) {
                *score = 0.0;
                continue;
            }
            let blend = ttft_weight * ttft_range.place(ttft(*at))
                + tpot_weight * tpot_range.place(tpot(*at));
            let share = if most { blend } else { 1.0 - blend };
            *score = (((share * 100.0).floor() + 1.0) / 100.0).min(1.0) as f32;
        }
    }

    /// Scores the candidates that are in the group by how free they are, the others 0.
    fn score_composite(
        &self,
        context: &Context<'_>,
        candidates: &[usize],
        scores: &mut [f32],
        is_in: impl Fn(usize) -> bool,
    ) {
        let waiting = |at: usize| context.live(at).waiting;
        let longest = candidates.iter().map(|at| waiting(*at)).max().unwrap_or(0);
        let [kv, queue, prefix] = self.composite;
        for (at, score) in candidates.iter().zip(scores) {
            if !is_in(*at) {
                *score = 0.0;
                continue;
            }
            let short_queue = match longest {
                0 => 1.0,
                longest => f64::from(longest - waiting(*at)) / f64::from(longest),
            };
            let free = 1.0 - f64::from(context.live(*at).kv_usage);
            let blend = kv * free + queue * short_queue + prefix * prefix_share(context, *at);
            let least = self.strategy == Strategy::CompositeLeast
                && context
                    .request
                    .predictions
                    .is_some_and(|found| !found.is_empty());
            let share = if least { 1.0 - blend } else { blend };
            *score = ((share * 100.0).round() / 100.0) as f32;
        }
    }
}

/// The least and the most of some headrooms.
#[derive(Clone, Copy)]
struct Range {
    least: f64,
    most: f64,
}

impl Range {
    fn of(values: impl Iterator<Item = f64>) -> Self {
        let empty = Self {
            least: f64::MAX,
            most: 0.0,
        };
        values.fold(empty, |range, value| Self {
            least: range.least.min(value),
            most: range.most.max(value),
        })
    }

    fn is_flat(self) -> bool {
        self.most - self.least <= EPSILON
    }

    /// From 0 at the least to 1 at the most; half where all are equal.
    fn place(self, value: f64) -> f64 {
        if self.is_flat() {
            0.5
        } else {
            (value - self.least) / (self.most - self.least)
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::super::fixtures::{request, snapshot};
    use super::super::super::latency::Predictions;
    use super::*;
    use crate::fleet::{Live, Matches};

    fn busy() -> Live {
        Live {
            in_flight_requests: 1,
            block_size: 16,
            ..Live::default()
        }
    }

    fn scored(live: &[Live], headrooms: &[(f32, f32)], parameters: &serde_json::Value) -> Vec<f32> {
        let mut predictions = Predictions::default();
        for (ttft, tpot) in headrooms {
            predictions.push(Prediction {
                ttft_headroom_ms: *ttft,
                tpot_headroom_ms: *tpot,
                ..Prediction::default()
            });
        }
        let snapshot = snapshot(live);
        let matches = Matches::default();
        let mut request = request(64, &matches, 0);
        request.predictions = Some(&predictions);
        let context = Context {
            snapshot: &snapshot,
            request: &request,
            now_ms: 0,
        };
        let scorer = (MAKER.make)(parameters).unwrap();
        let candidates: Vec<usize> = (0..live.len()).collect();
        let mut scores = vec![9.0; live.len()];
        scorer.score(&context, &candidates, &mut scores);
        scores
    }

    fn strategy(name: &str) -> serde_json::Value {
        json!({"headroomSelectionStrategy": name})
    }

    #[test]
    fn the_least_headroom_that_meets_the_targets_wins() {
        let headrooms = [(100.0, 0.0), (300.0, 0.0), (200.0, 0.0), (-1.0, 0.0)];
        let least = scored(&[busy(); 4], &headrooms, &json!({}));
        assert_eq!(least, [1.0, 0.01, 0.51, 0.0]);
        let most = scored(&[busy(); 4], &headrooms, &strategy("most"));
        assert_eq!(most, [0.01, 1.0, 0.51, 0.0]);
    }

    #[test]
    fn both_headrooms_are_blended_by_weight() {
        let headrooms = [(0.0, 100.0), (100.0, 0.0)];
        assert_eq!(scored(&[busy(); 2], &headrooms, &json!({})), [0.81, 0.2]);
        // A headroom that is the same everywhere counts for nothing.
        let headrooms = [(50.0, 100.0), (50.0, 0.0)];
        assert_eq!(scored(&[busy(); 2], &headrooms, &json!({})), [0.01, 1.0]);
        let equal = [(50.0, 10.0); 2];
        assert_eq!(scored(&[busy(); 2], &equal, &json!({})), [0.51, 0.51]);
    }

    #[test]
    fn of_those_that_miss_the_least_severe_group_is_ranked_by_deficit() {
        let headrooms = [(-10.0, -10.0), (-500.0, 1.0), (1.0, -50.0), (1.0, -20.0)];
        let scores = scored(&[busy(); 4], &headrooms, &strategy("most"));
        assert_eq!(scores, [0.0, 0.0, 0.01, 1.0]);
        let two = scored(&[busy(); 2], &headrooms[..2], &json!({}));
        assert_eq!(two, [0.0, 0.51]);
    }

    #[test]
    fn an_idle_endpoint_goes_before_others_that_miss() {
        let headrooms = [(-10.0, 0.0), (-500.0, -5.0), (-600.0, -5.0)];
        let live = [busy(), Live::default(), Live::default()];
        assert_eq!(scored(&live, &headrooms, &json!({})), [0.0, 1.0, 0.01]);
    }

    #[test]
    fn without_predictions_the_composite_decides() {
        let live = [
            Live {
                waiting: 4,
                kv_usage: 0.5,
                ..busy()
            },
            busy(),
        ];
        let scores = scored(&live, &[], &json!({}));
        assert_eq!(scores, [0.17, 0.67]);
        let queue = json!({"compositeKVWeight": 0, "compositePrefixWeight": 0});
        assert_eq!(scored(&live, &[], &queue), [0.0, 1.0]);
        let nothing = json!({
            "compositeKVWeight": 0, "compositePrefixWeight": 0, "compositeQueueWeight": 0,
        });
        assert_eq!(scored(&live, &[], &nothing), [0.5, 1.0]);
    }

    #[test]
    fn composite_strategies_rank_those_that_meet_the_targets() {
        let live = [
            Live {
                kv_usage: 0.5,
                ..busy()
            },
            busy(),
            busy(),
        ];
        let headrooms = [(10.0, 0.0), (20.0, 0.0), (-5.0, 0.0)];
        let most = scored(&live, &headrooms, &strategy("composite-most"));
        assert_eq!(most, [0.5, 0.67, 0.0]);
        let least = scored(&live, &headrooms, &strategy("composite-least"));
        assert_eq!(least, [0.5, 0.33, 0.0]);
        let only = scored(&live, &headrooms, &strategy("composite-only"));
        assert_eq!(only, [0.5, 0.67, 0.67]);
        let missing = scored(
            &live[..2],
            &[(-9.0, 0.0), (-5.0, 0.0)],
            &strategy("composite-most"),
        );
        assert_eq!(
            missing,
            [0.01, 1.0],
            "deficits decide where nobody meets the targets"
        );
    }

    #[test]
    fn what_is_wrong_is_named() {
        let wrong = |value| (MAKER.make)(&value).unwrap_err().path;
        assert_eq!(wrong(json!({"ttftWeight": -1})), "ttftWeight");
        assert_eq!(wrong(json!({"compositeKVWeight": -1})), "compositeKVWeight");
        assert_eq!(wrong(strategy("some")), "headroomSelectionStrategy");
        let weightless = json!({"ttftWeight": 0, "tpotWeight": 0});
        let headrooms = [(0.0, 100.0), (100.0, 0.0)];
        assert_eq!(scored(&[busy(); 2], &headrooms, &weightless), [1.0, 0.01]);
    }
}
