//! The worker's arithmetic against `transformers`, family by family.
//!
//! `golden.json` holds what the reference answers for small models whose weights come from an integer hash; how it was
//! made, and why its cases do not hang on rounding, is said in `make_golden.py` beside it. Here the same weights are
//! written as a real model folder (two shards, an index, a manifest), opened, and computed:
//!
//! - greedy tokens of all prompts at once, in chunks, over shuffled blocks: equal, every one of them;
//! - logits after a few prompts, each computed alone and in one piece: within a relative error of the largest.
//!
//! A table of what came out is written to standard error. A checkpoint of 8 bits has a test of its own.

#![expect(clippy::unwrap_used, reason = "every function here is part of a test")]

mod folder;
mod fp8;
mod runner;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;

use pointsman_engine::model::{Model, Verification};
use serde::Deserialize;

use self::folder::{Weights, prompt};
use self::runner::Runner;

/// What the reference was asked for.
const NEW_TOKENS: usize = 32;

/// Prompt lengths to cover, and how many.
const PROMPTS: usize = 20;

/// Largest difference between two logits of f32 weights, relative to the largest logit.
const F32_TOLERANCE: f64 = 1e-4;

/// The same for bf16 weights, which may be multiplied with inputs that are rounded to bf16 as well.
const BF16_TOLERANCE: f64 = 1e-2;

#[derive(Deserialize)]
struct Golden {
    made_with: BTreeMap<String, String>,
    vocab: u32,
    models: Vec<Family>,
}

#[derive(Deserialize)]
struct Family {
    architecture: String,
    f32: Weights<Cases>,
    bf16: Weights<Cases>,
}

/// What the reference answers.
#[derive(Deserialize)]
struct Cases {
    #[serde(default)]
    greedy: Vec<Greedy>,
    logits: Vec<Logits>,
}

#[derive(Deserialize)]
struct Greedy {
    seed: u64,
    length: usize,
    output: Vec<u32>,
}

/// Logits of all tokens, less their mean.
#[derive(Deserialize)]
struct Logits {
    seed: u64,
    length: usize,
    #[serde(rename = "logits")]
    values: Vec<f64>,
}

fn golden() -> Golden {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/parity/golden.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn runner(weights: &Weights<Cases>, bf16: bool) -> Runner {
    let folder = tempfile::tempdir().unwrap();
    weights.write(folder.path(), bf16);
    let model = Model::open_with(folder.path(), Verification::Required).unwrap();
    Runner::new(&model)
}

/// Prompts whose tokens are all equal, of all.
fn equal_prompts(runner: &mut Runner, golden: &Golden, cases: &[Greedy]) -> (usize, usize) {
    let prompts = cases.iter();
    let prompts = prompts.map(|case| prompt(case.seed, case.length, golden.vocab));
    let answers = runner.greedy(prompts.collect(), NEW_TOKENS);
    let pairs = answers.iter().zip(cases);
    let equal = pairs.filter(|(answer, case)| **answer == case.output);
    (equal.count(), cases.len())
}

/// The largest error of any logit, relative to the largest logit of its row.
fn logit_error(runner: &mut Runner, golden: &Golden, cases: &[Logits]) -> f64 {
    let errors = cases.iter().map(|case| {
        let row = runner.logits(&prompt(case.seed, case.length, golden.vocab));
        assert_eq!(row.len(), case.values.len());
        let largest = case.values.iter().fold(0.0_f64, |a, b| a.max(b.abs()));
        let pairs = row.iter().zip(&case.values);
        // A NaN is no small error.
        let error = pairs.fold(0.0_f64, |worst, (got, expected)| {
            let error = (got - expected).abs();
            if error <= worst { worst } else { error }
        });
        error / largest
    });
    errors.fold(0.0, |a, b| if b <= a { a } else { b })
}

#[test]
fn every_family_answers_as_the_reference_does() {
    let golden = golden();
    let mut table = format!(
        "parity with transformers {} (torch {}), {NEW_TOKENS} greedy tokens each\n\
         {:<22} {:>12} {:>16} {:>16}\n",
        golden.made_with["transformers"],
        golden.made_with["torch"],
        "architecture",
        "equal",
        "f32 logit error",
        "bf16 logit error",
    );
    let mut failed = Vec::new();
    for family in &golden.models {
        let mut runner = runner(&family.f32, false);
        let (equal, all) = equal_prompts(&mut runner, &golden, &family.f32.cases.greedy);
        let error = logit_error(&mut runner, &golden, &family.f32.cases.logits);
        let mut narrow = self::runner(&family.bf16, true);
        let narrow_error = logit_error(&mut narrow, &golden, &family.bf16.cases.logits);
        let name = &family.architecture;
        let share = format!("{equal}/{all}");
        let errors = format!("{error:>16.1e} {narrow_error:>16.1e}");
        writeln!(table, "{name:<22} {share:>12} {errors}").unwrap();
        // Also false where an error is not a number.
        let good = error < F32_TOLERANCE && narrow_error < BF16_TOLERANCE;
        if equal < PROMPTS || !good {
            failed.push(name);
        }
    }
    // Past the test harness, which shows what tests print only when they fail.
    std::io::stderr().write_all(table.as_bytes()).unwrap();
    assert_eq!(golden.models.len(), 6);
    assert!(
        failed.is_empty(),
        "{failed:?} differ from the reference:\n{table}"
    );
}

#[test]
fn the_prompts_are_of_many_lengths_and_the_answers_long_enough() {
    for family in golden().models {
        let cases = &family.f32.cases.greedy;
        let lengths: Vec<usize> = cases.iter().map(|case| case.length).collect();
        assert_eq!(lengths.len(), PROMPTS);
        assert_eq!((lengths[0], lengths[PROMPTS - 1]), (1, 600));
        assert!(lengths.is_sorted());
        for case in cases {
            assert_eq!(case.output.len(), NEW_TOKENS);
        }
    }
}
