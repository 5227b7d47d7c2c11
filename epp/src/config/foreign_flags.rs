//! Flags of the field that this picker does not have.
//!
//! A flag whose feature is missing and that would change where requests go, who may read what, or
//! what survives a crash is refused at start-up with its name and what to do instead. One that only
//! adds comfort is accepted with a warning, so that manifests written for another picker start.

use std::time::Duration;

use clap::{ArgAction, Args};

/// Every one of these is hidden from `--help`, which names them in a closing paragraph.
#[derive(Clone, Debug, Default, Args)]
pub struct ForeignFlags {
    #[arg(long, hide = true)]
    pool_group: Option<String>,
    #[arg(long, hide = true)]
    pool_name: Option<String>,
    #[arg(long, hide = true)]
    pool_namespace: Option<String>,
    #[arg(long, hide = true)]
    endpoint_selector: Option<String>,
    #[arg(long, hide = true)]
    endpoint_target_ports: Option<String>,
    #[arg(long, hide = true)]
    kubeconfig: Option<String>,
    #[arg(long, hide = true, action = ArgAction::Set,
        num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    ha_enable_leader_election: Option<bool>,
    #[arg(long, hide = true, action = ArgAction::Set,
        num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    metrics_endpoint_auth: Option<bool>,
    #[arg(long, hide = true)]
    metrics_client_ca_file: Option<String>,
    #[arg(long, hide = true)]
    metrics_cert_dir: Option<String>,
    #[arg(long, hide = true, action = ArgAction::Set,
        num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    enable_pprof: Option<bool>,
    #[arg(long, hide = true, value_parser = super::values::duration)]
    refresh_prometheus_metrics_interval: Option<Duration>,
    #[arg(long, hide = true, action = ArgAction::Set,
        num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    health_checking: Option<bool>,
}

const NO_KUBERNETES: &str =
    "this build has no Kubernetes discovery; name the workers with --endpoint or --endpoints-file";
const PLAIN_METRICS: &str = "the metrics port is in clear text and without authentication";
const NO_LEADER: &str = "replicas are active-active and elect no leader; leave the flag out";

/// A flag, whether it was given in a way that matters, and what to do instead.
type RefusedFlag = (&'static str, fn(&ForeignFlags) -> bool, &'static str);

const REFUSED: &[RefusedFlag] = &[
    (
        "--pool-group",
        |flags| flags.pool_group.is_some(),
        NO_KUBERNETES,
    ),
    (
        "--pool-name",
        |flags| flags.pool_name.is_some(),
        NO_KUBERNETES,
    ),
    (
        "--pool-namespace",
        |flags| flags.pool_namespace.is_some(),
        NO_KUBERNETES,
    ),
    (
        "--endpoint-selector",
        |flags| flags.endpoint_selector.is_some(),
        NO_KUBERNETES,
    ),
    (
        "--endpoint-target-ports",
        |flags| flags.endpoint_target_ports.is_some(),
        NO_KUBERNETES,
    ),
    (
        "--kubeconfig",
        |flags| flags.kubeconfig.is_some(),
        NO_KUBERNETES,
    ),
    (
        "--ha-enable-leader-election",
        |flags| flags.ha_enable_leader_election == Some(true),
        NO_LEADER,
    ),
    (
        "--metrics-endpoint-auth",
        |flags| flags.metrics_endpoint_auth == Some(true),
        PLAIN_METRICS,
    ),
    (
        "--metrics-client-ca-file",
        |flags| flags.metrics_client_ca_file.is_some(),
        PLAIN_METRICS,
    ),
    (
        "--metrics-cert-dir",
        |flags| flags.metrics_cert_dir.is_some(),
        PLAIN_METRICS,
    ),
];

impl ForeignFlags {
    /// The first flag that asks for something this picker does not have, and what to do about it.
    pub(super) fn refused(&self) -> Option<(&'static str, &'static str)> {
        let (flag, _, instead) = REFUSED.iter().find(|(_, is_given, _)| is_given(self))?;
        Some((flag, instead))
    }

    /// The flags that are accepted and do nothing, for a warning. A flag that switches off what is
    /// not there is no news. Pool gauges need no interval: they are computed when they are scraped.
    pub(super) fn ignored(&self) -> Vec<&'static str> {
        let ignored = [
            ("--enable-pprof", self.enable_pprof == Some(true)),
            (
                "--refresh-prometheus-metrics-interval",
                self.refresh_prometheus_metrics_interval.is_some(),
            ),
            ("--health-checking", self.health_checking == Some(true)),
        ];
        ignored
            .into_iter()
            .filter(|(_, is_given)| *is_given)
            .map(|(name, _)| name)
            .collect()
    }
}
