//! How much of its latest prompts each endpoint had cached: the figure that tells an operator
//! whether placement works.
//!
//! Prompt and cached tokens are summed with forgetting, so that the share is over the last
//! [`PROMPTS`] prompts or so.

use parking_lot::Mutex;

use crate::fleet::{EndpointId, Generation};

/// Prompts that a share looks back on.
const PROMPTS: f64 = 100.0;

/// Shares by endpoint. It grows with the endpoint numbers seen, up to the fleet's own bound.
#[derive(Debug, Default)]
pub struct CachedShares {
    by_endpoint: Mutex<Vec<Share>>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Share {
    generation: u32,
    prompt: f64,
    cached: f64,
}

impl CachedShares {
    /// Takes in a prompt that an endpoint has answered, in tokens.
    pub fn record(&self, id: EndpointId, generation: Generation, prompt: u64, cached: u64) {
        let mut shares = self.by_endpoint.lock();
        if shares.len() <= id.index() {
            shares.resize(id.index() + 1, Share::default());
        }
        let Some(share) = shares.get_mut(id.index()) else {
            return;
        };
        if share.generation < generation.0 {
            *share = Share {
                generation: generation.0,
                ..Share::default()
            };
        }
        if share.generation == generation.0 {
            let keep = 1.0 - 1.0 / PROMPTS;
            share.prompt = share.prompt * keep + prompt as f64;
            share.cached = share.cached * keep + cached.min(prompt) as f64;
        }
    }

    /// The share of an endpoint, 0 to 1; `None` before its first prompt.
    pub fn of(&self, id: EndpointId, generation: Generation) -> Option<f64> {
        let shares = self.by_endpoint.lock();
        let share = shares.get(id.index())?;
        let is_it = share.generation == generation.0 && share.prompt > 0.0;
        is_it.then(|| share.cached / share.prompt)
    }

    /// The share over all endpoints.
    pub fn of_all(&self) -> Option<f64> {
        let shares = self.by_endpoint.lock();
        let prompt: f64 = shares.iter().map(|share| share.prompt).sum();
        let cached: f64 = shares.iter().map(|share| share.cached).sum();
        (prompt > 0.0).then(|| cached / prompt)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_of_one_generation_and_forgets() {
        let shares = CachedShares::default();
        let id = EndpointId(2);
        assert_eq!(shares.of(id, Generation(1)), None);
        shares.record(id, Generation(1), 100, 50);
        assert_eq!(shares.of(id, Generation(1)), Some(0.5));
        for _ in 0..1_000 {
            shares.record(id, Generation(1), 100, 500);
        }
        assert!(shares.of(id, Generation(1)).unwrap() > 0.99);
        shares.record(id, Generation(2), 100, 0);
        assert_eq!(shares.of(id, Generation(2)), Some(0.0));
        shares.record(id, Generation(1), 100, 100);
        assert_eq!(shares.of(id, Generation(1)), None);
    }
}
