//! The pools' own series, written out from snapshots at the moment of a scrape.
//!
//! Gauges per endpoint that were recorded would outlive their endpoints: a pod that left would show
//! its last queue for ever. Written from a snapshot they are exact and end with the endpoint.

use std::collections::HashMap;

use super::exposition::{Labels, Page, Sample};
use super::family::{Family, Legacy, was};
use super::request_series::DEFAULT_FAIRNESS_ID;
use crate::fleet::{Live, Snapshot};

const NAME: &[&str] = &["name"];
const NAME_WAS: &[(&str, &str)] = &[("name", "name")];
const OF_ENDPOINT: &[&str] = &[
    "endpoint_name",
    "namespace",
    "producer_name",
    "fairness_id",
    "priority",
];

const READY: Family = of_pool(
    "llm_d_epp_ready_endpoints",
    "Endpoints that answer.",
    &[was("inference_pool_ready_pods", NAME_WAS)],
);
const QUEUES: Family = Family::gauge(
    "llm_d_epp_per_endpoint_queue_size",
    &["name", "model_server_endpoint"],
    "Waiting requests of each endpoint.",
)
.also(&[was(
    "inference_pool_per_pod_queue_size",
    &[
        ("name", "name"),
        ("model_server_pod", "model_server_endpoint"),
    ],
)]);
const IN_FLIGHT_REQUESTS: Family = Family::gauge(
    "llm_d_epp_inflight_requests",
    OF_ENDPOINT,
    "Requests of ours at each endpoint.",
);
const IN_FLIGHT_TOKENS: Family = Family::gauge(
    "llm_d_epp_inflight_tokens",
    OF_ENDPOINT,
    "Prompt tokens of our requests at each endpoint.",
);

/// A signal with its mean and its spread over the healthy endpoints.
struct Signal {
    mean: Family,
    deviation: Family,
    value: fn(&Live) -> f64,
}

const SIGNALS: [Signal; 3] = [
    Signal {
        mean: of_pool(
            "llm_d_epp_average_queue_size",
            "Waiting requests of an endpoint on average.",
            &[was("inference_pool_average_queue_size", NAME_WAS)],
        ),
        deviation: of_pool(
            "llm_d_epp_std_dev_queue_size",
            "How far the endpoints' waiting requests are spread: their standard deviation.",
            &[],
        ),
        value: |live| f64::from(live.waiting),
    },
    Signal {
        mean: of_pool(
            "llm_d_epp_average_running_requests",
            "Running requests of an endpoint on average.",
            &[was("inference_pool_average_running_requests", NAME_WAS)],
        ),
        deviation: of_pool(
            "llm_d_epp_std_dev_running_requests",
            "How far the endpoints' running requests are spread: their standard deviation.",
            &[],
        ),
        value: |live| f64::from(live.running),
    },
    Signal {
        mean: of_pool(
            "llm_d_epp_average_kv_cache_utilization",
            "KV cache in use of an endpoint on average, 0 to 1.",
            &[was("inference_pool_average_kv_cache_utilization", NAME_WAS)],
        ),
        deviation: of_pool(
            "llm_d_epp_std_dev_kv_cache_utilization",
            "How far the endpoints' KV caches in use are spread: their standard deviation.",
            &[],
        ),
        value: |live| f64::from(live.kv_usage),
    },
];

/// Writes the series of all pools, each with its name and a snapshot.
pub fn render(pools: &[(&str, &Snapshot)], page: &mut Page) {
    let names: Vec<Labels> = pools
        .iter()
        .map(|(name, _)| Labels::new(NAME, &[name]))
        .collect();
    let of_pools = |page: &mut Page, family: &Family, value: &dyn Fn(&Snapshot) -> f64| {
        let series = names.iter().zip(pools);
        page.write(
            family,
            series.map(|(labels, (_, snapshot))| (labels, Sample::Number(value(snapshot)))),
        );
    };
    of_pools(page, &READY, &|snapshot| healthy(snapshot).count() as f64);
    for signal in &SIGNALS {
        of_pools(page, &signal.mean, &|snapshot| mean(snapshot, signal.value));
        of_pools(page, &signal.deviation, &|snapshot| {
            deviation(snapshot, signal.value)
        });
    }
    of_endpoints(
        pools,
        page,
        &QUEUES,
        |live| live.waiting,
        |pool, endpoint| Labels::new(QUEUES.labels, &[pool, endpoint]),
    );
    let in_flight = |_: &str, endpoint: &str| {
        Labels::new(
            OF_ENDPOINT,
            &[
                endpoint,
                "",
                "inflight-load-producer",
                DEFAULT_FAIRNESS_ID,
                "0",
            ],
        )
    };
    let requests = |live: &Live| live.in_flight_requests;
    of_endpoints(pools, page, &IN_FLIGHT_REQUESTS, requests, in_flight);
    let tokens = |live: &Live| live.in_flight_tokens;
    of_endpoints(pools, page, &IN_FLIGHT_TOKENS, tokens, in_flight);
}

fn of_endpoints(
    pools: &[(&str, &Snapshot)],
    page: &mut Page,
    family: &Family,
    value: impl Fn(&Live) -> u32,
    labels: impl Fn(&str, &str) -> Labels,
) {
    // The field's labels of some series do not tell pools apart; endpoints of one name in two pools
    // are added up there, because one line written twice spoils the whole page for Prometheus.
    let mut places = HashMap::new();
    let mut rows: Vec<(Labels, u32)> = Vec::new();
    for (pool, snapshot) in pools {
        for (member, live) in snapshot.members.iter().zip(&snapshot.live) {
            let labels = labels(pool, &member.spec.name);
            let place = *places.entry(labels.clone()).or_insert(rows.len());
            match rows.get_mut(place) {
                Some((_, total)) => *total = total.saturating_add(value(live)),
                None => rows.push((labels, value(live))),
            }
        }
    }
    let series = rows
        .iter()
        .map(|(labels, value)| (labels, Sample::Number(f64::from(*value))));
    page.write(family, series);
}

fn healthy(snapshot: &Snapshot) -> impl Iterator<Item = &Live> {
    snapshot.live.iter().filter(|live| live.healthy)
}

/// Zero for a pool without a healthy endpoint.
fn mean(snapshot: &Snapshot, value: fn(&Live) -> f64) -> f64 {
    let ready = healthy(snapshot).count().max(1);
    // A sum would start from -0.
    healthy(snapshot).fold(0.0, |sum, live| sum + value(live)) / ready as f64
}

/// Of the population, as the field has it: all endpoints are there, none is a sample.
fn deviation(snapshot: &Snapshot, value: fn(&Live) -> f64) -> f64 {
    let mean = mean(snapshot, value);
    let ready = healthy(snapshot).count().max(1);
    let squares = healthy(snapshot).map(|live| (value(live) - mean).powi(2));
    (squares.fold(0.0, |sum, square| sum + square) / ready as f64).sqrt()
}

const fn of_pool(name: &'static str, help: &'static str, legacy: &'static [Legacy]) -> Family {
    Family::gauge(name, NAME, help).also(legacy)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::fleet::{Endpoint, EndpointId, EndpointSpec, Generation};

    fn endpoint(number: u32, name: &str) -> Arc<Endpoint> {
        let address = std::net::SocketAddr::from(([10, 0, 0, number as u8], 8000));
        Arc::new(Endpoint {
            id: EndpointId(number),
            generation: Generation(1),
            spec: EndpointSpec::new(name, address),
        })
    }

    #[test]
    fn writes_averages_over_healthy_endpoints_and_one_line_for_each() {
        let live = |waiting, kv_usage, healthy| Live {
            waiting,
            kv_usage,
            healthy,
            ..Live::default()
        };
        let snapshot = Snapshot {
            members: Arc::from(vec![
                endpoint(0, "a"),
                endpoint(1, "b\"x"),
                endpoint(2, "c"),
            ]),
            live: vec![live(3, 0.5, true), live(1, 0.25, true), live(9, 1.0, false)],
            ..Snapshot::default()
        };
        let mut page = Page::new();
        render(&[("p", &snapshot), ("q", &Snapshot::default())], &mut page);
        let page = page.text();
        for line in [
            "llm_d_epp_ready_endpoints{name=\"p\"} 2",
            "llm_d_epp_average_queue_size{name=\"p\"} 2",
            "llm_d_epp_average_kv_cache_utilization{name=\"p\"} 0.375",
            "llm_d_epp_std_dev_queue_size{name=\"p\"} 1",
            "llm_d_epp_std_dev_kv_cache_utilization{name=\"p\"} 0.125",
            "inference_pool_ready_pods{name=\"p\"} 2",
            "inference_pool_ready_pods{name=\"q\"} 0",
            "inference_pool_per_pod_queue_size{name=\"p\",model_server_pod=\"c\"} 9",
            "llm_d_epp_per_endpoint_queue_size{name=\"p\",model_server_endpoint=\"a\"} 3",
            "llm_d_epp_per_endpoint_queue_size{name=\"p\",model_server_endpoint=\"b\\\"x\"} 1",
        ] {
            assert!(
                page.lines().any(|written| written == line),
                "{line}\nis missing from\n{page}"
            );
        }
    }

    #[test]
    fn one_name_in_two_pools_is_one_line_where_labels_tell_no_pool() {
        let snapshot = Snapshot {
            members: Arc::from(vec![endpoint(0, "a")]),
            live: vec![Live {
                in_flight_requests: 2,
                ..Live::default()
            }],
            ..Snapshot::default()
        };
        let mut page = Page::new();
        render(&[("p", &snapshot), ("q", &snapshot)], &mut page);
        let lines: Vec<&str> = page
            .text()
            .lines()
            .filter(|line| line.starts_with("llm_d_epp_inflight_requests{"))
            .collect();
        assert_eq!(lines.len(), 1, "{lines:?}");
        assert!(lines.first().is_some_and(|line| line.ends_with(" 4")));
        assert_eq!(page.text().matches("per_endpoint_queue_size{").count(), 2);
    }

    #[test]
    fn empty_pool_has_zeros_and_no_nan() {
        let mut page = Page::new();
        render(&[("p", &Snapshot::default())], &mut page);
        let page = page.text();
        assert!(page.contains("llm_d_epp_average_queue_size{name=\"p\"} 0"));
        assert!(!page.contains("NaN"));
    }
}
