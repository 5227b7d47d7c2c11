//! Random draws: lengths, popularities, pauses and names of segments.

use std::time::Duration;

use rand_distr::{Distribution, Exp1, Geometric, LogNormal, Zipf};
use rand_pcg::Pcg64;
use serde::Deserialize;

use crate::workload::Segment;
use crate::workload::arrivals::seconds;
use crate::workload::tokens::mix;

/// The most turns of a session, however long it is drawn.
const TURNS_MAX: u64 = 1000;

/// Token counts with a log-normal distribution, as lengths of prompts and answers are found to have, from 1 to `most`.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lengths {
    pub mean: f64,
    /// Standard deviation of the logarithm: 0 is always the mean, 1 is a long tail.
    pub sigma: f64,
    #[serde(default = "one")]
    pub least: u32,
    pub most: u32,
}

fn one() -> u32 {
    1
}

impl Lengths {
    pub const fn new(mean: f64, sigma: f64, most: u32) -> Self {
        Self {
            mean,
            sigma,
            least: 1,
            most,
        }
    }

    fn draw(&self, random: &mut Pcg64) -> u32 {
        // The mean of a log-normal distribution is exp(mu + sigma² / 2).
        let mu = self.mean.max(1.0).ln() - self.sigma * self.sigma / 2.0;
        let tokens =
            LogNormal::new(mu, self.sigma.max(0.0)).map_or(self.mean, |one| one.sample(random));
        // A float that is too large becomes the largest integer.
        (tokens.round() as u32).clamp(self.least.max(1), self.most.max(1).max(self.least))
    }
}

/// `count` things of which the n-th most popular is chosen in proportion to n to the power of -`exponent`.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Popularity {
    pub count: u32,
    /// 0 is all alike, 1 is Zipf's law.
    pub exponent: f64,
}

/// What a segment is, so that no two kinds of segments have an id in common.
#[derive(Clone, Copy, Debug)]
pub(super) enum Class {
    System = 1,
    Document = 2,
    Own = 3,
    Answer = 4,
}

/// A generator of its own for each stream of draws: what one of them consumes never shifts another.
pub(in crate::workload) fn random(seed: u64, stream: u64) -> Pcg64 {
    let state = (u128::from(mix(seed)) << 64) | u128::from(mix(mix(seed) ^ stream));
    Pcg64::new(state, u128::from(stream))
}

/// Draws for one session.
#[derive(Debug)]
pub(super) struct Draw {
    seed: u64,
    session: u64,
    random: Pcg64,
    /// Segments of its own so far.
    own: u64,
}

impl Draw {
    pub(super) fn new(seed: u64, session: u64) -> Self {
        Self {
            seed,
            session,
            random: random(seed, session),
            own: 0,
        }
    }

    pub(super) fn length(&mut self, lengths: &Lengths) -> u32 {
        lengths.draw(&mut self.random)
    }

    /// A segment that no other session has.
    pub(super) fn own(&mut self, lengths: &Lengths) -> Segment {
        self.own += 1;
        let name = mix(self.session) ^ self.own;
        Segment {
            id: self.id(Class::Own, name),
            tokens: self.length(lengths),
        }
    }

    /// Number `number` of the segments of `class` that all sessions share. Its length is its own as well.
    pub(super) fn shared(&self, class: Class, number: u64, lengths: &Lengths) -> Segment {
        let id = self.id(class, number);
        Segment {
            id,
            tokens: lengths.draw(&mut random(self.seed, id)),
        }
    }

    /// One of many, from 0.
    pub(super) fn choose(&mut self, popularity: &Popularity) -> u64 {
        let zipf = Zipf::new(
            f64::from(popularity.count.max(1)),
            popularity.exponent.max(0.0),
        );
        zipf.map_or(0, |zipf| zipf.sample(&mut self.random) as u64 - 1)
    }

    /// At least 1, `mean` on average, geometric: after each turn the session ends with the same probability.
    pub(super) fn turns(&mut self, mean: f64) -> usize {
        let more = Geometric::new(1.0 / mean.max(1.0));
        let more = more.map_or(0, |more| more.sample(&mut self.random));
        (1 + more.min(TURNS_MAX - 1)) as usize
    }

    /// Exponential.
    pub(super) fn pause(&mut self, mean_seconds: f64) -> Duration {
        let unit: f64 = Exp1.sample(&mut self.random);
        seconds(unit * mean_seconds.max(0.0))
    }

    fn id(&self, class: Class, number: u64) -> u64 {
        id(self.seed, class, number)
    }
}

/// The id of a segment.
pub(super) fn id(seed: u64, class: Class, number: u64) -> u64 {
    mix(mix(mix(seed) ^ class as u64) ^ number)
}
