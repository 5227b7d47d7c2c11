//! Everything that can be wrong with a request, as one status and one body.
//!
//! The body is vLLM's: message, type, the field at fault, and the status once more. This file is the only place
//! where an error of another room becomes an HTTP status.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use pointsman_proto::openai::{ErrorBody, PromptShapeError};
use pointsman_proto::prompt::PromptError;

use crate::scheduler::{Finish, Refused};
use crate::worker::SubmitError;

/// Seconds after which a refused client may ask again. A queue moves within a second; a draining worker never
/// comes back, but by then the client's gateway knows.
const RETRY_AFTER_S: u32 = 1;

/// A refusal, ready to be sent.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ApiError {
    body: Box<ErrorBody>,
    retry_after_s: Option<u32>,
}

impl ApiError {
    pub(super) fn new(body: ErrorBody) -> Self {
        Self {
            body: Box::new(body),
            retry_after_s: None,
        }
    }

    /// 400 with the field at fault; the message begins with its name.
    pub(super) fn field(field: &str, problem: impl std::fmt::Display) -> Self {
        Self::new(ErrorBody::bad_request(
            format!("{field} {problem}"),
            Some(field),
        ))
    }

    /// 400 without a field.
    pub(super) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(ErrorBody::bad_request(message, None))
    }

    /// 503: the queue is full, try again.
    pub(super) fn overloaded(message: impl Into<String>) -> Self {
        Self {
            retry_after_s: Some(RETRY_AFTER_S),
            ..Self::new(ErrorBody::overloaded(message))
        }
    }

    /// 503: this worker takes no work any more.
    pub(super) fn unavailable(message: impl Into<String>) -> Self {
        Self {
            retry_after_s: Some(RETRY_AFTER_S),
            ..Self::new(ErrorBody::unavailable(message))
        }
    }

    /// 500: the request was fine.
    pub(super) fn internal(message: impl Into<String>) -> Self {
        Self::new(ErrorBody::internal(message))
    }

    /// What a request that ended without an answer comes to.
    pub(super) fn ended(finish: &Finish) -> Self {
        match finish {
            Finish::Error(reason) => Self::internal(reason.clone()),
            Finish::Abort => Self::unavailable("the request was aborted"),
            Finish::Deadline => Self::new(ErrorBody::timeout(
                "the request did not end before its deadline",
            )),
            Finish::Stop { .. } | Finish::Length => {
                Self::internal("the request ended without an answer")
            }
        }
    }

    /// What is sent.
    pub(super) fn into_body(self) -> ErrorBody {
        *self.body
    }

    #[cfg(test)]
    pub(super) fn body(&self) -> &ErrorBody {
        &self.body
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let status =
            StatusCode::from_u16(self.body.error.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, Json(&*self.body)).into_response();
        if let Some(seconds) = self.retry_after_s {
            response
                .headers_mut()
                .insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

impl From<PromptShapeError> for ApiError {
    fn from(error: PromptShapeError) -> Self {
        Self::new(ErrorBody::from(&error))
    }
}

impl From<PromptError> for ApiError {
    fn from(error: PromptError) -> Self {
        if error.is_request_fault() {
            Self::bad_request(error.to_string())
        } else {
            Self::internal(error.to_string())
        }
    }
}

impl From<SubmitError> for ApiError {
    fn from(error: SubmitError) -> Self {
        match error {
            SubmitError::QueueFull { retry_after, .. } => Self {
                retry_after_s: u32::try_from(retry_after.as_secs()).ok(),
                ..Self::overloaded(error.to_string())
            },
            SubmitError::Draining | SubmitError::Unhealthy => Self::unavailable(error.to_string()),
            SubmitError::Refused(refused) => Self::from(refused),
            SubmitError::NoSuchRank { .. } => Self::bad_request(error.to_string()),
        }
    }
}

impl From<Refused> for ApiError {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::PromptTooLong { .. } | Refused::CannotFit { .. } => {
                Self::bad_request(format!("{refused}; shorten the messages or the prompt"))
            }
            Refused::PriorityNotEnabled { .. } => Self::new(ErrorBody::bad_request(
                refused.to_string(),
                Some("priority"),
            )),
            Refused::PromptEmpty | Refused::UnknownToken { .. } => {
                Self::bad_request(refused.to_string())
            }
        }
    }
}
