//! `expected-ttft-scorer`: the endpoint whose pick costs the fewest seconds is the best.
//!
//! ```text
//! score = lowest cost of the candidates / cost        (the best is 1, one that costs twice as much ½)
//! ```
//!
//! The costs are those of [`expected`](super::super::expected), which also says what is in them. Without
//! estimates every candidate scores alike.

use serde::{Deserialize, Serialize};

use super::super::expected::ExpectationOptions;
use super::super::plugin::{Context, Maker, Scorer};
use crate::config::plugins::{self, ParameterError, PluginKind, PluginType, Stage};

/// The plugin's type name.
pub const TYPE_NAME: &str = "expected-ttft-scorer";

/// Costs below this count as this, so that two idle endpoints that hold the whole prompt are alike.
const LEAST_S: f64 = 1e-3;

/// What the estimates are made with; see
/// [`ExpectationOptions`](super::super::expected::ExpectationOptions).
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
pub struct Parameters {
    /// How much the delay of later requests counts; 0 or more.
    pub delay_of_others: f64,
    /// Share of the KV blocks in use at which a pick costs twice as much as with none in use; 0 leaves them out.
    pub kv_doubles_at: f64,
    /// Share of a cached prefix that does not count while the request that brings it has no first token yet; 0 to 1.
    pub unconfirmed_discount: f64,
}

impl Default for Parameters {
    fn default() -> Self {
        let options = ExpectationOptions::default();
        Self {
            delay_of_others: options.delay_of_others,
            kv_doubles_at: options.kv_doubles_at,
            unconfirmed_discount: options.unconfirmed_discount,
        }
    }
}

impl From<Parameters> for ExpectationOptions {
    fn from(parameters: Parameters) -> Self {
        Self {
            delay_of_others: parameters.delay_of_others,
            kv_doubles_at: parameters.kv_doubles_at,
            unconfirmed_discount: parameters.unconfirmed_discount,
        }
    }
}

impl plugins::Parameters for Parameters {
    fn validate(&self) -> Result<(), ParameterError> {
        let all = [
            ("delayOfOthers", self.delay_of_others),
            ("kvDoublesAt", self.kv_doubles_at),
        ];
        let wrong = all
            .iter()
            .find(|(_, value)| !value.is_finite() || *value < 0.0);
        if let Some((name, _)) = wrong {
            return Err(ParameterError::new(*name, "must be 0 or more"));
        }
        if !(0.0..=1.0).contains(&self.unconfirmed_discount) {
            let reason = "must be between 0 and 1";
            return Err(ParameterError::new("unconfirmedDiscount", reason));
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
        plugins::read::<Parameters>(given)?;
        Ok(Box::new(ExpectedTtftScorer))
    },
};

/// See the module.
#[derive(Clone, Copy, Debug)]
pub struct ExpectedTtftScorer;

impl Scorer for ExpectedTtftScorer {
    fn type_name(&self) -> &'static str {
        TYPE_NAME
    }

    fn score(&self, context: &Context<'_>, candidates: &[usize], scores: &mut [f32]) {
        let Some(estimates) = context.request.estimates else {
            scores.fill(1.0);
            return;
        };
        let cost = |at: &usize| {
            let estimate = estimates.get(*at);
            estimate.map_or(LEAST_S, |estimate| estimate.cost_s.max(LEAST_S))
        };
        let lowest = candidates.iter().map(cost).fold(f64::INFINITY, f64::min);
        for (at, score) in candidates.iter().zip(scores) {
            *score = (lowest / cost(at)) as f32;
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::super::expected::{Estimate, Estimates};
    use super::super::super::fixtures::{request, snapshot};
    use super::*;
    use crate::fleet::{Live, Matches};

    fn scores(estimates: Option<&Estimates>) -> Vec<f32> {
        let fleet = snapshot(&[Live::default(); 3]);
        let matches = Matches::default();
        let request = super::super::super::plugin::Request {
            estimates,
            ..request(100, &matches, 0)
        };
        let context = Context {
            snapshot: &fleet,
            request: &request,
            now_ms: 0,
        };
        let mut scores = vec![0.0; 3];
        ExpectedTtftScorer.score(&context, &[0, 1, 2], &mut scores);
        scores
    }

    #[test]
    fn a_score_is_the_share_that_the_lowest_cost_is_of_it() {
        let mut estimates = Estimates::default();
        for cost_s in [0.5, 0.25, 1.0] {
            estimates.push(Estimate {
                cost_s,
                ..Estimate::default()
            });
        }
        assert_eq!(scores(Some(&estimates)), [0.5, 1.0, 0.25]);
        assert_eq!(scores(None), [1.0; 3]);
        assert_eq!(scores(Some(&Estimates::default())), [1.0; 3]);
    }

    #[test]
    fn parameters_that_make_no_sense_are_named() {
        assert!((MAKER.make)(&Value::Null).is_ok());
        let error = (MAKER.make)(&json!({"delayOfOthers": -1.0})).unwrap_err();
        assert!(error.to_string().contains("delayOfOthers"), "{error}");
        let error = (MAKER.make)(&json!({"unconfirmedDiscount": 1.5})).unwrap_err();
        assert!(error.to_string().contains("unconfirmedDiscount"), "{error}");
    }
}
