//! Flags of older pickers that say how workers are scraped. They work, with a warning: the
//! parameters of `metrics-data-source` and `core-metrics-extractor` have taken their place.

use clap::{ArgAction, Args};

/// What was given on the command line; `None` leaves the configuration's word.
#[derive(Clone, Debug, Default, PartialEq, Eq, Args)]
pub struct ModelServerFlags {
    /// A series, such as `name` or `name{label="value"}`; so are the next four.
    #[arg(long, hide = true, value_name = "SERIES")]
    pub total_queued_requests_metric: Option<String>,
    #[arg(long, hide = true, value_name = "SERIES")]
    pub total_running_requests_metric: Option<String>,
    #[arg(long, hide = true, value_name = "SERIES")]
    pub kv_cache_usage_percentage_metric: Option<String>,
    #[arg(long, hide = true, value_name = "SERIES")]
    pub lora_info_metric: Option<String>,
    #[arg(long, hide = true, value_name = "SERIES")]
    pub cache_info_metric: Option<String>,
    #[arg(long, hide = true, value_parser = ["http", "https"])]
    pub model_server_metrics_scheme: Option<String>,
    #[arg(long, hide = true)]
    pub model_server_metrics_path: Option<String>,
    /// Where it is not the port of the worker itself.
    #[arg(long, hide = true, value_parser = clap::value_parser!(u16).range(1..))]
    pub model_server_metrics_port: Option<u16>,
    #[arg(long, hide = true, action = ArgAction::Set,
        num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub model_server_metrics_https_insecure_skip_verify: Option<bool>,
}

const METRIC_NAMES: &str = "name the series in the parameters of core-metrics-extractor";
const SCRAPING: &str = "write the parameters of metrics-data-source";

impl ModelServerFlags {
    /// The flags that were given, and what to write instead.
    pub(super) fn given(&self) -> Vec<(&'static str, &'static str)> {
        let flags = [
            (
                "--total-queued-requests-metric",
                self.total_queued_requests_metric.is_some(),
                METRIC_NAMES,
            ),
            (
                "--total-running-requests-metric",
                self.total_running_requests_metric.is_some(),
                METRIC_NAMES,
            ),
            (
                "--kv-cache-usage-percentage-metric",
                self.kv_cache_usage_percentage_metric.is_some(),
                METRIC_NAMES,
            ),
            (
                "--lora-info-metric",
                self.lora_info_metric.is_some(),
                METRIC_NAMES,
            ),
            (
                "--cache-info-metric",
                self.cache_info_metric.is_some(),
                METRIC_NAMES,
            ),
            (
                "--model-server-metrics-scheme",
                self.model_server_metrics_scheme.is_some(),
                SCRAPING,
            ),
            (
                "--model-server-metrics-path",
                self.model_server_metrics_path.is_some(),
                SCRAPING,
            ),
            (
                "--model-server-metrics-port",
                self.model_server_metrics_port.is_some(),
                SCRAPING,
            ),
            (
                "--model-server-metrics-https-insecure-skip-verify",
                self.model_server_metrics_https_insecure_skip_verify
                    .is_some(),
                SCRAPING,
            ),
        ];
        flags
            .into_iter()
            .filter(|(_, is_given, _)| *is_given)
            .map(|(flag, _, instead)| (flag, instead))
            .collect()
    }
}
