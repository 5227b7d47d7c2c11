//! What every workload must be, whatever its kind and seed.

use std::collections::HashSet;

use clap::ValueEnum;
use proptest::prelude::*;

use super::super::tokens::mix;
use super::*;

fn options(seed: u64, rate: f64, requests: usize) -> GenerateOptions {
    GenerateOptions {
        seed,
        rate,
        requests: Some(requests),
        duration: None,
    }
}

fn made(kind: Kind, options: GenerateOptions) -> Workload {
    generate(&kind.shape(None).unwrap(), options).unwrap()
}

fn check(workload: &Workload) {
    for pair in workload.requests.windows(2) {
        assert!(pair[0].at <= pair[1].at);
    }
    let mut answers = HashSet::new();
    for (index, request) in workload.requests.iter().enumerate() {
        assert!(request.prompt_tokens() > 0 && request.answer.tokens > 0);
        assert!(answers.insert(request.answer.id));
        let Some(after) = request.after else {
            continue;
        };
        assert!(after.request < index);
        let before = &workload.requests[after.request];
        let said = [before.prompt.as_slice(), &[before.answer]].concat();
        assert!(request.prompt.starts_with(&said));
        assert_eq!(
            (before.session, before.tenant),
            (request.session, request.tenant)
        );
        assert_eq!(request.at, before.at + after.pause);
    }
}

fn digest(workload: &Workload) -> u64 {
    let words = workload.requests.iter().flat_map(|one| {
        let prompt = one
            .prompt
            .iter()
            .flat_map(|segment| [segment.id, u64::from(segment.tokens)]);
        let rest = [
            one.answer.id,
            u64::from(one.answer.tokens),
            one.at.as_nanos() as u64,
            one.session,
        ];
        prompt.chain(rest)
    });
    words.fold(0, |digest, word| mix(digest ^ word))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn every_kind_is_in_order_and_consistent(
        kind in prop::sample::select(Kind::ALL.to_vec()),
        seed in any::<u64>(),
        rate in 0.1..200.0_f64,
    ) {
        let workload = made(kind, options(seed, rate, 300));
        prop_assert_eq!(workload.requests.len(), 300);
        check(&workload);
        prop_assert_eq!(digest(&workload), digest(&made(kind, options(seed, rate, 300))));
        check(&workload.clone().with_fixed_arrivals_checked());
    }
}

impl Workload {
    /// Times move, what belongs together stays together.
    fn with_fixed_arrivals_checked(self) -> Self {
        self.with_fixed_arrivals(10.0).faster(1.0)
    }
}

#[test]
fn a_run_has_its_rate_from_the_first_second() {
    for kind in Kind::ALL {
        let workload = made(
            kind,
            GenerateOptions {
                seed: 3,
                rate: 40.0,
                requests: None,
                duration: Some(Duration::from_secs(100)),
            },
        );
        check(&workload);
        let early = workload
            .requests
            .iter()
            .filter(|one| one.at < Duration::from_secs(25));
        for (requests, expected) in [(workload.requests.len(), 4000.0), (early.count(), 1000.0)] {
            let ratio = requests as f64 / expected;
            assert!(
                (0.8..1.2).contains(&ratio),
                "{kind:?}: {requests} of {expected}"
            );
        }
    }
}

#[test]
fn kinds_share_what_they_say() {
    let share = |kind| made(kind, options(1, 10.0, 2000)).sharing().token_share();
    assert!(share(Kind::Unique) < f64::EPSILON);
    assert!(
        (0.9..0.97).contains(&share(Kind::SharedPrompts)),
        "{}",
        share(Kind::SharedPrompts)
    );
    assert!(share(Kind::Agents) > 0.85, "{}", share(Kind::Agents));
    for kind in [
        Kind::MultiTurn,
        Kind::Rag,
        Kind::LongDocuments,
        Kind::SkewedTenants,
    ] {
        assert!(
            (0.2..0.97).contains(&share(kind)),
            "{kind:?}: {}",
            share(kind)
        );
    }
}

#[test]
fn lengths_have_the_means_that_were_asked_for() {
    let workload = made(Kind::Unique, options(1, 10.0, 20_000));
    let totals = workload.totals();
    let prompt = totals.prompt_tokens as f64 / 20_000.0;
    let answer = totals.answer_tokens as f64 / 20_000.0;
    assert!((prompt / 1_155.0 - 1.0).abs() < 0.05, "{prompt}");
    assert!((answer / 211.0 - 1.0).abs() < 0.03, "{answer}");
}

#[test]
fn the_first_tenant_is_the_hot_one() {
    let workload = made(Kind::SkewedTenants, options(1, 10.0, 10_000));
    let hot = workload
        .requests
        .iter()
        .filter(|one| one.tenant == 0)
        .count();
    assert!((3_600..4_000).contains(&hot), "{hot}");
}

#[test]
fn another_rate_asks_the_same_at_other_times() {
    let at = |rate| made(Kind::Unique, options(5, rate, 50));
    let (slow, fast) = (at(1.0), at(10.0));
    for (slow, fast) in slow.requests.iter().zip(&fast.requests) {
        assert_eq!(slow.prompt, fast.prompt);
        let ratio = slow.at.as_secs_f64() / fast.at.as_secs_f64();
        assert!((ratio - 10.0).abs() < 1e-3, "{ratio}");
    }
}

#[test]
fn a_seed_means_the_same_forever() {
    let digests =
        [Kind::MultiTurn, Kind::Rag].map(|kind| digest(&made(kind, options(42, 5.0, 200))));
    assert_eq!(
        digests,
        [6_900_621_046_109_347_492, 222_582_351_081_267_613]
    );
}

#[test]
fn parameters_are_read_and_bad_ones_are_named() {
    let shape = Kind::MultiTurn.shape(Some(
        r#"{"turns": 7, "answer": {"mean": 5, "sigma": 0, "most": 9}}"#,
    ));
    let Shape::MultiTurn(parameters) = shape.unwrap() else {
        panic!("another kind");
    };
    assert!((parameters.turns - 7.0).abs() < f64::EPSILON);
    assert_eq!((parameters.answer.least, parameters.answer.most), (1, 9));
    let error = Kind::Rag
        .shape(Some(r#"{"pasages": 1}"#))
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("parameters of rag: unknown field `pasages`"),
        "{error}"
    );
}

#[test]
fn what_has_no_rate_or_no_end_is_refused() {
    let shape = Kind::Unique.shape(None).unwrap();
    let error = |options| generate(&shape, options).unwrap_err();
    assert_eq!(error(options(1, 0.0, 1)), GenerateError::Rate(0.0));
    assert!(matches!(
        error(options(1, f64::NAN, 1)),
        GenerateError::Rate(_)
    ));
    let endless = GenerateOptions {
        requests: None,
        ..options(1, 1.0, 1)
    };
    assert_eq!(error(endless), GenerateError::NoEnd);
    assert_eq!(
        error(options(1, 1.0, REQUESTS_MAX + 1)),
        GenerateError::TooMany
    );
}

#[test]
fn names_are_those_of_the_command_line() {
    for kind in Kind::ALL {
        assert_eq!(kind.to_possible_value().unwrap().get_name(), kind.name());
    }
    assert_eq!(Kind::value_variants().len(), Kind::ALL.len());
}
