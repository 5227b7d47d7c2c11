//! `single-profile-handler`: there is one profile, and it decides.

use super::super::decision::{Decision, NoEndpoint};
use super::super::plugin::Context;
use super::{HandlerMaker, ProfileHandler};
use crate::config::plugins::{self, NoParameters, ParameterError, PluginKind, PluginType, Stage};

/// The plugin's type name.
pub const TYPE_NAME: &str = "single-profile-handler";

/// The plugin type.
pub const MAKER: HandlerMaker = HandlerMaker {
    plugin: PluginType {
        name: TYPE_NAME,
        kind: PluginKind::ProfileHandler,
        stage: Stage::Beta,
        check: plugins::check::<NoParameters>,
    },
    make: |given, parts| {
        plugins::read::<NoParameters>(given)?;
        if parts.profiles.len() != 1 {
            let reason = format!(
                "{TYPE_NAME} runs one scheduling profile, and {} are configured",
                parts.profiles.len()
            );
            return Err(ParameterError::new("", reason));
        }
        Ok(Box::new(SingleProfileHandler))
    },
};

/// See the module.
#[derive(Clone, Copy, Debug)]
pub struct SingleProfileHandler;

impl ProfileHandler for SingleProfileHandler {
    fn type_name(&self) -> &'static str {
        TYPE_NAME
    }

    fn next(&self, _: &Context<'_>, decision: &Decision) -> Option<usize> {
        decision.runs().is_empty().then_some(0)
    }

    fn conclude(&self, _: &Context<'_>, decision: &mut Decision) -> Result<(), NoEndpoint> {
        decision.choose_primary(0)
    }
}
