//! `prefix-based-pd-decider`: splits prefill off where enough of the prompt is not cached at the
//! decode endpoint.
//!
//! A short uncached rest is prefilled faster where the cache is than moved there. The field
//! estimates prompt lengths from characters; here they are the lengths that the index worked with,
//! token counts wherever a tokenizer is loaded.

use serde::{Deserialize, Serialize};

use super::super::plugin::{Context, Maker};
use super::Decider;
use crate::config::plugins::{self, PluginKind, PluginType, Stage};

/// The plugin's type name.
pub const TYPE_NAME: &str = "prefix-based-pd-decider";

/// The field's parameters.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
pub struct Parameters {
    /// Uncached tokens from which on prefill runs apart; 0 = never.
    pub non_cached_tokens: u32,
    /// Prompt tokens below which it never does.
    pub prompt_tokens: u32,
}

impl plugins::Parameters for Parameters {}

/// The plugin type.
pub const MAKER: Maker<dyn Decider> = Maker {
    plugin: PluginType {
        name: TYPE_NAME,
        kind: PluginKind::Decider,
        stage: Stage::Beta,
        check: plugins::check::<Parameters>,
    },
    make: |given| {
        Ok(Box::new(PrefixBasedPdDecider {
            parameters: plugins::read(given)?,
        }))
    },
};

/// See the module.
#[derive(Clone, Copy, Debug)]
pub struct PrefixBasedPdDecider {
    parameters: Parameters,
}

impl Decider for PrefixBasedPdDecider {
    fn type_name(&self) -> &'static str {
        TYPE_NAME
    }

    fn splits(&self, context: &Context<'_>, decode: Option<usize>) -> bool {
        let Parameters {
            non_cached_tokens,
            prompt_tokens,
        } = self.parameters;
        let Some(decode) = decode.filter(|_| non_cached_tokens > 0) else {
            return false;
        };
        let request = context.request;
        let member = context.member(decode);
        let cached = request.matches.tokens(member.id, member.generation);
        let uncached = request.prompt_tokens.saturating_sub(cached);
        request.prompt_tokens >= prompt_tokens && uncached >= non_cached_tokens
    }
}
