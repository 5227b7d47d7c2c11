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
    pub dropped_reason: Option<DroppedReason>,
    /// Further response headers, such as `retry-after`, with lower-case names.
    pub headers: Vec<(&'static str, String)>,
}

/// The field's error codes, each with one HTTP status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RefusalCode {
    BadRequest,
    Unauthorized,
    Forbidden,
    NotFound,
    PreconditionFailed,
    PayloadTooLarge,
    ResourceExhausted,
    Internal,
    ServiceUnavailable,
}

impl RefusalCode {
    /// Every code, in the order of its status.
    pub const ALL: [Self; 9] = [
        Self::BadRequest,
        Self::Unauthorized,
        Self::Forbidden,
        Self::NotFound,
        Self::PreconditionFailed,
        Self::PayloadTooLarge,
        Self::ResourceExhausted,
        Self::Internal,
        Self::ServiceUnavailable,
    ];

    /// The name in the body text and in the `error_code` label.
    pub fn name(self) -> &'static str {
        match self {
            Self::BadRequest => "BadRequest",
            Self::Unauthorized => "Unauthorized",
            Self::Forbidden => "Forbidden",
            Self::NotFound => "NotFound",
            Self::PreconditionFailed => "PreconditionFailed",
            Self::PayloadTooLarge => "PayloadTooLarge",
            Self::ResourceExhausted => "ResourceExhausted",
            Self::Internal => "Internal",
            Self::ServiceUnavailable => "ServiceUnavailable",
        }
    }

    pub fn http_status(self) -> u16 {
        match self {
            Self::BadRequest => 400,
            Self::Unauthorized => 401,
            Self::Forbidden => 403,
            Self::NotFound => 404,
            Self::PreconditionFailed => 412,
            Self::PayloadTooLarge => 413,
            Self::ResourceExhausted => 429,
            Self::Internal => 500,
            Self::ServiceUnavailable => 503,
        }
    }
}

/// Values of the `x-llm-d-request-dropped-reason` response header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DroppedReason {
    /// No room in the pool or in its queue.
    RejectedSaturated,
    /// Nothing to pick from.
    RejectedNoEndpoints,
    /// It waited for too long.
    RejectedTtlExpired,
    /// Its client went away while it waited.
    RejectedContextCancelled,
    /// The picker is going away.
    RejectedShuttingDown,
    /// Taken off its endpoint while it ran.
    Evicted,
    /// Taken out of the queue for room.
    EvictedQueuePressure,
    /// Taken out for a request of higher priority.
    EvictedPriority,
}

impl DroppedReason {
    /// The header's value.
    pub fn value(self) -> &'static str {
        match self {
            Self::RejectedSaturated => "rejected-saturated",
            Self::RejectedNoEndpoints => "rejected-no-endpoints",
            Self::RejectedTtlExpired => "rejected-ttl-expired",
            Self::RejectedContextCancelled => "rejected-context-cancelled",
            Self::RejectedShuttingDown => "rejected-shutting-down",
            Self::Evicted => "evicted",
            Self::EvictedQueuePressure => "evicted-queue-pressure",
            Self::EvictedPriority => "evicted-priority",
        }
    }

    /// Whether the request was in once and then taken out.
    fn is_eviction(self) -> bool {
        matches!(
            self,
            Self::Evicted | Self::EvictedQueuePressure | Self::EvictedPriority
        )
    }
}

impl Refusal {
    /// A request that is wrong, or that its sender may not make.
    pub fn new(code: RefusalCode, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            dropped_reason: None,
            headers: Vec::new(),
        }
    }

    /// The request itself is wrong.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(RefusalCode::BadRequest, message)
    }

    /// A request that was dropped.
    pub fn dropped(code: RefusalCode, reason: DroppedReason, message: impl Into<String>) -> Self {
        Self {
            dropped_reason: Some(reason),
            ..Self::new(code, message)
        }
    }

    /// With one more response header; the name is in lower case.
    #[must_use]
    pub fn with_header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    /// The body is larger than the picker holds.
    pub fn too_large(limit_bytes: usize) -> Self {
        Self::new(
            RefusalCode::PayloadTooLarge,
            format!("request body is larger than the limit of {limit_bytes} bytes"),
        )
    }

    /// The pool is saturated and the request may be shed.
    pub fn saturated() -> Self {
        Self::dropped(
            RefusalCode::ResourceExhausted,
            DroppedReason::RejectedSaturated,
            "system saturated, sheddable request dropped",
        )
    }

    /// The bodies of other requests take all the memory there is for them.
    pub fn no_memory() -> Self {
        Self::dropped(
            RefusalCode::ServiceUnavailable,
            DroppedReason::RejectedSaturated,
            "too many request bytes are held, try again later",
        )
    }

    /// No endpoint may serve the request: the pool is empty, or nothing of the subset hint is in
    /// it.
    pub fn no_endpoints() -> Self {
        Self::dropped(
            RefusalCode::ServiceUnavailable,
            DroppedReason::RejectedNoEndpoints,
            "failed to find endpoint candidates for serving the request",
        )
    }

    /// The decision took longer than `--decision-timeout`.
    pub fn decision_timed_out() -> Self {
        Self::dropped(
            RefusalCode::ServiceUnavailable,
            DroppedReason::RejectedTtlExpired,
            "no endpoint was picked before the decision timeout",
        )
    }

    /// The picker goes away while the request waits.
    pub fn shutting_down() -> Self {
        Self::dropped(
            RefusalCode::ServiceUnavailable,
            DroppedReason::RejectedShuttingDown,
            "the endpoint picker is shutting down",
        )
    }

    /// Taken off its endpoint before its response began, or out of the queue.
    pub fn evicted(reason: DroppedReason) -> Self {
        Self::dropped(
            RefusalCode::ResourceExhausted,
            reason,
            "request evicted by flow control",
        )
    }

    /// The body of the answer: the field's text form, and for an eviction the bare message.
    pub fn body(&self) -> String {
        if self.dropped_reason.is_some_and(DroppedReason::is_eviction) {
            self.message.clone()
        } else {
            self.to_string()
        }
    }
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
    fn eviction_is_the_bare_message() {
        let evicted = Refusal::evicted(DroppedReason::Evicted);
        assert_eq!(evicted.body(), "request evicted by flow control");
        assert_eq!(evicted.code.http_status(), 429);
        assert_eq!(
            Refusal::no_endpoints().body(),
            Refusal::no_endpoints().to_string()
        );
    }

    #[test]
    fn each_code_has_its_status() {
        let statuses = [400, 401, 403, 404, 412, 413, 429, 500, 503];
        for (code, status) in RefusalCode::ALL.into_iter().zip(statuses) {
            assert_eq!(code.http_status(), status, "{}", code.name());
        }
    }
}
