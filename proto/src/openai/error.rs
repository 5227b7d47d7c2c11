//! Error bodies, and the errors of a request's shape.

use serde::{Deserialize, Serialize};

use crate::prompt::MessagesError;

/// The body of every response with an error status, and of an error in the middle of a stream.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ErrorBody {
    /// The error.
    pub error: ErrorDetail,
}

/// What went wrong. `param` is written as `null` where no field is at fault, as vLLM does.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ErrorDetail {
    /// For a person.
    pub message: String,
    /// For a program, such as `BadRequestError`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The request field at fault.
    #[serde(default)]
    pub param: Option<String>,
    /// The HTTP status.
    pub code: u16,
}

impl ErrorBody {
    /// An error of any kind; the constructors below give the kinds that vLLM has.
    pub fn new(code: u16, kind: &str, message: impl Into<String>, param: Option<&str>) -> Self {
        Self {
            error: ErrorDetail {
                message: message.into(),
                kind: kind.to_owned(),
                param: param.map(str::to_owned),
                code,
            },
        }
    }

    /// 400: the request is wrong, in `param` if one field is to blame.
    pub fn bad_request(message: impl Into<String>, param: Option<&str>) -> Self {
        Self::new(400, "BadRequestError", message, param)
    }

    /// 404: no such model.
    pub fn not_found_model(name: &str) -> Self {
        let message = format!("The model `{name}` does not exist.");
        Self::new(404, "NotFoundError", message, Some("model"))
    }

    /// 404: anything else that is not there.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(404, "NotFoundError", message, None)
    }

    /// 405: something is there, and not for this method.
    pub fn method_not_allowed(message: impl Into<String>) -> Self {
        Self::new(405, "Method Not Allowed", message, None)
    }

    /// 408: the client did not finish its request.
    pub fn request_timeout(message: impl Into<String>) -> Self {
        Self::new(408, "Request Timeout", message, None)
    }

    /// 504: the time that the request had is over.
    pub fn timeout(message: impl Into<String>) -> Self {
        Self::new(504, "Gateway Timeout", message, None)
    }

    /// 413: the body passes the limit.
    pub fn too_large(message: impl Into<String>) -> Self {
        Self::new(413, "RequestEntityTooLarge", message, None)
    }

    /// 500: the worker failed.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(500, "InternalServerError", message, None)
    }

    /// 501: a field that is understood and not supported.
    pub fn not_implemented(message: impl Into<String>, param: Option<&str>) -> Self {
        Self::new(501, "NotImplementedError", message, param)
    }

    /// 503: not here and not now; another worker may.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(503, "ServiceUnavailableError", message, None)
    }

    /// 503: the queue is full.
    pub fn overloaded(message: impl Into<String>) -> Self {
        Self::new(503, "Service Unavailable", message, None)
    }
}

impl From<&PromptShapeError> for ErrorBody {
    fn from(error: &PromptShapeError) -> Self {
        Self::bad_request(error.to_string(), Some(&error.param()))
    }
}

/// Why a request means no prompt.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PromptShapeError {
    /// The conversation is none.
    #[error(transparent)]
    Messages(#[from] MessagesError),
    /// A completion without a prompt.
    #[error("prompt is required")]
    NoPrompt,
    /// A list of no prompts, or a prompt of no tokens.
    #[error("prompt must not be empty")]
    EmptyPrompt,
    /// One of several prompts holds no tokens.
    #[error("prompt[{index}] must not be empty")]
    EmptyPromptAt {
        /// Its position.
        index: usize,
    },
    /// The functions are no array of objects.
    #[error("tools must be an array of objects")]
    Tools,
}

impl PromptShapeError {
    /// The request field at fault, such as `messages[2].role`.
    pub fn param(&self) -> String {
        match self {
            Self::Messages(error) => error.param(),
            Self::NoPrompt | Self::EmptyPrompt => "prompt".to_owned(),
            Self::EmptyPromptAt { index } => format!("prompt[{index}]"),
            Self::Tools => "tools".to_owned(),
        }
    }
}
