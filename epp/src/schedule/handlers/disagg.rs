//! `disagg-profile-handler`: decode, prefill and encode on endpoints of their own.
//!
//! Decode always runs, and its endpoint gets the request; the addresses of the others travel in
//! headers that the decode worker's proxy reads. Which of the others run is for the deciders to
//! say, stage by stage: a stage without a decider is off. In the order `decode-first` a decider
//! sees the endpoint that decode picked, so it knows how much of the prompt is cached there; in
//! `prefill-first` the prefill profile always runs first and has no decider.
//!
//! A prefill or encode profile that finds no endpoint does not fail the request: a decode worker
//! can do the whole of it, only slower. The decision shows that the stage did not run.

use std::fmt::Write as _;
use std::sync::Arc;

use pointsman_proto::headers::{ENCODER_HOSTS_PORTS, PREFILLER_HOST_PORT};
use serde::{Deserialize, Serialize};

use super::super::deciders::Decider;
use super::super::decision::{Decision, NoEndpoint};
use super::super::plugin::Context;
use super::data_parallel::send_to_primary_port;
use super::{HandlerMaker, Parts, ProfileHandler};
use crate::config::plugins::{self, ParameterError, PluginKind, PluginType, Stage};

/// The plugin's type name.
pub const TYPE_NAME: &str = "disagg-profile-handler";

/// The older handler for prefill and decode alone.
pub const PD_TYPE_NAME: &str = "pd-profile-handler";

/// The field's parameters.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
pub struct Parameters {
    pub stage_order: StageOrder,
    pub profiles: ProfileNames,
    pub deciders: DeciderNames,
}

/// Which stage picks first.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StageOrder {
    #[default]
    #[serde(alias = "decode", alias = "decodeFirst", alias = "decode_first")]
    DecodeFirst,
    #[serde(alias = "prefill", alias = "prefillFirst", alias = "prefill_first")]
    PrefillFirst,
}

/// The profile of each stage.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ProfileNames {
    pub decode: String,
    pub prefill: String,
    pub encode: String,
}

impl Default for ProfileNames {
    fn default() -> Self {
        Self {
            decode: "decode".to_owned(),
            prefill: "prefill".to_owned(),
            encode: "encode".to_owned(),
        }
    }
}

/// The plugin that decides for each stage; an empty name switches the stage off.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DeciderNames {
    pub prefill: String,
    pub encode: String,
}

impl plugins::Parameters for Parameters {
    fn validate(&self) -> Result<(), ParameterError> {
        if self.stage_order == StageOrder::PrefillFirst && !self.deciders.prefill.is_empty() {
            let reason = "in the order prefill-first prefill always runs and has no decider";
            return Err(ParameterError::new("deciders.prefill", reason));
        }
        Ok(())
    }
}

/// Parameters of the older handler.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
pub struct PdParameters {
    pub decode_profile: String,
    pub prefill_profile: String,
    /// Never had an effect.
    pub prefix_plugin_type: String,
    /// Never had an effect.
    pub prefix_plugin_name: String,
    /// 0 = the request goes to the picked rank's own port.
    pub primary_port: u16,
    pub decider_plugin_name: String,
    /// There is one index, so any name means it.
    pub prefix_match_info_producer_name: String,
}

impl Default for PdParameters {
    fn default() -> Self {
        Self {
            decode_profile: "decode".to_owned(),
            prefill_profile: "prefill".to_owned(),
            prefix_plugin_type: String::new(),
            prefix_plugin_name: String::new(),
            primary_port: 0,
            decider_plugin_name: super::super::deciders::prefix_based::TYPE_NAME.to_owned(),
            prefix_match_info_producer_name: String::new(),
        }
    }
}

impl plugins::Parameters for PdParameters {}

/// Parameters of the header writers, which the handler makes superfluous.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
pub struct HeaderWriterParameters {
    pub prefill_profile: String,
    pub encode_profile: String,
}

impl plugins::Parameters for HeaderWriterParameters {}

/// The plugin type.
pub const MAKER: HandlerMaker = HandlerMaker {
    plugin: PluginType {
        name: TYPE_NAME,
        kind: PluginKind::ProfileHandler,
        stage: Stage::Beta,
        check: plugins::check::<Parameters>,
    },
    make: |given, parts| {
        let parameters: Parameters = plugins::read(given)?;
        Ok(Box::new(DisaggProfileHandler::new(&parameters, parts)?))
    },
};

/// The older plugin type.
pub const PD_MAKER: HandlerMaker = HandlerMaker {
    plugin: PluginType {
        name: PD_TYPE_NAME,
        kind: PluginKind::ProfileHandler,
        stage: Stage::Deprecated { instead: TYPE_NAME },
        check: plugins::check::<PdParameters>,
    },
    make: |given, parts| {
        let parameters: PdParameters = plugins::read(given)?;
        Ok(Box::new(DisaggProfileHandler {
            type_name: PD_TYPE_NAME,
            order: StageOrder::DecodeFirst,
            decode: parts.profile("decodeProfile", &parameters.decode_profile)?,
            prefill: Some(parts.profile("prefillProfile", &parameters.prefill_profile)?),
            prefill_decider: Some(
                parts.decider("deciderPluginName", &parameters.decider_plugin_name)?,
            ),
            encode: None,
            primary_port: (parameters.primary_port != 0).then_some(parameters.primary_port),
        }))
    },
};

/// Wrote the addresses of prefill and encode endpoints.
pub const HEADERS_HANDLER: PluginType = PluginType {
    name: "disagg-headers-handler",
    kind: PluginKind::RequestControl,
    stage: Stage::Deprecated { instead: TYPE_NAME },
    check: plugins::check::<HeaderWriterParameters>,
};

/// Wrote the address of the prefill endpoint.
pub const PREFILL_HEADER_HANDLER: PluginType = PluginType {
    name: "prefill-header-handler",
    kind: PluginKind::RequestControl,
    stage: Stage::Deprecated { instead: TYPE_NAME },
    check: plugins::check::<HeaderWriterParameters>,
};

/// See the module.
#[derive(Clone, Debug)]
pub struct DisaggProfileHandler {
    type_name: &'static str,
    order: StageOrder,
    decode: usize,
    prefill: Option<usize>,
    /// `None` in the order prefill-first.
    prefill_decider: Option<Arc<dyn Decider>>,
    encode: Option<(usize, Arc<dyn Decider>)>,
    primary_port: Option<u16>,
}

impl DisaggProfileHandler {
    fn new(parameters: &Parameters, parts: &Parts<'_>) -> Result<Self, ParameterError> {
        let Parameters {
            stage_order: order,
            profiles,
            deciders,
        } = parameters;
        let decider = |path: &str, name: &str| match name {
            "" => Ok(None),
            name => parts.decider(path, name).map(Some),
        };
        let prefill_decider = decider("deciders.prefill", &deciders.prefill)?;
        let prefill = if prefill_decider.is_some() || *order == StageOrder::PrefillFirst {
            Some(parts.profile("profiles.prefill", &profiles.prefill)?)
        } else {
            None
        };
        let encode = match decider("deciders.encode", &deciders.encode)? {
            Some(decider) => Some((parts.profile("profiles.encode", &profiles.encode)?, decider)),
            None => None,
        };
        Ok(Self {
            type_name: TYPE_NAME,
            order: *order,
            decode: parts.profile("profiles.decode", &profiles.decode)?,
            prefill,
            prefill_decider,
            encode,
            primary_port: None,
        })
    }

    fn wants_encode(&self, context: &Context<'_>, decision: &Decision) -> Option<usize> {
        let (profile, decider) = self.encode.as_ref()?;
        let decode = self.picked(decision, self.decode);
        (decision.run_of(*profile).is_none() && decider.splits(context, decode)).then_some(*profile)
    }

    fn wants_prefill(&self, context: &Context<'_>, decision: &Decision) -> Option<usize> {
        let profile = self.prefill?;
        if decision.run_of(profile).is_some() {
            return None;
        }
        let decode = self.picked(decision, self.decode);
        let wanted = match &self.prefill_decider {
            Some(decider) => decider.splits(context, decode),
            None => true,
        };
        wanted.then_some(profile)
    }

    #[expect(clippy::unused_self, reason = "reads as a question to the handler")]
    fn picked(&self, decision: &Decision, profile: usize) -> Option<usize> {
        decision.run_of(profile)?.endpoints.first().copied()
    }
}

impl ProfileHandler for DisaggProfileHandler {
    fn type_name(&self) -> &'static str {
        self.type_name
    }

    fn next(&self, context: &Context<'_>, decision: &Decision) -> Option<usize> {
        let decode_ran = decision.run_of(self.decode).is_some();
        match self.order {
            StageOrder::DecodeFirst if !decode_ran => Some(self.decode),
            // Without a decode endpoint the request fails, whatever the other stages find.
            StageOrder::DecodeFirst if self.picked(decision, self.decode).is_none() => None,
            StageOrder::DecodeFirst => self
                .wants_encode(context, decision)
                .or_else(|| self.wants_prefill(context, decision)),
            StageOrder::PrefillFirst => self
                .wants_prefill(context, decision)
                .or_else(|| self.wants_encode(context, decision))
                .or_else(|| (!decode_ran).then_some(self.decode)),
        }
    }

    fn sends_to_primary_port(&self) -> bool {
        self.primary_port.is_some()
    }

    fn conclude(&self, context: &Context<'_>, decision: &mut Decision) -> Result<(), NoEndpoint> {
        decision.choose_primary(self.decode)?;
        let run_endpoints = |profile: Option<usize>| -> Vec<usize> {
            let run = profile.and_then(|profile| decision.run_of(profile));
            run.map(|run| run.endpoints.to_vec()).unwrap_or_default()
        };
        let prefill = run_endpoints(self.prefill);
        let encode = run_endpoints(self.encode.as_ref().map(|(profile, _)| *profile));
        decision.stages.prefill = !prefill.is_empty();
        decision.prefill = prefill.first().copied();
        decision.stages.encode = !encode.is_empty();
        if let Some(first) = prefill.first() {
            let address = context.member(*first).spec.address.to_string();
            decision.headers.push((PREFILLER_HOST_PORT, address));
        }
        if !encode.is_empty() {
            decision
                .headers
                .push((ENCODER_HOSTS_PORTS, addresses(context, &encode)));
        }
        if let Some(port) = self.primary_port {
            send_to_primary_port(context, decision, port);
        }
        Ok(())
    }
}

fn addresses(context: &Context<'_>, positions: &[usize]) -> String {
    let mut list = String::new();
    for position in positions {
        let separator = if list.is_empty() { "" } else { "," };
        // Writing to a string cannot fail.
        let _ = write!(
            list,
            "{separator}{}",
            context.member(*position).spec.address
        );
    }
    list
}
