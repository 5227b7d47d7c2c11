//! The flow control section of a configuration, with its policies made.

use std::time::Duration;

use super::registry::FlowPluginError;
use super::{Fairness, Ordering, SaturationDetector, UsageLimit};
use crate::config::resolved::{BandSpec, FlowControlSpec, PluginSpec};

/// Most of all dispatches that the `min_share` of lower bands may take together, in millionths, so
/// that they cannot starve the highest. Greater sums are scaled down to it.
pub const SHARES_MAX_PPM: u64 = 900_000;

/// A whole share, in millionths.
pub const WHOLE_PPM: u64 = 1_000_000;

/// What the controller is set to.
#[derive(Clone, PartialEq, Debug)]
pub struct FlowSettings {
    /// Waiting bytes over all bands; `None` = unlimited.
    pub max_bytes: Option<u64>,
    /// Waiting requests over all bands; `None` = unlimited.
    pub max_requests: Option<u64>,
    /// How long a request waits while the pool has no endpoint; `None` = as long as its client does.
    pub no_endpoint_ttl_ms: Option<u64>,
    /// For priorities without a band of their own.
    pub default_band: BandSettings,
    /// The same for priorities below 0.
    pub default_negative_band: BandSettings,
    /// Priorities with a band of their own. Of two with the same priority the later one holds.
    pub bands: Vec<(i32, BandSettings)>,
    pub usage_limit: UsageLimit,
    /// Whether sheddable requests may be put out, waiting or in flight, for more urgent ones.
    pub eviction: bool,
}

/// What one band is set to.
#[derive(Clone, PartialEq, Debug)]
pub struct BandSettings {
    /// Bytes that may wait.
    pub max_bytes: u64,
    /// Requests that may wait.
    pub max_requests: u64,
    pub fairness: Fairness,
    pub ordering: Ordering,
    /// How long a request waits; `None` = as long as its client does.
    pub ttl_ms: Option<u64>,
    /// Share of the dispatches, in millionths, that the band gets while higher bands wait.
    pub share_ppm: u64,
}

/// What is wrong with a flow control section.
#[derive(Clone, PartialEq, Debug, thiserror::Error)]
pub enum SettingsError {
    #[error("flowControl refers to plugin {0}, which there is not")]
    NoSuchPlugin(usize),
    #[error("plugin {name:?}: {error}")]
    Plugin {
        name: String,
        error: FlowPluginError,
    },
    #[error(
        "flowControl.priorityBands of priority {priority}: minShare {share} is not from 0 to 1"
    )]
    Share { priority: i32, share: f64 },
}

impl Default for FlowSettings {
    fn default() -> Self {
        Self {
            max_bytes: None,
            max_requests: None,
            no_endpoint_ttl_ms: Some(60_000),
            default_band: BandSettings::default(),
            default_negative_band: BandSettings::default(),
            bands: Vec::new(),
            usage_limit: UsageLimit::default(),
            eviction: false,
        }
    }
}

impl Default for BandSettings {
    fn default() -> Self {
        Self {
            max_bytes: 1_000_000_000,
            max_requests: 5_000,
            fairness: Fairness::default(),
            ordering: Ordering::default(),
            ttl_ms: Some(60_000),
            share_ppm: 0,
        }
    }
}

impl FlowSettings {
    /// Makes the policies of a checked configuration.
    pub fn resolve(spec: &FlowControlSpec, plugins: &[PluginSpec]) -> Result<Self, SettingsError> {
        let band = |band: &BandSpec| BandSettings::resolve(band, spec, plugins);
        let limit = plugin(plugins, spec.usage_limit)?;
        Ok(Self {
            max_bytes: spec.max_bytes,
            max_requests: spec.max_requests,
            no_endpoint_ttl_ms: spec.no_endpoint_request_ttl.and_then(ttl_ms),
            default_band: band(&spec.default_band)?,
            default_negative_band: band(&spec.default_negative_band)?,
            bands: spec
                .bands
                .iter()
                .map(|given| Ok((given.priority, band(given)?)))
                .collect::<Result<_, _>>()?,
            usage_limit: UsageLimit::make(limit.type_name, &limit.parameters)
                .map_err(named(limit))?,
            eviction: spec.eviction,
        })
    }

    /// What a band of this priority is set to.
    pub fn band(&self, priority: i32) -> &BandSettings {
        let own = self.bands.iter().rfind(|(own, _)| *own == priority);
        own.map_or_else(
            || {
                if priority < 0 {
                    &self.default_negative_band
                } else {
                    &self.default_band
                }
            },
            |(_, band)| band,
        )
    }

    /// Every fairness policy in use.
    pub(super) fn fairness(&self) -> impl Iterator<Item = &Fairness> {
        let bands = self.bands.iter().map(|(_, band)| band);
        bands
            .chain([&self.default_band, &self.default_negative_band])
            .map(|band| &band.fairness)
    }
}

impl BandSettings {
    fn resolve(
        spec: &BandSpec,
        flow: &FlowControlSpec,
        plugins: &[PluginSpec],
    ) -> Result<Self, SettingsError> {
        if !(0.0..=1.0).contains(&spec.min_share) {
            return Err(SettingsError::Share {
                priority: spec.priority,
                share: spec.min_share,
            });
        }
        let fairness = plugin(plugins, spec.fairness)?;
        let ordering = plugin(plugins, spec.ordering)?;
        let ttl = spec.request_ttl.unwrap_or(flow.default_request_ttl);
        Ok(Self {
            max_bytes: spec.max_bytes,
            max_requests: spec.max_requests,
            fairness: Fairness::make(&fairness.name, fairness.type_name, &fairness.parameters)
                .map_err(named(fairness))?,
            ordering: Ordering::make(ordering.type_name, &ordering.parameters)
                .map_err(named(ordering))?,
            ttl_ms: ttl.and_then(ttl_ms),
            share_ppm: (spec.min_share * WHOLE_PPM as f64).round() as u64,
        })
    }
}

/// Makes the saturation detector of a checked configuration.
pub fn saturation_detector(
    spec: &FlowControlSpec,
    plugins: &[PluginSpec],
) -> Result<SaturationDetector, SettingsError> {
    let given = plugin(plugins, spec.saturation_detector)?;
    SaturationDetector::make(given.type_name, &given.parameters).map_err(named(given))
}

/// A zero duration means no bound, as it does in the configuration.
fn ttl_ms(ttl: Duration) -> Option<u64> {
    (!ttl.is_zero()).then(|| (ttl.as_millis() as u64).max(1))
}

fn plugin(plugins: &[PluginSpec], at: usize) -> Result<&PluginSpec, SettingsError> {
    plugins.get(at).ok_or(SettingsError::NoSuchPlugin(at))
}

fn named(plugin: &PluginSpec) -> impl Fn(FlowPluginError) -> SettingsError {
    let name = plugin.name.clone();
    move |error| SettingsError::Plugin {
        name: name.clone(),
        error,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::config::plugins::PluginKind;

    fn named_plugin(type_name: &'static str, kind: PluginKind, parameters: Value) -> PluginSpec {
        PluginSpec {
            name: format!("my-{type_name}"),
            type_name,
            kind,
            parameters,
        }
    }

    fn plugins() -> Vec<PluginSpec> {
        vec![
            named_plugin("program-aware-fairness", PluginKind::Fairness, json!({})),
            named_plugin("edf-ordering-policy", PluginKind::Ordering, json!({})),
            named_plugin(
                "priority-holdback-policy",
                PluginKind::UsageLimit,
                json!({"minCeiling": 0.5}),
            ),
            named_plugin(
                "concurrency-detector",
                PluginKind::SaturationDetector,
                json!({"maxConcurrency": 7}),
            ),
        ]
    }

    fn spec() -> FlowControlSpec {
        let band = BandSpec {
            priority: 0,
            max_bytes: 10,
            max_requests: 3,
            fairness: 0,
            ordering: 1,
            request_ttl: None,
            min_share: 0.0,
        };
        FlowControlSpec {
            max_bytes: None,
            max_requests: Some(9),
            default_request_ttl: Some(Duration::from_mins(1)),
            no_endpoint_request_ttl: Some(Duration::ZERO),
            default_band: band.clone(),
            default_negative_band: BandSpec {
                max_requests: 1,
                ..band.clone()
            },
            bands: vec![BandSpec {
                priority: 5,
                request_ttl: Some(Some(Duration::from_secs(2))),
                min_share: 0.25,
                ..band
            }],
            usage_limit: 2,
            saturation_detector: 3,
            eviction: true,
        }
    }

    #[test]
    fn bands_inherit_what_they_do_not_set() {
        let settings = FlowSettings::resolve(&spec(), &plugins()).unwrap();
        assert_eq!(settings.band(5).ttl_ms, Some(2_000));
        assert_eq!(settings.band(5).share_ppm, 250_000);
        assert_eq!(settings.band(7).ttl_ms, Some(60_000));
        assert_eq!(settings.band(-7).max_requests, 1);
        assert_eq!(settings.no_endpoint_ttl_ms, None);
        assert_eq!(settings.band(5).ordering, Ordering::Edf);
        let ledger = settings.band(5).fairness.ledger().unwrap();
        assert_eq!(&**ledger, "my-program-aware-fairness");
        let detector = saturation_detector(&spec(), &plugins()).unwrap();
        assert_eq!(detector.type_name(), "concurrency-detector");
    }

    #[test]
    fn what_is_wrong_is_named() {
        let told = |spec: &FlowControlSpec| {
            let error = FlowSettings::resolve(spec, &plugins()).unwrap_err();
            error.to_string()
        };
        let mut share = spec();
        share.bands[0].min_share = 1.5;
        assert!(told(&share).contains("priority 5: minShare 1.5"));
        let mut wrong = spec();
        wrong.default_band.fairness = 1;
        assert_eq!(
            told(&wrong),
            "plugin \"my-edf-ordering-policy\": \"edf-ordering-policy\" is no fairness policy"
        );
        wrong.default_band.fairness = 99;
        assert!(told(&wrong).contains("99"));
    }
}
