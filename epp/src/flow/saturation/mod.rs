//! How full the pool is, as one number per stage: 0 is idle, 1 is full, more is overload.
//!
//! A detector rates each endpoint, the ratings are averaged over the endpoints that serve a stage,
//! and the fuller stage counts: a pool whose prefill workers are full is full, however idle its
//! decode workers are. An empty pool is full.
//!
//! Next to the number stands what one more request would add to it ([`Saturation::per_request`],
//! [`Saturation::per_byte`]). Whoever dispatches several requests on one reading adds these up, so
//! that a burst does not pass on a reading that none of its requests is in yet.

pub mod concurrency;
mod duration;
pub mod utilization;

pub use concurrency::ConcurrencyDetector;
pub use utilization::UtilizationDetector;

use serde::Serialize;
use serde_json::Value;

use super::registry::FlowPluginError;
use crate::fleet::{Live, Snapshot};

/// Bytes of a request body that are taken for one token, as the field's estimate does.
const BYTES_PER_TOKEN: f64 = 4.0;

/// One reading.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct Saturation {
    /// Of the endpoints that prefill; `None` where there is none.
    pub prefill: Option<f64>,
    /// Of the endpoints that decode; `None` where there is none.
    pub decode: Option<f64>,
    /// The larger of the two; 1 for a pool without endpoints.
    pub effective: f64,
    /// Endpoints whose page is missing or too old, counted as full.
    pub stale: usize,
    /// Endpoints of the pool.
    pub endpoints: usize,
    /// What one more request adds to `effective`, at most.
    pub per_request: f64,
    /// What each byte of one more request adds on top.
    pub per_byte: f64,
}

impl Saturation {
    /// The reading of a pool without endpoints.
    pub const EMPTY: Self = Self {
        prefill: None,
        decode: None,
        effective: 1.0,
        stale: 0,
        endpoints: 0,
        per_request: 0.0,
        per_byte: 0.0,
    };
}

/// The stages that an endpoint serves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stages {
    pub prefill: bool,
    pub decode: bool,
}

impl Stages {
    /// What an endpoint without a role does.
    pub const BOTH: Self = Self {
        prefill: true,
        decode: true,
    };

    /// Reads the value of the label `llm-d.ai/role`. A role that nobody knows does both, as an
    /// endpoint without the label does.
    pub fn of_role(role: Option<&str>) -> Self {
        let (prefill, decode) = match role {
            Some("encode") => (false, false),
            Some("prefill" | "encode-prefill") => (true, false),
            Some("decode") => (false, true),
            _ => (true, true),
        };
        Self { prefill, decode }
    }
}

/// A detector of either type.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum SaturationDetector {
    Utilization(UtilizationDetector),
    Concurrency(ConcurrencyDetector),
}

impl Default for SaturationDetector {
    fn default() -> Self {
        Self::Utilization(UtilizationDetector::default())
    }
}

impl SaturationDetector {
    /// Makes the detector of a plugin type.
    pub fn make(type_name: &str, parameters: &Value) -> Result<Self, FlowPluginError> {
        match type_name {
            utilization::TYPE_NAME => {
                FlowPluginError::read::<utilization::Parameters>(utilization::TYPE_NAME, parameters)
                    .map(|read| Self::Utilization(read.into()))
            }
            concurrency::TYPE_NAME => {
                FlowPluginError::read::<concurrency::Parameters>(concurrency::TYPE_NAME, parameters)
                    .map(|read| Self::Concurrency(read.into()))
            }
            other => Err(FlowPluginError::unknown("saturation detector", other)),
        }
    }

    /// How old the page of an idle endpoint may be, where the detector reads pages.
    pub fn set_idle_staleness(&mut self, idle_staleness_ms: u64) {
        if let Self::Utilization(detector) = self {
            detector.idle_staleness_ms = idle_staleness_ms;
        }
    }

    /// The plugin type's name, the `detector` label of `flow_control_stale_endpoints`.
    pub fn type_name(&self) -> &'static str {
        match self {
            Self::Utilization(_) => utilization::TYPE_NAME,
            Self::Concurrency(_) => concurrency::TYPE_NAME,
        }
    }

    /// Reads the pool. `stages` says what the endpoint at a snapshot position serves.
    pub fn read(
        &self,
        snapshot: &Snapshot,
        stages: impl Fn(usize) -> Stages,
        now_ms: u64,
    ) -> Saturation {
        let mut prefill = Mean::default();
        let mut decode = Mean::default();
        let mut stale = 0;
        for (position, live) in snapshot.live.iter().enumerate() {
            let stages = stages(position);
            let load = self.load(live, stages, now_ms);
            stale += usize::from(self.is_stale(live, now_ms));
            if stages.prefill {
                prefill.add(load);
            }
            if stages.decode {
                decode.add(load);
            }
        }
        let fullest = match (prefill.value(), decode.value()) {
            (Some(one), Some(other)) => Some(one.max(other)),
            (one, other) => one.or(other),
        };
        let smallest = [prefill.endpoints, decode.endpoints]
            .into_iter()
            .filter(|endpoints| *endpoints > 0)
            .min()
            .unwrap_or(1) as f64;
        let (per_request, per_byte) = self.weight_of_a_request();
        Saturation {
            prefill: prefill.value(),
            decode: decode.value(),
            effective: fullest.unwrap_or(1.0),
            stale,
            endpoints: snapshot.live.len(),
            per_request: per_request / smallest,
            per_byte: per_byte / smallest,
        }
    }

    /// Two ratings of one endpoint; the larger mean counts.
    fn load(&self, live: &Live, stages: Stages, now_ms: u64) -> [f64; 2] {
        match self {
            Self::Utilization(detector) => [detector.load(live, stages, now_ms), 0.0],
            Self::Concurrency(detector) => detector.load(live),
        }
    }

    fn is_stale(&self, live: &Live, now_ms: u64) -> bool {
        match self {
            Self::Utilization(detector) => detector.is_stale(live, now_ms),
            // It reads no page.
            Self::Concurrency(_) => false,
        }
    }

    fn weight_of_a_request(&self) -> (f64, f64) {
        match self {
            Self::Utilization(detector) => {
                (1.0 / f64::from(detector.queue_depth_threshold.max(1)), 0.0)
            }
            Self::Concurrency(detector) => detector.weight_of_a_request(),
        }
    }
}

/// The pool's saturation under a utilization detector, of a pool without stages.
pub fn saturation(snapshot: &Snapshot, now_ms: u64, detector: &UtilizationDetector) -> f64 {
    SaturationDetector::Utilization(*detector)
        .read(snapshot, |_| Stages::BOTH, now_ms)
        .effective
}

#[derive(Default)]
struct Mean {
    sums: [f64; 2],
    endpoints: usize,
}

impl Mean {
    fn add(&mut self, load: [f64; 2]) {
        let [first, second] = load;
        self.sums[0] += first;
        self.sums[1] += second;
        self.endpoints += 1;
    }

    fn value(&self) -> Option<f64> {
        let [first, second] = self.sums;
        (self.endpoints > 0).then(|| first.max(second) / self.endpoints as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW_MS: u64 = 10_000;

    fn page(waiting: u32) -> Live {
        Live {
            waiting,
            running: 1,
            in_flight_requests: 1,
            scraped_at_ms: NOW_MS,
            ..Live::default()
        }
    }

    fn read(live: Vec<Live>, roles: &[Option<&str>]) -> Saturation {
        let snapshot = Snapshot {
            live,
            ..Snapshot::default()
        };
        SaturationDetector::default().read(&snapshot, |at| Stages::of_role(roles[at]), NOW_MS)
    }

    #[test]
    fn the_fuller_stage_counts() {
        let roles = [
            Some("prefill"),
            Some("decode"),
            Some("decode"),
            Some("encode"),
        ];
        let read = read(vec![page(4), page(1), page(2), page(50)], &roles);
        assert_eq!(read.prefill, Some(0.8));
        assert!((read.decode.unwrap() - 0.3).abs() < 1e-9);
        assert!((read.effective - 0.8).abs() < 1e-9);
        // One more request waits at the one prefill endpoint.
        assert!((read.per_request - 0.2).abs() < 1e-9);
        assert_eq!((read.endpoints, read.stale), (4, 0));
    }

    #[test]
    fn endpoints_without_a_role_serve_both_stages_and_stale_ones_are_counted() {
        let never = Live::default();
        let read = read(vec![page(0), never], &[None, Some("prefill-decode")]);
        assert_eq!((read.prefill, read.decode), (Some(0.5), Some(0.5)));
        assert_eq!(read.stale, 1);
    }

    #[test]
    fn a_pool_without_endpoints_is_full() {
        let none = read(Vec::new(), &[]);
        assert_eq!(
            none,
            Saturation {
                per_request: 0.2,
                ..Saturation::EMPTY
            }
        );
        let encoders = read(vec![page(0)], &[Some("encode")]);
        assert!((encoders.effective - 1.0).abs() < 1e-9);
    }
}
