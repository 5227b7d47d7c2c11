//! `lora-affinity-scorer`: prefers endpoints that have the request's LoRA adapter at hand.
//!
//! 1.0 where it runs, 0.8 where another adapter still finds room, 0.6 where it waits to be loaded,
//! 0 where all slots are taken by others, or nothing is known of the adapters. The order of the
//! questions is the field's, so an adapter that waits beside a free slot scores 0.8.

use super::super::plugin::{Context, Maker, Scorer};
use crate::config::plugins::{self, NoParameters, PluginKind, PluginType, Stage};
use crate::fleet::Adapters;

/// The plugin's type name.
pub const TYPE_NAME: &str = "lora-affinity-scorer";

/// The plugin type.
pub const MAKER: Maker<dyn Scorer> = Maker {
    plugin: PluginType {
        name: TYPE_NAME,
        kind: PluginKind::Scorer,
        stage: Stage::Beta,
        check: plugins::check::<NoParameters>,
    },
    make: |given| {
        plugins::read::<NoParameters>(given)?;
        Ok(Box::new(LoraAffinityScorer {}))
    },
};

/// See the module.
#[derive(Clone, Copy, Default, Debug)]
pub struct LoraAffinityScorer {}

impl Scorer for LoraAffinityScorer {
    fn type_name(&self) -> &'static str {
        TYPE_NAME
    }

    fn score(&self, context: &Context<'_>, candidates: &[usize], scores: &mut [f32]) {
        for (at, score) in candidates.iter().zip(scores) {
            *score = context
                .adapters(*at)
                .map_or(0.0, |adapters| value(adapters, context.request.model));
        }
    }
}

fn value(adapters: &Adapters, model: &str) -> f32 {
    let among = |names: &[Box<str>]| names.iter().any(|name| **name == *model);
    if among(&adapters.running) {
        1.0
    } else if adapters.running.len() + adapters.waiting.len() < adapters.max as usize {
        0.8
    } else if among(&adapters.waiting) {
        0.6
    } else {
        0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_adapter_is_rated_by_how_near_it_is_to_running() {
        let names = |names: &[&str]| names.iter().map(|name| Box::from(*name)).collect();
        let of = |max, running: &[&str], waiting: &[&str]| {
            let adapters = Adapters {
                max,
                running: names(running),
                waiting: names(waiting),
            };
            (value(&adapters, "a") * 10.0).round() as u32
        };
        assert_eq!(of(2, &["b", "a"], &[]), 10);
        assert_eq!(of(2, &["b"], &[]), 8);
        assert_eq!(of(3, &["b"], &["a"]), 8);
        assert_eq!(of(2, &["b"], &["a"]), 6);
        assert_eq!(of(2, &["b", "c"], &["a"]), 6);
        assert_eq!(of(2, &["b", "c"], &[]), 0);
        assert_eq!(of(2, &["b"], &["c"]), 0);
        assert_eq!(of(0, &[], &[]), 0);
    }
}
