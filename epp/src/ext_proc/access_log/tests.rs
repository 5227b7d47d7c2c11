//! Entries as real gateways were seen to send them, and the bytes of one, written by the field
//! numbers of Envoy's protos.

use std::collections::HashMap;

use envoy_types::pb::envoy::config::core::v3::SocketAddress;
use envoy_types::pb::envoy::data::accesslog::v3::HttpResponseProperties;
use envoy_types::pb::envoy::service::accesslog::v3::StreamAccessLogsMessage;
use envoy_types::pb::envoy::service::accesslog::v3::stream_access_logs_message::LogEntries;
use envoy_types::pb::google::protobuf::{Any, Struct, UInt32Value};
use proptest::prelude::*;

use super::*;

const TOKEN: LeaseToken = LeaseToken {
    boot: 0xabc,
    counter: 7,
};

fn text(value: &str) -> Kind {
    Kind::StringValue(value.to_owned())
}

fn namespace<const N: usize>(name: &str, fields: [(&str, Kind); N]) -> (String, Struct) {
    let fields = fields.map(|(key, kind)| (key.to_owned(), Value { kind: Some(kind) }));
    let fields = Struct {
        fields: HashMap::from(fields),
    };
    (name.to_owned(), fields)
}

fn leased() -> (String, Struct) {
    namespace("dev.pointsman.epp", [("token", text("0000000000000abc-7"))])
}

fn ms(millis: u64) -> Duration {
    Duration {
        seconds: (millis / 1_000) as i64,
        nanos: (millis % 1_000 * 1_000_000) as i32,
    }
}

fn address(ip: &str, port: u32) -> Address {
    Address {
        address: Some(address::Address::SocketAddress(SocketAddress {
            address: ip.to_owned(),
            port_specifier: Some(PortSpecifier::PortValue(port)),
            ..SocketAddress::default()
        })),
    }
}

/// A request that ended well, with whatever `adjust` makes of it.
fn entry(
    adjust: impl FnOnce(&mut AccessLogCommon, &mut HttpResponseProperties),
) -> HttpAccessLogEntry {
    let mut common = AccessLogCommon {
        access_log_type: AccessLogType::DownstreamEnd.into(),
        metadata: Some(Metadata {
            filter_metadata: HashMap::from([leased()]),
            ..Metadata::default()
        }),
        duration: Some(ms(2_500)),
        time_to_first_upstream_tx_byte: Some(ms(30)),
        time_to_first_upstream_rx_byte: Some(ms(130)),
        upstream_remote_address: Some(address("10.0.0.1", 8000)),
        upstream_request_attempt_count: 1,
        ..AccessLogCommon::default()
    };
    let mut response = HttpResponseProperties {
        response_code: Some(UInt32Value { value: 200 }),
        response_code_details: "via_upstream".to_owned(),
        response_body_bytes: 11_043,
        ..HttpResponseProperties::default()
    };
    adjust(&mut common, &mut response);
    HttpAccessLogEntry {
        common_properties: Some(common),
        response: Some(response),
        ..HttpAccessLogEntry::default()
    }
}

fn ended(adjust: impl FnOnce(&mut AccessLogCommon, &mut HttpResponseProperties)) -> Outcome {
    match read(&entry(adjust)) {
        Ok(Report::Ended(TOKEN, outcome)) => outcome,
        other => panic!("not an end: {other:?}"),
    }
}

fn add(common: &mut AccessLogCommon, (name, fields): (String, Struct)) {
    let metadata = common.metadata.get_or_insert_default();
    metadata.filter_metadata.insert(name, fields);
}

fn flags(common: &mut AccessLogCommon, raise: impl FnOnce(&mut ResponseFlags)) {
    raise(common.response_flags.get_or_insert_default());
}

#[test]
fn request_that_went_well() {
    let outcome = ended(|_, _| {});
    assert_eq!(
        (&outcome.end, outcome.reason),
        (&End::Completed, EndReason::Completed)
    );
    assert_eq!(outcome.status, Some(200));
    assert_eq!(outcome.served.as_deref(), Some("10.0.0.1:8000"));
    assert_eq!(outcome.response_bytes, 11_043);
    let measured = Measured {
        ttft_us: Some(130_000),
        engine_ttft_us: Some(100_000),
        duration_us: Some(2_500_000),
        attempts: Some(1),
        details: Some("via_upstream".to_owned()),
    };
    assert_eq!(outcome.measured, measured);
}

#[test]
fn first_token_is_where_the_body_begins() {
    let tagged = |value: &str| {
        let value = value.to_owned();
        ended(|common, _| {
            common.custom_tags.insert(FIRST_BODY_TAG.to_owned(), value);
        })
    };
    let late = tagged("1030000").measured;
    assert_eq!(
        (late.ttft_us, late.engine_ttft_us),
        (Some(1_030_000), Some(1_000_000))
    );
    // What Envoy writes for a time that there is not: the head's time is no first token.
    for none in ["-", "", "-3", "1.5", "99999999999999999999999"] {
        let outcome = tagged(none);
        assert_eq!(outcome.measured.ttft_us, None, "{none}");
        assert_eq!(outcome.measured.engine_ttft_us, None, "{none}");
        assert_eq!(outcome.reason, EndReason::Completed, "{none}");
    }
    let running = entry(|common, _| {
        common.access_log_type = AccessLogType::DownstreamPeriodic.into();
        let tag = FIRST_BODY_TAG.to_owned();
        common.custom_tags.insert(tag, "-".to_owned());
    });
    match read(&running) {
        Ok(Report::Running(TOKEN, progress)) => assert_eq!(progress.ttft_us, None),
        other => panic!("{other:?}"),
    }
}

#[test]
fn balancers_own_word_for_the_endpoint_comes_first() {
    let served = ended(|common, _| {
        let told = [("x-gateway-destination-endpoint-served", text("[::1]:9000"))];
        add(common, namespace("envoy.lb", told));
    });
    assert_eq!(served.served.as_deref(), Some("[::1]:9000"));
    let v6 = ended(|common, _| common.upstream_remote_address = Some(address("fd00::1", 8000)));
    assert_eq!(v6.served.as_deref(), Some("[fd00::1]:8000"));
    let none = ended(|common, _| common.upstream_remote_address = None);
    assert_eq!(none.served, None);
}

type Adjust = fn(&mut AccessLogCommon, &mut HttpResponseProperties);

const CLIENT_IN_MID_STREAM: Adjust = |common, response| {
    flags(common, |flags| {
        flags.downstream_connection_termination = true;
    });
    response.response_code_details = "downstream_remote_disconnect".to_owned();
};

const CLIENT_BEFORE_THE_FIRST_BYTE: Adjust = |common, response| {
    flags(common, |flags| {
        flags.downstream_connection_termination = true;
    });
    common.time_to_first_upstream_rx_byte = None;
    response.response_code = None;
};

const UPSTREAM_DIES: Adjust = |common, response| {
    flags(common, |flags| flags.upstream_protocol_error = true);
    response.response_code_details =
        "upstream_reset_after_response_started{protocol_error}".to_owned();
};

const LOCAL_RATE_LIMIT: Adjust = |common, response| {
    flags(common, |flags| flags.rate_limited = true);
    common.time_to_first_upstream_rx_byte = None;
    common.upstream_request_attempt_count = 0;
    response.response_code = Some(UInt32Value { value: 429 });
    response.response_code_details = "local_rate_limited".to_owned();
};

const NO_HEALTHY_UPSTREAM: Adjust = |common, response| {
    common.time_to_first_upstream_rx_byte = None;
    response.response_code = Some(UInt32Value { value: 503 });
    response.response_code_details = "no_healthy_upstream".to_owned();
};

const UPSTREAM_500: Adjust = |_, response| {
    response.response_code = Some(UInt32Value { value: 500 });
};

const WITHOUT_DETAILS: Adjust = |_, response| response.response_code_details.clear();

#[test]
fn each_way_to_end_has_its_reason() {
    use EndReason::{ClientLeft, Completed, LocalReply, UpstreamDied};
    for (adjust, reason, status) in [
        (CLIENT_IN_MID_STREAM, ClientLeft, Some(200)),
        (CLIENT_BEFORE_THE_FIRST_BYTE, ClientLeft, None),
        (UPSTREAM_DIES, UpstreamDied, Some(200)),
        (LOCAL_RATE_LIMIT, LocalReply, Some(429)),
        (NO_HEALTHY_UPSTREAM, LocalReply, Some(503)),
        (UPSTREAM_500, Completed, Some(500)),
        (WITHOUT_DETAILS, Completed, Some(200)),
    ] {
        let outcome = ended(adjust);
        assert_eq!((outcome.reason, outcome.status), (reason, status));
        let is_whole = matches!(reason, Completed | LocalReply);
        assert_eq!(outcome.end == End::Completed, is_whole, "{reason:?}");
        assert_eq!(outcome.measured.duration_us, Some(2_500_000), "{reason:?}");
    }
}

#[test]
fn usage_comes_from_the_event_filter_or_from_the_token_counter() {
    let counted = TokenUsage {
        prompt_tokens: 70,
        completion_tokens: 10,
        cached_tokens: Some(64),
    };
    let filtered = ended(|common, _| {
        let fields = [
            ("prompt_tokens", Kind::NumberValue(70.0)),
            ("completion_tokens", Kind::NumberValue(10.0)),
            ("cached_tokens", Kind::NumberValue(64.0)),
        ];
        add(common, namespace("dev.pointsman.usage", fields));
    });
    assert_eq!(filtered.usage, Some(counted));

    let value = |value| Some(UInt64Value { value });
    let typed = ai::TokenUsage {
        input_tokens: value(70),
        output_tokens: value(10),
        input_token_details: Some(ai::InputTokenDetails {
            cached_tokens: value(64),
            ..ai::InputTokenDetails::default()
        }),
        ..ai::TokenUsage::default()
    };
    let counter = ended(|common, _| {
        let any = Any {
            type_url: "type.googleapis.com/envoy.data.ai.v3.TokenUsage".to_owned(),
            value: typed.encode_to_vec(),
        };
        let metadata = common.metadata.get_or_insert_default();
        metadata
            .typed_filter_metadata
            .insert("envoy.ai.token_usage".to_owned(), any);
    });
    assert_eq!(counter.usage, Some(counted));
    let nonsense = ended(|common, _| {
        let fields = [("prompt_tokens", Kind::NumberValue(f64::NAN))];
        add(common, namespace("dev.pointsman.usage", fields));
    });
    assert_eq!(nonsense.usage, None);
}

#[test]
fn periodic_entry_is_news_and_not_an_end() {
    let waiting = entry(|common, response| {
        common.access_log_type = AccessLogType::DownstreamPeriodic.into();
        common.time_to_first_upstream_rx_byte = None;
        response.response_body_bytes = 0;
    });
    let progress = Progress {
        duration_us: Some(2_500_000),
        ..Progress::default()
    };
    assert_eq!(read(&waiting), Ok(Report::Running(TOKEN, progress)));
    let running = entry(|common, _| {
        common.access_log_type = AccessLogType::DownstreamPeriodic.into();
    });
    let progress = Progress {
        ttft_us: Some(130_000),
        engine_ttft_us: Some(100_000),
        response_bytes: 11_043,
        ..progress
    };
    assert_eq!(read(&running), Ok(Report::Running(TOKEN, progress)));
}

#[test]
fn entries_that_are_not_ours_to_read_are_told_apart() {
    let start = entry(|common, _| common.access_log_type = AccessLogType::DownstreamStart.into());
    assert_eq!(read(&start), Ok(Report::Other));
    let untold = entry(|common, _| common.metadata = None);
    assert_eq!(read(&untold), Ok(Report::WithoutToken));
    assert_eq!(
        read(&HttpAccessLogEntry::default()),
        Err(Malformed::NoCommonProperties)
    );
    let broken = entry(|common, _| {
        add(
            common,
            namespace("dev.pointsman.epp", [("token", text("x"))]),
        );
    });
    assert_eq!(read(&broken), Err(Malformed::Token(NotAToken)));
    let number = entry(|common, _| {
        let token = [("token", Kind::NumberValue(1.0))];
        add(common, namespace("dev.pointsman.epp", token));
    });
    assert_eq!(read(&number), Err(Malformed::TokenIsNoText));
}

#[test]
fn negative_times_are_none() {
    let outcome = ended(|common, _| {
        common.duration = Some(Duration {
            seconds: -1,
            nanos: 0,
        });
        common.time_to_first_upstream_tx_byte = Some(ms(200));
    });
    assert_eq!(outcome.measured.duration_us, None);
    assert_eq!(
        outcome.measured.engine_ttft_us, None,
        "back before it was sent"
    );
}

fn varint(mut number: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while number > 0x7f {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
    bytes
}

/// A field of a number.
fn n(field: u64, value: u64) -> Vec<u8> {
    [varint(field << 3), varint(value)].concat()
}

/// A field of text or of a message.
fn m(field: u64, parts: &[&[u8]]) -> Vec<u8> {
    let payload = parts.concat();
    [
        varint(field << 3 | 2),
        varint(payload.len() as u64),
        payload,
    ]
    .concat()
}

/// An entry of `DownstreamEnd` as the gateway writes it.
fn golden() -> Vec<u8> {
    let token = m(3, &[b"0000000000000abc-7"]);
    let field = m(1, &[&m(1, &[b"token"]), &m(2, &[&token])]);
    let namespace = m(1, &[&m(1, &[b"dev.pointsman.epp"]), &m(2, &[&field])]);
    let socket = m(1, &[&m(2, &[b"10.0.0.1"]), &n(3, 8000)]);
    let common = m(
        1,
        &[
            &m(7, &[&n(2, 30_000_000)]),
            &m(9, &[&n(2, 130_000_000)]),
            &m(13, &[&socket]),
            &m(17, &[&namespace]),
            &m(23, &[&n(1, 2), &n(2, 500_000_000)]),
            &n(24, 1),
            &n(33, 6),
        ],
    );
    let response = m(
        4,
        &[
            &m(1, &[&n(1, 200)]),
            &n(3, 11_043),
            &m(6, &[b"via_upstream"]),
        ],
    );
    m(2, &[&m(1, &[&common, &response])])
}

#[test]
fn end_entry_has_these_bytes() {
    let golden = golden();
    let message = StreamAccessLogsMessage::decode(golden.as_slice()).expect("a message");
    let Some(LogEntries::HttpLogs(entries)) = &message.log_entries else {
        panic!("entries of HTTP requests");
    };
    assert_eq!(entries.log_entry, [entry(|_, _| {})]);
    assert_eq!(message.encode_to_vec(), golden);
}

proptest! {
    /// Whatever a gateway, or somebody who plays one, sends.
    #[test]
    fn any_bytes_are_read_or_refused(flip in 0_usize..200, with in any::<u8>(), cut in 0_usize..200) {
        let mut bytes = golden();
        let at = flip % bytes.len();
        bytes[at] ^= with;
        bytes.truncate(bytes.len() - cut % bytes.len());
        if let Ok(message) = StreamAccessLogsMessage::decode(bytes.as_slice())
            && let Some(LogEntries::HttpLogs(entries)) = &message.log_entries
        {
            for entry in &entries.log_entry {
                let _ = read(entry);
            }
        }
    }
}
