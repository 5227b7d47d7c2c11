//! Tokens: reproducible, made of words, and within what the request allows.

use std::path::Path;

use super::*;

const WORDS: std::ops::Range<u32> = 10..110;

fn tokens() -> Tokens {
    Tokens::new(WORDS.collect(), Some(2), None)
}

/// A step with one sequence that ends with `last` at `context_len`.
fn step(last: u32, context_len: u32) -> (Step, StepSequence) {
    let step = Step {
        tokens: vec![5, last],
        positions: vec![context_len - 2, context_len - 1],
        ..Step::default()
    };
    let sequence = StepSequence {
        tokens: 0..2,
        context_len,
        block_table: 0..0,
        sample: Some(0),
        embed: false,
    };
    (step, sequence)
}

fn seeded(seed: u64) -> SampleSpec {
    SampleSpec {
        temperature: 1.0,
        seed,
        ..SampleSpec::greedy()
    }
}

fn token(tokens: &Tokens, last: u32, context_len: u32, spec: &SampleSpec) -> Option<u32> {
    let (step, sequence) = step(last, context_len);
    tokens.sample(&step, &sequence, spec).token
}

#[test]
fn a_token_depends_on_the_contexts_end_and_the_seed_alone() {
    let tokens = tokens();
    let token = |last, len, spec: &SampleSpec| token(&tokens, last, len, spec);
    assert_eq!(token(7, 9, &seeded(1)), token(7, 9, &seeded(1)));
    let differ = |other: Option<u32>| other != token(7, 9, &seeded(1));
    assert!(differ(token(7, 9, &seeded(2))) || differ(token(7, 9, &seeded(3))));
    assert!(differ(token(8, 9, &seeded(1))) || differ(token(9, 9, &seeded(1))));
    assert!(differ(token(7, 10, &seeded(1))) || differ(token(7, 11, &seeded(1))));
    let greedy = |seed| SampleSpec {
        seed,
        ..SampleSpec::greedy()
    };
    assert_eq!(
        token(7, 9, &greedy(1)),
        token(7, 9, &greedy(2)),
        "greedy has no seed"
    );
    for last in 0..1000 {
        assert!(WORDS.contains(&token(last, 20, &seeded(1)).unwrap()));
    }
}

#[test]
fn what_is_banned_or_not_allowed_never_comes() {
    let tokens = tokens();
    for last in 0..200 {
        let (mut step, sequence) = step(last, 9);
        step.banned = WORDS.filter(|word| word % 2 == 0).collect();
        step.biases = vec![(11, -100.0), (13, 1.0)];
        step.allowed = vec![11, 12, 13, 15];
        let spec = SampleSpec {
            banned: 0..step.banned.len() as u32,
            biases: 0..2,
            ..SampleSpec::greedy()
        };
        let odd = tokens.sample(&step, &sequence, &spec).token.unwrap();
        assert!(odd % 2 == 1 && odd != 11);
        let narrow = SampleSpec {
            allowed: 0..4,
            ..spec.clone()
        };
        let allowed = tokens.sample(&step, &sequence, &narrow).token.unwrap();
        assert!([13, 15].contains(&allowed));
        step.allowed = vec![12];
        let nothing = SampleSpec {
            allowed: 0..1,
            ..spec
        };
        assert_eq!(tokens.sample(&step, &sequence, &nothing).token, None);
    }
}

#[test]
fn a_strong_bias_decides() {
    let (mut step, sequence) = step(3, 9);
    step.biases = vec![(900, 50.0), (901, 100.0), (902, 100.0)];
    step.banned = vec![902];
    let spec = SampleSpec {
        banned: 0..1,
        biases: 0..3,
        ..SampleSpec::greedy()
    };
    assert_eq!(tokens().sample(&step, &sequence, &spec).token, Some(901));
}

#[test]
fn answers_end_by_themselves_around_the_mean() {
    let tokens = Tokens::new(WORDS.collect(), Some(2), Some(100));
    let length = |spec: SampleSpec| {
        let at = |position| {
            let spec = SampleSpec {
                position,
                ..spec.clone()
            };
            token(&tokens, 7, 30 + position, &spec)
        };
        1 + (0..1000).find(|position| at(*position) == Some(2)).unwrap()
    };
    assert_eq!(length(SampleSpec::greedy()), 100);
    let lengths: Vec<u32> = (0..200).map(|seed| length(seeded(seed))).collect();
    assert!(lengths.iter().all(|length| (50..150).contains(length)));
    let mean = lengths.iter().sum::<u32>() / 200;
    assert!((90..110).contains(&mean), "{mean}");
}

#[test]
fn an_end_that_is_forbidden_comes_later() {
    let tokens = Tokens::new(WORDS.collect(), Some(2), Some(4));
    let (mut step, sequence) = step(7, 30);
    step.banned = vec![2];
    let at = |position, banned| {
        let spec = SampleSpec {
            position,
            banned: 0..banned,
            ..SampleSpec::greedy()
        };
        tokens.sample(&step, &sequence, &spec).token == Some(2)
    };
    assert!(at(3, 0) && !at(3, 1) && !at(4, 0) && at(3 + END_AGAIN_AFTER, 0));
}

#[test]
fn log_probabilities_fall_and_name_the_token_first() {
    let (mut step, sequence) = step(7, 9);
    step.asked = vec![10, 999];
    let spec = SampleSpec {
        logprobs: Some(5),
        asked: 1..2,
        ..SampleSpec::greedy()
    };
    let sampled = tokens().sample(&step, &sequence, &spec);
    let logprob = sampled.logprob.unwrap();
    assert_eq!(logprob.rank, 1);
    assert_eq!(logprob.top.len(), 6, "five, and the one asked for");
    assert_eq!(logprob.top[0], (sampled.token.unwrap(), logprob.logprob));
    assert!(logprob.top.windows(2).all(|pair| pair[0].1 > pair[1].1));
    assert!(logprob.top[..5].iter().map(|(_, p)| p.exp()).sum::<f32>() <= 1.0);
    assert_eq!(logprob.top[5].0, 999);
}

#[test]
fn a_prompts_log_probabilities_name_the_target_at_its_rank() {
    let mut ranks = std::collections::BTreeSet::new();
    for last in 0..100 {
        let (step, _) = step(last, 9);
        let logprob = tokens().prompt_logprob(&step, 1, 500, 20);
        let place = logprob.rank as usize - 1;
        assert_eq!(logprob.top[place], (500, logprob.logprob));
        assert_eq!(logprob.top.iter().filter(|(id, _)| *id == 500).count(), 1);
        ranks.insert(logprob.rank);
    }
    assert!(ranks.len() > 3);
}

#[test]
fn the_demo_models_words_are_words() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("demo-model");
    let tokenizer = Tokenizer::from_file(folder.join("tokenizer.json")).unwrap();
    let words = Tokens::words_of(&tokenizer, 1024);
    assert!(words.len() > 100, "{}", words.len());
    let text = tokenizer.decode(&words, false).unwrap();
    assert!(text.bytes().all(|b| b == b' ' || b.is_ascii_alphabetic()));
}
