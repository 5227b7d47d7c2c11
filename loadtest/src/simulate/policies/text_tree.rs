//! Two older rules that many routers still run.
//!
//! - `sglang-cache-aware` (sglang-router 0.3, vllm-router's `cache_aware`): if the busiest worker has more than 64 requests and
//!   half again more than the idlest, the idlest; else where the match is more than 0.3 of the prompt, the best
//!   match; else the least loaded. It knows matches from its own picks.
//! - `vllm-kv-aware` (vllm-router's `kv_aware`): the longest match by KV events whatever the load; the least loaded where
//!   nothing matches.

use super::{Formula, Knowledge, View};

const ABSOLUTE: u32 = 64;
const RELATIVE: f64 = 1.5;
const MATCH_LEAST: f64 = 0.3;

/// See the module.
#[derive(Debug)]
pub struct CacheAware;

/// See the module.
#[derive(Debug)]
pub struct KvAware;

impl Formula for CacheAware {
    fn choose(&mut self, view: &View<'_>) -> Option<usize> {
        let load = |at: usize| view.own(at).requests;
        let loads: Vec<u32> = view.candidates().map(load).collect();
        let (least, most) = (*loads.iter().min()?, *loads.iter().max()?);
        let is_imbalanced =
            most - least > ABSOLUTE && f64::from(most) > RELATIVE * f64::from(least);
        let idlest = || view.lowest(|at| f64::from(load(at)));
        if is_imbalanced {
            return idlest();
        }
        let longest = view.candidates().map(|at| view.cached(at)).max()?;
        if f64::from(longest) > MATCH_LEAST * view.asked.tokens.len() as f64 {
            return view.lowest(|at| -f64::from(view.cached(at)));
        }
        idlest()
    }

    fn knowledge(&self) -> Knowledge {
        Knowledge {
            picks: true,
            ..Knowledge::default()
        }
    }
}

impl Formula for KvAware {
    fn choose(&mut self, view: &View<'_>) -> Option<usize> {
        let matches = view.candidates().any(|at| view.cached(at) > 0);
        if matches {
            view.lowest(|at| -f64::from(view.cached(at)))
        } else {
            view.lowest(|at| f64::from(view.own(at).requests))
        }
    }

    fn knowledge(&self) -> Knowledge {
        Knowledge {
            events: true,
            ..Knowledge::default()
        }
    }
}
