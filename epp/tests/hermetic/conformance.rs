//! What the conformance suite for gateways asks of the picker that it runs with.
//!
//! The suite picks the endpoints itself, by `test-epp-endpoint-selection`, and looks where its
//! requests arrive. Pods of both of its pools are offered to each pool's picker.

use std::collections::BTreeSet;

use pointsman_epp::clock::Clock;
use pointsman_epp::fleet::EndpointSpec;

use super::support::{P, Picker, fleet_at, made, picker_of_pipeline};

const CONFIG: &str = "
apiVersion: inference.networking.x-k8s.io/v1alpha1
kind: EndpointPickerConfig
plugins:
  - type: header-based-testing-filter
  - type: random-picker
  - type: destination-endpoint-served-verifier
schedulingProfiles:
  - name: default
    plugins:
      - pluginRef: header-based-testing-filter
      - pluginRef: random-picker
";
const BODY: &[u8] = br#"{"model":"conformance-fake-model","prompt":"Write as if you were a critic: San Francisco"}"#;

const RANKS: [&str; 5] = [
    "10.0.0.1:3000",
    "10.0.0.1:3002",
    "10.0.0.1:3004",
    "10.0.0.2:3000",
    "10.0.0.3:3000",
];

/// A picker over two pods of one rank and one of three.
async fn picker() -> Picker {
    let specs = RANKS.map(|address| EndpointSpec::new(address, address.parse().unwrap()));
    let fleet = fleet_at(specs.to_vec(), &[P(0, 0.1); 5]);
    let mut parts = made(fleet, Clock::monotonic());
    parts.configure(CONFIG);
    picker_of_pipeline(parts.pipeline()).await
}

/// Where requests with this header go, and none without.
async fn reached(
    picker: &Picker,
    header: Option<&str>,
    subset: Option<&[&str]>,
) -> BTreeSet<String> {
    let mut reached = BTreeSet::new();
    // As in the suite, many enough that a random pick which is wrong at times is seen.
    for _ in 0..60 {
        let mut stream = picker.stream().await;
        if let Some(subset) = subset {
            stream.subset(subset);
        }
        let selection = header.map(|listed| ("test-epp-endpoint-selection", listed));
        let selection: Vec<_> = selection.into_iter().collect();
        stream.post_in_pieces("/", &selection, &[BODY]).await;
        reached.insert(stream.picked().await.destination);
    }
    reached
}

#[tokio::test]
async fn endpoint_selection_confines_requests_to_the_pools_own_of_those_named() {
    let picker = picker().await;
    let table: [(&str, &[&str]); 8] = [
        // GatewayFollowingEPPRouting: bare addresses.
        ("10.0.0.2", &RANKS[3..4]),
        ("10.0.0.2,10.0.0.3", &RANKS[3..]),
        // ...WithDataParallelism: one rank, several, or all of a pod.
        ("10.0.0.1:3002", &RANKS[1..2]),
        (
            "10.0.0.1:3000,10.0.0.1:3004",
            &["10.0.0.1:3000", "10.0.0.1:3004"],
        ),
        ("10.0.0.1", &RANKS[..3]),
        // GatewayWeightedAcrossTwoInferencePools: pods of the other pool are left out.
        ("10.9.9.1,10.9.9.2,10.9.9.3,10.0.0.3,10.0.0.2", &RANKS[3..]),
        // Nobody that is known: the whole pool, as the suite's own picker does.
        ("10.9.9.9", &RANKS),
        ("10.0.0.2:9999", &RANKS),
    ];
    for (header, expected) in table {
        let expected: BTreeSet<String> = expected.iter().map(ToString::to_string).collect();
        assert_eq!(
            reached(&picker, Some(header), None).await,
            expected,
            "{header}"
        );
    }
    assert_eq!(reached(&picker, None, None).await.len(), RANKS.len());
}

#[tokio::test]
async fn subset_hint_and_endpoint_selection_both_hold() {
    let picker = picker().await;
    let subset: &[&str] = &["10.0.0.1:3000", "10.0.0.1:3002", "10.0.0.2"];
    let of = async |header: Option<&str>| reached(&picker, header, Some(subset)).await;
    let set = |list: &[&str]| {
        list.iter()
            .map(ToString::to_string)
            .collect::<BTreeSet<_>>()
    };
    assert_eq!(of(None).await, set(&[RANKS[0], RANKS[1], RANKS[3]]));
    assert_eq!(of(Some("10.0.0.1")).await, set(&RANKS[..2]));
    assert_eq!(
        of(Some("10.0.0.3")).await,
        set(&[RANKS[0], RANKS[1], RANKS[3]])
    );
}

/// GatewayDestinationEndpointServed: the gateway reports who served, the client reads it.
#[tokio::test]
async fn served_endpoint_is_echoed_to_the_client() {
    let picker = picker().await;
    let mut stream = picker.stream().await;
    stream.post_in_pieces("/", &[], &[BODY]).await;
    stream.picked().await;
    stream.forwarded_body().await;
    stream.served("10.0.0.3:3000");
    stream.response("200", true).await;
    let echoed = (
        "x-conformance-test-served-endpoint".to_owned(),
        "10.0.0.3:3000".to_owned(),
    );
    let told = stream.told_the_client().await;
    assert!(told.contains(&echoed), "{told:?}");
}

#[tokio::test]
async fn served_endpoint_is_nobodys_business_without_the_verifier() {
    let picker = super::support::picker(&[P(0, 0.1)]).await;
    let mut stream = picker.stream().await;
    stream.get("/").await;
    stream.picked().await;
    stream.served("192.168.1.1:8000");
    stream.response("200", true).await;
    let told = stream.told_the_client().await;
    assert!(
        told.iter().all(|(name, _)| !name.contains("served")),
        "{told:?}"
    );
}
