//! What a configuration says about reading the endpoints: pages, series, events, latencies.

use std::sync::Arc;

use anyhow::Context;

use crate::config::Settings;
use crate::config::model_server_flags::ModelServerFlags;
use crate::config::plugins::{self, Parameters};
use crate::config::producers::PrecisePrefixCacheProducer;
use crate::config::resolved::PluginSpec;
use crate::fleet::data_layer::{CoreMetricsExtractor, MetricsDataSource};
use crate::fleet::engines::SeriesNames;
use crate::fleet::scrape::{Scheme, ScrapeOptions};
use crate::pipeline::Policy;
use crate::schedule::latency::{LatencyOptions, producer};

const PRECISE_PRODUCER: &str = "precise-prefix-cache-producer";

/// How the pages are read. Flags of older pickers go before the configuration.
pub(super) fn scrape_options(
    policy: &Policy,
    settings: &Settings,
) -> anyhow::Result<ScrapeOptions> {
    let source: MetricsDataSource = parameters(policy, "metrics-data-source")?;
    let extractor: CoreMetricsExtractor = parameters(policy, "core-metrics-extractor")?;
    let mut table = extractor.table().context("core-metrics-extractor")?;
    let flags = &settings.model_server;
    table.rename(&names(flags))?;
    let mut options = source
        .options(Arc::new(table), settings.refresh_metrics_interval)
        .context("metrics-data-source")?;
    match flags.model_server_metrics_scheme.as_deref() {
        Some("https") => options.scheme = Scheme::Https,
        Some(_) => options.scheme = Scheme::Http,
        None => {}
    }
    if let Some(path) = &flags.model_server_metrics_path {
        options.path.clone_from(path);
    }
    if flags.model_server_metrics_port.is_some() {
        options.port = flags.model_server_metrics_port;
    }
    if let Some(skips) = flags.model_server_metrics_https_insecure_skip_verify {
        options.tls.insecure_skip_verify = skips;
    }
    Ok(options)
}

fn names(flags: &ModelServerFlags) -> SeriesNames {
    SeriesNames {
        waiting: flags.total_queued_requests_metric.clone(),
        running: flags.total_running_requests_metric.clone(),
        kv_usage: flags.kv_cache_usage_percentage_metric.clone(),
        adapters: flags.lora_info_metric.clone(),
        cache_info: flags.cache_info_metric.clone(),
    }
}

/// The ports on which engines publish and replay their events, where the configuration has the
/// producer that follows them. Without it each endpoint is asked.
pub(super) fn kv_ports(policy: &Policy) -> anyhow::Result<(Option<u16>, Option<u16>)> {
    let mut plugins = policy.config.plugins.iter();
    if plugins.all(|plugin| plugin.type_name != PRECISE_PRODUCER) {
        return Ok((None, None));
    }
    let producer: PrecisePrefixCacheProducer = parameters(policy, PRECISE_PRODUCER)?;
    let pods = producer.kv_events_config.pod_discovery_config;
    let port = |port: u16| (port > 0).then_some(port);
    Ok((port(pods.socket_port), port(pods.replay_socket_port)))
}

/// What is predicted of latencies, and how.
pub(super) fn latency_options(policy: &Policy) -> anyhow::Result<LatencyOptions> {
    let parameters: producer::Parameters = parameters(policy, producer::TYPE_NAME)?;
    Ok(parameters.options())
}

/// The parameters of the last plugin of a type, or its defaults.
fn parameters<P: Parameters>(policy: &Policy, type_name: &str) -> anyhow::Result<P> {
    let is_of_type = |plugin: &&PluginSpec| plugin.type_name == type_name;
    let plugin = policy.config.plugins.iter().rev().find(is_of_type);
    let given = plugin.map_or(&serde_json::Value::Null, |plugin| &plugin.parameters);
    plugins::read(given).with_context(|| type_name.to_owned())
}
