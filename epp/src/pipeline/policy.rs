//! What a configuration makes of the rooms: built whole from a resolved configuration, and replaced
//! whole when it changes. A request keeps the policy that it began with.

use std::sync::Arc;

use serde_json::Value;

use super::attributes::{AttributePrograms, Reporter, TYPE_NAME as ATTRIBUTE_REPORTER};
use super::catalogue::catalogue;
use crate::config::epc;
use crate::config::plugins::{self, ParameterError, Parameters};
use crate::config::problems::ConfigErrors;
use crate::config::producers::{AgentIdentity, InflightLoadProducer, TokenProducer};
use crate::config::resolved::{PluginSpec, ResolvedConfig};
use crate::flow::{FlowSettings, SaturationDetector, SettingsError, saturation_detector};
use crate::request::{Parsers, UnknownParser};
use crate::schedule::admitters::{self, Admitter};
use crate::schedule::expected::ExpectationOptions;
use crate::schedule::filters::HealthyFilter;
use crate::schedule::scorers::expected_ttft;
use crate::schedule::{self, BuildError, Filter, Scheduler, latency};

/// The operator's choices, made into parts.
#[derive(Debug)]
pub struct Policy {
    pub scheduler: Scheduler,
    pub parsers: Parsers,
    pub admitters: Vec<Box<dyn Admitter>>,
    pub detector: SaturationDetector,
    /// `None` where flow control is off.
    pub flow: Option<FlowSettings>,
    /// Numbers for the gateway, computed from usage.
    pub attributes: Arc<AttributePrograms>,
    /// What a request counts for while it is in flight.
    pub load: InflightLoadProducer,
    /// Whether agents' session headers stand in for a fairness id.
    pub identity: Option<AgentIdentity>,
    /// Whether responses name the endpoint that served them.
    pub echo_served: bool,
    /// Whether latencies are predicted for the plugins.
    pub predicts: bool,
    /// How each endpoint's time to first token is expected, where a scorer asks for it.
    pub expectation: Option<ExpectationOptions>,
    pub config: ResolvedConfig,
}

/// Why a configuration makes no policy.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    #[error(transparent)]
    Scheduler(#[from] BuildError),
    #[error(transparent)]
    Flow(#[from] SettingsError),
    #[error(transparent)]
    Parser(#[from] UnknownParser),
    #[error(transparent)]
    Configuration(#[from] ConfigErrors),
    #[error("plugin {name:?}: {error}")]
    Plugin { name: String, error: ParameterError },
}

impl Policy {
    /// What runs without a configuration.
    pub fn field_default(fallback_endpoints: usize) -> Result<Self, PolicyError> {
        Self::build(epc::field_default(&catalogue())?, fallback_endpoints)
    }

    /// Builds the parts. `fallback_endpoints` are named after the picked one.
    pub fn build(config: ResolvedConfig, fallback_endpoints: usize) -> Result<Self, PolicyError> {
        let healthy: Arc<dyn Filter> = Arc::new(HealthyFilter::default());
        let scheduler =
            schedule::build(&config, &[healthy])?.with_fallback_endpoints(fallback_endpoints);
        let flow = if config.gates.flow_control {
            Some(FlowSettings::resolve(
                &config.flow_control,
                &config.plugins,
            )?)
        } else {
            None
        };
        let parsers = config
            .parsers
            .iter()
            .filter_map(|place| config.plugins.get(*place));
        let parsers: Vec<&str> = parsers.map(|parser| parser.type_name).collect();
        let reporters = all::<Reporter>(&config, ATTRIBUTE_REPORTER)?;
        let attributes =
            AttributePrograms::compile(&reporters).map_err(|error| PolicyError::Plugin {
                name: ATTRIBUTE_REPORTER.to_owned(),
                error,
            })?;
        let has = |type_name: &str| named(&config, type_name).next().is_some();
        Ok(Self {
            scheduler,
            parsers: Parsers::new(&parsers)?,
            admitters: admitters(&config)?,
            detector: saturation_detector(&config.flow_control, &config.plugins)?,
            flow,
            attributes: Arc::new(attributes),
            load: last(&config, "inflight-load-producer")?.unwrap_or_default(),
            identity: last(&config, "agent-identity")?,
            echo_served: has("destination-endpoint-served-verifier"),
            predicts: has(latency::TYPE_NAME),
            expectation: last::<expected_ttft::Parameters>(&config, expected_ttft::TYPE_NAME)?
                .map(ExpectationOptions::from),
            config,
        })
    }

    /// The remote tokenizer that the configuration names: its address, the longest exchange with it
    /// and the model to name there.
    pub fn remote_tokenizer(&self) -> Option<(String, std::time::Duration, String)> {
        let producers = all::<TokenProducer>(&self.config, "token-producer").unwrap_or_default();
        let older = all::<TokenProducer>(&self.config, "tokenizer").unwrap_or_default();
        producers.into_iter().chain(older).find_map(|producer| {
            let (url, timeout) = producer.remote()?;
            Some((url, timeout, producer.model_name))
        })
    }

    /// The resolved plugins, for `/debug/plugins/state`.
    pub fn plugins_state(&self) -> Value {
        let plugins = self.config.plugins.iter().map(|plugin| {
            serde_json::json!({
                "name": plugin.name,
                "type": plugin.type_name,
                "parameters": plugin.parameters,
            })
        });
        Value::Array(plugins.collect())
    }
}

fn admitters(config: &ResolvedConfig) -> Result<Vec<Box<dyn Admitter>>, PolicyError> {
    let mut made = Vec::new();
    for spec in &config.plugins {
        let maker = admitters::MAKERS
            .iter()
            .find(|maker| maker.plugin.name == spec.type_name);
        if let Some(maker) = maker {
            made.push((maker.make)(&spec.parameters).map_err(|error| refused(spec, error))?);
        }
    }
    Ok(made)
}

fn named<'a>(
    config: &'a ResolvedConfig,
    type_name: &'a str,
) -> impl Iterator<Item = &'a PluginSpec> {
    let plugins = config.plugins.iter();
    plugins.filter(move |plugin| plugin.type_name == type_name)
}

/// The parameters of every plugin of a type.
fn all<P: Parameters>(config: &ResolvedConfig, type_name: &str) -> Result<Vec<P>, PolicyError> {
    named(config, type_name)
        .map(|spec| plugins::read(&spec.parameters).map_err(|error| refused(spec, error)))
        .collect()
}

/// Those of the last one: of several plugins that set the same options the last one counts.
fn last<P: Parameters>(config: &ResolvedConfig, type_name: &str) -> Result<Option<P>, PolicyError> {
    Ok(all(config, type_name)?.pop())
}

fn refused(spec: &PluginSpec, error: ParameterError) -> PolicyError {
    PolicyError::Plugin {
        name: spec.name.clone(),
        error,
    }
}
