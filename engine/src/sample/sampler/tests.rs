//! Each step of sampling alone, their order, and that a seed fixes the draw.

#![expect(clippy::float_cmp, reason = "all or none is exact")]

mod reference;
mod speed;

use proptest::prelude::*;

use super::*;

fn spec() -> SampleSpec {
    SampleSpec {
        temperature: 1.0,
        seed: 42,
        ..SampleSpec::greedy()
    }
}

fn greedy() -> SampleSpec {
    SampleSpec {
        temperature: 0.0,
        ..spec()
    }
}

fn token(spec: &SampleSpec, history: History<'_>, logits: &[f32]) -> Option<u32> {
    Sampler::default()
        .sample(spec, history, &mut logits.to_vec())
        .token
}

/// How often each token comes in `draws` draws, one for each position.
fn frequencies(spec: &SampleSpec, logits: &[f32], draws: u32) -> Vec<f32> {
    let mut sampler = Sampler::default();
    let mut counts = vec![0_u32; logits.len()];
    for position in 0..draws {
        let spec = SampleSpec {
            position,
            ..spec.clone()
        };
        let sampled = sampler.sample(&spec, History::default(), &mut logits.to_vec());
        counts[sampled.token.unwrap() as usize] += 1;
    }
    counts
        .into_iter()
        .map(|count| count as f32 / draws as f32)
        .collect()
}

#[test]
fn greedy_takes_the_first_of_the_largest() {
    assert_eq!(
        token(&greedy(), History::default(), &[1.0, 3.0, 3.0, 2.0]),
        Some(1)
    );
    let nearly = SampleSpec {
        temperature: 9e-6,
        ..spec()
    };
    assert_eq!(token(&nearly, History::default(), &[1.0, 1.1]), Some(1));
}

#[test]
fn rows_without_a_finite_number_have_no_token() {
    let rows = [
        vec![],
        vec![f32::NAN; 3],
        vec![f32::NEG_INFINITY, f32::INFINITY],
    ];
    for row in rows {
        for spec in [
            greedy(),
            SampleSpec {
                logprobs: Some(2),
                ..spec()
            },
        ] {
            assert_eq!(token(&spec, History::default(), &row), None);
        }
    }
    assert_eq!(
        token(&spec(), History::default(), &[f32::NAN, -3.0]),
        Some(1)
    );
}

#[test]
fn draws_follow_the_softmax() {
    let logits = [0.1_f32, 0.2, 0.3, 0.4].map(f32::ln);
    for (token, frequency) in frequencies(&spec(), &logits, 20_000)
        .into_iter()
        .enumerate()
    {
        let expected = 0.1 * (token as f32 + 1.0);
        assert!(
            (frequency - expected).abs() < 0.012,
            "token {token}: {frequency}"
        );
    }
    let hot = SampleSpec {
        temperature: 1e6,
        ..spec()
    };
    assert!(
        frequencies(&hot, &logits, 20_000)
            .iter()
            .all(|f| (f - 0.25).abs() < 0.012)
    );
}

#[test]
fn top_k_keeps_k_and_ties() {
    let spec = SampleSpec { top_k: 2, ..spec() };
    let shares = frequencies(&spec, &[1.0, 0.5, 0.9, 0.4], 500);
    assert!(shares[0] > 0.0 && shares[2] > 0.0);
    assert_eq!((shares[1], shares[3]), (0.0, 0.0));
    let tied = frequencies(&spec, &[1.0, 0.5, 0.5, 0.4], 500);
    assert!(tied[1] > 0.0 && tied[2] > 0.0 && tied[3] == 0.0);
}

#[test]
fn top_p_keeps_the_token_that_crosses() {
    let logits = [0.5_f32, 0.3, 0.15, 0.05].map(f32::ln);
    let kept = |top_p| {
        let shares = frequencies(&SampleSpec { top_p, ..spec() }, &logits, 2_000);
        shares.iter().filter(|share| **share > 0.0).count()
    };
    assert_eq!(
        [kept(0.0), kept(0.45), kept(0.6), kept(0.9), kept(1.0)],
        [1, 1, 2, 3, 4]
    );
}

#[test]
fn top_p_counts_after_top_k() {
    // Among the two that top-k leaves, the first has 0.625 of the probability and reaches 0.6 alone.
    let logits = [0.5_f32, 0.3, 0.2].map(f32::ln);
    let spec = SampleSpec {
        top_k: 2,
        top_p: 0.6,
        ..spec()
    };
    assert_eq!(frequencies(&spec, &logits, 300)[0], 1.0);
}

#[test]
fn min_p_is_relative_to_the_likeliest() {
    let logits = [0.5_f32, 0.3, 0.15, 0.05].map(f32::ln);
    let shares = frequencies(
        &SampleSpec {
            min_p: 0.25,
            ..spec()
        },
        &logits,
        1_000,
    );
    assert!(shares[2] > 0.0 && shares[3] == 0.0);
    assert_eq!(
        frequencies(
            &SampleSpec {
                min_p: 7.0,
                ..spec()
            },
            &logits,
            50
        )[0],
        1.0
    );
}

#[test]
fn banned_tokens_never_come() {
    let history = History {
        banned: &[1, 99],
        ..History::default()
    };
    assert_eq!(token(&greedy(), history, &[1.0, 9.0, 2.0]), Some(2));
}

/// Found by the property below: minus infinity times a negative penalty is plus infinity.
#[test]
fn penalties_do_not_bring_back_banned_tokens() {
    let spec = SampleSpec {
        repetition_penalty: -0.5,
        ..greedy()
    };
    let history = History {
        prompt: &[0],
        output: &[],
        banned: &[0],
        ..History::default()
    };
    assert_eq!(token(&spec, history, &[1.0, 0.5]), Some(1));
}

#[test]
fn repetition_penalty_counts_prompt_and_output_once_each() {
    let spec = SampleSpec {
        repetition_penalty: 2.0,
        ..greedy()
    };
    // Token 0 falls from 3 to 1.5 (once, although it occurs twice), token 3 from -1 to -2.
    let history = History {
        prompt: &[0, 3],
        output: &[0],
        ..History::default()
    };
    assert_eq!(token(&spec, history, &[3.0, 1.4, 1.0, -1.0]), Some(0));
    assert_eq!(token(&spec, history, &[3.0, 1.6, 1.0, -1.0]), Some(1));
    assert_eq!(token(&spec, history, &[-9.0, -9.0, -1.9, -1.0]), Some(2));
}

#[test]
fn frequency_and_presence_count_the_output_only() {
    let history = History {
        prompt: &[1, 1, 1, 1],
        output: &[0, 0, 0],
        ..History::default()
    };
    let frequency = SampleSpec {
        frequency_penalty: 0.5,
        ..greedy()
    };
    assert_eq!(token(&frequency, history, &[3.0, 1.6]), Some(1));
    assert_eq!(token(&frequency, history, &[3.0, 1.4]), Some(0));
    let presence = SampleSpec {
        presence_penalty: 0.5,
        ..greedy()
    };
    assert_eq!(token(&presence, history, &[3.0, 2.6]), Some(1));
    assert_eq!(token(&presence, history, &[3.0, 2.4]), Some(0));
}

#[test]
fn penalties_leave_no_trace_for_the_next_row() {
    let mut sampler = Sampler::default();
    let spec = SampleSpec {
        repetition_penalty: 10.0,
        frequency_penalty: 5.0,
        ..greedy()
    };
    let history = History {
        prompt: &[0],
        output: &[0, 1, 1],
        ..History::default()
    };
    sampler.sample(&spec, history, &mut [5.0, 4.0, 3.0]);
    let other = History {
        prompt: &[2],
        output: &[],
        ..History::default()
    };
    assert_eq!(
        sampler.sample(&spec, other, &mut [5.0, 4.0, 9.0]).token,
        Some(0)
    );
    assert!(sampler.counts.iter().all(|count| *count == 0));
    assert!(sampler.seen.iter().all(|seen| !seen));
}

#[test]
fn logprobs_are_raw() {
    let spec = SampleSpec {
        logprobs: Some(2),
        temperature: 0.0,
        ..spec()
    };
    let logits = [0.5_f32, 0.2, 0.3].map(f32::ln);
    let history = History {
        banned: &[0],
        ..History::default()
    };
    let sampled = Sampler::default().sample(&spec, history, &mut logits.to_vec());
    assert_eq!(sampled.token, Some(2));
    let logprob = sampled.logprob.unwrap();
    assert!((logprob.logprob - 0.3_f32.ln()).abs() < 1e-6);
    assert_eq!(logprob.rank, 2);
    let top: Vec<u32> = logprob.top.iter().map(|(token, _)| *token).collect();
    assert_eq!(top, [0, 2]);
}

#[test]
fn only_allowed_tokens_come() {
    let history = History {
        allowed: &[2, 0, 0, 77],
        ..History::default()
    };
    assert_eq!(token(&greedy(), history, &[1.0, 9.0, 2.0]), Some(2));
    let banned_too = History {
        banned: &[2],
        ..history
    };
    assert_eq!(token(&greedy(), banned_too, &[1.0, 9.0, 2.0]), Some(0));
    let none = History {
        allowed: &[99],
        ..history
    };
    assert_eq!(token(&greedy(), none, &[1.0, 9.0, 2.0]), None);
}

#[test]
fn biases_come_before_penalties_and_do_not_bring_back_banned_tokens() {
    let spec = SampleSpec {
        repetition_penalty: 2.0,
        ..greedy()
    };
    // Token 0 is at -1 + 5 = 4 when the penalty halves it; the other way round it would be at -2 + 5 = 3.
    let history = History {
        prompt: &[0],
        biases: &[(0, 5.0), (9, 1.0)],
        ..History::default()
    };
    assert_eq!(token(&spec, history, &[-1.0, 1.9]), Some(0));
    assert_eq!(token(&spec, history, &[-1.0, 2.1]), Some(1));
    let banned = History {
        banned: &[0],
        biases: &[(0, 100.0)],
        ..History::default()
    };
    assert_eq!(token(&greedy(), banned, &[5.0, 1.0]), Some(1));
}

#[test]
fn tokens_asked_for_replace_the_likeliest() {
    let spec = SampleSpec {
        logprobs: Some(2),
        ..greedy()
    };
    let logits = [0.5_f32, 0.2, 0.3].map(f32::ln);
    let history = History {
        asked: &[1, 50],
        biases: &[(2, 10.0)],
        ..History::default()
    };
    let sampled = Sampler::default().sample(&spec, history, &mut logits.to_vec());
    assert_eq!(sampled.token, Some(2));
    let logprob = sampled.logprob.unwrap();
    assert!(
        (logprob.logprob - 0.3_f32.ln()).abs() < 1e-6,
        "biases do not show"
    );
    assert_eq!(logprob.rank, 2);
    assert_eq!(logprob.top[0].0, 1);
    assert!((logprob.top[0].1 - 0.2_f32.ln()).abs() < 1e-6);
    assert_eq!(logprob.top[1], (50, f32::NEG_INFINITY));
}

#[test]
fn a_prompt_token_has_its_log_probability_and_rank() {
    let mut logits = [0.5_f32, 0.2, 0.3].map(f32::ln);
    let logprob = Sampler::default().logprob(&mut logits, 1, 2);
    assert!((logprob.logprob - 0.2_f32.ln()).abs() < 1e-6);
    assert_eq!(logprob.rank, 3);
    let top: Vec<u32> = logprob.top.iter().map(|(token, _)| *token).collect();
    assert_eq!(top, [0, 2]);
}

proptest! {
    /// Whatever the parameters, the token is one of the row's finite ones, and the same each time.
    #[test]
    fn any_parameters_give_a_possible_token(
        logits in proptest::collection::vec(
            prop_oneof![8 => -30.0_f32..30.0, 1 => Just(f32::NAN), 1 => Just(f32::NEG_INFINITY)], 1..40),
        temperature in prop_oneof![Just(0.0_f32), 1e-4_f32..3.0, Just(f32::NAN)],
        top_p in prop_oneof![-0.5_f32..1.5, Just(f32::NAN)],
        top_k in 0_u32..50,
        min_p in -0.5_f32..1.5,
        repetition_penalty in -2.0_f32..3.0,
        seed: u64,
        output in proptest::collection::vec(0_u32..60, 0..10),
        logprobs in proptest::option::of(0_u32..60),
    ) {
        let spec = SampleSpec {
            temperature, top_p, top_k, min_p, repetition_penalty, seed, logprobs,
            frequency_penalty: 0.1, ..spec()
        };
        let history = History { prompt: &[0], output: &output, ..History::default() };
        let mut sampler = Sampler::default();
        let first = sampler.sample(&spec, history, &mut logits.clone());
        let again = sampler.sample(&spec, history, &mut logits.clone());
        prop_assert_eq!(&first, &again);
        let possible = logits.iter().any(|logit| logit.is_finite());
        prop_assert_eq!(first.token.is_some(), possible);
        if let Some(token) = first.token {
            prop_assert!(logits[token as usize].is_finite());
            prop_assert_eq!(first.logprob.is_some(), logprobs.is_some());
        }
    }
}
