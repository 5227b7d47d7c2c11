//! The field's data-layer plugin types: what a configuration may ask of this room.
//!
//! The field composes sources (what is polled) and extractors (what is read from it) at run time.
//! Here every endpoint's page is read by one scanner, so a source and an extractor are two halves of
//! [`ScrapeOptions`]. Types whose data no plugin of this build would read are refused when the
//! configuration is checked, with the reason: a source that is polled for nobody would be a promise
//! that is not kept.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::engines::{DEFAULT_ENGINE, ENGINE_TYPE_LABEL, EngineSeries, EngineTable, Signal};
use super::http::WorkerTls;
use super::pace::Intervals;
use super::scrape::{Scheme, ScrapeOptions};
use super::series_spec::SeriesSpec;
use crate::config::plugins::{self, NoParameters, ParameterError, PluginKind, PluginType, Stage};
use crate::config::values;

/// Every data-layer plugin type.
pub const PLUGIN_TYPES: &[PluginType] = &[
    plugin_type(
        "metrics-data-source",
        PluginKind::DataSource,
        Stage::Beta,
        plugins::check::<MetricsDataSource>,
    ),
    plugin_type(
        "core-metrics-extractor",
        PluginKind::Extractor,
        Stage::Beta,
        plugins::check::<CoreMetricsExtractor>,
    ),
    // Whoever needs to know of endpoints that come and go listens to the fleet, always.
    plugin_type(
        "endpoint-notification-source",
        PluginKind::DataSource,
        Stage::Beta,
        plugins::check::<NoParameters>,
    ),
    plugin_type(
        "file-discovery",
        PluginKind::Discovery,
        Stage::Beta,
        plugins::check::<FileDiscovery>,
    ),
    plugin_type(
        "k8s-notification-source",
        PluginKind::DataSource,
        Stage::Beta,
        |_| refused("it needs Kubernetes, which this build does not have; leave it out"),
    ),
    plugin_type(
        "models-data-source",
        PluginKind::DataSource,
        Stage::Beta,
        |_| refused(MODELS),
    ),
    plugin_type(
        "models-data-extractor",
        PluginKind::Extractor,
        Stage::Beta,
        |_| refused(MODELS),
    ),
    plugin_type(
        "topology-extractor",
        PluginKind::Extractor,
        Stage::Alpha,
        |_| {
            refused(
                "it reads the labels of Kubernetes nodes, which this build does not have; leave it out",
            )
        },
    ),
    plugin_type(
        "dcgm-data-source",
        PluginKind::DataSource,
        Stage::Alpha,
        |_| refused(GPUS),
    ),
    plugin_type(
        "dcgm-extractor",
        PluginKind::Extractor,
        Stage::Alpha,
        |_| refused(GPUS),
    ),
];

const MODELS: &str = "no plugin of this build reads which models an endpoint serves; leave it out";
const GPUS: &str = "no plugin of this build reads the metrics of GPUs; leave it out";

const fn plugin_type(
    name: &'static str,
    kind: PluginKind,
    stage: Stage,
    check: fn(&Value) -> Result<Value, ParameterError>,
) -> PluginType {
    PluginType {
        name,
        kind,
        stage,
        check,
    }
}

fn refused(reason: &str) -> Result<Value, ParameterError> {
    Err(ParameterError::new("", format!("not supported: {reason}")))
}

/// `metrics-data-source`: where the pages are.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
pub struct MetricsDataSource {
    pub scheme: Scheme,
    pub path: String,
    /// 0 = the endpoint's own port.
    pub port: u16,
    pub insecure_skip_verify: bool,
    /// PEM files; empty = none.
    pub ca_cert_path: String,
    pub client_cert_path: String,
    pub client_key_path: String,
    /// In Go's notation; empty = `--refresh-metrics-interval`, which is also the least.
    pub interval: String,
}

impl Default for MetricsDataSource {
    fn default() -> Self {
        let defaults = ScrapeOptions::default();
        Self {
            scheme: defaults.scheme,
            path: defaults.path,
            port: 0,
            insecure_skip_verify: defaults.tls.insecure_skip_verify,
            ca_cert_path: String::new(),
            client_cert_path: String::new(),
            client_key_path: String::new(),
            interval: String::new(),
        }
    }
}

impl plugins::Parameters for MetricsDataSource {
    fn validate(&self) -> Result<(), ParameterError> {
        if !self.path.starts_with('/') {
            let reason = format!("{:?} does not begin with a slash", self.path);
            return Err(ParameterError::new("path", reason));
        }
        if self.client_cert_path.is_empty() != self.client_key_path.is_empty() {
            let reason = "a client certificate and its key go together; one of both is missing";
            return Err(ParameterError::new("clientCertPath", reason));
        }
        self.interval().map(|_| ())
    }
}

impl MetricsDataSource {
    /// What the scraper has to do. `series` comes from the extractor, `base` from the flags.
    pub fn options(
        &self,
        series: Arc<EngineTable>,
        base: Duration,
    ) -> Result<ScrapeOptions, ParameterError> {
        let file = |path: &str| (!path.is_empty()).then(|| PathBuf::from(path));
        let base = self.interval()?.unwrap_or(base).max(base);
        Ok(ScrapeOptions {
            series,
            scheme: self.scheme,
            path: self.path.clone(),
            port: (self.port > 0).then_some(self.port),
            tls: WorkerTls {
                insecure_skip_verify: self.insecure_skip_verify,
                ca: file(&self.ca_cert_path),
                client: file(&self.client_cert_path).zip(file(&self.client_key_path)),
            },
            intervals: Intervals {
                base,
                ..Intervals::default()
            },
        })
    }

    fn interval(&self) -> Result<Option<Duration>, ParameterError> {
        if self.interval.is_empty() {
            return Ok(None);
        }
        let wrong = |reason: String| ParameterError::new("interval", reason);
        let interval = values::duration(&self.interval).map_err(wrong)?;
        if interval.is_zero() {
            return Err(wrong("must be more than 0".to_owned()));
        }
        Ok(Some(interval))
    }
}

/// `core-metrics-extractor`: which series say what, for each kind of engine.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
pub struct CoreMetricsExtractor {
    /// The label that names an endpoint's engine.
    pub engine_label_key: String,
    /// The engine of endpoints without the label.
    pub default_engine: String,
    /// Further engines, and replacements of built-in ones.
    pub engine_configs: Vec<EngineConfig>,
}

impl Default for CoreMetricsExtractor {
    fn default() -> Self {
        Self {
            engine_label_key: ENGINE_TYPE_LABEL.to_owned(),
            default_engine: DEFAULT_ENGINE.to_owned(),
            engine_configs: Vec::new(),
        }
    }
}

/// The series of one engine, each as `name` or `name{label="value"}`; empty = the engine has none.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
pub struct EngineConfig {
    pub name: String,
    pub queued_requests_spec: String,
    pub running_requests_spec: String,
    pub kv_usage_spec: String,
    pub lora_spec: String,
    pub cache_info_spec: String,
    /// Labels of the cache info; empty = `block_size` and `num_gpu_blocks`.
    pub cache_block_size_label_name: String,
    pub cache_num_blocks_label_name: String,
    /// Where block size and count are gauges of their own.
    pub cache_block_size_spec: String,
    pub cache_num_blocks_spec: String,
    /// Further gauges for plugins that read attributes.
    pub custom_metrics: Vec<CustomMetric>,
}

/// A gauge for plugins that read attributes.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
pub struct CustomMetric {
    pub attribute_key: String,
    pub metric_spec: String,
}

impl plugins::Parameters for CoreMetricsExtractor {
    fn validate(&self) -> Result<(), ParameterError> {
        self.table().map(|_| ())
    }
}

impl CoreMetricsExtractor {
    /// The engines, built-in ones included.
    pub fn table(&self) -> Result<EngineTable, ParameterError> {
        let or = |given: &str, default: &str| match given {
            "" => default.to_owned(),
            given => given.to_owned(),
        };
        let engines = self
            .engine_configs
            .iter()
            .enumerate()
            .map(|(place, config)| {
                config.engine().map_err(|error| ParameterError {
                    path: format!("engineConfigs[{place}].{}", error.path),
                    ..error
                })
            })
            .collect::<Result<Vec<EngineSeries>, _>>()?;
        let label = or(&self.engine_label_key, ENGINE_TYPE_LABEL);
        let default_engine = or(&self.default_engine, DEFAULT_ENGINE);
        EngineTable::new(&label, &default_engine, engines)
            .map_err(|error| ParameterError::new("engineConfigs", error.to_string()))
    }
}

impl EngineConfig {
    fn engine(&self) -> Result<EngineSeries, ParameterError> {
        if self.name.is_empty() {
            return Err(ParameterError::new("name", "must not be empty"));
        }
        if !self.custom_metrics.is_empty() {
            let reason = "not supported: no plugin of this build reads attributes of endpoints";
            return Err(ParameterError::new("customMetrics", reason));
        }
        let mut engine = EngineSeries::new(&self.name);
        for (field, signal, spec) in [
            (
                "queuedRequestsSpec",
                Signal::Waiting,
                &self.queued_requests_spec,
            ),
            (
                "runningRequestsSpec",
                Signal::Running,
                &self.running_requests_spec,
            ),
            ("kvUsageSpec", Signal::KvUsage, &self.kv_usage_spec),
            ("loraSpec", Signal::Adapters, &self.lora_spec),
            ("cacheInfoSpec", Signal::CacheInfo, &self.cache_info_spec),
            (
                "cacheBlockSizeSpec",
                Signal::BlockSize,
                &self.cache_block_size_spec,
            ),
            (
                "cacheNumBlocksSpec",
                Signal::Blocks,
                &self.cache_num_blocks_spec,
            ),
        ] {
            let spec = SeriesSpec::optional(spec)
                .map_err(|error| ParameterError::new(field, error.to_string()))?;
            engine = engine.with(signal, spec);
        }
        if !self.cache_block_size_label_name.is_empty() {
            engine.block_size_label = self.cache_block_size_label_name.as_str().into();
        }
        if !self.cache_num_blocks_label_name.is_empty() {
            engine.blocks_label = self.cache_num_blocks_label_name.as_str().into();
        }
        Ok(engine)
    }
}

/// `file-discovery`: the endpoints from a file, see [`discovery::file`](super::discovery::file).
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
pub struct FileDiscovery {
    pub path: String,
    /// Whether the file is followed; otherwise it is read once, at the start.
    pub watch_file: bool,
}

impl plugins::Parameters for FileDiscovery {
    fn validate(&self) -> Result<(), ParameterError> {
        if self.path.is_empty() {
            return Err(ParameterError::new(
                "path",
                "must name the file of endpoints",
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check(name: &str, parameters: &Value) -> Result<Value, String> {
        let found = PLUGIN_TYPES.iter().find(|plugin| plugin.name == name);
        (found.unwrap().check)(parameters).map_err(|error| error.to_string())
    }

    #[test]
    fn defaults_are_the_fields() {
        assert_eq!(
            check("metrics-data-source", &Value::Null).unwrap(),
            json!({
                "scheme": "http", "path": "/metrics", "port": 0, "insecureSkipVerify": true,
                "caCertPath": "", "clientCertPath": "", "clientKeyPath": "", "interval": "",
            })
        );
        assert_eq!(
            check("core-metrics-extractor", &Value::Null).unwrap(),
            json!({
                "engineLabelKey": "llm-d.ai/engine-type", "defaultEngine": "vllm",
                "engineConfigs": [],
            })
        );
        assert_eq!(
            check("file-discovery", &json!({"path": "/e.yaml"})).unwrap(),
            json!({"path": "/e.yaml", "watchFile": false})
        );
        assert_eq!(
            check("endpoint-notification-source", &Value::Null).unwrap(),
            json!({})
        );
        let table = CoreMetricsExtractor::default().table().unwrap();
        assert_eq!(table, EngineTable::default());
    }

    #[test]
    fn a_source_and_an_extractor_become_scrape_options() {
        let source: MetricsDataSource = plugins::read(&json!({
            "scheme": "https", "path": "/m", "port": 9400, "interval": "1s",
            "clientCertPath": "/c", "clientKeyPath": "/k", "insecureSkipVerify": false,
        }))
        .unwrap();
        let base = Duration::from_millis(50);
        let options = source.options(Arc::default(), base).unwrap();
        assert_eq!(
            options.url("10.0.0.1:8000".parse().unwrap()),
            "https://10.0.0.1:9400/m"
        );
        assert_eq!(options.intervals.base, Duration::from_secs(1));
        assert_eq!(options.tls.client, Some(("/c".into(), "/k".into())));
        assert!(!options.tls.insecure_skip_verify);
        let plain = MetricsDataSource::default();
        let slower = Duration::from_millis(200);
        assert_eq!(
            plain
                .options(Arc::default(), slower)
                .unwrap()
                .intervals
                .base,
            slower
        );
        let floor = MetricsDataSource {
            interval: "10ms".to_owned(),
            ..plain
        };
        assert_eq!(
            floor.options(Arc::default(), base).unwrap().intervals.base,
            base
        );
    }

    #[test]
    fn engines_are_configured() {
        let extractor: CoreMetricsExtractor = plugins::read(&json!({
            "defaultEngine": "mine",
            "engineConfigs": [{
                "name": "mine", "queuedRequestsSpec": "q{kind=waiting}",
                "runningRequestsSpec": "r", "cacheInfoSpec": "c",
                "cacheBlockSizeLabelName": "page",
            }],
        }))
        .unwrap();
        let table = extractor.table().unwrap();
        let mine = table.series("mine").unwrap();
        let spec = SeriesSpec::named("q").with("kind", "waiting");
        assert_eq!(mine.spec(Signal::Waiting), Some(&spec));
        assert_eq!(mine.spec(Signal::KvUsage), None);
        assert_eq!(&*mine.block_size_label, "page");
        assert_eq!(&*mine.blocks_label, "num_gpu_blocks");
        assert!(table.series("sglang").is_some());
    }

    #[test]
    fn what_is_wrong_is_named() {
        let metrics = |value| check("metrics-data-source", &value).unwrap_err();
        assert!(metrics(json!({"scheme": "ftp"})).starts_with("scheme: "));
        assert!(metrics(json!({"path": "metrics"})).starts_with("path: "));
        assert!(metrics(json!({"port": 70_000})).starts_with("port: "));
        assert!(metrics(json!({"interval": "soon"})).starts_with("interval: "));
        assert!(metrics(json!({"interval": "0s"})).starts_with("interval: "));
        assert!(metrics(json!({"clientKeyPath": "/k"})).starts_with("clientCertPath: "));
        assert!(metrics(json!({"nonsense": 1})).contains("nonsense"));
        let core = |value| check("core-metrics-extractor", &value).unwrap_err();
        let engine = |value: Value| core(json!({"engineConfigs": [value]}));
        assert!(engine(json!({})).starts_with("engineConfigs[0].name: "));
        let wrong = engine(json!({"name": "a", "kvUsageSpec": "rate(x)"}));
        assert!(
            wrong.starts_with("engineConfigs[0].kvUsageSpec: "),
            "{wrong}"
        );
        let custom = json!({"name": "a", "customMetrics": [{"attributeKey": "k"}]});
        assert!(engine(custom).starts_with("engineConfigs[0].customMetrics: not supported"));
        assert!(core(json!({"defaultEngine": "nobody"})).contains("\"nobody\""));
        let file = check("file-discovery", &Value::Null).unwrap_err();
        assert!(file.starts_with("path: "));
    }

    #[test]
    fn what_nobody_would_read_is_refused_with_the_reason() {
        for (name, word) in [
            ("k8s-notification-source", "Kubernetes"),
            ("models-data-source", "models"),
            ("models-data-extractor", "models"),
            ("topology-extractor", "nodes"),
            ("dcgm-data-source", "GPUs"),
            ("dcgm-extractor", "GPUs"),
        ] {
            let reason = check(name, &Value::Null).unwrap_err();
            assert!(
                reason.contains("not supported") && reason.contains(word),
                "{reason}"
            );
        }
    }
}
