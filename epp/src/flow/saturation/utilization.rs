//! `utilization-detector`: how full the workers say they are.
//!
//! Per endpoint `max(waiting / queueDepthThreshold, kv_usage / kvCacheUtilThreshold)`, a roofline
//! over the two resources that run out; the pool's saturation is the mean over its endpoints.
//! Endpoints whose page is missing or older than the staleness bound count as 1.0: nothing is known
//! that would speak for sending more.
//!
//! A page is older than the picks made since. What we have in flight at an endpoint and its page
//! does not show, neither waiting nor running, is therefore added to `waiting`. Endpoints that only
//! prefill get no such addition: their requests are done there long before they end for us.
//!
//! One deviation: epp reads the pages of idle endpoints less often, on purpose. An endpoint that
//! had nothing to do when it was last read, or has nothing of ours, is therefore held to the longer
//! [`idle_staleness_ms`] bound; otherwise an idle pool would look saturated between two of its
//! pages.
//!
//! [`idle_staleness_ms`]: UtilizationDetector::idle_staleness_ms

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Stages, duration};
use crate::config::plugins::{self, ParameterError, PluginKind, PluginType, Stage};
use crate::fleet::Live;

/// The plugin's type name.
pub const TYPE_NAME: &str = "utilization-detector";

/// The plugin type.
pub const PLUGIN: PluginType = PluginType {
    name: TYPE_NAME,
    kind: PluginKind::SaturationDetector,
    stage: Stage::Beta,
    check: plugins::check::<Parameters>,
};

/// Parameters of the plugin.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
pub struct Parameters {
    /// Waiting requests that fill one endpoint.
    pub queue_depth_threshold: u32,
    /// KV usage, 0 to 1, that fills one endpoint.
    pub kv_cache_util_threshold: f64,
    /// Age from which on the page of a busy endpoint is stale.
    #[serde(with = "duration")]
    pub metrics_staleness_threshold: Duration,
    /// Burst above the thresholds that scheduling may allow one endpoint, as a share of them.
    pub headroom: f64,
}

impl Default for Parameters {
    fn default() -> Self {
        Self {
            queue_depth_threshold: 5,
            kv_cache_util_threshold: 0.8,
            metrics_staleness_threshold: Duration::from_millis(200),
            headroom: 0.0,
        }
    }
}

impl plugins::Parameters for Parameters {
    fn validate(&self) -> Result<(), ParameterError> {
        let refuse = |path, reason| Err(ParameterError::new(path, reason));
        if self.queue_depth_threshold == 0 {
            return refuse("queueDepthThreshold", "must be more than 0");
        }
        if !(self.kv_cache_util_threshold > 0.0 && self.kv_cache_util_threshold <= 1.0) {
            return refuse("kvCacheUtilThreshold", "must be more than 0 and at most 1");
        }
        if self.metrics_staleness_threshold.is_zero() {
            return refuse("metricsStalenessThreshold", "must be more than 0");
        }
        if !self.headroom.is_finite() || self.headroom < 0.0 {
            return refuse("headroom", "must be 0 or more");
        }
        Ok(())
    }
}

/// Thresholds of the detector.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct UtilizationDetector {
    /// Waiting requests at which an endpoint counts as full.
    pub queue_depth_threshold: u32,
    /// KV usage, 0 to 1, at which an endpoint counts as full.
    pub kv_cache_util_threshold: f64,
    /// Age from which on the page of a busy endpoint is stale.
    pub staleness_ms: u64,
    /// The same for an idle endpoint.
    pub idle_staleness_ms: u64,
    /// Burst above the thresholds that scheduling may allow one endpoint, as a share of them.
    pub headroom: f64,
}

impl Default for UtilizationDetector {
    fn default() -> Self {
        Parameters::default().into()
    }
}

impl From<Parameters> for UtilizationDetector {
    fn from(parameters: Parameters) -> Self {
        Self {
            queue_depth_threshold: parameters.queue_depth_threshold,
            kv_cache_util_threshold: parameters.kv_cache_util_threshold,
            staleness_ms: parameters.metrics_staleness_threshold.as_millis() as u64,
            idle_staleness_ms: 2_000,
            headroom: parameters.headroom,
        }
    }
}

impl UtilizationDetector {
    /// Whether nothing trustworthy is known about an endpoint.
    pub fn is_stale(&self, live: &Live, now_ms: u64) -> bool {
        let idle = live.in_flight_requests == 0 || (live.waiting == 0 && live.running == 0);
        let bound_ms = if idle {
            self.staleness_ms.max(self.idle_staleness_ms)
        } else {
            self.staleness_ms
        };
        live.scraped_at_ms == 0 || now_ms.saturating_sub(live.scraped_at_ms) > bound_ms
    }

    /// Whether an endpoint is known and below its thresholds, headroom included. KV usage never
    /// counts as below once the cache is full.
    pub fn has_room(&self, live: &Live, now_ms: u64) -> bool {
        let burst = 1.0 + self.headroom;
        let queue_max = f64::from(self.queue_depth_threshold) * burst;
        let cache_max = (self.kv_cache_util_threshold * burst).min(1.0);
        !self.is_stale(live, now_ms)
            && f64::from(live.waiting) < queue_max
            && f64::from(live.kv_usage) < cache_max
    }

    pub(super) fn load(&self, live: &Live, stages: Stages, now_ms: u64) -> f64 {
        if self.is_stale(live, now_ms) {
            return 1.0;
        }
        let unseen = if stages.decode {
            let seen = live.waiting.saturating_add(live.running);
            live.in_flight_requests.saturating_sub(seen)
        } else {
            0
        };
        // A threshold of zero would divide by zero; it means that one waiting request fills the
        // endpoint.
        let waiting = f64::from(live.waiting) + f64::from(unseen);
        let queue = waiting / f64::from(self.queue_depth_threshold.max(1));
        let cache = f64::from(live.kv_usage) / self.kv_cache_util_threshold.max(f64::EPSILON);
        queue.max(cache)
    }
}

#[cfg(test)]
mod tests {
    use super::super::saturation;
    use super::*;
    use crate::fleet::Snapshot;

    const NOW_MS: u64 = 10_000;

    fn busy(waiting: u32, kv_usage: f32) -> Live {
        Live {
            waiting,
            running: 1,
            kv_usage,
            in_flight_requests: 1,
            scraped_at_ms: NOW_MS - 50,
            healthy: true,
            ..Live::default()
        }
    }

    fn of(live: Vec<Live>) -> f64 {
        let snapshot = Snapshot {
            live,
            ..Snapshot::default()
        };
        saturation(&snapshot, NOW_MS, &UtilizationDetector::default())
    }

    #[test]
    fn the_scarcer_resource_counts_and_endpoints_are_averaged() {
        assert!((of(vec![busy(10, 0.4)]) - 2.0).abs() < 1e-9);
        assert!((of(vec![busy(0, 0.4)]) - 0.5).abs() < 1e-6);
        assert!((of(vec![busy(10, 0.4), busy(0, 0.4)]) - 1.25).abs() < 1e-6);
    }

    #[test]
    fn missing_and_stale_pages_and_an_empty_pool_are_saturated() {
        let never = Live::default();
        let stale = Live {
            scraped_at_ms: NOW_MS - 201,
            ..busy(0, 0.0)
        };
        let barely = Live {
            scraped_at_ms: NOW_MS - 200,
            ..busy(0, 0.0)
        };
        assert!((of(vec![never]) - 1.0).abs() < f64::EPSILON);
        assert!((of(vec![stale]) - 1.0).abs() < f64::EPSILON);
        assert!(of(vec![barely]).abs() < f64::EPSILON);
        assert!((of(Vec::new()) - 1.0).abs() < f64::EPSILON);
    }

    #[test]
    fn an_idle_endpoint_may_be_read_seldom() {
        let idle = Live {
            scraped_at_ms: NOW_MS - 1_500,
            in_flight_requests: 0,
            running: 0,
            ..busy(0, 0.0)
        };
        assert!(of(vec![idle]).abs() < f64::EPSILON);
        let gone_quiet = Live {
            scraped_at_ms: NOW_MS - 2_001,
            ..idle
        };
        assert!((of(vec![gone_quiet]) - 1.0).abs() < f64::EPSILON);
        let filling = Live {
            in_flight_requests: 2,
            running: 2,
            ..idle
        };
        assert!((of(vec![filling]) - 1.0).abs() < f64::EPSILON);
    }

    #[test]
    fn requests_that_no_page_shows_yet_count_as_waiting() {
        let sent = Live {
            in_flight_requests: 4,
            ..busy(1, 0.0)
        };
        assert!((of(vec![sent]) - 0.6).abs() < 1e-9);
        let prefill = Stages {
            prefill: true,
            decode: false,
        };
        let detector = UtilizationDetector::default();
        assert!((detector.load(&sent, prefill, NOW_MS) - 0.2).abs() < 1e-9);
    }

    #[test]
    fn parameters_are_strict_and_durations_are_gos() {
        let check = |value| (PLUGIN.check)(&value);
        let filled = check(serde_json::json!({"metricsStalenessThreshold": "1.5s"})).unwrap();
        assert_eq!(filled["metricsStalenessThreshold"], "1500ms");
        assert_eq!(check(filled.clone()).unwrap(), filled);
        for (name, value) in [
            ("queueDepthThreshold", serde_json::json!(0)),
            ("kvCacheUtilThreshold", serde_json::json!(1.5)),
            ("metricsStalenessThreshold", serde_json::json!("0s")),
            ("headroom", serde_json::json!(-0.1)),
        ] {
            assert_eq!(
                check(serde_json::json!({name: value})).unwrap_err().path,
                name
            );
        }
    }
}
