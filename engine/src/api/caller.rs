//! What a request's headers say besides its id and its priority.

use axum::http::HeaderMap;
use pointsman_proto::headers::{DATA_PARALLEL_RANK, SESSION_ID};

use super::error::ApiError;
use super::generate::header;

/// Longer values of headers that are only told on are not kept.
const TOLD_BYTES_MAX: usize = 1024;

/// The caller's wishes and names for things, not yet checked.
#[derive(Debug, Clone, Default)]
pub(super) struct Caller {
    rank: Option<String>,
    pub(super) session: Option<String>,
    pub(super) traceparent: Option<String>,
    pub(super) tracestate: Option<String>,
}

impl Caller {
    pub(super) fn new(headers: &HeaderMap) -> Self {
        let told = |name| {
            let value = header(headers, name)?.trim();
            (!value.is_empty() && value.len() <= TOLD_BYTES_MAX).then(|| value.to_owned())
        };
        let rank = headers.get(DATA_PARALLEL_RANK);
        Self {
            rank: rank.map(|rank| String::from_utf8_lossy(rank.as_bytes()).trim().to_owned()),
            session: told(SESSION_ID),
            traceparent: told("traceparent"),
            tracestate: told("tracestate"),
        }
    }

    /// The data-parallel rank that is to run the request; whether there is such a rank is the engine's to say.
    pub(super) fn rank(&self) -> Result<Option<u32>, ApiError> {
        let parse = |text: &String| {
            text.parse().map_err(|_| {
                let problem = format!("must be a whole number from 0, got {text:?}");
                ApiError::bad_request(format!("header {DATA_PARALLEL_RANK} {problem}"))
            })
        };
        self.rank.as_ref().map(parse).transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caller(name: &'static str, value: &str) -> Caller {
        Caller::new(&HeaderMap::from_iter([(
            name.parse().unwrap(),
            value.parse().unwrap(),
        )]))
    }

    #[test]
    fn a_rank_is_a_whole_number() {
        assert_eq!(Caller::default().rank().unwrap(), None);
        assert_eq!(caller(DATA_PARALLEL_RANK, " 3 ").rank().unwrap(), Some(3));
        for wrong in ["-1", "1.0", "first", ""] {
            let error = caller(DATA_PARALLEL_RANK, wrong).rank().unwrap_err();
            let message = &error.body().error.message;
            assert!(message.contains("x-data-parallel-rank"), "{message}");
        }
    }

    #[test]
    fn names_without_end_are_not_kept() {
        assert_eq!(caller(SESSION_ID, "s-1").session.as_deref(), Some("s-1"));
        assert_eq!(caller(SESSION_ID, &"s".repeat(2000)).session, None);
        assert_eq!(caller(SESSION_ID, "").session, None);
    }
}
