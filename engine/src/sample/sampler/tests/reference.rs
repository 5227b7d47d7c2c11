//! Sampling as its definition reads, in f64 and with sorts, and the sampler against it.

use std::cmp::Ordering;

use proptest::prelude::*;

use super::super::*;
use crate::sample::philox::Gumbel;

/// A choice is compared only if nothing about it was closer than this, because f32 may then fall on the other side.
const MARGIN: f64 = 1e-4;

/// A token of the row and its value.
type Valued = (u32, f64);

/// The token, and how close the closest decision on the way to it was.
fn reference(spec: &SampleSpec, history: History<'_>, logits: &[f32]) -> (Option<u32>, f64) {
    let mut tokens = changed(spec, history, logits);
    tokens.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    let Some(&(best, best_logit)) = tokens.first() else {
        return (None, 1.0);
    };
    if spec.temperature < 1e-5 {
        let second = tokens.get(1).map_or(f64::MIN, |token| token.1);
        return (Some(best), best_logit - second);
    }
    for token in &mut tokens {
        token.1 = (token.1 - best_logit) / f64::from(spec.temperature);
    }
    let mut margin = keep_min_p(&mut tokens, f64::from(spec.min_p));
    if spec.top_k > 0 && (spec.top_k as usize) < tokens.len() {
        let last = tokens[spec.top_k as usize - 1].1;
        tokens.retain(|token| token.1 >= last);
    }
    if spec.top_p < 1.0 {
        margin = margin.min(keep_top_p(&mut tokens, f64::from(spec.top_p)));
    }
    let mut gumbel = Gumbel::new(spec.seed, spec.position);
    for token in &mut tokens {
        token.1 += f64::from(gumbel.noise(token.0));
    }
    tokens.sort_by(|a, b| b.1.total_cmp(&a.1));
    let second = tokens.get(1).map_or(f64::MIN, |token| token.1);
    (Some(tokens[0].0), margin.min(tokens[0].1 - second))
}

/// The tokens that are possible once the request had its say, with their logits.
fn changed(spec: &SampleSpec, history: History<'_>, logits: &[f32]) -> Vec<Valued> {
    let possible = |token: &u32| {
        (history.allowed.is_empty() || history.allowed.contains(token))
            && !history.banned.contains(token)
            && logits[*token as usize].is_finite()
    };
    let value = |token: u32| {
        let mut value = f64::from(logits[token as usize]);
        for (biased, bias) in history.biases {
            value += if *biased == token {
                f64::from(*bias)
            } else {
                0.0
            };
        }
        let count = history.output.iter().filter(|seen| **seen == token).count();
        if count > 0 || history.prompt.contains(&token) {
            let penalty = f64::from(spec.repetition_penalty);
            value = if value > 0.0 {
                value / penalty
            } else {
                value * penalty
            };
            value -= f64::from(spec.frequency_penalty) * count as f64;
            value -= if count > 0 {
                f64::from(spec.presence_penalty)
            } else {
                0.0
            };
        }
        (token, value)
    };
    (0..logits.len() as u32)
        .filter(possible)
        .map(value)
        .collect()
}

fn keep_min_p(tokens: &mut Vec<Valued>, min_p: f64) -> f64 {
    if min_p <= 0.0 {
        return 1.0;
    }
    let floor = min_p.ln();
    let distances = tokens.iter().skip(1).map(|token| (token.1 - floor).abs());
    let margin = distances.fold(1.0, f64::min);
    let best = tokens[0];
    tokens.retain(|token| token.1 >= floor || *token == best);
    margin
}

fn keep_top_p(tokens: &mut Vec<Valued>, top_p: f64) -> f64 {
    let goal = top_p * tokens.iter().map(|token| token.1.exp()).sum::<f64>();
    let (mut sum, mut margin, mut kept) = (0.0, 1.0_f64, 0);
    for token in tokens.iter() {
        if kept > 0 {
            margin = margin.min((sum - goal).abs());
        }
        if kept > 0 && sum >= goal {
            break;
        }
        kept += 1;
        sum += token.1.exp();
    }
    // Which of several equal tokens stays is a matter of rounding in the sum before them.
    let ties = kept < tokens.len()
        && tokens[kept - 1].1.partial_cmp(&tokens[kept].1) == Some(Ordering::Equal);
    tokens.truncate(kept);
    if ties { 0.0 } else { margin }
}

fn logits() -> impl Strategy<Value = Vec<f32>> {
    let logit = prop_oneof![
        8 => -12.0_f32..12.0,
        1 => (-4_i8..4).prop_map(f32::from),
        1 => Just(f32::NEG_INFINITY),
    ];
    proptest::collection::vec(logit, 1..300)
}

fn tokens() -> impl Strategy<Value = Vec<u32>> {
    prop_oneof![2 => Just(Vec::new()), 1 => proptest::collection::vec(0_u32..300, 0..12)]
}

prop_compose! {
    fn specs()(
        temperature in prop_oneof![1 => Just(0.0_f32), 4 => 0.05_f32..2.5],
        top_p in prop_oneof![1 => Just(1.0_f32), 2 => 0.05_f32..1.0],
        top_k in prop_oneof![1 => Just(0_u32), 2 => 1_u32..80],
        min_p in prop_oneof![2 => Just(0.0_f32), 1 => 0.0_f32..0.5],
        repetition_penalty in prop_oneof![Just(1.0_f32), 0.5_f32..2.0],
        frequency_penalty in prop_oneof![Just(0.0_f32), -1.0_f32..1.0],
        presence_penalty in prop_oneof![Just(0.0_f32), -1.0_f32..1.0],
        seed: u64,
        position in 0_u32..5,
    ) -> SampleSpec {
        SampleSpec {
            temperature, top_p, top_k, min_p, repetition_penalty, presence_penalty, frequency_penalty,
            seed, position, ..SampleSpec::greedy()
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, max_global_rejects: 100_000, ..ProptestConfig::default() })]
    #[test]
    fn any_request_gets_the_token_of_the_definition(
        spec in specs(),
        logits in logits(),
        prompt in tokens(),
        output in tokens(),
        banned in tokens(),
        allowed in tokens(),
        biases in prop_oneof![
            Just(Vec::new()), proptest::collection::vec((0_u32..300, -20.0_f32..20.0), 0..8)],
    ) {
        let history = History {
            prompt: &prompt, output: &output, banned: &banned, biases: &biases, allowed: &allowed, asked: &[],
        };
        let (token, margin) = reference(&spec, history, &logits);
        prop_assume!(margin > MARGIN);
        let sampled = Sampler::default().sample(&spec, history, &mut logits.clone());
        prop_assert_eq!(sampled.token, token);
    }
}
