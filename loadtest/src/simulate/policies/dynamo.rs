//! NVIDIA Dynamo's KV router, from its published cost (dynamo-kv-router 1.6.1, defaults).
//!
//! ```text
//! prefill = max((active prefill tokens + prompt tokens) / block − cached blocks, 0)
//! linear:   cost = prefill + decode blocks
//! product:  cost = prefill · (decode blocks + 1)          its policy `lmetric`
//! ```
//!
//! Active prefill tokens are those of its own requests that have not brought a first token; decode blocks those that its own
//! requests occupy. Cached blocks come from KV events, the lowest cost wins, and equals are drawn by lot (its temperature is 0).

use super::{Formula, Knowledge, View};

/// Tokens of a block.
const BLOCK: f64 = 16.0;

/// Which of the two costs.
#[derive(Clone, Copy, Debug)]
pub enum Dynamo {
    Linear,
    Product,
}

impl Formula for Dynamo {
    fn choose(&mut self, view: &View<'_>) -> Option<usize> {
        let prompt = view.asked.tokens.len() as f64;
        view.lowest(|at| {
            let own = view.own(at);
            let raw = (own.prefill_tokens as f64 + prompt) / BLOCK;
            let prefill = (raw - f64::from(view.cached(at)) / BLOCK).max(0.0);
            let decode = (own.context_tokens as f64 + prompt) / BLOCK;
            match self {
                Self::Linear => prefill + decode,
                Self::Product => prefill * (decode + 1.0),
            }
        })
    }

    fn knowledge(&self) -> Knowledge {
        Knowledge {
            events: true,
            // It predicts on route: what was just sent counts as cached.
            picks: true,
            ..Knowledge::default()
        }
    }
}
