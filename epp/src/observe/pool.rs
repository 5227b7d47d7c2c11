//! The pool's own series, written out from a snapshot at the moment of a scrape.
//!
//! Gauges per endpoint that lived in the recorder would outlive their endpoints: a pod that left
//! would show its last queue for ever. Written from a snapshot they are exact and end with the
//! endpoint.

use std::fmt::Write as _;

use crate::fleet::{Live, Snapshot};

/// A series of one line for each endpoint: name, help and value.
type EndpointSeries = (&'static str, &'static str, fn(&Live) -> u32);

/// Appends the series of one pool in Prometheus' text format.
pub fn render(pool: &str, snapshot: &Snapshot, page: &mut String) {
    let pool_label = format!("name=\"{}\"", escaped(pool));
    let ready = snapshot.live.iter().filter(|live| live.healthy).count();
    let mean = |value: fn(&Live) -> f64| {
        let healthy = snapshot.live.iter().filter(|live| live.healthy);
        healthy.fold(0.0, |sum, live| sum + value(live)) / (ready.max(1) as f64)
    };
    let of_pool = [
        (
            "llm_d_epp_ready_endpoints",
            "Endpoints that answer.",
            ready as f64,
        ),
        (
            "llm_d_epp_average_queue_size",
            "Waiting requests of an endpoint on average.",
            mean(|live| f64::from(live.waiting)),
        ),
        (
            "llm_d_epp_average_running_requests",
            "Running requests of an endpoint on average.",
            mean(|live| f64::from(live.running)),
        ),
        (
            "llm_d_epp_average_kv_cache_utilization",
            "KV cache in use of an endpoint on average, 0 to 1.",
            mean(|live| f64::from(live.kv_usage)),
        ),
    ];
    for (name, help, value) in of_pool {
        heading(page, name, help);
        let _ = writeln!(page, "{name}{{{pool_label}}} {value}");
    }

    let names: Vec<String> = snapshot
        .members
        .iter()
        .map(|member| escaped(&member.spec.name))
        .collect();
    let name = "llm_d_epp_per_endpoint_queue_size";
    heading(page, name, "Waiting requests of each endpoint.");
    for (endpoint, live) in names.iter().zip(&snapshot.live) {
        let _ = writeln!(
            page,
            "{name}{{{pool_label},model_server_endpoint=\"{endpoint}\"}} {}",
            live.waiting
        );
    }
    let in_flight: [EndpointSeries; 2] = [
        (
            "llm_d_epp_inflight_requests",
            "Requests of ours at each endpoint.",
            |live| live.in_flight_requests,
        ),
        (
            "llm_d_epp_inflight_tokens",
            "Prompt tokens of our requests at each endpoint.",
            |live| live.in_flight_tokens,
        ),
    ];
    for (name, help, value) in in_flight {
        heading(page, name, help);
        for (endpoint, live) in names.iter().zip(&snapshot.live) {
            let labels = format!(
                "endpoint_name=\"{endpoint}\",namespace=\"\",producer_name=\"inflight-load-producer\",\
                fairness_id=\"default-flow\",priority=\"0\""
            );
            let _ = writeln!(page, "{name}{{{labels}}} {}", value(live));
        }
    }
}

fn heading(page: &mut String, name: &str, help: &str) {
    let _ = writeln!(page, "# HELP {name} {help}\n# TYPE {name} gauge");
}

/// A label value: backslash, quote and line feed are escaped.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
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
        let mut page = String::new();
        render("p", &snapshot, &mut page);
        for line in [
            "llm_d_epp_ready_endpoints{name=\"p\"} 2",
            "llm_d_epp_average_queue_size{name=\"p\"} 2",
            "llm_d_epp_average_kv_cache_utilization{name=\"p\"} 0.375",
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
    fn empty_pool_has_zeros_and_no_nan() {
        let mut page = String::new();
        render("p", &Snapshot::default(), &mut page);
        assert!(page.contains("llm_d_epp_average_queue_size{name=\"p\"} 0"));
        assert!(!page.contains("NaN"));
    }
}
