//! Small model folders made on the spot, and the demo model against what transformers makes of it.

use std::fs;
use std::path::PathBuf;

use serde::Deserialize;
use serde_json::json;
use tempfile::TempDir;

use super::*;

/// A folder with a tokenizer of whole words, which puts a BOS before what it encodes, and with
/// `files`.
fn folder(files: &[(&str, &str)]) -> TempDir {
    let special = |id: u32, content: &str| {
        json!({"id": id, "content": content, "special": true, "single_word": false, "lstrip": false,
               "rstrip": false, "normalized": false})
    };
    let tokenizer = json!({
        "version": "1.0",
        "truncation": {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0},
        "padding": null,
        "added_tokens": [special(0, "<s>"), special(4, "<end>")],
        "normalizer": null,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}},
        },
        "decoder": null,
        "model": {"type": "WordLevel", "vocab": {"<s>": 0, "one": 1, "two": 2, "?": 3}, "unk_token": "?"},
    });
    let directory = tempfile::tempdir().expect("a temporary folder");
    let write = |name: &str, text: &str| {
        fs::write(directory.path().join(name), text).expect("a writable folder");
    };
    write("tokenizer.json", &tokenizer.to_string());
    for (name, text) in files {
        write(name, text);
    }
    directory
}

fn load(files: &[(&str, &str)]) -> PromptEncoder {
    PromptEncoder::load(folder(files).path()).expect("a good folder")
}

fn load_error(files: &[(&str, &str)]) -> String {
    PromptEncoder::load(folder(files).path())
        .expect_err("a bad folder")
        .to_string()
}

fn hello() -> ChatPrompt {
    ChatPrompt::new(json!([{"role": "user", "content": "one two"}]))
}

#[test]
fn an_encoder_is_shared_between_threads() {
    fn shared<T: Send + Sync>() {}
    shared::<PromptEncoder>();
}

#[test]
fn text_gets_special_tokens_and_is_never_truncated() {
    let encoder = load(&[]);
    let long = Prompt::Text("one two one two three".to_owned());
    assert_eq!(encoder.encode(&long).expect("encodes"), [0, 1, 2, 1, 2, 3]);
    assert_eq!(
        encoder.encode_text("one <end>", false).expect("encodes"),
        [1, 4]
    );
}

#[test]
fn a_chat_gets_only_what_its_template_writes() {
    let encoder = load(&[("chat_template.jinja", "{{ messages[0].content }} <end>")]);
    assert_eq!(
        encoder.encode(&Prompt::Chat(hello())).expect("encodes"),
        [1, 2, 4]
    );
}

#[test]
fn token_ids_are_checked_against_the_vocabulary() {
    let encoder = load(&[]);
    assert_eq!(encoder.vocab_size(), 5);
    let good = Prompt::Tokens(vec![4, 0]);
    assert_eq!(encoder.encode(&good).expect("known ids"), [4, 0]);
    let error = encoder
        .encode(&Prompt::Tokens(vec![4, 5]))
        .expect_err("an unknown id");
    assert!(
        matches!(
            error,
            PromptError::UnknownToken {
                position: 1,
                token: 5,
                vocab_size: 5
            }
        ),
        "{error}"
    );
    assert!(error.is_request_fault());
}

#[test]
fn a_model_without_a_template_refuses_chats_only() {
    let encoder = load(&[("tokenizer_config.json", r#"{"chat_template": null}"#)]);
    let error = encoder.render(&hello()).expect_err("no template");
    assert!(matches!(error, PromptError::NoChatTemplate), "{error}");
    assert!(encoder.encode_text("one", true).is_ok());
}

#[test]
fn the_template_file_wins_over_the_configuration() {
    let config = (
        "tokenizer_config.json",
        r#"{"chat_template": "config {{ bos_token }}{{ eos_token }}", "bos_token": "<s>", "eos_token": {"content": "<end>"}}"#,
    );
    let file = ("chat_template.jinja", "file {{ bos_token }}{{ eos_token }}");
    let text = |files: &[(&str, &str)]| load(files).render(&hello()).expect("renders");
    assert_eq!(text(&[config]), "config <s><end>");
    assert_eq!(text(&[config, file]), "file <s><end>");
    assert_eq!(text(&[file]), "file ");
}

#[test]
fn named_templates_are_chosen_by_the_tools() {
    let config = json!({"chat_template": [
        {"name": "rag", "template": "{% other dialect %}"},
        {"name": "tool_use", "template": "tools"},
        {"name": "default", "template": "default"},
    ]});
    let encoder = load(&[("tokenizer_config.json", &config.to_string())]);
    let mut chat = hello();
    assert_eq!(encoder.render(&chat).expect("renders"), "default");
    chat.tools = Some(json!([{}]));
    assert_eq!(encoder.render(&chat).expect("renders"), "tools");
}

#[test]
fn errors_name_the_file() {
    let empty = tempfile::tempdir().expect("a temporary folder");
    let error = PromptEncoder::load(empty.path()).expect_err("no tokenizer");
    assert!(error.to_string().contains("tokenizer.json"), "{error}");
    assert!(!error.is_request_fault());
    let cases = [
        (("tokenizer.json", "{"), "tokenizer.json: "),
        (("tokenizer_config.json", "["), "tokenizer_config.json: "),
        (
            ("tokenizer_config.json", r#"{"chat_template": 3}"#),
            "tokenizer_config.json: chat_template must be",
        ),
        (
            (
                "tokenizer_config.json",
                r#"{"chat_template": [{"name": "x"}]}"#,
            ),
            "tokenizer_config.json: chat_template[0].template must be",
        ),
        (
            ("tokenizer_config.json", r#"{"chat_template": []}"#),
            "tokenizer_config.json: chat_template has no entry named",
        ),
        (
            (
                "tokenizer_config.json",
                r#"{"chat_template": "x", "eos_token": 3}"#,
            ),
            "tokenizer_config.json: eos_token must be",
        ),
        (("chat_template.jinja", "{% if %}"), "chat_template.jinja: "),
    ];
    for (file, expected) in cases {
        let error = load_error(&[file]);
        assert!(error.contains(expected), "{error}");
    }
}

/// What transformers makes of the demo model's folder.
#[derive(Deserialize)]
struct Golden {
    strings: Vec<GoldenText>,
    chats: Vec<GoldenChat>,
}

#[derive(Deserialize)]
struct GoldenText {
    text: String,
    ids: Vec<u32>,
}

#[derive(Deserialize)]
struct GoldenChat {
    messages: Value,
    add_generation_prompt: bool,
    rendered: String,
    ids: Vec<u32>,
}

#[test]
fn the_demo_model_encodes_as_in_transformers() {
    let engine = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../engine"));
    let encoder = PromptEncoder::load(&engine.join("demo-model")).expect("the demo model");
    let golden = fs::read(engine.join("tests/golden/demo_tokenizer.json")).expect("golden values");
    let golden: Golden = serde_json::from_slice(&golden).expect("golden values");
    assert!(golden.strings.len() >= 20 && golden.chats.len() >= 10);
    for case in golden.strings {
        let ids = encoder.encode_text(&case.text, true).expect("encodes");
        assert_eq!(ids, case.ids, "{:?}", case.text);
    }
    for case in golden.chats {
        let chat = ChatPrompt {
            add_generation_prompt: case.add_generation_prompt,
            ..ChatPrompt::new(case.messages)
        };
        assert_eq!(encoder.render(&chat).expect("renders"), case.rendered);
        let ids = encoder.encode(&Prompt::Chat(chat)).expect("encodes");
        assert_eq!(ids, case.ids, "{:?}", case.rendered);
    }
}

#[test]
fn the_special_frame_is_what_stands_around_a_text() {
    let encoder = load(&[]);
    let frame = encoder.special_frame().expect("a BOS stands before");
    assert_eq!(
        (frame.before.as_slice(), frame.after.as_slice()),
        (&[0][..], &[][..])
    );
    for text in ["", "one", "one <end> two"] {
        let plain = encoder.encode_text(text, false).expect("encodes");
        let framed = [&frame.before, &plain, &frame.after]
            .map(Vec::as_slice)
            .concat();
        assert_eq!(framed, encoder.encode_text(text, true).expect("encodes"));
    }
}

#[test]
fn a_text_that_the_post_processor_writes_twice_has_no_frame() {
    let directory = folder(&[]);
    let path = directory.path().join("tokenizer.json");
    let text = fs::read_to_string(&path).expect("readable");
    let mut tokenizer: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let sequence = json!({"Sequence": {"id": "A", "type_id": 0}});
    tokenizer["post_processor"]["single"] = json!([sequence, sequence]);
    fs::write(&path, tokenizer.to_string()).expect("writable");
    let encoder = PromptEncoder::load(directory.path()).expect("a good folder");
    assert_eq!(encoder.special_frame(), None);
}
