//! Why a request went where it went: the decision in a response header, and on the pages of a live
//! picker.

use std::sync::Arc;

use pointsman_epp::observe::page::{self, Pages};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::support::{P, Picker, picker_with};

const BODY: &[u8] = br#"{"model":"m","prompt":"hello"}"#;
const ASK: &str = "x-explain";
const DECISION: &str = "x-pointsman-decision";
const SCORERS: [&str; 3] = [
    "queue-scorer",
    "kv-cache-utilization-scorer",
    "prefix-cache-scorer",
];

async fn picker() -> Picker {
    picker_with(&[P(3, 0.2), P(0, 0.1), P(10, 0.2)], |parts| {
        parts.shared.options.debug_header = Some(ASK.to_owned());
    })
    .await
}

/// A whole exchange; the decision that the client was told of.
async fn exchange(picker: &Picker, headers: &[(&str, &str)]) -> Option<String> {
    let mut stream = picker.stream().await;
    stream
        .post_in_pieces("/v1/completions", headers, &[BODY])
        .await;
    stream.picked().await;
    stream.forwarded_body().await;
    stream.served("192.168.1.2:8000");
    let told = stream
        .served_with(br#"{"usage":{"prompt_tokens":3,"completion_tokens":4}}"#)
        .await;
    let mut told = told.into_iter();
    told.find(|(name, _)| name == DECISION)
        .map(|(_, text)| text)
}

/// Checks a record: who won, and every scorer's value for every candidate.
fn expect_decision(record: &Value) {
    assert_eq!(record["pool"], "default");
    assert_eq!(record["model"], "m");
    let profile = &record["profiles"][0];
    assert_eq!(profile["endpoints"][0], "worker-2");
    let candidates = profile["candidates"].as_array().expect("candidates");
    let names: Vec<_> = candidates.iter().map(|one| &one["endpoint"]).collect();
    assert_eq!(names, ["worker-2", "worker-1", "worker-3"], "best first");
    for candidate in candidates {
        let scores = candidate["scores"].as_array().expect("scores");
        let scorers: Vec<_> = scores.iter().map(|score| &score["scorer"]).collect();
        assert_eq!(scorers, SCORERS);
        let sum: f64 = scores
            .iter()
            .map(|score| score["weight"].as_f64().unwrap() * score["value"].as_f64().unwrap())
            .sum();
        let total = candidate["total"].as_f64().expect("a total");
        assert!((sum - total).abs() < 1e-4, "{candidate}");
    }
}

#[tokio::test]
async fn client_that_asks_reads_the_decision_in_the_response() {
    let picker = picker().await;
    for asks in ["1", "true"] {
        let headers = [(ASK, asks), ("x-request-id", "mine")];
        let text = exchange(&picker, &headers).await.expect("the decision");
        let record: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(record["request_id"], "mine");
        expect_decision(&record);
    }
}

#[tokio::test]
async fn nobody_is_told_who_does_not_ask_or_may_not() {
    let picker = picker().await;
    assert_eq!(exchange(&picker, &[]).await, None);
    assert_eq!(exchange(&picker, &[(ASK, "0")]).await, None);
    let closed = super::support::picker(&[P(3, 0.2), P(0, 0.1)]).await;
    assert_eq!(exchange(&closed, &[(ASK, "1")]).await, None);
}

/// The pages of this picker, as its program serves them.
async fn pages(picker: &Picker) -> std::net::SocketAddr {
    let status = picker.status.clone().unwrap();
    let (metrics, plugins) = (Arc::clone(&status), Arc::clone(&status));
    let decisions = Arc::clone(&status.pipeline.shared().decisions);
    let pages = Pages {
        metrics: Arc::new(move |page| metrics.write_metrics(page)),
        plugins: Arc::new(move || plugins.plugins()),
        status: Arc::new(move || status.view()),
        decisions,
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(page::serve(listener, pages, std::future::pending()));
    address
}

async fn get(address: std::net::SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: epp\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    body.to_owned()
}

async fn json(address: std::net::SocketAddr, path: &str) -> Value {
    serde_json::from_str(&get(address, path).await).unwrap()
}

#[tokio::test]
async fn decisions_page_has_the_latest_with_how_they_ended() {
    let picker = picker().await;
    let address = pages(&picker).await;
    exchange(&picker, &[("x-request-id", "first")]).await;
    exchange(&picker, &[("x-request-id", "second")]).await;
    let mut wrong = picker.stream().await;
    wrong.subset(&["10.9.9.9"]);
    wrong.post_in_pieces("/v1/completions", &[], &[BODY]).await;
    wrong.refused().await;
    picker.until_in_flight(&[0, 0, 0]).await;

    let page = json(address, "/debug/decisions").await;
    let decisions = page["decisions"].as_array().expect("decisions");
    assert_eq!(decisions.len(), 3);
    let refused = decisions[0]["refused"].as_str().expect("why");
    assert!(refused.contains("ServiceUnavailable"), "{refused}");
    assert_eq!(decisions[1]["request_id"], "second");
    for decision in &decisions[1..] {
        expect_decision(decision);
        let outcome = &decision["outcome"];
        assert_eq!(outcome["status"], 200);
        assert_eq!(outcome["served"], "192.168.1.2:8000");
        assert!(outcome["duration_ms"].as_f64().expect("a time") >= 0.0);
    }
    let one = json(address, "/debug/decisions?limit=1&model=m").await;
    assert_eq!(one["decisions"].as_array().map(Vec::len), Some(1));
    let other = json(address, "/debug/decisions?model=other").await;
    assert_eq!(other["decisions"].as_array().map(Vec::len), Some(0));
}

#[tokio::test]
async fn status_and_plugins_pages_show_a_live_pool() {
    let picker = picker().await;
    let address = pages(&picker).await;
    let mut open = picker.stream().await;
    open.post_in_pieces("/v1/completions", &[], &[BODY]).await;
    open.picked().await;
    picker.until_in_flight(&[0, 1, 0]).await;

    let status = json(address, "/debug/status").await;
    let endpoints = status["pools"][0]["endpoints"]
        .as_array()
        .expect("endpoints");
    let shown: Vec<_> = endpoints
        .iter()
        .map(|one| (one["address"].as_str(), one["in_flight_requests"].as_u64()))
        .collect();
    let expected = [
        (Some("192.168.1.1:8000"), Some(0)),
        (Some("192.168.1.2:8000"), Some(1)),
        (Some("192.168.1.3:8000"), Some(0)),
    ];
    assert_eq!(shown, expected);
    assert_eq!(endpoints[2]["waiting"], 10);
    assert_eq!(
        status["decisions"][0]["profiles"][0]["endpoints"][0],
        "worker-2"
    );
    let resolved = status["config"]["resolved"]["default"]
        .as_str()
        .expect("a text");
    assert!(resolved.contains("type: queue-scorer"), "{resolved}");

    let plugins = json(address, "/debug/plugins/state").await;
    let types = plugins["default"].as_array().expect("plugins");
    for scorer in SCORERS {
        assert!(types.iter().any(|plugin| plugin["type"] == scorer));
    }
    let metrics = get(address, "/metrics").await;
    assert!(metrics.contains(r#"llm_d_epp_ready_endpoints{name="default"} 3"#));
}
