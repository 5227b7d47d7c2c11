//! `prefix-cache-scorer`: the share of the prompt that the endpoint already holds.
//!
//! ```text
//! score = (1 - matchLengthWeight) * matched / total
//!       +      matchLengthWeight  * min(1, matched / matchLengthScaleTokens)²
//! ```
//!
//! `total` counts whole blocks of the prompt only, as the field does: the last partial block can
//! never be cached, so a prompt whose every whole block is held scores 1. The second term is off by
//! default; it lets a long match win over an equally complete short one, squared because
//! attention's cost grows with the square of the length.
//!
//! `matched` weighs tokens by where they lie, with the field's weights: 1 in GPU memory, 0.8 in a
//! tier from which they have to be fetched.

use serde::{Deserialize, Serialize};

use super::super::plugin::{Context, Maker, Scorer};
use crate::config::plugins::{self, ParameterError, PluginKind, PluginType, Stage};

/// The plugin's type name.
pub const TYPE_NAME: &str = "prefix-cache-scorer";

/// How much a token counts that is not in GPU memory.
const FETCHED: f64 = 0.8;

/// The field's parameters.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
pub struct Parameters {
    /// Share of the length term, 0 to 1.
    pub match_length_weight: f32,
    /// Tokens at which the length term reaches 1. Without that term it may be anything.
    pub match_length_scale_tokens: u32,
    /// Which data producer to read. There is one index, so any name is accepted and means it.
    pub prefix_match_info_producer_name: String,
}

impl Default for Parameters {
    fn default() -> Self {
        Self {
            match_length_weight: 0.0,
            match_length_scale_tokens: 8192,
            prefix_match_info_producer_name: String::new(),
        }
    }
}

impl plugins::Parameters for Parameters {
    fn validate(&self) -> Result<(), ParameterError> {
        if !(0.0..=1.0).contains(&self.match_length_weight) {
            let reason = format!("must be between 0 and 1, not {}", self.match_length_weight);
            return Err(ParameterError::new("matchLengthWeight", reason));
        }
        if self.match_length_weight > 0.0 && self.match_length_scale_tokens == 0 {
            return Err(ParameterError::new(
                "matchLengthScaleTokens",
                "must be more than 0 where matchLengthWeight is",
            ));
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
        Ok(Box::new(PrefixCacheScorer::from(&plugins::read::<
            Parameters,
        >(given)?)))
    },
};

/// See the module.
#[derive(Clone, Copy, Debug)]
pub struct PrefixCacheScorer {
    match_length_weight: f32,
    match_length_scale_tokens: u32,
}

impl Default for PrefixCacheScorer {
    fn default() -> Self {
        Self::from(&Parameters::default())
    }
}

impl From<&Parameters> for PrefixCacheScorer {
    fn from(parameters: &Parameters) -> Self {
        Self {
            match_length_weight: parameters.match_length_weight,
            match_length_scale_tokens: parameters.match_length_scale_tokens,
        }
    }
}

impl Scorer for PrefixCacheScorer {
    fn type_name(&self) -> &'static str {
        TYPE_NAME
    }

    fn score(&self, context: &Context<'_>, candidates: &[usize], scores: &mut [f32]) {
        for (at, score) in candidates.iter().zip(scores) {
            let member = context.member(*at);
            let matches = context.request.matches;
            let tokens = matches.tokens(member.id, member.generation);
            if tokens == 0 {
                // Most of a large fleet holds nothing, and a division an endpoint would show.
                *score = 0.0;
                continue;
            }
            let tokens = f64::from(tokens);
            let on_gpu = f64::from(matches.gpu_tokens(member.id, member.generation));
            let matched = on_gpu + (tokens - on_gpu) * FETCHED;
            let total = whole_blocks(context.request.prompt_tokens, context.live(*at).block_size);
            *score = self.value(matched, total);
        }
    }
}

impl PrefixCacheScorer {
    fn value(self, matched: f64, total: u32) -> f32 {
        if total == 0 {
            return 0.0;
        }
        let share = (matched / f64::from(total)).min(1.0) as f32;
        let weight = self.match_length_weight;
        if weight <= 0.0 {
            return share;
        }
        let length = (matched / f64::from(self.match_length_scale_tokens)).min(1.0) as f32;
        (1.0 - weight) * share + weight * length * length
    }
}

/// Prompt tokens in whole blocks; all of them where the block size is unknown.
fn whole_blocks(prompt_tokens: u32, block_size: u32) -> u32 {
    prompt_tokens - prompt_tokens.checked_rem(block_size).unwrap_or(0)
}
