//! What the pages show, read off the rooms at the moment they are asked for.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use serde_json::Value;

use super::assembly::{Counts, Reads};
use super::{InFlight, Pipeline, Pool, page};
use crate::clock::unix_nanos;
use crate::config::epc;
use crate::ext_proc::Leases;
use crate::fleet::{Live, Snapshot};
use crate::flow;
use crate::observe::exposition::Page;
use crate::observe::flow::{
    BandView as BandSeries, FlowView, PoolFlow, ProgramsView, QueueView as QueueSeries,
};
use crate::observe::pool as pool_series;
use crate::observe::status::{
    BandView, ConfigView, EndpointView, IndexView, LeasesView, PoolView, QUEUES_SHOWN, QueueView,
    StatusView,
};
use crate::schedule::filters::role::ROLE_LABEL;

/// Picks on the status page.
const DECISIONS_SHOWN: usize = 20;
/// Flows of one pool with series of their own.
const FLOWS_MAX: usize = 1_000;

/// Reads the rooms of a process.
#[derive(Debug)]
pub struct Status {
    pub pipeline: Pipeline,
    pub leases: Arc<Leases<InFlight>>,
    pub counts: Counts,
    /// In the order of the pools.
    pub reads: Vec<Reads>,
    /// When the process began, in milliseconds of its clock.
    pub started_ms: u64,
}

impl Status {
    /// Writes every series.
    pub fn write_metrics(&self, page: &mut Page) {
        let shared = self.pipeline.shared();
        self.count_leases();
        shared.metrics.write(page);
        let pools = self.pipeline.pools().all();
        let snapshots: Vec<Snapshot> = pools.iter().map(|pool| snapshot(pool)).collect();
        let named: Vec<(&str, &Snapshot)> = pools
            .iter()
            .map(|pool| &*pool.name)
            .zip(&snapshots)
            .collect();
        pool_series::render(&named, page);
        crate::observe::flow::render(&flow_view(pools), page);
        page::render_pools(pools, &self.counts, page);
    }

    /// The whole state.
    pub fn view(&self) -> StatusView {
        let shared = self.pipeline.shared();
        let pools = self.pipeline.pools().all();
        StatusView {
            at_unix_ms: unix_nanos() / 1_000_000,
            uptime_ms: shared.clock.now_ms().saturating_sub(self.started_ms),
            pools: pools
                .iter()
                .map(|pool| pool_view(pool, shared.clock.now_ms()))
                .collect(),
            config: self.config(),
            leases: self.leases_view(),
            access_log: self.access_log(),
            decisions: shared.decisions.latest(DECISIONS_SHOWN, None),
            ..StatusView::default()
        }
    }

    /// The resolved plugins of each pool.
    pub fn plugins(&self) -> Value {
        let pools = self.pipeline.pools().all().iter();
        let plugins = pools.map(|pool| (pool.name.to_string(), pool.policy.load().plugins_state()));
        Value::Object(plugins.collect())
    }

    fn config(&self) -> ConfigView {
        let pools = self.pipeline.pools().all();
        let resolved = pools.iter().map(|pool| {
            let shown = epc::show(&pool.policy.load().config);
            (pool.name.to_string(), Value::String(shown))
        });
        let mut view = ConfigView {
            resolved: Value::Object(resolved.collect()),
            ..ConfigView::default()
        };
        let mut sources = Vec::new();
        for (pool, reads) in pools.iter().zip(&self.reads) {
            view.warnings
                .extend(pool.policy.load().config.warnings.iter().cloned());
            view.loaded_at_unix_ms = view.loaded_at_unix_ms.max(reads.loaded_at_unix_ms);
            let Some((path, state)) = &reads.config else {
                continue;
            };
            sources.push(path.display().to_string());
            view.reloads_applied += state.loaded.load(Relaxed);
            view.reloads_refused += state.refused.load(Relaxed);
            view.last_error = view.last_error.take().or_else(|| state.last_error());
        }
        view.source = if sources.is_empty() {
            "the command line".to_owned()
        } else {
            sources.join(", ")
        };
        view
    }

    fn leases_view(&self) -> LeasesView {
        let counters = self.leases.counters();
        LeasesView {
            active: self.leases.parked() as u64,
            expired: counters.expired.load(Relaxed),
            expired_lately: self.leases.expired_lately(),
        }
    }

    fn access_log(&self) -> Vec<(String, u64)> {
        let counters = self.leases.counters();
        let kinds = counters.kinds().into_iter();
        kinds
            .map(|(kind, count)| (kind.to_owned(), count))
            .collect()
    }

    /// The access log is counted where it is read; its series follow at the scrape.
    fn count_leases(&self) {
        let metrics = &self.pipeline.shared().metrics;
        let counters = self.leases.counters();
        for (kind, count) in counters.kinds() {
            metrics.access_log_entries_are(kind, count);
        }
        metrics
            .process
            .expired_leases_total
            .set(counters.expired.load(Relaxed));
    }
}

fn snapshot(pool: &Pool) -> Snapshot {
    let mut snapshot = Snapshot::default();
    pool.fleet.snapshot_into(&mut snapshot);
    snapshot
}

fn pool_view(pool: &Pool, now_ms: u64) -> PoolView {
    let snapshot = snapshot(pool);
    let flow = pool.gate.view();
    let index = pool.index.stats();
    let endpoints = snapshot.members.iter().zip(&snapshot.live);
    PoolView {
        name: pool.name.to_string(),
        endpoints: endpoints
            .map(|(member, live)| EndpointView {
                name: member.spec.name.clone(),
                address: member.spec.address.to_string(),
                role: member
                    .spec
                    .labels
                    .get(ROLE_LABEL)
                    .cloned()
                    .unwrap_or_default(),
                labels: member.spec.labels.clone().into_iter().collect(),
                cached_share: pool.shares.of(member.id, member.generation),
                ..endpoint_view(live, now_ms)
            })
            .collect(),
        saturation: flow.flow_control.then_some(flow.saturation.effective),
        index: IndexView {
            entries: index.blocks as u64,
            bytes: index.bytes as u64,
            hit_ratio: pool.shares.of_all(),
        },
        bands: if flow.flow_control {
            flow.bands.iter().map(band_view).collect()
        } else {
            Vec::new()
        },
    }
}

fn endpoint_view(live: &Live, now_ms: u64) -> EndpointView {
    EndpointView {
        healthy: live.healthy,
        waiting: live.waiting,
        running: live.running,
        kv_usage: live.kv_usage,
        in_flight_requests: live.in_flight_requests,
        in_flight_tokens: live.in_flight_tokens,
        page_age_ms: (live.scraped_at_ms > 0).then(|| now_ms.saturating_sub(live.scraped_at_ms)),
        ..EndpointView::default()
    }
}

fn band_view(band: &flow::view::BandView) -> BandView {
    let mut queues: Vec<QueueView> = band
        .flows
        .iter()
        .map(|flow| QueueView {
            fairness_id: flow.fairness_id.to_string(),
            waiting: flow.requests,
            bytes: flow.bytes,
            ..QueueView::default()
        })
        .collect();
    queues.sort_unstable_by_key(|queue| std::cmp::Reverse(queue.waiting));
    queues.truncate(QUEUES_SHOWN);
    BandView {
        priority: band.priority,
        waiting: band.requests,
        bytes: band.bytes,
        requests_limit: band.max_requests,
        bytes_limit: band.max_bytes,
        queues,
    }
}

fn flow_view(pools: &[Arc<Pool>]) -> FlowView {
    let mut view = FlowView::default();
    for pool in pools {
        let flow = pool.gate.view();
        if !flow.flow_control {
            continue;
        }
        let detector = pool.policy.load().detector.type_name();
        add_stale(&mut view.stale_endpoints, detector, flow.saturation.stale);
        if let Some(fairness) = flow.fairness.first() {
            let programs = fairness.programs.iter();
            view.programs = Some(ProgramsView {
                jains_index: fairness.jains_index,
                programs: programs
                    .map(|one| {
                        (
                            one.id.to_string(),
                            one.avg_wait_ms,
                            one.attained_service_tokens,
                        )
                    })
                    .collect(),
            });
        }
        view.pools.push(pool_flow(pool, &flow));
    }
    view
}

/// The series names no pool, so endpoints under one detector are added up over the pools: a line
/// written twice spoils the whole page for Prometheus.
fn add_stale(stale_endpoints: &mut Vec<(String, usize)>, detector: &str, stale: usize) {
    let mut seen = stale_endpoints.iter_mut();
    match seen.find(|(name, _)| name == detector) {
        Some((_, total)) => *total += stale,
        None => stale_endpoints.push((detector.to_owned(), stale)),
    }
}

fn pool_flow(pool: &Pool, flow: &flow::FlowView) -> PoolFlow {
    let share = |used: u64, limit: Option<u64>| {
        limit
            .filter(|limit| *limit > 0)
            .map(|limit| used as f64 / limit as f64)
    };
    let stages = [
        ("prefill", flow.saturation.prefill),
        ("decode", flow.saturation.decode),
    ];
    let stages = stages
        .into_iter()
        .filter_map(|(stage, value)| Some((stage, value?)));
    let queues = flow.bands.iter().flat_map(|band| {
        band.flows.iter().map(|queue| QueueSeries {
            fairness_id: queue.fairness_id.to_string(),
            priority: band.priority,
            requests: queue.requests,
            bytes: queue.bytes,
            ..QueueSeries::default()
        })
    });
    PoolFlow {
        pool: pool.name.to_string(),
        queues: queues.take(FLOWS_MAX).collect(),
        bands: flow
            .bands
            .iter()
            .map(|band| BandSeries {
                priority: band.priority,
                requests_utilization: share(band.requests, Some(band.max_requests))
                    .unwrap_or_default(),
                bytes_utilization: share(band.bytes, Some(band.max_bytes)).unwrap_or_default(),
            })
            .collect(),
        requests_utilization: share(flow.requests, flow.max_requests),
        bytes_utilization: share(flow.bytes, flow.max_bytes),
        saturation: stages
            .chain([("effective", flow.saturation.effective)])
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stale_endpoints_of_several_pools_are_one_line_a_detector() {
        let mut stale = Vec::new();
        add_stale(&mut stale, "utilization-detector", 2);
        add_stale(&mut stale, "concurrency-detector", 0);
        add_stale(&mut stale, "utilization-detector", 1);
        let expected = [("utilization-detector", 3), ("concurrency-detector", 0)];
        assert_eq!(
            stale,
            expected.map(|(name, count)| (name.to_owned(), count))
        );
    }
}
