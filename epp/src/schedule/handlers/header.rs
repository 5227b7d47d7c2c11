//! `header-profile-handler`: a request header names the profile.
//!
//! Where there is one profile it runs whatever the header says. A header that names no profile is
//! the client's mistake; without the header the default profile runs.

use serde::{Deserialize, Serialize};

use super::super::decision::{Decision, NoEndpoint};
use super::super::plugin::Context;
use super::{HandlerMaker, ProfileHandler};
use crate::config::plugins::{self, PluginKind, PluginType, Stage};

/// The plugin's type name.
pub const TYPE_NAME: &str = "header-profile-handler";

/// The field's parameters.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
pub struct Parameters {
    pub header_name: String,
    /// Runs where the header is missing or blank.
    pub default_profile: String,
}

impl Default for Parameters {
    fn default() -> Self {
        Self {
            header_name: "EPP-Profile".to_owned(),
            default_profile: "decode".to_owned(),
        }
    }
}

impl plugins::Parameters for Parameters {}

/// The plugin type.
pub const MAKER: HandlerMaker = HandlerMaker {
    plugin: PluginType {
        name: TYPE_NAME,
        kind: PluginKind::ProfileHandler,
        stage: Stage::Alpha,
        check: plugins::check::<Parameters>,
    },
    make: |given, parts| {
        let parameters: Parameters = plugins::read(given)?;
        let default_profile = match parts.profiles.len() {
            1 => 0,
            _ => parts.profile("defaultProfile", parameters.default_profile.trim())?,
        };
        Ok(Box::new(HeaderProfileHandler {
            header: parameters.header_name.trim().to_ascii_lowercase(),
            profiles: parts.profiles.iter().map(|name| (**name).into()).collect(),
            default_profile,
        }))
    },
};

/// See the module.
#[derive(Clone, Debug)]
pub struct HeaderProfileHandler {
    /// In lower case.
    header: String,
    profiles: Vec<Box<str>>,
    default_profile: usize,
}

impl HeaderProfileHandler {
    fn chosen(&self, context: &Context<'_>) -> Option<usize> {
        if self.profiles.len() == 1 {
            return Some(0);
        }
        match context.request.headers.get(&self.header).map(str::trim) {
            None | Some("") => Some(self.default_profile),
            Some(name) => self.profiles.iter().position(|known| **known == *name),
        }
    }
}

impl ProfileHandler for HeaderProfileHandler {
    fn type_name(&self) -> &'static str {
        TYPE_NAME
    }

    fn next(&self, context: &Context<'_>, decision: &Decision) -> Option<usize> {
        if decision.runs().is_empty() {
            self.chosen(context)
        } else {
            None
        }
    }

    fn conclude(&self, context: &Context<'_>, decision: &mut Decision) -> Result<(), NoEndpoint> {
        let chosen = self.chosen(context).ok_or(NoEndpoint::UnknownProfile)?;
        decision.choose_primary(chosen)
    }
}
