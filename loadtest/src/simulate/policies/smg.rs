//! SMG's cache-aware policy (1.13.0), from its published rules and defaults.
//!
//! A worker whose load is above 1.5 times the mean, and above the mean by more than `min(64, max(4, ⌈2·√mean⌉))`, is left out. Of
//! the others the one with the longest match wins; of equals, and where nothing matches, the one with the shortest
//! expected wait:
//!
//! ```text
//! wait = queued tokens / throughput + 0.15 · k / (1 − k)          k = share of KV blocks in use, throughput 2000 tokens/s
//! ```

use super::{Formula, Knowledge, View};

const RELATIVE: f64 = 1.5;
const ABSOLUTE: f64 = 64.0;
const TOKENS_PER_SECOND: f64 = 2_000.0;
const KV_WEIGHT: f64 = 0.15;

/// See the module.
#[derive(Debug)]
pub struct Smg;

impl Formula for Smg {
    fn choose(&mut self, view: &View<'_>) -> Option<usize> {
        let loads: Vec<f64> = view
            .candidates()
            .map(|at| f64::from(view.own(at).requests))
            .collect();
        let mean = loads.iter().sum::<f64>() / loads.len().max(1) as f64;
        let margin = ABSOLUTE.min((2.0 * mean.sqrt()).ceil().max(4.0));
        let spills = |load: f64| load > RELATIVE * mean && load > mean + margin;
        let all_spill = loads.iter().all(|load| spills(*load));
        view.lowest(|at| {
            let own = view.own(at);
            if spills(f64::from(own.requests)) && !all_spill {
                return f64::INFINITY;
            }
            let kv = view.snapshot.live.get(at).map_or(0.0, |live| live.kv_usage);
            let kv = f64::from(kv).min(0.99);
            let wait = own.prefill_tokens as f64 / TOKENS_PER_SECOND + KV_WEIGHT * kv / (1.0 - kv);
            // A longer match always counts more than any wait.
            wait.min(1e6) - f64::from(view.cached(at)) * 1e6
        })
    }

    fn knowledge(&self) -> Knowledge {
        Knowledge {
            pages: true,
            events: true,
            ..Knowledge::default()
        }
    }
}
