//! epp's flow control at one replica: its controller and its saturation detector, driven in virtual time.
//!
//! What epp's own gate does with channels and a timer is done here by whoever calls: requests are named by their numbers, and
//! what the controller decides comes back as [`Decision`]s. All requests have priority 0 and none is ever evicted in flight.

use std::sync::Arc;
use std::time::Duration;

use pointsman_epp::fleet::Snapshot;
use pointsman_epp::flow::controller::{Controller, Decision, Item};
use pointsman_epp::flow::{FlowSettings, SaturationDetector, Stages};

use super::replica::millis;

/// Bytes of a prompt's token in a request's body, as text has them.
const BYTES_PER_TOKEN: u64 = 4;

/// See the module.
#[derive(Debug)]
pub struct Gate {
    controller: Controller,
    detector: SaturationDetector,
}

/// A request that comes to the gate.
#[derive(Clone, Copy, Debug)]
pub struct Arrival {
    pub request: u32,
    pub prompt_tokens: u64,
    pub tenant: u32,
}

impl Gate {
    /// A gate where nothing waits.
    pub fn new(settings: FlowSettings, detector: SaturationDetector) -> Self {
        Self {
            controller: Controller::new(settings, millis(Duration::ZERO)),
            detector,
        }
    }

    /// Queues a request; false where it is refused at once. [`Gate::look`] says when it goes.
    pub fn enqueue(&mut self, arrival: Arrival, now: Duration, out: &mut Vec<Decision>) -> bool {
        let now_ms = millis(now);
        let item = Item {
            ticket: u64::from(arrival.request),
            priority: 0,
            fairness_id: Arc::from(format!("tenant-{}", arrival.tenant)),
            bytes: arrival.prompt_tokens * BYTES_PER_TOKEN,
            ttl_ms: None,
            arrived_ms: now_ms,
            deadline_ms: None,
            slo_ttft_ms: None,
        };
        self.controller.enqueue(now_ms, item, out).is_ok()
    }

    /// Lets go what the pool has room for, and refuses what has waited too long.
    pub fn look(&mut self, snapshot: &Snapshot, now: Duration, out: &mut Vec<Decision>) {
        if self.controller.waiting() == 0 {
            return;
        }
        let now_ms = millis(now);
        let reading = self.detector.read(snapshot, |_| Stages::BOTH, now_ms);
        self.controller.on_capacity(now_ms, &reading, out);
    }

    /// A request that went is counted against its endpoint.
    pub fn placed(&mut self, request: u32) {
        self.controller.on_placed(u64::from(request));
    }

    /// A request that went is over.
    pub fn finished(&mut self, request: u32, now: Duration) {
        let now_ms = millis(now);
        self.controller.on_finished(u64::from(request), now_ms);
    }

    /// When something is due by itself.
    pub fn next_deadline(&self) -> Option<Duration> {
        let deadline_ms = self.controller.next_deadline()?;
        Some(Duration::from_millis(deadline_ms.saturating_sub(1)))
    }
}
