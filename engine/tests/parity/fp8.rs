//! A checkpoint of e4m3 in blocks, written by torch, against what `transformers` answers for it; see
//! `make_golden_fp8.py`.

use std::path::Path;

use pointsman_engine::model::Model;
use serde::Deserialize;

use super::F32_TOLERANCE;
use super::runner::Runner;

#[derive(Deserialize)]
struct Golden {
    answers: Vec<Answer>,
}

/// Logits of all tokens behind a prompt, less their mean.
#[derive(Deserialize)]
struct Answer {
    prompt: Vec<u32>,
    logits: Vec<f64>,
}

#[test]
fn weights_of_8_bits_answer_as_the_reference_does() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/parity/fp8");
    let golden = std::fs::read(folder.join("golden.json")).unwrap();
    let golden: Golden = serde_json::from_slice(&golden).unwrap();
    let mut runner = Runner::new(&Model::open(&folder).unwrap());
    assert_eq!(golden.answers.len(), 3);
    for answer in golden.answers {
        let found = runner.logits(&answer.prompt);
        assert_eq!(found.len(), answer.logits.len());
        let largest = answer.logits.iter().fold(0.0_f64, |a, b| a.max(b.abs()));
        for (found, expected) in found.iter().zip(&answer.logits) {
            let error = (found - expected).abs() / largest;
            assert!(error < F32_TOLERANCE, "{found} instead of {expected}");
        }
    }
}
