//! What is compared with what, as data.

use crate::stack::{Template, Watch};

const SHORT: usize = 2 << 10;
const LONG: usize = 200 << 10;

/// One way to send requests.
#[derive(Clone, Copy, Debug)]
pub(super) struct Variant {
    /// Its key in the JSON object.
    pub(super) name: &'static str,
    /// `None` for the baselines: the same Envoy, without epp.
    pub(super) watch: Option<Watch>,
    pub(super) prompt_bytes: usize,
    /// Of the rate: long prompts come less often.
    pub(super) share: f64,
    /// The index of the variant whose latencies are taken off; the own one for a baseline.
    pub(super) baseline: usize,
}

/// Baselines stand before what is compared with them.
pub(super) const VARIANTS: [Variant; 5] = [
    Variant {
        name: "plain",
        watch: None,
        prompt_bytes: SHORT,
        share: 1.0,
        baseline: 0,
    },
    Variant {
        name: "access_log",
        watch: Some(Watch::AccessLog),
        prompt_bytes: SHORT,
        share: 1.0,
        baseline: 0,
    },
    Variant {
        name: "stream",
        watch: Some(Watch::Stream),
        prompt_bytes: SHORT,
        share: 1.0,
        baseline: 0,
    },
    Variant {
        name: "plain_large_prompt",
        watch: None,
        prompt_bytes: LONG,
        share: 0.25,
        baseline: 3,
    },
    Variant {
        name: "large_prompt",
        watch: Some(Watch::AccessLog),
        prompt_bytes: LONG,
        share: 0.25,
        baseline: 3,
    },
];

/// The variant whose requests cost most, with which the rate is found that all can carry.
pub(super) const COSTLIEST: usize = 2;

impl Variant {
    /// The gateway that its requests go through.
    pub(super) fn gateway(&self) -> (Template, Watch) {
        match self.watch {
            Some(watch) => (Template::OverrideHost, watch),
            None => (Template::RoundRobin, Watch::default()),
        }
    }

    pub(super) fn is_baseline(&self) -> bool {
        self.watch.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_compared_with_plain_envoy_under_the_same_load() {
        for (index, variant) in VARIANTS.iter().enumerate() {
            let baseline = &VARIANTS[variant.baseline];
            assert!(baseline.is_baseline() && variant.baseline <= index);
            assert_eq!(variant.prompt_bytes, baseline.prompt_bytes);
            assert!((variant.share - baseline.share).abs() < f64::EPSILON);
            assert_eq!(variant.is_baseline(), variant.baseline == index);
        }
        assert_eq!(VARIANTS[COSTLIEST].watch, Some(Watch::Stream));
    }
}
