//! Entries of Envoy's gRPC access log, read into what the picker wants to know.
//!
//! Where the picker closes its stream with the request's last answer, the gateway reports each
//! request once, within a millisecond of its end, and long ones at intervals. The entry carries our
//! lease token in the request's dynamic metadata. A client's `x-request-id` would not do as the key,
//! because clients repeat it.
//!
//! What to know about entries, all seen on real gateways:
//! - Only `DownstreamEnd` ends a request. `DownstreamPeriodic` is news of one that runs;
//!   `DownstreamStart` comes before the picker was asked and tells nothing.
//! - Times to the last byte are absent when the client or the endpoint broke off; `duration` is
//!   always there.
//! - Envoy counts the time to the first byte from the first byte of the request, queueing in the
//!   picker included, and it is the time of the response's head. Workers send that when they have
//!   taken the request, long before the first token, so the templates add a tag with the time of
//!   the first byte of the body ([`FIRST_BODY_TAG`]). Without the tag the head's time stands in.
//! - Without a token are requests that were never routed: the stream has reported those itself.
//!
//! Reading is pure; the service beside it ([`service`]) owns the stream.

pub mod service;
#[cfg(test)]
mod tests;

use std::net::IpAddr;

use envoy_types::pb::envoy::config::core::v3::{
    Address, Metadata, address, socket_address::PortSpecifier,
};
use envoy_types::pb::envoy::data::accesslog::v3::{
    AccessLogCommon, AccessLogType, HttpAccessLogEntry, ResponseFlags,
};
use envoy_types::pb::envoy::data::ai::v3 as ai;
use envoy_types::pb::google::protobuf::{Duration, UInt64Value, Value, value::Kind};
use pointsman_proto::headers;
use prost::Message;

use super::lease::{LeaseToken, NotAToken};
use super::outcome::{End, EndReason, Measured, Outcome, Progress};
use super::usage::TokenUsage;

/// The tag of an entry that says after how many microseconds the body began. While it has not, its
/// value is none.
pub const FIRST_BODY_TAG: &str = "dev.pointsman.first_body_us";

/// One entry, as far as it concerns the picker.
#[derive(Clone, Debug, PartialEq)]
pub enum Report {
    /// A request of this token ended.
    Ended(LeaseToken, Outcome),
    /// A request of this token runs.
    Running(LeaseToken, Progress),
    /// No token: a request that was never routed by a picker.
    WithoutToken,
    /// An entry of another kind.
    Other,
}

/// An entry that makes no sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    #[error("an access-log entry without common properties")]
    NoCommonProperties,
    #[error("the lease token of an access-log entry is not text")]
    TokenIsNoText,
    #[error("the lease token of an access-log entry is broken: {0}")]
    Token(#[from] NotAToken),
}

/// Reads an entry.
pub fn read(entry: &HttpAccessLogEntry) -> Result<Report, Malformed> {
    let common = entry
        .common_properties
        .as_ref()
        .ok_or(Malformed::NoCommonProperties)?;
    let is_end = match common.access_log_type() {
        AccessLogType::DownstreamEnd => true,
        AccessLogType::DownstreamPeriodic => false,
        _ => return Ok(Report::Other),
    };
    let Some(token) = token(common)? else {
        return Ok(Report::WithoutToken);
    };
    if is_end {
        return Ok(Report::Ended(token, outcome(entry, common)));
    }
    let response = entry.response.as_ref();
    Ok(Report::Running(
        token,
        Progress {
            ttft_us: first_token_us(common),
            engine_ttft_us: engine_ttft_us(common),
            duration_us: common.duration.and_then(micros),
            response_bytes: response.map_or(0, |response| response.response_body_bytes),
        },
    ))
}

fn token(common: &AccessLogCommon) -> Result<Option<LeaseToken>, Malformed> {
    let value = field(
        common.metadata.as_ref(),
        headers::PICKER_METADATA_NAMESPACE,
        headers::LEASE_TOKEN,
    );
    match value {
        None => Ok(None),
        Some(Kind::StringValue(text)) => Ok(Some(text.parse()?)),
        Some(_) => Err(Malformed::TokenIsNoText),
    }
}

fn outcome(entry: &HttpAccessLogEntry, common: &AccessLogCommon) -> Outcome {
    let response = entry.response.as_ref();
    let code = response.and_then(|response| response.response_code);
    let details = response.map(|response| response.response_code_details.as_str());
    let details = details.filter(|details| !details.is_empty());
    let has_first_byte = common.time_to_first_upstream_rx_byte.is_some();
    let reason = end_reason(common, details, has_first_byte);
    let end = match reason {
        EndReason::Completed | EndReason::LocalReply => End::Completed,
        _ => End::Aborted,
    };
    Outcome {
        reason,
        status: code.and_then(|code| u16::try_from(code.value).ok()),
        served: served(common),
        usage: usage(common.metadata.as_ref()),
        response_bytes: response.map_or(0, |response| response.response_body_bytes),
        measured: Measured {
            ttft_us: first_token_us(common),
            engine_ttft_us: engine_ttft_us(common),
            duration_us: common.duration.and_then(micros),
            attempts: Some(common.upstream_request_attempt_count),
            details: details.map(str::to_owned),
        },
        ..Outcome::new(end)
    }
}

/// Flags come first, because details are words that change between versions. An answer without a
/// byte from an endpoint is the gateway's own.
fn end_reason(common: &AccessLogCommon, details: Option<&str>, has_first_byte: bool) -> EndReason {
    let none = ResponseFlags::default();
    let flags = common.response_flags.as_ref().unwrap_or(&none);
    let details = details.unwrap_or_default();
    let client_left = flags.downstream_connection_termination
        || flags.downstream_remote_reset
        || flags.downstream_protocol_error
        || details.starts_with("downstream_remote_disconnect");
    let upstream_died = flags.upstream_connection_failure
        || flags.upstream_connection_termination
        || flags.upstream_remote_reset
        || flags.upstream_protocol_error
        || details.starts_with("upstream_reset_");
    if client_left {
        EndReason::ClientLeft
    } else if upstream_died {
        EndReason::UpstreamDied
    } else if details == "via_upstream" || (details.is_empty() && has_first_byte) {
        EndReason::Completed
    } else {
        EndReason::LocalReply
    }
}

/// The balancer's own word where it has one, else the last address that was connected to.
fn served(common: &AccessLogCommon) -> Option<String> {
    let told = field(
        common.metadata.as_ref(),
        headers::METADATA_NAMESPACE,
        headers::DESTINATION_ENDPOINT_SERVED,
    );
    match told {
        Some(Kind::StringValue(endpoint)) if !endpoint.is_empty() => Some(endpoint.clone()),
        _ => common.upstream_remote_address.as_ref().and_then(endpoint),
    }
}

fn endpoint(address: &Address) -> Option<String> {
    let Some(address::Address::SocketAddress(socket)) = &address.address else {
        return None;
    };
    let Some(PortSpecifier::PortValue(port)) = socket.port_specifier else {
        return None;
    };
    match socket.address.parse() {
        Ok(IpAddr::V6(ip)) => Some(format!("[{ip}]:{port}")),
        Ok(IpAddr::V4(ip)) => Some(format!("{ip}:{port}")),
        Err(_) => None,
    }
}

/// Envoy's own counter is exact at a clean end and absent at any other; the event filter's counts
/// are there at both.
fn usage(metadata: Option<&Metadata>) -> Option<TokenUsage> {
    let typed = metadata?
        .typed_filter_metadata
        .get(headers::AI_TOKEN_USAGE_NAMESPACE);
    let typed = typed.and_then(|any| ai::TokenUsage::decode(any.value.as_slice()).ok());
    typed.and_then(|usage| typed_usage(&usage)).or_else(|| {
        let tokens = |key: &str| number(field(metadata, headers::USAGE_METADATA_NAMESPACE, key));
        Some(TokenUsage {
            prompt_tokens: tokens("prompt_tokens").or_else(|| tokens("input_tokens"))?,
            completion_tokens: tokens("completion_tokens")
                .or_else(|| tokens("output_tokens"))
                .unwrap_or(0),
            cached_tokens: tokens("cached_tokens"),
        })
    })
}

fn typed_usage(usage: &ai::TokenUsage) -> Option<TokenUsage> {
    let value = |tokens: &UInt64Value| tokens.value;
    let details = usage.input_token_details.as_ref();
    Some(TokenUsage {
        prompt_tokens: usage.input_tokens.as_ref().map(value)?,
        completion_tokens: usage.output_tokens.as_ref().map_or(0, value),
        cached_tokens: details.and_then(|details| details.cached_tokens.as_ref().map(value)),
    })
}

/// Metadata numbers are doubles. What is no count is none.
fn number(value: Option<&Kind>) -> Option<u64> {
    match value? {
        Kind::NumberValue(number) if number.is_finite() && *number >= 0.0 => Some(*number as u64),
        _ => None,
    }
}

fn field<'a>(metadata: Option<&'a Metadata>, namespace: &str, key: &str) -> Option<&'a Kind> {
    let value: &Value = metadata?.filter_metadata.get(namespace)?.fields.get(key)?;
    value.kind.as_ref()
}

/// From the request's first byte to the first token.
fn first_token_us(common: &AccessLogCommon) -> Option<u64> {
    match common.custom_tags.get(FIRST_BODY_TAG) {
        Some(time) => time.parse().ok(),
        None => common.time_to_first_upstream_rx_byte.and_then(micros),
    }
}

fn engine_ttft_us(common: &AccessLogCommon) -> Option<u64> {
    let sent = common.time_to_first_upstream_tx_byte.and_then(micros)?;
    first_token_us(common)?.checked_sub(sent)
}

/// Microseconds; `None` for a negative time.
fn micros(duration: Duration) -> Option<u64> {
    let seconds = u64::try_from(duration.seconds).ok()?;
    let nanos = u64::try_from(duration.nanos).ok()?;
    seconds.checked_mul(1_000_000)?.checked_add(nanos / 1_000)
}
