//! Pickers: each chooses endpoints from scored candidates.
//!
//! Every picker ranks the candidates by a key and takes the first few. Random keys are drawn per
//! endpoint from the request's seed and the endpoint's number, not from a running generator: the
//! choice then depends neither on the order of the candidates nor on how many there are before it,
//! and it repeats exactly from the seed.

pub mod max_score;
pub mod random;
pub mod weighted_random;

pub use max_score::MaxScorePicker;
pub use random::RandomPicker;
pub use weighted_random::WeightedRandomPicker;

use std::cmp::Ordering;

use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

use super::plugin::{Context, Maker, Picker};
use crate::config::plugins;

/// Every picker.
pub const MAKERS: &[Maker<dyn Picker>] = &[max_score::MAKER, random::MAKER, weighted_random::MAKER];

/// The field's parameters, the same for all three pickers.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
pub struct Parameters {
    /// Endpoints to return; values below 1 mean 1, as in the field.
    pub max_num_of_endpoints: i64,
}

impl Default for Parameters {
    fn default() -> Self {
        Self {
            max_num_of_endpoints: 1,
        }
    }
}

impl plugins::Parameters for Parameters {}

impl Parameters {
    fn endpoints(self) -> usize {
        usize::try_from(self.max_num_of_endpoints).map_or(1, |count| count.max(1))
    }
}

/// Appends the positions of the `count` first candidates in the order of `compare` (over places in
/// `candidates`).
///
/// A pass per chosen endpoint, because few are chosen: nothing is sorted and nothing allocated.
fn take_first(
    candidates: &[usize],
    count: usize,
    chosen: &mut SmallVec<[usize; 4]>,
    compare: impl Fn(usize, usize) -> Ordering,
) {
    for _ in 0..count.min(candidates.len()) {
        let next = (0..candidates.len())
            .filter(|place| !chosen.contains(&candidates[*place]))
            .min_by(|left, right| compare(*left, *right));
        let Some(place) = next else { return };
        chosen.push(candidates[place]);
    }
}

/// A uniformly distributed number for an endpoint in this request.
fn draw(context: &Context<'_>, position: usize) -> u64 {
    let member = context.member(position);
    let endpoint = (u64::from(member.generation.0) << 32) | u64::from(member.id.0);
    mix(context.request.tie_seed ^ mix(endpoint))
}

/// SplitMix64's output function: a bijection in which every input bit reaches every output bit.
fn mix(value: u64) -> u64 {
    let mut mixed = value.wrapping_add(0x9E37_79B9_7F4A_7C15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    mixed ^ (mixed >> 31)
}

#[cfg(test)]
mod tests;
