//! `edf-ordering-policy`: the earliest deadline first.
//!
//! The deadline is the one the request came with, or else the end of the time that it may wait. A
//! request with neither goes after all others.

use super::Urgency;
use crate::config::plugins::{self, NoParameters, PluginKind, PluginType, Stage};

/// The plugin's type name.
pub const TYPE_NAME: &str = "edf-ordering-policy";

/// The plugin type.
pub const PLUGIN: PluginType = PluginType {
    name: TYPE_NAME,
    kind: PluginKind::Ordering,
    stage: Stage::Beta,
    check: plugins::check::<NoParameters>,
};

/// The deadline.
pub(super) fn key(urgency: &Urgency) -> u64 {
    urgency.deadline_ms.unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_without_a_deadline_goes_last() {
        let of = |deadline_ms| {
            key(&Urgency {
                arrived_ms: 0,
                deadline_ms,
                slo_ttft_ms: None,
            })
        };
        assert!(of(Some(5)) < of(Some(6)) && of(Some(6)) < of(None));
    }
}
