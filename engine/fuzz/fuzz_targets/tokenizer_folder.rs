//! No tokenizer, tokenizer configuration or chat template makes the loader panic, nor a chat that is rendered with it.
//!
//! The first byte says which file the rest of the input is; the others are the demo model's.

#![no_main]

use std::fs;
use std::path::Path;

use libfuzzer_sys::fuzz_target;
use pointsman_proto::prompt::{ChatPrompt, Prompt, PromptEncoder};
use serde_json::json;

const FILES: &[&str] = &["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"];

fuzz_target!(|input: &[u8]| {
    let Some((which, bytes)) = input.split_first() else {
        return;
    };
    let which = FILES[usize::from(*which) % FILES.len()];
    let model = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../demo-model"));
    let folder = tempfile::tempdir().expect("a temporary folder");
    for file in FILES {
        if *file != which {
            fs::copy(model.join(file), folder.path().join(file)).expect("the demo model has it");
        }
    }
    fs::write(folder.path().join(which), bytes).expect("a writable folder");
    if let Ok(encoder) = PromptEncoder::load(folder.path()) {
        let _ = encoder.encode(&Prompt::Text("Hello, world".to_owned()));
        let _ = encoder.render(&ChatPrompt::new(json!([{"role": "user", "content": "Hello"}])));
    }
});
