//! The stream over gRPC, with a client that plays Envoy: body modes, limits, trailers, health, TLS,
//! deadlines and clients that go away. What is decided on it is in `hermetic`.

mod support;

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use envoy_types::pb::envoy::extensions::filters::http::ext_proc::v3::processing_mode::BodySendMode;
use envoy_types::pb::envoy::service::ext_proc::v3::processing_response::Response;
use pointsman_epp::ext_proc::health::{LIVENESS, READINESS};
use pointsman_epp::ext_proc::tls;
use pointsman_epp::ext_proc::{
    Decider, Destination, Exchange, Intake, Outcome, Refusal, StreamLimits,
};
use pointsman_epp::fleet::kv_events::EventSource;
use pointsman_epp::fleet::{EndpointId, Generation};
use pointsman_epp::pipeline::Policy;
use pointsman_proto::kv_events::{BlockStored, EngineHash, Event, Medium};
use support::{LIMITS, P, picker, picker_of, picker_over_tls, picker_with, refusal_header};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

const BODY: &str = r#"{"model":"m","prompt":"hello","max_tokens":10}"#;
const LABELS: &str =
    r#"model_name="m",target_model_name="m",fairness_id="default-flow",priority="0""#;

#[tokio::test]
async fn nothing_is_touched_that_the_client_did_not_send() {
    let picker = picker(&[P(3, 0.2), P(0, 0.1)]).await;
    let mut stream = picker.stream().await;
    stream.post("/inference", "of no parser's").await;
    let picked = stream.picked().await;
    assert_eq!(picked.destination, "192.168.1.2:8000");
    assert_eq!(picked.removed, [""; 0]);
    assert_eq!(stream.forwarded_body().await, b"of no parser's");
}

#[tokio::test]
async fn ignores_the_subset_hint_when_told_to() {
    let picker = picker_with(&[P(3, 0.2), P(0, 0.1)], |parts| {
        parts.shared.options.use_subset_hint = false;
    })
    .await;
    let mut stream = picker.stream().await;
    stream.subset(&["192.168.1.1:8000"]);
    stream.post("/v1/completions", BODY).await;
    assert_eq!(stream.picked().await.destination, "192.168.1.2:8000");
}

#[tokio::test]
async fn routes_a_get_on_its_headers() {
    let picker = picker(&[P(3, 0.2), P(0, 0.1)]).await;
    let mut stream = picker.stream().await;
    stream.get("/v1/models").await;
    assert_eq!(stream.picked().await.destination, "192.168.1.2:8000");
    stream.response("200", true).await;
    assert!(matches!(
        stream.answer().await.response,
        Some(Response::ResponseHeaders(_))
    ));
    picker.until_in_flight(&[0, 0]).await;
}

#[tokio::test]
async fn prefers_the_endpoint_that_holds_the_prefix() {
    let tokens: Vec<u32> = (0..64).collect();
    let stored = Event::BlockStored(BlockStored {
        block_hashes: (1..=4).map(EngineHash).collect(),
        parent: None,
        token_ids: tokens.clone(),
        block_size: 16,
        lora_name: None,
        medium: Medium::Gpu,
        cache_salt: None,
        extras: Vec::new(),
    });
    // The first worker is the busier one and would lose without the prefix.
    let picker = picker_with(&[P(3, 0.5), P(0, 0.1), P(4, 0.1)], |parts| {
        let source = EventSource {
            endpoint: EndpointId(0),
            generation: Generation(1),
            rank: 0,
        };
        parts.pool.index.apply(source, "m", &stored);
        parts.pool.index.followed(source);
    })
    .await;
    for (prompt, salt, expected) in [
        (tokens.clone(), "", "192.168.1.1:8000"),
        ((1000..1064).collect(), "", "192.168.1.2:8000"),
        (
            tokens,
            r#","cache_salt":"another client""#,
            "192.168.1.2:8000",
        ),
    ] {
        let mut stream = picker.stream().await;
        let body = format!(r#"{{"model":"m","prompt":{prompt:?}{salt}}}"#);
        stream.post("/v1/completions", &body).await;
        assert_eq!(stream.picked().await.destination, expected, "{body}");
    }
}

#[tokio::test]
async fn names_fallbacks_in_order() {
    let workers = [P(3, 0.2), P(0, 0.1), P(10, 0.2)];
    let picker = picker_with(&workers, |parts| {
        let policy = Policy::field_default(2).unwrap();
        parts.pool.policy.store(Arc::new(policy));
    })
    .await;
    let mut stream = picker.stream().await;
    stream.post("/v1/completions", BODY).await;
    let expected = "192.168.1.2:8000,192.168.1.1:8000,192.168.1.3:8000";
    assert_eq!(stream.picked().await.destination, expected);
}

#[tokio::test]
async fn removes_what_the_client_must_not_say() {
    let picker = picker(&[P(0, 0.1)]).await;
    let mut stream = picker.stream().await;
    let headers = [
        (":method", "GET"),
        (":path", "/"),
        ("x-gateway-destination-endpoint", "127.0.0.1:19901"),
        ("x-prefiller-host-port", "10.0.0.9:1"),
    ];
    stream.request(&headers, true).await;
    let picked = stream.picked().await;
    assert_eq!(picked.destination, "192.168.1.1:8000");
    assert_eq!(picked.removed, ["x-prefiller-host-port"]);
}

#[tokio::test]
async fn counts_an_endpoint_that_is_not_the_picked_one() {
    let picker = picker(&[P(0, 0.1)]).await;
    let mut stream = picker.stream().await;
    stream.get("/").await;
    stream.picked().await;
    stream.served("192.168.1.77:8000");
    stream.response("502", true).await;
    stream.answer().await;
    picker
        .until_metric("pointsman_served_elsewhere_total 1")
        .await;
}

#[tokio::test]
async fn answers_request_trailers() {
    let picker = picker(&[P(0, 0.1)]).await;
    let mut stream = picker.stream().await;
    stream
        .request(&[(":method", "POST"), (":path", "/v1/completions")], false)
        .await;
    stream.body(BODY.as_bytes(), false).await;
    stream.request_trailers().await;
    stream.picked().await;
    assert!(matches!(
        stream.answer().await.response,
        Some(Response::RequestBody(_))
    ));
    assert!(matches!(
        stream.answer().await.response,
        Some(Response::RequestTrailers(_))
    ));
}

#[tokio::test]
async fn buffered_gateways_get_the_route_in_the_body_answer() {
    let picker = picker(&[P(3, 0.2), P(0, 0.1)]).await;
    let mut stream = picker
        .stream_in(BodySendMode::Buffered, BodySendMode::None)
        .await;
    stream
        .request(&[(":method", "POST"), (":path", "/v1/completions")], false)
        .await;
    assert!(matches!(
        stream.answer().await.response,
        Some(Response::RequestHeaders(_))
    ));
    stream.body(BODY.as_bytes(), true).await;
    let answer = stream.answer().await;
    let Some(Response::RequestBody(body)) = answer.response else {
        panic!("{answer:?}")
    };
    let common = body.response.unwrap();
    assert_eq!(common.body_mutation, None);
    let header = common.header_mutation.unwrap().set_headers[0]
        .header
        .clone()
        .unwrap();
    assert_eq!(header.raw_value, b"192.168.1.2:8000");
}

#[tokio::test]
async fn headers_only_gateways_are_routed_by_load() {
    let picker = picker(&[P(3, 0.2), P(0, 0.1)]).await;
    let mut stream = picker
        .stream_in(BodySendMode::None, BodySendMode::None)
        .await;
    stream
        .request(&[(":method", "POST"), (":path", "/v1/completions")], false)
        .await;
    assert_eq!(stream.picked().await.destination, "192.168.1.2:8000");
}

#[tokio::test]
async fn refuses_a_body_past_the_limit() {
    let picker = picker(&[P(0, 0.1)]).await;
    let mut stream = picker.stream().await;
    stream
        .request(&[(":method", "POST"), (":path", "/v1/completions")], false)
        .await;
    for _ in 0..3 {
        stream.body(&vec![b'x'; 30_000], false).await;
    }
    let refusal = stream.refused().await;
    assert_eq!(refusal.status.unwrap().code, 413);
    assert!(
        String::from_utf8(refusal.body)
            .unwrap()
            .contains("65536 bytes")
    );
}

#[tokio::test]
async fn client_that_goes_away_in_mid_response_releases_the_endpoint() {
    let picker = picker(&[P(0, 0.1)]).await;
    let mut stream = picker.stream().await;
    stream.post("/v1/completions", BODY).await;
    stream.picked().await;
    picker.until_in_flight(&[1]).await;
    let inbound = stream.half_close();
    picker.until_in_flight(&[0]).await;
    picker
        .until_metric(&format!("pointsman_request_aborted_total{{{LABELS}}} 1"))
        .await;
    drop(inbound);
}

#[tokio::test]
async fn health_is_served_on_the_same_port_and_follows_readiness() {
    let picker = picker(&[]).await;
    let mut client = HealthClient::new(picker.channel());
    let mut ask = async |service: &str| {
        let request = HealthCheckRequest {
            service: service.to_owned(),
        };
        client
            .check(request)
            .await
            .map(|answer| answer.into_inner().status())
    };
    for (ready, expected) in [
        (false, ServingStatus::NotServing),
        (true, ServingStatus::Serving),
    ] {
        picker.health.set_ready(ready).await;
        for name in READINESS {
            assert_eq!(ask(name).await.unwrap(), expected, "{name}");
        }
        assert_eq!(ask(LIVENESS).await.unwrap(), ServingStatus::Serving);
    }
    assert!(ask("no-such-service").await.is_err());
}

#[tokio::test]
async fn speaks_tls_with_the_certificate_of_a_folder() {
    tls::install_provider();
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("tls.crt"), made.cert.pem()).expect("written");
    std::fs::write(
        folder.path().join("tls.key"),
        made.signing_key.serialize_pem(),
    )
    .expect("written");
    let certificate = tls::server_config(Some(folder.path())).expect("a readable certificate");
    let picker = picker_over_tls(&[P(0, 0.1)], certificate, &made.cert.pem()).await;
    let mut stream = picker.stream().await;
    stream.get("/v1/models").await;
    assert_eq!(stream.picked().await.destination, "192.168.1.1:8000");
}

/// A decider whose pick never comes, and which counts the picks that were dropped.
#[derive(Clone, Default)]
struct Stuck {
    picks: Arc<AtomicUsize>,
    dropped: Arc<AtomicUsize>,
}

struct CountsDrop(Arc<AtomicUsize>);

impl Drop for CountsDrop {
    fn drop(&mut self) {
        self.0.fetch_add(1, SeqCst);
    }
}

impl Decider for Stuck {
    type Exchange = Self;

    async fn begin(&self, _: Intake) -> Result<Self, Refusal> {
        Ok(self.clone())
    }

    fn refused(&self, _: &Refusal) {}
}

impl Exchange for Stuck {
    fn pick(&mut self) -> impl Future<Output = Result<Destination, Refusal>> + Send {
        self.picks.fetch_add(1, SeqCst);
        let counted = CountsDrop(Arc::clone(&self.dropped));
        async move {
            let _counted = counted;
            std::future::pending().await
        }
    }

    fn first_byte(&mut self) {}

    fn finish(self, _: &Outcome) {}
}

#[tokio::test]
async fn decision_past_its_deadline_is_refused() {
    let stuck = Stuck::default();
    let limits = StreamLimits {
        decision_timeout: Duration::from_millis(50),
        ..LIMITS
    };
    let picker = picker_of(stuck.clone(), limits).await;
    let mut stream = picker.stream().await;
    stream.post("/v1/completions", BODY).await;
    let refusal = stream.refused().await;
    assert_eq!(refusal.status.as_ref().unwrap().code, 503);
    assert_eq!(
        refusal_header(&refusal, "x-llm-d-request-dropped-reason"),
        Some("rejected-ttl-expired")
    );
    assert_eq!(stuck.dropped.load(SeqCst), 1);
}

#[tokio::test]
async fn client_that_goes_away_while_waiting_drops_the_pick() {
    let stuck = Stuck::default();
    let picker = picker_of(stuck.clone(), LIMITS).await;
    let mut stream = picker.stream().await;
    stream.post("/v1/completions", BODY).await;
    wait_for(&stuck.picks).await;
    let inbound = stream.half_close();
    wait_for(&stuck.dropped).await;
    drop(inbound);
}

#[tokio::test]
async fn local_reply_of_the_gateway_while_waiting_is_answered() {
    let stuck = Stuck::default();
    let picker = picker_of(stuck.clone(), LIMITS).await;
    let mut stream = picker.stream().await;
    stream.post("/v1/completions", BODY).await;
    wait_for(&stuck.picks).await;
    stream.response("408", true).await;
    assert!(matches!(
        stream.answer().await.response,
        Some(Response::ResponseHeaders(_))
    ));
    assert_eq!(stuck.dropped.load(SeqCst), 1);
}

async fn wait_for(count: &AtomicUsize) {
    let waited = tokio::time::timeout(Duration::from_secs(10), async {
        while count.load(SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
    });
    waited.await.expect("the count moves in time");
}
