//! A configuration with every reference resolved and every default filled in: what the rooms are
//! built from, and what `epp config show` prints.

use std::time::Duration;

use serde_json::Value;

use super::plugins::PluginKind;

/// A checked EndpointPickerConfig. Positions (`usize`) are places in [`plugins`](Self::plugins).
#[derive(Clone, PartialEq, Debug)]
pub struct ResolvedConfig {
    pub gates: FeatureGates,
    /// Named and implied plugins; names are unique.
    pub plugins: Vec<PluginSpec>,
    pub profiles: Vec<ProfileSpec>,
    /// The profile handler.
    pub handler: usize,
    pub flow_control: FlowControlSpec,
    pub data_layer: DataLayerSpec,
    /// Parsers, in the order in which they were listed.
    pub parsers: Vec<usize>,
    /// What the operator should know: deprecated names, fields without effect.
    pub warnings: Vec<String>,
}

/// `featureGates`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FeatureGates {
    pub flow_control: bool,
    pub ha_populate_non_leader_datastore: bool,
}

/// One plugin to be made.
#[derive(Clone, PartialEq, Debug)]
pub struct PluginSpec {
    pub name: String,
    /// The type's present name, also where the configuration used a deprecated one that has a
    /// direct successor.
    pub type_name: &'static str,
    pub kind: PluginKind,
    /// With every default.
    pub parameters: Value,
}

/// One of `schedulingProfiles`.
#[derive(Clone, PartialEq, Debug)]
pub struct ProfileSpec {
    pub name: String,
    pub plugins: Vec<ProfilePluginSpec>,
}

/// A plugin of a profile.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct ProfilePluginSpec {
    pub plugin: usize,
    /// Only scorers use it.
    pub weight: f64,
}

/// `flowControl`.
#[derive(Clone, PartialEq, Debug)]
pub struct FlowControlSpec {
    /// Over all bands; `None` = unlimited.
    pub max_bytes: Option<u64>,
    pub max_requests: Option<u64>,
    /// `None` = requests wait for as long as their client does.
    pub default_request_ttl: Option<Duration>,
    /// The same while the pool has no endpoint.
    pub no_endpoint_request_ttl: Option<Duration>,
    /// For priorities that have no band of their own. Its `priority` is not used.
    pub default_band: BandSpec,
    /// The same for priorities below 0.
    pub default_negative_band: BandSpec,
    pub bands: Vec<BandSpec>,
    pub usage_limit: usize,
    pub saturation_detector: usize,
    pub eviction: bool,
}

/// One of `priorityBands`.
#[derive(Clone, PartialEq, Debug)]
pub struct BandSpec {
    pub priority: i32,
    pub max_bytes: u64,
    pub max_requests: u64,
    pub fairness: usize,
    pub ordering: usize,
    /// Ours: overrides the default TTL. The outer `None` = not set, the inner one = no limit.
    pub request_ttl: Option<Option<Duration>>,
    /// Ours: share of dispatches that this band gets while higher bands wait, so that it does not
    /// starve; 0 = strict priority, the field's behaviour.
    pub min_share: f64,
}

/// `dataLayer`.
#[derive(Clone, PartialEq, Debug)]
pub struct DataLayerSpec {
    pub sources: Vec<SourceSpec>,
    pub discovery: Option<usize>,
}

/// One of `dataLayer.sources`.
#[derive(Clone, PartialEq, Debug)]
pub struct SourceSpec {
    pub source: usize,
    pub extractors: Vec<usize>,
}
