//! Philox4x32-10: random numbers as a function of (seed, position, token), with no state in between.
//!
//! A request draws the same numbers whatever it shares a batch with, whenever it was preempted and on whichever device
//! it runs, because each number depends only on what it is for. Salmon et al., "Parallel random numbers: as easy as
//! 1, 2, 3" (SC 2011); the constants and test vectors are those of Random123 and cuRAND.

const MULTIPLIERS: [u32; 2] = [0xd251_1f53, 0xcd9e_8d57];
const KEY_STEPS: [u32; 2] = [0x9e37_79b9, 0xbb67_ae85];
const ROUNDS: u32 = 10;

/// Four random words for a counter under a key.
pub fn philox4x32(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let (mut words, mut key) = (counter, key);
    for _ in 0..ROUNDS {
        let first = u64::from(MULTIPLIERS[0]) * u64::from(words[0]);
        let second = u64::from(MULTIPLIERS[1]) * u64::from(words[2]);
        words = [
            (second >> 32) as u32 ^ words[1] ^ key[0],
            second as u32,
            (first >> 32) as u32 ^ words[3] ^ key[1],
            first as u32,
        ];
        key[0] = key[0].wrapping_add(KEY_STEPS[0]);
        key[1] = key[1].wrapping_add(KEY_STEPS[1]);
    }
    words
}

/// Standard Gumbel noise for the candidates of one draw.
///
/// The candidate with the largest `logit + noise` is distributed as softmax(logits). Unlike the inverse of a running
/// sum it depends on no order among candidates, so a GPU finds the same winner by a parallel maximum.
#[derive(Debug)]
pub struct Gumbel {
    key: [u32; 2],
    position: u32,
    /// The group of four tokens whose words are at hand.
    group: Option<u32>,
    words: [u32; 4],
}

impl Gumbel {
    /// The noise for the `position`th token of the request with this seed.
    pub fn new(seed: u64, position: u32) -> Self {
        Self {
            key: [seed as u32, (seed >> 32) as u32],
            position,
            group: None,
            words: [0; 4],
        }
    }

    /// No noise is larger: that of the largest uniform number, and a little for rounding.
    pub const MAX: f32 = 16.64;

    /// The noise of one candidate. Asking in ascending order of tokens computes each group of four once.
    pub fn noise(&mut self, token: u32) -> f32 {
        noise_of(self.bits(token))
    }

    /// The noise of one candidate, or none if it is certainly below `least`.
    ///
    /// The noise of a uniform number u is -ln(-ln u), at most -ln(1 - u), and the exponent of 1 - u bounds that
    /// without a logarithm: half of all candidates stay below 0.7, nine of ten below 2.8.
    pub fn noise_above(&mut self, token: u32, least: f32) -> Option<f32> {
        if least > Self::MAX {
            return None;
        }
        let bits = self.bits(token);
        // 1 - u in units of 2^-24; never 0.
        let rest = (1 << 24) - (2 * bits + 1);
        let bound = (rest.leading_zeros() - 7) as f32 * std::f32::consts::LN_2 + 1e-3;
        (bound >= least).then(|| noise_of(bits))
    }

    /// 23 random bits.
    fn bits(&mut self, token: u32) -> u32 {
        let group = token / 4;
        if self.group != Some(group) {
            self.words = philox4x32([group, 0, self.position, 0], self.key);
            self.group = Some(group);
        }
        self.words[(token % 4) as usize] >> 9
    }
}

/// Half a unit more keeps the uniform number strictly between 0 and 1 in f32.
fn noise_of(bits: u32) -> f32 {
    let uniform = (bits as f32 + 0.5) / (1 << 23) as f32;
    -(-uniform.ln()).ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matches_the_published_vectors() {
        let cases = [
            (
                [0; 4],
                [0; 2],
                [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8],
            ),
            (
                [u32::MAX; 4],
                [u32::MAX; 2],
                [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd],
            ),
            (
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                [0xa409_3822, 0x299f_31d0],
                [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
            ),
        ];
        for (counter, key, words) in cases {
            assert_eq!(philox4x32(counter, key), words);
        }
    }

    #[test]
    fn noise_is_finite_and_independent_of_the_order_of_asking() {
        let mut ascending = Gumbel::new(7, 3);
        let forward: Vec<f32> = (0..4096).map(|token| ascending.noise(token)).collect();
        let mut descending = Gumbel::new(7, 3);
        let mut backward: Vec<f32> = (0..4096)
            .rev()
            .map(|token| descending.noise(token))
            .collect();
        backward.reverse();
        assert_eq!(forward, backward);
        assert!(forward.iter().all(|noise| noise.is_finite()));
        let mean = forward.iter().sum::<f32>() / forward.len() as f32;
        assert!(
            (mean - 0.5772).abs() < 0.08,
            "the Gumbel mean is Euler's constant, not {mean}"
        );
    }

    #[test]
    fn the_bound_is_never_below_the_noise() {
        let mut gumbel = Gumbel::new(3, 9);
        for token in 0..100_000 {
            let noise = gumbel.noise(token);
            assert_eq!(gumbel.noise_above(token, noise), Some(noise));
        }
        for bits in [0, 1, (1 << 22) - 1, 1 << 22, (1 << 23) - 2, (1 << 23) - 1] {
            let rest: u32 = (1 << 24) - (2 * bits + 1);
            let bound = (rest.leading_zeros() - 7) as f32 * std::f32::consts::LN_2 + 1e-3;
            assert!(noise_of(bits) <= bound, "{bits}");
            assert!(noise_of(bits) < Gumbel::MAX);
        }
        let skipped = (0..10_000).filter(|token| gumbel.noise_above(*token, 3.0).is_none());
        assert!(skipped.count() > 8_000, "the bound is of no use");
    }
}
