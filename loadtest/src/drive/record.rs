//! What became of one request. All times count from the start of the run, in seconds.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::client::StreamError;

/// Why a request counts as failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ErrorClass {
    /// No connection, or no TLS over it.
    Connect,
    /// A connection that ended before the answer's head.
    Request,
    /// Status 429 or 503: the server is full and says so.
    Overloaded,
    /// Another status from 400 to 499.
    Status4xx,
    /// Any other status that is not 200.
    Status5xx,
    /// The stream ended before its end, or held what is no event.
    BrokenStream,
    /// The stream reported an error.
    ServerError,
    /// A whole answer of another length than was asked for, where the length was to be exact.
    WrongLength,
    /// No whole answer in time.
    Timeout,
    /// Not sent: too many were running.
    InFlightLimit,
}

impl ErrorClass {
    pub fn name(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Request => "request",
            Self::Overloaded => "overloaded",
            Self::Status4xx => "status4xx",
            Self::Status5xx => "status5xx",
            Self::BrokenStream => "broken-stream",
            Self::ServerError => "server-error",
            Self::WrongLength => "wrong-length",
            Self::Timeout => "timeout",
            Self::InFlightLimit => "in-flight-limit",
        }
    }
}

/// A class and what was seen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    pub class: ErrorClass,
    pub detail: String,
}

impl Failure {
    pub(super) fn new(class: ErrorClass, detail: impl Into<String>) -> Self {
        Self {
            class,
            detail: detail.into(),
        }
    }
}

impl From<StreamError> for Failure {
    fn from(error: StreamError) -> Self {
        match error {
            StreamError::Broken(detail) => Self::new(ErrorClass::BrokenStream, detail),
            StreamError::Server(detail) => Self::new(ErrorClass::ServerError, detail),
        }
    }
}

/// One line of `--requests-out`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Its place in the workload.
    pub request: usize,
    pub session: u64,
    pub tenant: u32,
    /// When it should have been sent; latencies count from here.
    pub intended: f64,
    pub sent: Option<f64>,
    pub first_token: Option<f64>,
    pub last_token: Option<f64>,
    pub end: f64,
    /// As the server counts, or as planned where it does not say.
    pub prompt_tokens: u64,
    pub cached_tokens: Option<u64>,
    pub answer_tokens: u64,
    /// The worker that served, where the gateway names it.
    pub worker: Option<String>,
    pub status: Option<u16>,
    pub failure: Option<Failure>,
    /// Between events with tokens, in microseconds. They go into the histogram and not into the file.
    #[serde(skip)]
    pub gaps_us: Vec<u32>,
}

impl Record {
    pub fn is_ok(&self) -> bool {
        self.failure.is_none()
    }

    /// From the intended start to the first token.
    pub fn ttft(&self) -> Option<f64> {
        Some(self.first_token? - self.intended)
    }

    /// From the intended start to the end.
    pub fn whole(&self) -> f64 {
        self.end - self.intended
    }

    /// Mean time between two tokens; of one token there is none.
    pub fn mean_itl(&self) -> Option<f64> {
        let gaps = self.answer_tokens.checked_sub(1).filter(|gaps| *gaps > 0)?;
        Some((self.last_token? - self.first_token?) / gaps as f64)
    }

    /// What the loop itself was late by.
    pub fn send_lag(&self) -> Option<f64> {
        Some((self.sent? - self.intended).max(0.0))
    }
}

/// The objective of a request: both or whichever is set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Slo {
    /// Seconds to the first token at most.
    pub ttft: Option<f64>,
    /// Seconds between two tokens at most, as the request's mean.
    pub itl: Option<f64>,
}

impl Slo {
    pub(crate) fn new(ttft: Option<Duration>, itl: Option<Duration>) -> Self {
        Self {
            ttft: ttft.map(|time| time.as_secs_f64()),
            itl: itl.map(|time| time.as_secs_f64()),
        }
    }

    /// A failed request meets nothing, and one that has no gap has none that is too long.
    pub fn is_met(&self, record: &Record) -> bool {
        let within = |value: Option<f64>, limit: Option<f64>| {
            limit.is_none_or(|limit| value.is_none_or(|value| value <= limit))
        };
        let first_in_time = self.ttft.is_none() || record.ttft().is_some();
        record.is_ok()
            && first_in_time
            && within(record.ttft(), self.ttft)
            && within(record.mean_itl(), self.itl)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        Record {
            intended: 10.0,
            sent: Some(10.5),
            first_token: Some(11.0),
            last_token: Some(13.0),
            end: 13.25,
            answer_tokens: 5,
            ..Record::default()
        }
    }

    #[test]
    fn latencies_count_from_the_intended_start() {
        let record = record();
        assert_eq!(record.ttft(), Some(1.0));
        assert_eq!(record.mean_itl(), Some(0.5));
        assert_eq!(record.send_lag(), Some(0.5));
        assert!((record.whole() - 3.25).abs() < 1e-9);
    }

    #[test]
    fn an_objective_is_met_by_what_succeeds_in_time() {
        let slo = |ttft, itl| Slo { ttft, itl };
        assert!(slo(None, None).is_met(&record()));
        assert!(slo(Some(1.0), Some(0.5)).is_met(&record()));
        assert!(!slo(Some(0.9), Some(0.5)).is_met(&record()));
        assert!(!slo(Some(1.0), Some(0.4)).is_met(&record()));
        let one_token = Record {
            answer_tokens: 1,
            ..record()
        };
        assert!(slo(None, Some(0.1)).is_met(&one_token));
        let silent = Record {
            first_token: None,
            ..record()
        };
        assert!(!slo(Some(9.0), None).is_met(&silent));
        let failure = Some(Failure::new(ErrorClass::Timeout, "late"));
        assert!(!slo(None, None).is_met(&Record {
            failure,
            ..record()
        }));
    }
}
