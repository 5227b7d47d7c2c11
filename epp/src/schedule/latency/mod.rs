//! Predicted latency: what a request would wait at each endpoint, learned from what went by.
//!
//! The field asks a Python sidecar with gradient-boosted trees. Here two straight lines an endpoint
//! do it, learned online ([`line`]): the time to the first token grows with the tokens that have to be
//! prefilled before it, and the time per output token with the requests that share the batch.
//! [`model`] keeps the lines, [`predictions`] is what plugins read, [`producer`] the field's plugin
//! type. All of it is pure: times come in as values.

pub mod line;
pub mod model;
pub mod predictions;
pub mod producer;

pub use model::{LatencyModel, LatencyOptions};
pub use predictions::{Features, Prediction, Predictions, Targets};
pub use producer::{PLUGIN_TYPE, TYPE_NAME};

use super::plugin::Context;

/// The share of the prompt's whole blocks that the endpoint at a snapshot position holds, 0 to 1. 0
/// for a prompt without a whole block.
pub(super) fn prefix_share(context: &Context<'_>, position: usize) -> f64 {
    let member = context.member(position);
    let matched = context.request.matches.tokens(member.id, member.generation);
    let prompt = context.request.prompt_tokens;
    let block_size = context.live(position).block_size;
    let whole = prompt - prompt.checked_rem(block_size).unwrap_or(0);
    if whole == 0 {
        return 0.0;
    }
    (f64::from(matched) / f64::from(whole)).min(1.0)
}

/// A number from 0 up to 1 drawn from the request's seed. Plugins draw with different salts, so that
/// their choices are independent of one another.
pub(super) fn draw(context: &Context<'_>, salt: u64) -> f64 {
    // SplitMix64's output function.
    let mut mixed = (context.request.tie_seed ^ salt).wrapping_add(0x9E37_79B9_7F4A_7C15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    mixed ^= mixed >> 31;
    (mixed >> 11) as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::{request, snapshot};
    use super::*;
    use crate::fleet::{Live, Matches};

    #[test]
    fn draws_are_uniform_and_depend_on_seed_and_salt() {
        let snapshot = snapshot(&[]);
        let matches = Matches::default();
        let drawn = |seed, salt| {
            let request = request(0, &matches, seed);
            draw(
                &Context {
                    snapshot: &snapshot,
                    request: &request,
                    now_ms: 0,
                },
                salt,
            )
        };
        let mean = (0..2_000).map(|seed| drawn(seed, 7)).sum::<f64>() / 2_000.0;
        assert!((0.47..0.53).contains(&mean), "{mean}");
        assert!((0..2_000).all(|seed| (0.0..1.0).contains(&drawn(seed, 7))));
        assert!((drawn(1, 7) - drawn(1, 8)).abs() > f64::EPSILON);
    }

    #[test]
    fn the_share_counts_whole_blocks() {
        let live = Live {
            block_size: 16,
            ..Live::default()
        };
        let snapshot = snapshot(&[live]);
        let member = &snapshot.members[0];
        let mut matches = Matches::default();
        matches.record(member.id, member.generation, 32, 32);
        let share = |prompt| {
            let request = request(prompt, &matches, 0);
            prefix_share(
                &Context {
                    snapshot: &snapshot,
                    request: &request,
                    now_ms: 0,
                },
                0,
            )
        };
        assert!((share(70) - 0.5).abs() < 1e-9);
        assert!((share(20) - 1.0).abs() < 1e-9);
        assert!(share(15).abs() < 1e-9);
    }
}
