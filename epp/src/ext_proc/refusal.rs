//! Why a request gets an answer from the picker instead of from an endpoint.
//!
//! The status, the text body `inference error: <Code> - <message>` and the
//! `x-llm-d-request-dropped-reason` header are the field's, so that clients and dashboards written
//! against another picker go on working. Where the field answers 500 to a request that no endpoint
//! can serve, this picker answers 503: the fault is the pool's and passing.

/// An answer in place of a pick. It becomes one `ImmediateResponse` and ends the stream.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("inference error: {} - {message}", code.name())]
pub struct Refusal {
    pub code: RefusalCode,
    /// What went wrong, for the person who sent the request: one sentence, lower case, no full
    /// stop.
    pub message: String,
    /// Value of the `x-llm-d-request-dropped-reason` response header, for requests that were
    /// dropped rather than wrong.
    pub dropped_reason: Option<&'static str>,
}

/// The field's error codes, each with one HTTP status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RefusalCode {
    BadRequest,
    PayloadTooLarge,
    ResourceExhausted,
    Internal,
    ServiceUnavailable,
}

impl RefusalCode {
    /// The name in the body text and in the `error_code` label.
    pub fn name(self) -> &'static str {
        match self {
            Self::BadRequest => "BadRequest",
            Self::PayloadTooLarge => "PayloadTooLarge",
            Self::ResourceExhausted => "ResourceExhausted",
            Self::Internal => "Internal",
            Self::ServiceUnavailable => "ServiceUnavailable",
        }
    }

    pub fn http_status(self) -> u16 {
        match self {
            Self::BadRequest => 400,
            Self::PayloadTooLarge => 413,
            Self::ResourceExhausted => 429,
            Self::Internal => 500,
            Self::ServiceUnavailable => 503,
        }
    }
}

impl Refusal {
    /// The request itself is wrong.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self {
            code: RefusalCode::BadRequest,
            message: message.into(),
            dropped_reason: None,
        }
    }

    /// The body is larger than the picker holds.
    pub fn too_large(limit_bytes: usize) -> Self {
        Self {
            code: RefusalCode::PayloadTooLarge,
            message: format!("request body is larger than the limit of {limit_bytes} bytes"),
            dropped_reason: None,
        }
    }

    /// The pool is saturated and the request may be shed.
    pub fn saturated() -> Self {
        Self {
            code: RefusalCode::ResourceExhausted,
            message: "system saturated, sheddable request dropped".to_owned(),
            dropped_reason: Some(dropped_reason::SATURATED),
        }
    }

    /// No endpoint may serve the request: the pool is empty, or nothing of the subset hint is in
    /// it.
    pub fn no_endpoints() -> Self {
        Self {
            code: RefusalCode::ServiceUnavailable,
            message: "failed to find endpoint candidates for serving the request".to_owned(),
            dropped_reason: Some(dropped_reason::NO_ENDPOINTS),
        }
    }

    /// The decision took longer than `--decision-timeout`.
    pub fn decision_timed_out() -> Self {
        Self {
            code: RefusalCode::ServiceUnavailable,
            message: "no endpoint was picked before the decision timeout".to_owned(),
            dropped_reason: Some(dropped_reason::TTL_EXPIRED),
        }
    }
}

/// Values of the `x-llm-d-request-dropped-reason` response header.
mod dropped_reason {
    pub(super) const SATURATED: &str = "rejected-saturated";
    pub(super) const NO_ENDPOINTS: &str = "rejected-no-endpoints";
    pub(super) const TTL_EXPIRED: &str = "rejected-ttl-expired";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_the_fields() {
        assert_eq!(
            Refusal::bad_request("model not found in request body").to_string(),
            "inference error: BadRequest - model not found in request body"
        );
        assert_eq!(
            Refusal::no_endpoints().to_string(),
            "inference error: ServiceUnavailable - failed to find endpoint candidates for serving the request"
        );
    }

    #[test]
    fn each_code_has_its_status() {
        let statuses = [
            (RefusalCode::BadRequest, 400),
            (RefusalCode::PayloadTooLarge, 413),
            (RefusalCode::ResourceExhausted, 429),
            (RefusalCode::Internal, 500),
            (RefusalCode::ServiceUnavailable, 503),
        ];
        for (code, status) in statuses {
            assert_eq!(code.http_status(), status, "{}", code.name());
        }
    }
}
