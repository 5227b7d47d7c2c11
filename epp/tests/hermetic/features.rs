//! What the field tests beside its table: endpoint scores, session affinity and the attribute
//! reporter.

use envoy_types::pb::google::protobuf::value::Kind;

use pointsman_epp::clock::Clock;
use pointsman_epp::fleet::EndpointSpec;

use super::support::envoy::metadata_value;
use super::support::{P, Picker, fleet_at, made, picker, picker_of_pipeline, picker_with};

const BODY: &str = r#"{"model":"my-model","prompt":"hello","max_tokens":10,"temperature":0}"#;
const ANSWER: &[u8] = br#"{"choices":[{"finish_reason":"stop","index":0,"message":{"content":"hi","role":"assistant"}}],"model":"my-model","object":"chat.completion","usage":{"completion_tokens":10,"prompt_tokens":32,"total_tokens":42}}"#;

const EVEN: [P; 2] = [P(0, 0.1), P(0, 0.1)];

async fn configured(workers: &[P], config: &str) -> Picker {
    let header = "apiVersion: inference.networking.x-k8s.io/v1alpha1\nkind: EndpointPickerConfig\n";
    picker_with(workers, |parts| {
        parts.configure(&format!("{header}{config}"));
    })
    .await
}

/// A whole exchange with these request headers: where it went, and what the client was told.
async fn exchange(picker: &Picker, headers: &[(&str, &str)]) -> (String, Vec<(String, String)>) {
    let mut stream = picker.stream().await;
    stream
        .post_in_pieces("/v1/completions", headers, &[BODY.as_bytes()])
        .await;
    let picked = stream.picked().await;
    stream.forwarded_body().await;
    (picked.destination, stream.served_with(ANSWER).await)
}

fn value(headers: &[(String, String)], name: &str) -> Option<String> {
    let mut headers = headers.iter();
    headers
        .find(|(key, _)| key == name)
        .map(|(_, value)| value.clone())
}

const SCORES: &str = "x-gateway-destination-endpoint-scores";

#[tokio::test]
async fn scores_of_every_candidate_are_metadata_where_asked_for() {
    let workers = [P(0, 0.1), P(5, 0.5)];
    let told = picker_with(&workers, |parts| parts.shared.options.emit_scores = true).await;
    let mut stream = told.stream().await;
    stream.post("/v1/completions", BODY).await;
    let answer = stream.answer().await;
    let destination = metadata_value(&answer, "envoy.lb", "x-gateway-destination-endpoint");
    let expected = Kind::StringValue("192.168.1.1:8000".to_owned());
    assert_eq!(destination, Some(&expected), "one of two is a destination");
    let Some(Kind::StructValue(scores)) = metadata_value(&answer, "envoy.lb", SCORES) else {
        panic!("no scores: {answer:?}");
    };
    let score = |endpoint: &str| match scores.fields[endpoint].kind {
        Some(Kind::NumberValue(score)) => score,
        ref other => panic!("no number: {other:?}"),
    };
    assert_eq!(scores.fields.len(), 2);
    // Queue 2 x 1, KV 2 x 0.9, no prefix; and 2 x 0, 2 x 0.5.
    assert!((score("192.168.1.1:8000") - 3.8).abs() < 1e-3);
    assert!((score("192.168.1.2:8000") - 1.0).abs() < 1e-3);
}

#[tokio::test]
async fn scores_are_no_metadata_by_default() {
    let quiet = picker(&[P(0, 0.1), P(5, 0.5)]).await;
    let mut stream = quiet.stream().await;
    stream.post("/v1/completions", BODY).await;
    let answer = stream.answer().await;
    assert!(metadata_value(&answer, "envoy.lb", "x-gateway-destination-endpoint").is_some());
    assert_eq!(metadata_value(&answer, "envoy.lb", SCORES), None);
}

/// The field's filter and its scorer, each in the field's configuration of it.
const TOKEN_STRATEGY: [&str; 2] = [
    "
plugins:
  - type: openai-parser
  - type: queue-scorer
  - type: session-affinity-filter
schedulingProfiles:
  - name: default
    plugins:
      - pluginRef: queue-scorer
      - pluginRef: session-affinity-filter
requestHandler:
  parsers:
  - pluginRef: openai-parser
",
    "
plugins:
  - type: openai-parser
  - type: session-affinity-scorer
  - type: max-score-picker
schedulingProfiles:
  - name: default
    plugins:
      - pluginRef: session-affinity-scorer
      - pluginRef: max-score-picker
requestHandler:
  parsers:
  - pluginRef: openai-parser
",
];

#[tokio::test]
async fn session_token_of_a_response_pins_the_next_request() {
    for config in TOKEN_STRATEGY {
        let picker = configured(&EVEN, config).await;
        let mut destinations = Vec::new();
        for _ in 0..8 {
            let (first, told) = exchange(&picker, &[]).await;
            let token = value(&told, "x-session-token").expect("a token");
            let (second, _) = exchange(&picker, &[("x-session-token", &token)]).await;
            assert_eq!(first, second);
            destinations.push(first);
        }
        destinations.sort();
        destinations.dedup();
        assert_eq!(
            destinations.len(),
            2,
            "tokens decide, not a favourite worker"
        );
    }
}

const SESSION_ID_STRATEGY: [&str; 2] = [
    "
plugins:
  - type: openai-parser
  - type: session-affinity-filter
    parameters:
      strategy: session_id
      sessionIdConfig: {sources: [{header: x-session-id}, {header: x-claude-code-session-id}]}
schedulingProfiles:
  - name: default
    plugins:
      - pluginRef: session-affinity-filter
",
    "
plugins:
  - type: openai-parser
  - type: session-affinity-scorer
    parameters:
      strategy: session_id
      sessionIdConfig: {sources: [{header: x-session-id}, {header: x-claude-code-session-id}]}
  - type: max-score-picker
schedulingProfiles:
  - name: default
    plugins:
      - pluginRef: session-affinity-scorer
      - pluginRef: max-score-picker
",
];

/// The field's second source is an attribute that its agent-identity plugin publishes; ours names
/// the header that the attribute is made from, and refuses the attribute with words that say so.
#[tokio::test]
async fn session_named_by_a_header_stays_and_the_first_source_wins() {
    for config in SESSION_ID_STRATEGY {
        let picker = configured(&EVEN, config).await;
        let mut by_session = Vec::new();
        for headers in [
            [("x-session-id", "sess-A"), ("other", "")],
            [("x-claude-code-session-id", "agent-B"), ("other", "")],
        ] {
            let (first, _) = exchange(&picker, &headers).await;
            for _ in 0..10 {
                assert_eq!(exchange(&picker, &headers).await.0, first);
            }
            by_session.push(first);
        }
        let both = [
            ("x-claude-code-session-id", "agent-B"),
            ("x-session-id", "sess-A"),
        ];
        assert_eq!(exchange(&picker, &both).await.0, by_session[0]);
    }
}

/// Two workers that prefill and two that decode, with a session token for each role.
async fn disaggregated(deciders: &str) -> Picker {
    let specs = (1..=4).map(|number| {
        let mut spec = EndpointSpec::new(
            format!("pod-{number}"),
            ([192, 168, 1, number], 8000).into(),
        );
        let role = if number <= 2 { "prefill" } else { "decode" };
        spec.labels.insert("llm-d.ai/role".into(), role.into());
        spec
    });
    let mut parts = made(
        fleet_at(specs.collect(), &[P(0, 0.1); 4]),
        Clock::monotonic(),
    );
    parts.configure(&format!(
        "
apiVersion: llm-d.ai/v1alpha1
kind: EndpointPickerConfig
plugins:
  - type: openai-parser
  - type: always-disagg-pd-decider
  - type: disagg-profile-handler
    parameters: {deciders}
  - type: prefill-filter
  - type: decode-filter
  - type: queue-scorer
  - type: max-score-picker
  - type: session-affinity-filter
    name: session-affinity-decode
  - type: session-affinity-filter
    name: session-affinity-prefill
    parameters:
      profileName: prefill
      encodedEndpointHeaderConfig: {{header: x-session-token-prefill}}
requestHandler:
  parsers:
  - pluginRef: openai-parser
schedulingProfiles:
  - name: prefill
    plugins:
    - pluginRef: prefill-filter
    - pluginRef: queue-scorer
    - pluginRef: max-score-picker
    - pluginRef: session-affinity-prefill
  - name: decode
    plugins:
    - pluginRef: decode-filter
    - pluginRef: queue-scorer
    - pluginRef: max-score-picker
    - pluginRef: session-affinity-decode
"
    ));
    picker_of_pipeline(parts.pipeline()).await
}

const PREFILL_TOKEN: &str = "x-session-token-prefill";

/// An exchange with these tokens: where it is decoded and prefilled, and the tokens for the next.
async fn session(
    picker: &Picker,
    tokens: &[(&str, &str)],
) -> ([Option<String>; 2], [Option<String>; 2]) {
    let mut stream = picker.stream().await;
    stream
        .post_in_pieces("/v1/completions", tokens, &[BODY.as_bytes()])
        .await;
    let picked = stream.picked().await;
    stream.forwarded_body().await;
    let prefiller = value(&picked.set, "x-prefiller-host-port");
    let told = stream.served_with(ANSWER).await;
    let tokens = ["x-session-token", PREFILL_TOKEN].map(|name| value(&told, name));
    ([Some(picked.destination), prefiller], tokens)
}

#[tokio::test]
async fn session_of_a_disaggregated_pool_stays_with_both_of_its_workers() {
    let picker = disaggregated("{deciders: {prefill: always-disagg-pd-decider}}").await;
    let mut pairs = Vec::new();
    for _ in 0..12 {
        let (first, [decode, prefill]) = session(&picker, &[]).await;
        let (decode, prefill) = (decode.expect("a token"), prefill.expect("a token"));
        let tokens = [("x-session-token", &*decode), (PREFILL_TOKEN, &*prefill)];
        assert_eq!(session(&picker, &tokens).await.0, first);
        assert!(first[1].is_some(), "it is prefilled elsewhere");
        pairs.push(first);
    }
    pairs.sort();
    pairs.dedup();
    assert!(pairs.len() > 1, "tokens decide, not a favourite pair");
}

#[tokio::test]
async fn session_that_is_only_decoded_has_no_token_of_a_prefill_worker() {
    let picker = disaggregated("{}").await;
    let (places, [decode, prefill]) = session(&picker, &[]).await;
    assert_eq!((places[1].as_ref(), prefill), (None, None));
    assert!(decode.is_some());
}

#[tokio::test]
async fn attributes_of_the_usage_are_metadata_of_the_last_answer() {
    let config = r#"
plugins:
  - type: openai-parser
  - name: total-tokens-cost-reporter
    type: request-attribute-reporter
    parameters:
      attributes:
        - key:
            namespace: envoy.lb
            name: x-gateway-inference-request-cost
          expression: |
            usage.completion_tokens
          condition: "has(usage.completion_tokens)"
schedulingProfiles:
  - name: default
    plugins:
      - pluginRef: openai-parser
      - pluginRef: total-tokens-cost-reporter
requestHandler:
  parsers:
  - pluginRef: openai-parser
"#;
    let picker = configured(&[P(0, 0.1)], config).await;
    let streamed: [&[u8]; 2] = [
        b"data: {\"choices\":[]}\n\n",
        b"data: {\"usage\":{\"prompt_tokens\":32,\"completion_tokens\":10}}\n\ndata: [DONE]\n\n",
    ];
    let chunked: [&[&[u8]]; 2] = [&[ANSWER], &streamed];
    for chunks in chunked {
        let mut stream = picker.stream().await;
        stream.post("/v1/completions", BODY).await;
        stream.picked().await;
        stream.forwarded_body().await;
        stream.response("200", false).await;
        stream.answer().await;
        for (place, chunk) in chunks.iter().enumerate() {
            let is_last = place + 1 == chunks.len();
            stream.response_body(chunk, is_last).await;
            let answer = stream.answer().await;
            let cost = metadata_value(&answer, "envoy.lb", "x-gateway-inference-request-cost");
            let expected = is_last.then_some(&Kind::NumberValue(10.0));
            assert_eq!(cost, expected);
        }
    }
}
