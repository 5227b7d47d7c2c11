//! What becomes of a request here: the label that counts it, and the answer when it is refused.
//!
//! [`Cause`] says what happened in the controller's own terms; [`Outcome`] is the field's label
//! for it and [`FlowRefusal`] the field's answer. The table between them stands here and nowhere
//! else.

use serde::Serialize;

/// The values of the label `outcome` of `flow_control_requests_total`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize)]
pub enum Outcome {
    Dispatched,
    RejectedCapacity,
    RejectedNoEndpoints,
    RejectedOther,
    #[serde(rename = "EvictedTTL")]
    EvictedTtl,
    EvictedNoEndpoints,
    EvictedContextCancelled,
    EvictedOther,
}

impl Outcome {
    /// In the order of their positions in arrays of counts.
    pub const ALL: [Self; 8] = [
        Self::Dispatched,
        Self::RejectedCapacity,
        Self::RejectedNoEndpoints,
        Self::RejectedOther,
        Self::EvictedTtl,
        Self::EvictedNoEndpoints,
        Self::EvictedContextCancelled,
        Self::EvictedOther,
    ];

    /// The label's value.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Dispatched => "Dispatched",
            Self::RejectedCapacity => "RejectedCapacity",
            Self::RejectedNoEndpoints => "RejectedNoEndpoints",
            Self::RejectedOther => "RejectedOther",
            Self::EvictedTtl => "EvictedTTL",
            Self::EvictedNoEndpoints => "EvictedNoEndpoints",
            Self::EvictedContextCancelled => "EvictedContextCancelled",
            Self::EvictedOther => "EvictedOther",
        }
    }
}

/// Why a request is refused, put out of its queue, or stopped in flight.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Cause {
    /// Flow control is off, the pool is saturated and the request is sheddable.
    Sheddable,
    /// Its band or the whole controller holds as much as it may.
    Full,
    /// The same while the pool has no endpoint.
    FullWithoutEndpoints,
    /// It waited for as long as it may.
    Expired,
    /// The same, by a bound of the request's own, while the pool has no endpoint.
    ExpiredWithoutEndpoints,
    /// It waited for an endpoint for as long as it may.
    NoEndpoints,
    /// Its client went away while it waited.
    Cancelled,
    /// It came after the shut-down began.
    ShuttingDown,
    /// It waited when the shut-down began.
    ShutDown,
    /// It waited, and a request of higher priority needed its room.
    QueuePressure,
    /// It was in flight, and a request of higher priority waits for its room.
    Priority,
}

/// How a refused request is answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{message}")]
pub struct FlowRefusal {
    pub outcome: Outcome,
    /// HTTP status: 429 or 503.
    pub status: u16,
    /// Value of the response header `x-llm-d-request-dropped-reason`.
    pub reason: &'static str,
    pub message: &'static str,
}

impl From<Cause> for FlowRefusal {
    fn from(cause: Cause) -> Self {
        const SATURATED: &str = "rejected-saturated";
        const NO_ENDPOINTS: &str = "rejected-no-endpoints";
        const EXPIRED: &str = "rejected-ttl-expired";
        const SHUTTING_DOWN: &str = "rejected-shutting-down";
        use Outcome as O;
        let (outcome, status, reason, message) = match cause {
            Cause::Sheddable => (
                O::RejectedCapacity,
                429,
                SATURATED,
                "system saturated, sheddable request dropped",
            ),
            Cause::Full => (O::RejectedCapacity, 429, SATURATED, "the queue is full"),
            Cause::FullWithoutEndpoints => (
                O::RejectedNoEndpoints,
                503,
                NO_ENDPOINTS,
                "the pool has no endpoint and the queue is full",
            ),
            Cause::Expired => (
                O::EvictedTtl,
                429,
                EXPIRED,
                "the request waited for its turn for as long as it may",
            ),
            Cause::ExpiredWithoutEndpoints => (
                O::EvictedTtl,
                503,
                EXPIRED,
                "the request waited for as long as it may while the pool has no endpoint",
            ),
            Cause::NoEndpoints => (
                O::EvictedNoEndpoints,
                503,
                NO_ENDPOINTS,
                "the request waited for an endpoint for as long as it may",
            ),
            Cause::Cancelled => (
                O::EvictedContextCancelled,
                503,
                "rejected-context-cancelled",
                "the client went away",
            ),
            Cause::ShuttingDown => (O::RejectedOther, 503, SHUTTING_DOWN, "shutting down"),
            Cause::ShutDown => (O::EvictedOther, 503, SHUTTING_DOWN, "shutting down"),
            Cause::QueuePressure => (
                O::EvictedOther,
                429,
                "evicted-queue-pressure",
                "request evicted by flow control",
            ),
            Cause::Priority => (
                O::EvictedOther,
                429,
                "evicted-priority",
                "request evicted by flow control",
            ),
        };
        Self {
            outcome,
            status,
            reason,
            message,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcomes_are_counted_at_their_places_and_shown_by_their_labels() {
        for (place, outcome) in Outcome::ALL.into_iter().enumerate() {
            assert_eq!(outcome as usize, place);
            assert_eq!(serde_json::to_value(outcome).unwrap(), outcome.label());
        }
    }

    #[test]
    fn causes_are_answered_as_the_field_answers_them() {
        let answers = [
            (Cause::Full, "RejectedCapacity 429 rejected-saturated"),
            (
                Cause::FullWithoutEndpoints,
                "RejectedNoEndpoints 503 rejected-no-endpoints",
            ),
            (Cause::Expired, "EvictedTTL 429 rejected-ttl-expired"),
            (
                Cause::ExpiredWithoutEndpoints,
                "EvictedTTL 503 rejected-ttl-expired",
            ),
            (
                Cause::NoEndpoints,
                "EvictedNoEndpoints 503 rejected-no-endpoints",
            ),
            (
                Cause::Cancelled,
                "EvictedContextCancelled 503 rejected-context-cancelled",
            ),
            (
                Cause::ShuttingDown,
                "RejectedOther 503 rejected-shutting-down",
            ),
            (Cause::ShutDown, "EvictedOther 503 rejected-shutting-down"),
            (
                Cause::QueuePressure,
                "EvictedOther 429 evicted-queue-pressure",
            ),
            (Cause::Priority, "EvictedOther 429 evicted-priority"),
        ];
        for (cause, expected) in answers {
            let answer = FlowRefusal::from(cause);
            let told = format!(
                "{} {} {}",
                answer.outcome.label(),
                answer.status,
                answer.reason
            );
            assert_eq!(told, expected);
        }
    }
}
