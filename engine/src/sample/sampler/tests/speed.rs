//! How long a row of a large vocabulary takes: `cargo test --release -- --ignored --nocapture sampling_speed`.

use std::time::Instant;

use super::*;
use crate::sample::philox::philox4x32;

/// Qwen's vocabulary.
const VOCABULARY: u32 = 151_936;
const ROWS: u32 = 200;

/// Logits as a model has them: roughly normal, with a few that stand out.
fn row(seed: u32) -> Vec<f32> {
    let logit = |token: u32| {
        let words = philox4x32([token, seed, 0, 0], [1, 2]);
        let sum: f32 = words
            .iter()
            .map(|word| *word as f32 / u32::MAX as f32)
            .sum();
        let normal = (sum - 2.0) * 3.0_f32.sqrt();
        normal * 2.5
            + if words[0].is_multiple_of(30_000) {
                12.0
            } else {
                0.0
            }
    };
    (0..VOCABULARY).map(logit).collect()
}

#[test]
#[ignore = "it measures"]
fn sampling_speed() {
    let rows: Vec<Vec<f32>> = (0..8).map(row).collect();
    let top = SampleSpec {
        top_k: 50,
        top_p: 0.9,
        ..spec()
    };
    let cases = [
        ("greedy", greedy()),
        ("temperature 1", spec()),
        ("top-k 50, top-p 0.9", top),
        (
            "top-p 0.9",
            SampleSpec {
                top_p: 0.9,
                ..spec()
            },
        ),
        (
            "min-p 0.05",
            SampleSpec {
                min_p: 0.05,
                ..spec()
            },
        ),
        (
            "greedy, 20 logprobs",
            SampleSpec {
                logprobs: Some(20),
                ..greedy()
            },
        ),
    ];
    let mut sampler = Sampler::default();
    for (name, spec) in cases {
        let mut times = Vec::new();
        for turn in 0..ROWS {
            let mut logits = rows[turn as usize % rows.len()].clone();
            let spec = SampleSpec {
                position: turn,
                ..spec.clone()
            };
            let started = Instant::now();
            let sampled = sampler.sample(&spec, History::default(), &mut logits);
            times.push(started.elapsed());
            assert!(sampled.token.is_some());
        }
        times.sort_unstable();
        let (median, p90) = (times[times.len() / 2], times[times.len() * 9 / 10]);
        println!("{name}: {median:?} a row, {p90:?} at the 90th percentile");
    }
}
