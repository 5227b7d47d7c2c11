//! `data-parallel-profile-handler`: the request goes to the pod's primary port, and a header tells
//! the proxy there which rank was picked.
//!
//! It is for gateways that cannot send to any port but one of a pod; those that can take the rank's
//! own port, which is why the field calls it deprecated.

use pointsman_proto::headers::DATA_PARALLEL_HOST_PORT;
use serde::{Deserialize, Serialize};

use super::super::decision::{Decision, NoEndpoint};
use super::super::plugin::Context;
use super::{HandlerMaker, ProfileHandler};
use crate::config::plugins::{self, ParameterError, PluginKind, PluginType, Stage};

/// The plugin's type name.
pub const TYPE_NAME: &str = "data-parallel-profile-handler";

/// The field's parameters.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
pub struct Parameters {
    pub primary_port: u16,
}

impl Default for Parameters {
    fn default() -> Self {
        Self { primary_port: 8000 }
    }
}

impl plugins::Parameters for Parameters {
    fn validate(&self) -> Result<(), ParameterError> {
        if self.primary_port == 0 {
            return Err(ParameterError::new(
                "primaryPort",
                "must be between 1 and 65535",
            ));
        }
        Ok(())
    }
}

/// The plugin type.
pub const MAKER: HandlerMaker = HandlerMaker {
    plugin: PluginType {
        name: TYPE_NAME,
        kind: PluginKind::ProfileHandler,
        stage: Stage::Deprecated {
            instead: super::single::TYPE_NAME,
        },
        check: plugins::check::<Parameters>,
    },
    make: |given, parts| {
        let parameters: Parameters = plugins::read(given)?;
        if parts.profiles.len() != 1 {
            let reason = format!(
                "{TYPE_NAME} runs one scheduling profile, and {} are configured",
                parts.profiles.len()
            );
            return Err(ParameterError::new("", reason));
        }
        Ok(Box::new(DataParallelProfileHandler {
            primary_port: parameters.primary_port,
        }))
    },
};

/// See the module.
#[derive(Clone, Copy, Debug)]
pub struct DataParallelProfileHandler {
    primary_port: u16,
}

impl ProfileHandler for DataParallelProfileHandler {
    fn type_name(&self) -> &'static str {
        TYPE_NAME
    }

    fn next(&self, _: &Context<'_>, decision: &Decision) -> Option<usize> {
        decision.runs().is_empty().then_some(0)
    }

    fn sends_to_primary_port(&self) -> bool {
        true
    }

    fn conclude(&self, context: &Context<'_>, decision: &mut Decision) -> Result<(), NoEndpoint> {
        decision.choose_primary(0)?;
        send_to_primary_port(context, decision, self.primary_port);
        Ok(())
    }
}

/// Sends the request to a port of the picked pod other than the rank's own, and names the rank in a
/// header.
pub(super) fn send_to_primary_port(context: &Context<'_>, decision: &mut Decision, port: u16) {
    if let Some(winner) = decision.primary().endpoints.first() {
        let rank = context.member(*winner).spec.address;
        decision
            .headers
            .push((DATA_PARALLEL_HOST_PORT, rank.to_string()));
        decision.port = Some(port);
    }
}
