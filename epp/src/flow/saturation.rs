//! How full the pool is: the field's `utilization-detector`.
//!
//! Per endpoint `max(waiting / queueDepthThreshold, kv_usage / kvCacheUtilThreshold)`, a roofline
//! over the two resources that run out; the pool's saturation is the mean over its endpoints.
//! Endpoints whose page is missing or older than the staleness bound count as 1.0: nothing is known
//! that would speak for sending more. An empty pool is saturated.
//!
//! One deviation: epp reads the pages of idle endpoints less often, on purpose. An endpoint that
//! had nothing to do when it was last read, or has nothing of ours, is therefore held to the longer
//! [`idle_staleness_ms`] bound; otherwise an idle pool would look saturated between two of its
//! pages.
//!
//! [`idle_staleness_ms`]: UtilizationDetector::idle_staleness_ms

use crate::fleet::{Live, Snapshot};

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
}

impl Default for UtilizationDetector {
    fn default() -> Self {
        Self {
            queue_depth_threshold: 5,
            kv_cache_util_threshold: 0.8,
            staleness_ms: 200,
            idle_staleness_ms: 2_000,
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

    fn endpoint_saturation(&self, live: &Live, now_ms: u64) -> f64 {
        if self.is_stale(live, now_ms) {
            return 1.0;
        }
        // A threshold of zero would divide by zero; it means that one waiting request fills the
        // endpoint.
        let queue = f64::from(live.waiting) / f64::from(self.queue_depth_threshold.max(1));
        let cache = f64::from(live.kv_usage) / self.kv_cache_util_threshold.max(f64::EPSILON);
        queue.max(cache)
    }
}

/// The pool's saturation: 0 is idle, 1 is full, more is overload.
pub fn saturation(snapshot: &Snapshot, now_ms: u64, detector: &UtilizationDetector) -> f64 {
    if snapshot.live.is_empty() {
        return 1.0;
    }
    let total: f64 = snapshot
        .live
        .iter()
        .map(|live| detector.endpoint_saturation(live, now_ms))
        .sum();
    total / snapshot.live.len() as f64
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
