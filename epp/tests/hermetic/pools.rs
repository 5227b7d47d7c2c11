//! Several pools in one process: whose endpoints a request gets, by what its gateway's call says.

use std::sync::Arc;

use pointsman_epp::clock::Clock;
use pointsman_epp::config::resources;
use pointsman_epp::fleet::{EndpointSpec, Fleet};
use pointsman_epp::observe::Metrics;
use pointsman_epp::pipeline::{Options, Pipeline, Pool, Pools, Rules, Shared};

use super::support::{Gateway, P, Picker, fleet_at, picker_of_pipeline, pool};

const BODY: &str = r#"{"model":"m","prompt":"hello"}"#;
const CHAT: &str = "10.0.1.1:8000";
const CODE: &str = "10.0.2.1:8000";

fn fleet(address: &str) -> Arc<Fleet> {
    let spec = EndpointSpec::new(format!("worker-{address}"), address.parse().unwrap());
    fleet_at(vec![spec], &[P(0, 0.1)])
}

/// The pools `chat`, which is the default one where `has_default`, and `code`, called by two names.
async fn picker(has_default: bool) -> Picker {
    let (metrics, clock) = (Arc::new(Metrics::new()), Clock::monotonic());
    let of = |name: &str, address: &str| Arc::new(pool(name, fleet(address), &metrics, &clock));
    let names = ["code.example.com", "epp-code"].map(str::to_owned).to_vec();
    let pools = [
        (
            of("chat", CHAT),
            vec!["chat.example.com".to_owned()],
            has_default,
        ),
        (of("code", CODE), names, false),
    ];
    let shared = Shared {
        metrics: Arc::clone(&metrics),
        decisions: Arc::default(),
        spans: None,
        clock,
        options: Options {
            use_subset_hint: true,
            emit_scores: false,
            debug_header: None,
            seed: 7,
        },
    };
    picker_of_pipeline(Pipeline::new(shared, Pools::new(pools))).await
}

async fn destination(gateway: &Gateway) -> String {
    let mut stream = gateway.stream().await;
    stream.post("/v1/completions", BODY).await;
    stream.picked().await.destination
}

async fn expect_unknown(gateway: &Gateway, told: &str) {
    let mut stream = gateway.stream().await;
    stream.post("/v1/completions", BODY).await;
    let refusal = stream.refused().await;
    assert_eq!(refusal.status.unwrap().code, 404);
    let text = String::from_utf8(refusal.body).unwrap();
    assert_eq!(text, format!("inference error: NotFound - {told}"));
}

#[tokio::test]
async fn pool_is_the_one_that_the_calls_metadata_names() {
    let picker = picker(true).await;
    let gateway = picker.gateway();
    assert_eq!(destination(&gateway.of_pool("chat")).await, CHAT);
    assert_eq!(destination(&gateway.of_pool("code")).await, CODE);
    expect_unknown(&gateway.of_pool("image"), r#"no pool is named "image""#).await;
    for (name, count) in [("chat", 1), ("code", 1)] {
        let pools = picker.pipeline().pools().all();
        let served = pools.iter().find(|pool| *pool.name == *name).unwrap();
        let decisions = picker.pipeline().shared().decisions.latest(10, None);
        let of_pool = decisions
            .iter()
            .filter(|one| one.record.pool == *served.name);
        assert_eq!(of_pool.count(), count);
    }
}

#[tokio::test]
async fn pool_is_the_one_whose_name_was_called_with_or_without_a_port() {
    let picker = picker(true).await;
    for (authority, expected) in [
        ("code.example.com", CODE),
        ("code.example.com:9002", CODE),
        ("CODE.example.com", CODE),
        ("epp-code:9002", CODE),
        ("chat.example.com", CHAT),
        ("unknown.example.com", CHAT),
    ] {
        let gateway = Gateway::connect(&picker.uri, Some(authority)).await;
        assert_eq!(destination(&gateway).await, expected, "{authority}");
        assert_eq!(
            destination(&gateway.of_pool("chat")).await,
            CHAT,
            "metadata wins over {authority}"
        );
    }
}

#[tokio::test]
async fn request_of_no_pool_is_told_so_where_there_is_no_default() {
    let picker = picker(false).await;
    let told = "the request belongs to no pool";
    expect_unknown(picker.gateway(), told).await;
    let unknown = Gateway::connect(&picker.uri, Some("unknown.example.com")).await;
    expect_unknown(&unknown, told).await;
    let code = Gateway::connect(&picker.uri, Some("epp-code")).await;
    assert_eq!(destination(&code).await, CODE);
    picker
        .until_metric(
            r#"llm_d_epp_request_error_total{model_name="",target_model_name="",fairness_id="default-flow",priority="0",error_code="NotFound"} 2"#,
        )
        .await;
}

#[tokio::test]
async fn pools_share_neither_load_nor_rules_nor_the_subset_hint() {
    let picker = picker(true).await;
    let objectives = "
{apiVersion: llm-d.ai/v1alpha2, kind: InferenceObjective, metadata: {name: hurry}, spec: {priority: 5, poolRef: {name: code}}}
";
    let read = resources::parse("test", objectives.as_bytes()).unwrap();
    for pool in picker.pipeline().pools().all() {
        pool.rules
            .store(Arc::new(Rules::from(&read.for_pool(&pool.name))));
    }
    let mut open = Vec::new();
    for (name, priority) in [("chat", 0), ("code", 5)] {
        let mut stream = picker.gateway().of_pool(name).stream().await;
        let headers = [("x-llm-d-inference-objective", "hurry")];
        stream
            .post_in_pieces("/v1/completions", &headers, &[BODY.as_bytes()])
            .await;
        stream.picked().await;
        let line = format!(
            r#"llm_d_epp_request_total{{model_name="m",target_model_name="m",fairness_id="default-flow",priority="{priority}"}} 1"#
        );
        picker.until_metric(&line).await;
        open.push(stream);
    }
    let in_flight = |pool: &Pool| {
        let mut snapshot = pointsman_epp::fleet::Snapshot::default();
        pool.fleet.snapshot_into(&mut snapshot);
        snapshot.live[0].in_flight_requests
    };
    let pools = picker.pipeline().pools().all();
    assert_eq!(
        pools.iter().map(|pool| in_flight(pool)).collect::<Vec<_>>(),
        [1, 1]
    );
    let mut stream = picker.gateway().of_pool("chat").stream().await;
    stream.subset(&[CODE]);
    stream.post("/v1/completions", BODY).await;
    assert_eq!(stream.refused().await.status.unwrap().code, 503);
}
