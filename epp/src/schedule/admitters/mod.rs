//! Admitters: each may refuse a request before it is scheduled, by what the candidates are like.
//!
//! A refusal becomes 429 with its reason: the client may come back, and nothing is broken. (The field
//! answers 500, which clients and gateways take for a fault of the server and retry at once.)

pub mod latency_slo;
pub mod probabilistic;

pub use latency_slo::LatencySloAdmitter;
pub use probabilistic::ProbabilisticAdmitter;

use std::fmt::Debug;

use super::plugin::{Context, Maker};

/// Decides whether a request is scheduled at all.
pub trait Admitter: Send + Sync + Debug {
    /// The field's plugin type name.
    fn type_name(&self) -> &'static str;
    /// Refuses the request with a reason for the client. `candidates` are positions in the snapshot:
    /// all that the request may go to, before any filter.
    fn admit(&self, context: &Context<'_>, candidates: &[usize]) -> Result<(), String>;
}

/// Every admitter.
pub const MAKERS: &[Maker<dyn Admitter>] = &[latency_slo::MAKER, probabilistic::MAKER];

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn every_type_is_made_under_its_own_name_and_reads_strictly() {
        for maker in MAKERS {
            let made = (maker.make)(&Value::Null).unwrap();
            assert_eq!(made.type_name(), maker.plugin.name);
            let error = (maker.make)(&json!({"nonsense": 1})).unwrap_err();
            assert!(error.to_string().contains("nonsense"));
        }
    }
}
