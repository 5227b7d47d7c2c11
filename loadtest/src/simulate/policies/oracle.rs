//! The oracle: the seconds of work before the prompt and its own, as they truly are at every worker, without any delay.
//!
//! It weighs them as our own policy does, so that the difference between the two is what not knowing costs. It is no bound on what
//! one could do who knows the future.

use super::{Formula, Knowledge, View};

/// As in `expected-ttft-scorer`: the share of KV blocks in use at which a pick costs twice as much.
const KV_DOUBLES_AT: f64 = 0.2;

/// See the module.
#[derive(Debug, Default)]
pub struct Oracle {
    /// Over a cache that all workers share and that never fills: what no policy can go beyond by much.
    pub shares: bool,
}

impl Formula for Oracle {
    fn choose(&mut self, view: &View<'_>) -> Option<usize> {
        view.lowest(|at| {
            let truth = view.truth(at);
            truth.map_or(f64::INFINITY, |truth| {
                (truth.ahead_s + truth.own_s) * (1.0 + truth.kv / KV_DOUBLES_AT)
            })
        })
    }

    fn knowledge(&self) -> Knowledge {
        Knowledge {
            truth: true,
            shared_cache: self.shares,
            ..Knowledge::default()
        }
    }
}
