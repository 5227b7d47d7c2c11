//! The tokens that temperature, min-p, top-k and top-p leave, and the draw among them.
//!
//! Values are logits less the best one, over the temperature: 0 for the likeliest token, so that a tiny temperature
//! cannot overflow. Both steps of that are monotone in floating point as well, so whether a block of logits holds a
//! candidate can be told from its peak.

use super::math::exp;
use super::philox::Gumbel;
use super::row::{BLOCK, gather, reached_by};
use crate::backend::SampleSpec;

/// Classes of values that top-p adds up on the way to the class in which the sum passes its goal; only that one is
/// sorted. An eighth of a unit each, so the last one begins at a probability of e^-32 of the best.
const LEVELS: usize = 256;
const LEVELS_PER_UNIT: f32 = 8.0;

/// The candidates of one draw; memory that is reused.
#[derive(Debug)]
pub(super) struct Candidates {
    tokens: Vec<u32>,
    /// Of each of `tokens`.
    values: Vec<f32>,
    /// e^value of each of `tokens`.
    masses: Vec<f32>,
    /// Tokens and values of the level in which top-p ends.
    edge: Vec<(f32, u32)>,
    levels: [f64; LEVELS],
    scratch: Vec<f32>,
}

impl Default for Candidates {
    fn default() -> Self {
        Self {
            tokens: Vec::new(),
            values: Vec::new(),
            masses: Vec::new(),
            edge: Vec::new(),
            levels: [0.0; LEVELS],
            scratch: Vec::new(),
        }
    }
}

impl Candidates {
    /// Draws a token from a row whose largest logit is that of `best`.
    pub(super) fn draw(
        &mut self,
        spec: &SampleSpec,
        logits: &[f32],
        peaks: &[f32],
        best: u32,
    ) -> u32 {
        let best_logit = logits[best as usize];
        let value = |logit: f32| (logit - best_logit) / spec.temperature;
        let mut draw = Draw::new(spec, best);
        let limits = Limits::of(spec, logits.len());
        if !limits.any() {
            draw.among_all(logits, peaks, value);
            return draw.winner;
        }
        self.collect(&limits, logits, peaks, value);
        if let Some(top_p) = limits.top_p {
            self.keep_top_p(top_p);
        }
        for (token, value) in self.tokens.iter().zip(&self.values) {
            draw.offer(*token, *value);
        }
        draw.winner
    }

    /// The tokens within min-p and top-k, and their values.
    fn collect(
        &mut self,
        limits: &Limits,
        logits: &[f32],
        peaks: &[f32],
        value: impl Fn(f32) -> f32,
    ) {
        let floor = limits.floor;
        let mut threshold = f32::MIN;
        if let Some(k) = limits.top_k {
            threshold = reached_by(peaks, k, &mut self.scratch);
        }
        let tokens = &mut self.tokens;
        gather(logits, peaks, tokens, |logit| {
            logit >= threshold && value(logit) >= floor
        });
        if let Some(k) = limits.top_k.filter(|k| *k < tokens.len()) {
            let logit = |token: &u32| logits[*token as usize];
            self.scratch.clear();
            self.scratch.extend(tokens.iter().map(logit));
            let (_, &mut last, _) = self
                .scratch
                .select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a));
            tokens.retain(|token| logit(token) >= last);
        }
        self.values.clear();
        let values = self.tokens.iter().map(|token| logits[*token as usize]);
        self.values.extend(values.map(value));
    }

    /// Keeps the likeliest whose probabilities, among the candidates, add up to `top_p`; at least one.
    fn keep_top_p(&mut self, top_p: f32) {
        self.masses.clear();
        self.masses
            .extend(self.values.iter().map(|value| exp(*value)));
        self.levels.fill(0.0);
        for (value, mass) in self.values.iter().zip(&self.masses) {
            self.levels[level(*value)] += f64::from(*mass);
        }
        let goal = f64::from(top_p) * self.levels.iter().sum::<f64>();
        let (end, mut before) = self.level_that_reaches(goal);
        self.edge.clear();
        let mut kept = 0;
        for index in 0..self.tokens.len() {
            let (token, value) = (self.tokens[index], self.values[index]);
            let level = level(value);
            if level < end {
                self.tokens[kept] = token;
                self.values[kept] = value;
                kept += 1;
            } else if level == end {
                self.edge.push((value, token));
            }
        }
        self.tokens.truncate(kept);
        self.values.truncate(kept);
        self.edge
            .sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        for &(value, token) in &self.edge {
            if before >= goal && !self.tokens.is_empty() {
                break;
            }
            before += f64::from(exp(value));
            self.tokens.push(token);
            self.values.push(value);
        }
    }

    /// The first level at whose end the sum is at least `goal`, and the sum at its beginning.
    fn level_that_reaches(&self, goal: f64) -> (usize, f64) {
        let mut sum = 0.0;
        for (level, mass) in self.levels.iter().enumerate() {
            if *mass > 0.0 && sum + mass >= goal {
                return (level, sum);
            }
            sum += mass;
        }
        // The sum was added up in this very order, so a goal within it is reached above; one beyond it keeps all.
        (LEVELS, sum)
    }
}

/// The class of a value, from 0 for the best.
fn level(value: f32) -> usize {
    ((-value * LEVELS_PER_UNIT) as usize).min(LEVELS - 1)
}

/// The limits of a spec that exclude anything.
#[derive(Debug)]
struct Limits {
    /// The smallest value that min-p allows.
    floor: f32,
    top_k: Option<usize>,
    top_p: Option<f32>,
}

impl Limits {
    fn of(spec: &SampleSpec, vocabulary: usize) -> Self {
        Self {
            floor: if spec.min_p > 0.0 {
                spec.min_p.min(1.0).ln()
            } else {
                f32::MIN
            },
            top_k: (1..vocabulary)
                .contains(&(spec.top_k as usize))
                .then_some(spec.top_k as usize),
            top_p: (spec.top_p < 1.0).then_some(spec.top_p),
        }
    }

    fn any(&self) -> bool {
        self.floor > f32::MIN || self.top_k.is_some() || self.top_p.is_some()
    }
}

/// The candidate with the largest sum of value and Gumbel noise so far; ties by token.
struct Draw {
    gumbel: Gumbel,
    winner: u32,
    score: f32,
}

impl Draw {
    /// Begins with the likeliest token, whose value is 0.
    fn new(spec: &SampleSpec, best: u32) -> Self {
        let mut gumbel = Gumbel::new(spec.seed, spec.position);
        let score = gumbel.noise(best);
        Self {
            gumbel,
            winner: best,
            score,
        }
    }

    /// Most candidates cannot win, and what shows it costs less than the noise: see [`Gumbel::noise_above`].
    fn offer(&mut self, token: u32, value: f32) {
        if let Some(noise) = self.gumbel.noise_above(token, self.score - value) {
            let score = value + noise;
            if score > self.score || (score >= self.score && token < self.winner) {
                self.score = score;
                self.winner = token;
            }
        }
    }

    fn among_all(&mut self, logits: &[f32], peaks: &[f32], value: impl Fn(f32) -> f32) {
        for (block, (logits, peak)) in logits.chunks(BLOCK).zip(peaks).enumerate() {
            if value(*peak) + Gumbel::MAX < self.score {
                continue;
            }
            let first = (block * BLOCK) as u32;
            for (within, logit) in logits.iter().enumerate() {
                self.offer(first + within as u32, value(*logit));
            }
        }
    }
}
