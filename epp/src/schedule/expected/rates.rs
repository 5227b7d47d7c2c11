//! How long an endpoint takes for the part of a prompt that it does not hold: learned, not configured.
//!
//! ```text
//! seconds = c + a · tokens + b · pairs
//! ```
//!
//! `tokens` are those to be computed, `pairs` how often one of them looks at another: attention is
//! quadratic, and a cached prefix saves the products but not the looking at it. `c` is what a request
//! takes however short it is: a step, the network.
//!
//! One fit serves the fleet, since its endpoints run the same model; an endpoint has one number of its
//! own, how many times as long as the fleet it takes. So a new endpoint is predicted from the start, a
//! slow one is known after a few requests, and what is known of one that gets none any more fades, until it
//! is tried again.

/// What of a prompt, or of several, an endpoint has to compute.
#[derive(Clone, Copy, PartialEq, Default, Debug)]
pub struct PromptWork {
    /// Prompts.
    pub prompts: f64,
    /// Tokens to compute.
    pub tokens: f64,
    /// Pairs of such a token and one that it looks at, itself included.
    pub pairs: f64,
}

impl PromptWork {
    /// The work of a prompt of `prompt` tokens of which the first `cached` are there. One token at least
    /// is always computed: its logits are what the answer begins with.
    pub fn of(prompt: u32, cached: u32) -> Self {
        let prompt = f64::from(prompt.max(1));
        let tokens = (prompt - f64::from(cached)).max(1.0);
        Self {
            prompts: 1.0,
            tokens,
            // The last token looks at the whole prompt, the one before at one less, and so on.
            pairs: tokens * prompt - tokens * (tokens - 1.0) / 2.0,
        }
    }

    /// Both.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            prompts: self.prompts + other.prompts,
            tokens: self.tokens + other.tokens,
            pairs: self.pairs + other.pairs,
        }
    }

    /// Scaled so that usual prompts are around 1.
    fn terms(self) -> [f64; TERMS] {
        [
            self.prompts,
            self.tokens / 4_096.0,
            self.pairs / (4_096.0 * 8_192.0),
        ]
    }
}

/// `c`, `a` and `b`.
const TERMS: usize = 3;
/// What the terms weigh before anything was seen: 16,000 tokens a second, and 20 ms for any request.
const START: [f64; TERMS] = [0.02, 0.256, 0.0];
/// Each observation counts this much less with every further one: some two hundred count.
const MEMORY: f64 = 0.995;
/// The start counts as much as so many observations.
const START_WEIGHT: f64 = 2.0;
/// Sweeps of the solver for each observation. It goes on from the solution before, so few suffice.
const SWEEPS: usize = 4;
/// Pull towards the solution before: what the observations of late do not tell stays as it was.
const INERTIA: f64 = 1e-3;
/// Observations are held within what a first token may take, in seconds.
const SECONDS: std::ops::RangeInclusive<f64> = 1e-4..=600.0;
/// An observation counts as at most this many times the expectation, and at least one over it. The
/// fleet's fit must not follow one endpoint that hangs.
const OUTLIER: f64 = 8.0;

/// The fleet's rates.
#[derive(Clone, Debug)]
pub struct Rates {
    weights: [f64; TERMS],
    products: [[f64; TERMS]; TERMS],
    targets: [f64; TERMS],
    total: f64,
    observations: u32,
}

impl Default for Rates {
    fn default() -> Self {
        let mut this = Self {
            weights: START,
            products: [[0.0; TERMS]; TERMS],
            targets: [0.0; TERMS],
            total: 0.0,
            observations: 0,
        };
        // As if prompts of usual sizes had been seen to take what the start says.
        for prompt in [512, 4_096, 16_384] {
            let terms = PromptWork::of(prompt, 0).terms();
            let seconds = dot(START, terms);
            this.add(terms, seconds, START_WEIGHT / 3.0);
        }
        this
    }
}

impl Rates {
    /// Seconds that the fleet's usual endpoint takes for this work, with nothing ahead of it.
    pub fn seconds(&self, work: PromptWork) -> f64 {
        dot(self.weights, work.terms()).clamp(*SECONDS.start(), *SECONDS.end())
    }

    /// Learns that some endpoint took so long for this work. What is not a number is no observation.
    pub fn observe(&mut self, work: PromptWork, seconds: f64) {
        if seconds.is_nan() || seconds < 0.0 {
            return;
        }
        let expected = self.seconds(work);
        let seconds = seconds.clamp(expected / OUTLIER, expected * OUTLIER);
        let seconds = seconds.clamp(*SECONDS.start(), *SECONDS.end());
        self.total *= MEMORY;
        for (target, products) in self.targets.iter_mut().zip(&mut self.products) {
            *target *= MEMORY;
            for product in products.iter_mut() {
                *product *= MEMORY;
            }
        }
        self.add(work.terms(), seconds, 1.0);
        self.observations = self.observations.saturating_add(1);
        self.solve();
    }

    /// Observations so far; stops at the largest number.
    pub fn observations(&self) -> u32 {
        self.observations
    }

    /// Errors count relative to the value, so that a prompt of 50 ms weighs as much as one of 5 s.
    fn add(&mut self, terms: [f64; TERMS], seconds: f64, count: f64) {
        let weight = count / (seconds * seconds);
        self.total += weight;
        for ((target, products), term) in self.targets.iter_mut().zip(&mut self.products).zip(terms)
        {
            *target += weight * term * seconds;
            for (product, other) in products.iter_mut().zip(terms) {
                *product += weight * term * other;
            }
        }
    }

    /// Coordinate descent on the normal equations, each weight kept at 0 or above: nothing is faster for
    /// having more to do.
    fn solve(&mut self) {
        let pull = INERTIA * self.total;
        let before = self.weights;
        for _ in 0..SWEEPS {
            for (place, before) in before.iter().enumerate() {
                let (Some(products), Some(target), Some(weight)) = (
                    self.products.get(place),
                    self.targets.get(place),
                    self.weights.get(place).copied(),
                ) else {
                    continue;
                };
                let own = products.get(place).copied().unwrap_or(0.0);
                let others = dot(self.weights, *products) - weight * own;
                let next = (target + pull * before - others) / (own + pull);
                if let Some(weight) = self.weights.get_mut(place) {
                    *weight = next.max(0.0);
                }
            }
        }
    }
}

fn dot(left: [f64; TERMS], right: [f64; TERMS]) -> f64 {
    left.iter()
        .zip(right)
        .map(|(left, right)| left * right)
        .sum()
}

/// Observations that an endpoint's own factor remembers.
const FACTOR_MEMORY: f64 = 16.0;
/// An endpoint that is within this of the fleet, either way, counts as like it: stretches of work vary so much by themselves, and a
/// pick that follows the noise leaves the endpoint that holds the prompt.
const FACTOR_NOISE: f64 = 1.5;
/// A factor is held within this and one over it.
const FACTOR_MAX: f64 = 100.0;
/// After so long without an observation half of what is known of an endpoint is forgotten.
const FACTOR_HALF_LIFE_US: f64 = 30e6;

/// How many times as long as the fleet one endpoint takes.
#[derive(Clone, Copy, PartialEq, Default, Debug)]
pub struct Factor {
    /// Natural logarithm, so that twice as fast and twice as slow weigh alike.
    log: f64,
    observations: u32,
    at_us: u64,
}

impl Factor {
    /// The factor as it is believed now.
    pub fn at(&self, now_us: u64) -> f64 {
        let log = self.log_at(now_us);
        if log.abs() < FACTOR_NOISE.ln() {
            return 1.0;
        }
        log.exp()
    }

    /// Learns that the endpoint took `seconds` for what the fleet is expected to take `expected`.
    pub fn observe(&mut self, expected: f64, seconds: f64, now_us: u64) {
        let ratio = seconds / expected;
        if ratio.is_nan() {
            return;
        }
        let log = ratio.clamp(1.0 / FACTOR_MAX, FACTOR_MAX).ln();
        // The first few count fully, as a mean with 1 for a start; and the longer ago the last one was, the more this one counts.
        let least = 1.0 / (f64::from(self.observations) + 2.0).min(FACTOR_MEMORY);
        let share = 1.0 - (1.0 - least) * self.kept(now_us);
        self.log += share * (log - self.log);
        self.observations = self.observations.saturating_add(1);
        self.at_us = now_us;
    }

    fn log_at(&self, now_us: u64) -> f64 {
        self.log * self.kept(now_us)
    }

    /// The share of what is known that time has left.
    fn kept(&self, now_us: u64) -> f64 {
        if self.observations == 0 {
            return 1.0;
        }
        let idle = now_us.saturating_sub(self.at_us) as f64;
        (-idle / FACTOR_HALF_LIFE_US).exp2()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn truth(work: PromptWork) -> f64 {
        0.015 + work.tokens * 3e-5 + work.pairs * 2e-9
    }

    #[test]
    fn rates_are_learned_from_a_start_that_is_wrong() {
        let mut rates = Rates::default();
        for round in 0..400_u32 {
            let prompt = 500 + (round * 7_919) % 20_000;
            let work = PromptWork::of(prompt, (prompt / 3) * (round % 3));
            rates.observe(work, truth(work));
        }
        for (prompt, cached) in [(1_000, 0), (8_000, 4_000), (20_000, 0), (20_000, 19_000)] {
            let work = PromptWork::of(prompt, cached);
            let error = rates.seconds(work) / truth(work) - 1.0;
            assert!(error.abs() < 0.05, "{prompt} {cached}: {error}");
        }
    }

    #[test]
    fn one_hanging_endpoint_does_not_turn_the_rates_over() {
        let mut rates = Rates::default();
        let work = PromptWork::of(4_000, 0);
        for _ in 0..100 {
            rates.observe(work, truth(work));
        }
        rates.observe(work, 500.0);
        assert!(rates.seconds(work) < truth(work) * 1.2);
        rates.observe(work, f64::NAN);
        rates.observe(work, -1.0);
        assert!(rates.seconds(work).is_finite());
    }

    #[test]
    fn work_counts_pairs_with_the_cached_prefix() {
        let whole = PromptWork::of(4, 0);
        assert_eq!((whole.tokens, whole.pairs), (4.0, 10.0));
        let rest = PromptWork::of(4, 2);
        assert_eq!((rest.tokens, rest.pairs), (2.0, 7.0));
        let nothing = PromptWork::of(4, 9);
        assert_eq!((nothing.tokens, nothing.pairs), (1.0, 4.0));
    }

    #[test]
    fn a_slow_endpoint_is_known_soon_and_tried_again_later() {
        let mut factor = Factor::default();
        assert!((factor.at(0) - 1.0).abs() < 1e-9);
        for round in 0..8 {
            factor.observe(0.1, 1.0, round * 1_000_000);
        }
        let known = factor.at(7_000_000);
        assert!((5.0..10.1).contains(&known), "{known}");
        let later = factor.at(7_000_000 + 30_000_000);
        assert!((1.6..known / 2.0).contains(&later), "{later}");
        assert!((factor.at(7_000_000 + 90_000_000) - 1.0).abs() < 1e-9);
        factor.observe(0.0, 0.0, 9);
        assert!(factor.at(9).is_finite());
    }
}
