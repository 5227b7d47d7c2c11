//! Which experts of a mixture compute which tokens.
//!
//! A token's experts follow from its own router logits alone. All tokens of one expert are computed together, and a
//! token's experts are added up in the order of their numbers: so its bits are the same whatever shares the batch.

use crate::model::ExpertsConfig;

/// One token's way through one expert.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Route {
    pub(super) expert: u32,
    /// Row of the step.
    pub(super) token: u32,
    /// What the expert's output counts.
    pub(super) weight: f32,
}

/// The routes of a step's tokens through one layer. Memory grows to the largest step and stays.
#[derive(Debug, Default)]
pub(super) struct Routes {
    /// By expert, then by token.
    chosen: Vec<Route>,
    probabilities: Vec<f32>,
}

impl Routes {
    /// Chooses for each row of `logits`, which is `[tokens, experts]`, the most likely experts; of equals the first.
    ///
    /// An expert's weight is its share of the softmax over all experts, or over the chosen ones when `normalised`.
    pub(super) fn choose(&mut self, logits: &[f32], config: &ExpertsConfig) {
        self.chosen.clear();
        for (token, logits) in logits.chunks_exact(config.count).enumerate() {
            softmax(logits, &mut self.probabilities);
            let first = self.chosen.len();
            for _ in 0..config.per_token {
                let (expert, weight) = take_best(&mut self.probabilities);
                self.chosen.push(Route {
                    expert,
                    token: token as u32,
                    weight,
                });
            }
            if config.normalised {
                let chosen = &mut self.chosen[first..];
                let sum: f32 = chosen.iter().map(|route| route.weight).sum();
                for route in chosen {
                    route.weight /= sum;
                }
            }
        }
        self.chosen
            .sort_unstable_by_key(|route| (route.expert, route.token));
    }

    /// The routes of each expert that has any, in the order of the experts; none has a token twice.
    pub(super) fn by_expert(&self) -> impl Iterator<Item = &[Route]> {
        self.chosen.chunk_by(|a, b| a.expert == b.expert)
    }
}

fn softmax(logits: &[f32], probabilities: &mut Vec<f32>) {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    probabilities.clear();
    probabilities.extend(logits.iter().map(|logit| (logit - max).exp()));
    let sum: f32 = probabilities.iter().sum();
    for probability in probabilities {
        *probability /= sum;
        // A token without finite logits ends its request; until then it takes some experts like any other.
        if probability.is_nan() {
            *probability = 0.0;
        }
    }
}

/// Finds the largest probability and makes it one that is never found again.
fn take_best(probabilities: &mut [f32]) -> (u32, f32) {
    let (mut best, mut probability) = (0, -1.0);
    for (index, &candidate) in probabilities.iter().enumerate() {
        if candidate > probability {
            (best, probability) = (index, candidate);
        }
    }
    if let Some(taken) = probabilities.get_mut(best) {
        *taken = -1.0;
    }
    (best as u32, probability)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(per_token: usize, normalised: bool) -> ExpertsConfig {
        ExpertsConfig {
            count: 4,
            per_token,
            normalised,
            ..ExpertsConfig::default()
        }
    }

    fn routes(logits: &[f32], config: &ExpertsConfig) -> Vec<(u32, u32, f32)> {
        let mut routes = Routes::default();
        routes.choose(logits, config);
        let all = routes.by_expert().flatten();
        all.map(|route| (route.expert, route.token, route.weight))
            .collect()
    }

    #[test]
    fn each_token_takes_its_most_likely_experts() {
        let (half, quarter) = (0.5_f32.ln(), 0.25_f32.ln());
        let logits = [
            [quarter, half, -9.0e9, quarter],
            [half, -9.0e9, quarter, quarter],
        ];
        let close = |got: &[(u32, u32, f32)], expected: &[(u32, u32, f32)]| {
            assert_eq!(got.len(), expected.len());
            for (got, expected) in got.iter().zip(expected) {
                assert_eq!((got.0, got.1), (expected.0, expected.1));
                assert!((got.2 - expected.2).abs() < 1e-6, "{got:?} {expected:?}");
            }
        };
        // Of two equals the first is taken.
        let plain = routes(logits.as_flattened(), &config(2, false));
        close(
            &plain,
            &[(0, 0, 0.25), (0, 1, 0.5), (1, 0, 0.5), (2, 1, 0.25)],
        );
        let normalised = routes(logits.as_flattened(), &config(2, true));
        let (most, least) = (2.0 / 3.0, 1.0 / 3.0);
        close(
            &normalised,
            &[(0, 0, least), (0, 1, most), (1, 0, most), (2, 1, least)],
        );
    }

    #[test]
    fn a_token_without_finite_logits_takes_no_expert_twice() {
        let taken = routes(&[f32::NAN; 4], &config(4, true));
        let experts: Vec<u32> = taken.iter().map(|(expert, ..)| *expert).collect();
        assert_eq!(experts, [0, 1, 2, 3]);
    }
}
