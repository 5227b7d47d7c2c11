//! The live signals of an endpoint by name, for the plugins whose configuration names one.

use serde::{Deserialize, Serialize};

use crate::fleet::Live;

/// A signal, as a configuration spells it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Signal {
    /// Requests that wait in the worker's queue.
    Waiting,
    /// Requests in the worker's running batch.
    Running,
    /// Share of KV blocks in use, 0 to 1.
    KvUsage,
    /// Requests of ours that are on their way or running there.
    InFlightRequests,
    /// Prompt tokens of those requests.
    InFlightTokens,
}

impl Signal {
    /// The signal's value; `None` where it comes from the worker's page and no page was read yet,
    /// or where the page gave something that is not a number.
    pub fn value(self, live: &Live) -> Option<f64> {
        let counted_here = matches!(self, Self::InFlightRequests | Self::InFlightTokens);
        if !counted_here && live.scraped_at_ms == 0 {
            return None;
        }
        let value = match self {
            Self::Waiting => f64::from(live.waiting),
            Self::Running => f64::from(live.running),
            Self::KvUsage => f64::from(live.kv_usage),
            Self::InFlightRequests => f64::from(live.in_flight_requests),
            Self::InFlightTokens => f64::from(live.in_flight_tokens),
        };
        value.is_finite().then_some(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_signal_reads_its_own_field() {
        let live = Live {
            waiting: 1,
            running: 2,
            kv_usage: 0.5,
            in_flight_requests: 4,
            in_flight_tokens: 5,
            scraped_at_ms: 6,
            ..Live::default()
        };
        let read = |name: &str| {
            let signal: Signal = serde_json::from_value(name.into()).unwrap();
            signal.value(&live)
        };
        assert_eq!(read("waiting"), Some(1.0));
        assert_eq!(read("running"), Some(2.0));
        assert_eq!(read("kvUsage"), Some(0.5));
        assert_eq!(read("inFlightRequests"), Some(4.0));
        assert_eq!(read("inFlightTokens"), Some(5.0));
    }

    #[test]
    fn a_worker_that_was_never_read_has_only_what_is_counted_here() {
        let live = Live {
            kv_usage: f32::NAN,
            ..Live::default()
        };
        assert_eq!(Signal::Waiting.value(&live), None);
        assert_eq!(Signal::InFlightTokens.value(&live), Some(0.0));
        let read = Live {
            scraped_at_ms: 1,
            ..live
        };
        assert_eq!(Signal::Waiting.value(&read), Some(0.0));
        assert_eq!(Signal::KvUsage.value(&read), None);
    }
}
