//! `token-load-scorer`: fewer tokens on their way to an endpoint are better.
//!
//! ```text
//! score = 1 - min(1, (in-flight tokens + uncached tokens of this prompt) / queueThresholdTokens)
//! ```
//!
//! The second term is what the request would add there, as in the field
//! (`pkg/epp/framework/plugins/scheduling/scorer/tokenload` of llm-d-router), so that a cached
//! prefix counts as less load.

use serde::{Deserialize, Serialize};

use super::super::plugin::{Context, Maker, Scorer};
use crate::config::plugins::{self, PluginKind, PluginType, Stage};

/// The plugin's type name.
pub const TYPE_NAME: &str = "token-load-scorer";

/// The field's parameters.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
pub struct Parameters {
    /// Tokens from which an endpoint scores 0; 0 means the default.
    pub queue_threshold_tokens: u64,
    /// Whose in-flight counts to read. There is one producer, so any name means it.
    pub in_flight_load_producer_name: String,
}

impl Default for Parameters {
    fn default() -> Self {
        Self {
            // 128 requests of 32k tokens.
            queue_threshold_tokens: 4_194_304,
            in_flight_load_producer_name: String::new(),
        }
    }
}

impl plugins::Parameters for Parameters {}

/// The plugin type.
pub const MAKER: Maker<dyn Scorer> = Maker {
    plugin: PluginType {
        name: TYPE_NAME,
        kind: PluginKind::Scorer,
        stage: Stage::Beta,
        check: plugins::check::<Parameters>,
    },
    make: |given| {
        let parameters: Parameters = plugins::read(given)?;
        Ok(Box::new(TokenLoadScorer::from(&parameters)))
    },
};

/// See the module.
#[derive(Clone, Copy, Debug)]
pub struct TokenLoadScorer {
    threshold: f64,
}

impl From<&Parameters> for TokenLoadScorer {
    fn from(parameters: &Parameters) -> Self {
        let threshold = match parameters.queue_threshold_tokens {
            0 => Parameters::default().queue_threshold_tokens,
            given => given,
        };
        Self {
            threshold: threshold as f64,
        }
    }
}

impl Scorer for TokenLoadScorer {
    fn type_name(&self) -> &'static str {
        TYPE_NAME
    }

    fn score(&self, context: &Context<'_>, candidates: &[usize], scores: &mut [f32]) {
        let request = context.request;
        for (at, score) in candidates.iter().zip(scores) {
            let member = context.member(*at);
            let cached = request.matches.tokens(member.id, member.generation);
            let uncached = request.prompt_tokens.saturating_sub(cached);
            let in_flight = context.live(*at).in_flight_tokens;
            let load = f64::from(in_flight) + f64::from(uncached);
            *score = (1.0 - (load / self.threshold).min(1.0)) as f32;
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

    #[test]
    fn the_load_with_this_prompt_is_compared_with_the_threshold() {
        let holding = |in_flight_tokens| Live {
            in_flight_tokens,
            ..Live::default()
        };
        let fleet = snapshot(&[holding(0), holding(300), holding(300), holding(9000)]);
        let mut matches = Matches::default();
        let second = &fleet.members[2];
        matches.record(second.id, second.generation, 64, 64);
        let of = |parameters: Value, prompt| {
            rounded(&scored(&MAKER, &parameters, &fleet, &matches, prompt))
        };
        let thousand = || json!({"queueThresholdTokens": 1000});
        assert_eq!(of(thousand(), 0), [1000, 700, 700, 0]);
        assert_eq!(of(thousand(), 100), [900, 600, 664, 0]);
        let default = of(Value::Null, 2_097_152);
        assert_eq!(default[0], 500);
        assert_eq!(of(json!({"queueThresholdTokens": 0}), 2_097_152), default);
    }
}
