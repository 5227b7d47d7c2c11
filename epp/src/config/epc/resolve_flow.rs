//! The flow control part of a configuration. It is resolved in full whether its feature gate is on
//! or not, so that switching the gate on cannot fail.

use std::time::Duration;

use rustc_hash::FxHashMap;

use super::draft::{BandDraft, FlowDraft};
use super::resolve::Resolver;
use crate::config::plugins::PluginKind;
use crate::config::resolved::{BandSpec, FlowControlSpec};

const DEFAULT_FAIRNESS: &str = "global-strict-fairness-policy";
const DEFAULT_ORDERING: &str = "fcfs-ordering-policy";
const DEFAULT_USAGE_LIMIT: &str = "static-usage-limit-policy";
const DEFAULT_DETECTOR: &str = "utilization-detector";
const DEFAULT_TTL: Duration = Duration::from_mins(1);
const DEFAULT_BAND_BYTES: u64 = 1_000_000_000;
const DEFAULT_BAND_REQUESTS: u64 = 5000;

impl Resolver<'_> {
    pub(super) fn flow_control(&mut self, draft: &FlowDraft) -> Option<FlowControlSpec> {
        self.check_bands(&draft.bands);
        let default_band = self.band(draft.default_band.as_ref());
        let negative = draft.default_negative_band.as_ref();
        let default_negative_band = match negative {
            Some(_) => self.band(negative),
            None => default_band.clone(),
        };
        let bands: Vec<Option<BandSpec>> = draft
            .bands
            .iter()
            .map(|band| self.band(Some(band)))
            .collect();
        let usage_limit = match &draft.usage_limit {
            Some(reference) => self.reference(reference, &[PluginKind::UsageLimit]),
            None => self.implied(DEFAULT_USAGE_LIMIT, PluginKind::UsageLimit, "flowControl"),
        };
        let saturation_detector = match &draft.saturation_detector {
            Some(reference) => self.reference(reference, &[PluginKind::SaturationDetector]),
            None => self.implied(
                DEFAULT_DETECTOR,
                PluginKind::SaturationDetector,
                "flowControl",
            ),
        };
        let default_request_ttl = draft
            .default_request_ttl
            .map_or(Some(DEFAULT_TTL), |ttl| ttl.limit);
        Some(FlowControlSpec {
            max_bytes: draft.max_bytes,
            max_requests: draft.max_requests,
            default_request_ttl,
            no_endpoint_request_ttl: draft
                .no_endpoint_request_ttl
                .map_or(default_request_ttl, |ttl| ttl.limit),
            default_band: default_band?,
            default_negative_band: default_negative_band?,
            bands: bands.into_iter().collect::<Option<_>>()?,
            usage_limit: usage_limit?,
            saturation_detector: saturation_detector?,
            eviction: draft.eviction,
        })
    }

    fn check_bands(&self, bands: &[BandDraft]) {
        let mut seen = FxHashMap::default();
        for band in bands {
            let priority = &band.priority;
            if let Some(first) = seen.insert(priority.value, priority.place) {
                let reason = format!(
                    "a second band of priority {}; the first one is in line {}",
                    priority.value, first.line
                );
                self.problems.add(priority.place, &priority.path, &reason);
            }
        }
        let shares: f64 = bands.iter().map(|band| band.min_share).sum();
        if let Some(last) = bands.last()
            && shares > 1.0 + 1e-9
        {
            let reason = format!("the minShare of all bands add up to {shares}, more than 1");
            let place = last.priority.place;
            self.problems
                .add(place, "flowControl.priorityBands", &reason);
        }
    }

    /// A band with its defaults; all defaults where none is written.
    fn band(&mut self, draft: Option<&BandDraft>) -> Option<BandSpec> {
        let fairness = match draft.and_then(|band| band.fairness.as_ref()) {
            Some(reference) => self.reference(reference, &[PluginKind::Fairness]),
            None => self.implied(DEFAULT_FAIRNESS, PluginKind::Fairness, "flowControl"),
        };
        let ordering = match draft.and_then(|band| band.ordering.as_ref()) {
            Some(reference) => self.reference(reference, &[PluginKind::Ordering]),
            None => self.implied(DEFAULT_ORDERING, PluginKind::Ordering, "flowControl"),
        };
        let limit =
            |of: fn(&BandDraft) -> Option<u64>, default| draft.and_then(of).unwrap_or(default);
        Some(BandSpec {
            priority: draft.map_or(0, |band| band.priority.value),
            max_bytes: limit(|band| band.max_bytes, DEFAULT_BAND_BYTES),
            max_requests: limit(|band| band.max_requests, DEFAULT_BAND_REQUESTS),
            fairness: fairness?,
            ordering: ordering?,
            request_ttl: draft.and_then(|band| band.request_ttl).map(|ttl| ttl.limit),
            min_share: draft.map_or(0.0, |band| band.min_share),
        })
    }
}
