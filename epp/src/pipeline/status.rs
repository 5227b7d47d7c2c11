//! The state of the rooms as the status page shows it.

use super::Pipeline;
use crate::clock;
use crate::fleet::{Endpoint, Live, Snapshot};
use crate::flow;
use crate::observe::status::{EndpointView, IndexView, LeasesView, PoolView, StatusView};

/// Decisions in a view; the log keeps more.
const DECISIONS: usize = 20;

impl Pipeline {
    /// What the picker is doing right now, under this name of its pool.
    pub fn status(&self, pool: &str) -> StatusView {
        let parts = self.parts();
        let now_ms = parts.clock.now_ms();
        let mut snapshot = Snapshot::default();
        parts.fleet.snapshot_into(&mut snapshot);
        let endpoints: Vec<EndpointView> = snapshot
            .members
            .iter()
            .zip(&snapshot.live)
            .map(|(member, live)| endpoint_view(member, live, now_ms))
            .collect();
        let in_flight = snapshot.live.iter().map(|live| live.in_flight_requests);
        let active = in_flight.map(u64::from).sum();
        let (precise, approximate) = (parts.index.stats(), parts.approximate.stats());
        let metrics = &parts.metrics;
        StatusView {
            at_unix_ms: clock::unix_nanos() / 1_000_000,
            uptime_ms: now_ms,
            pools: vec![PoolView {
                name: pool.to_owned(),
                saturation: (!endpoints.is_empty())
                    .then(|| flow::saturation(&snapshot, now_ms, &parts.detector)),
                endpoints,
                index: IndexView {
                    entries: (precise.blocks + approximate.blocks) as u64,
                    bytes: (precise.bytes + approximate.bytes) as u64,
                    hit_ratio: metrics.mean_prefix_match(),
                },
                bands: Vec::new(),
            }],
            leases: LeasesView {
                active,
                expired: metrics.process.expired_leases_total.get(),
                expired_lately: 0,
            },
            access_log: metrics.access_log_entries(),
            decisions: self.decisions().latest(DECISIONS, None),
            ..StatusView::default()
        }
    }
}

fn endpoint_view(member: &Endpoint, live: &Live, now_ms: u64) -> EndpointView {
    let is_read = live.scraped_at_ms > 0;
    EndpointView {
        name: member.spec.name.clone(),
        address: member.spec.address.to_string(),
        labels: member
            .spec
            .labels
            .iter()
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect(),
        healthy: live.healthy,
        waiting: live.waiting,
        running: live.running,
        kv_usage: live.kv_usage,
        in_flight_requests: live.in_flight_requests,
        in_flight_tokens: live.in_flight_tokens,
        page_age_ms: is_read.then(|| now_ms.saturating_sub(live.scraped_at_ms)),
        ..EndpointView::default()
    }
}
