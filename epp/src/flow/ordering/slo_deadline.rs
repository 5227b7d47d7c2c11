//! `slo-deadline-ordering-policy`: first whose target for the first token ends first.
//!
//! The deadline is arrival plus the target that the client sent. A request without a target, or
//! with one that is no positive number, goes after all that have one.

use super::Urgency;
use crate::config::plugins::{self, NoParameters, PluginKind, PluginType, Stage};

/// The plugin's type name.
pub const TYPE_NAME: &str = "slo-deadline-ordering-policy";

/// The plugin type.
pub const PLUGIN: PluginType = PluginType {
    name: TYPE_NAME,
    kind: PluginKind::Ordering,
    stage: Stage::Beta,
    check: plugins::check::<NoParameters>,
};

/// Arrival plus target.
pub(super) fn key(urgency: &Urgency) -> u64 {
    match urgency.slo_ttft_ms {
        // The cast saturates; the sum stays below the key of a request without a target.
        Some(target) if target > 0.0 => urgency
            .arrived_ms
            .saturating_add(target.ceil() as u64)
            .min(u64::MAX - 1),
        _ => u64::MAX,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_the_target_decides_and_no_target_goes_last() {
        let of = |arrived_ms, slo_ttft_ms| {
            key(&Urgency {
                arrived_ms,
                deadline_ms: None,
                slo_ttft_ms,
            })
        };
        assert!(of(100, Some(50.0)) < of(0, Some(151.0)));
        assert!(of(0, Some(f64::INFINITY)) < of(0, None));
        assert_eq!(of(0, Some(f64::NAN)), of(0, None));
        assert_eq!(of(0, Some(-1.0)), of(0, None));
    }
}
