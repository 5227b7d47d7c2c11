//! The way of a prompt through cache and pool, against encoding it plainly.

use std::path::{Path, PathBuf};

use pointsman_proto::prompt::ChatPrompt;
use proptest::prelude::*;
use serde_json::json;

use super::*;

/// A tokenizer of words that adds a BOS to texts, with a template that writes each message after its
/// role.
fn encoder() -> Arc<PromptEncoder> {
    encoder_with(
        &json!([{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]),
    )
}

fn encoder_with(post_processed: &Value) -> Arc<PromptEncoder> {
    let folder = tempfile::tempdir().unwrap();
    write_model(folder.path(), post_processed);
    Arc::new(PromptEncoder::load(folder.path()).unwrap())
}

fn write_model(folder: &Path, post_processed: &Value) {
    let special = json!({"id": 4, "content": "<s>", "special": true, "single_word": false, "lstrip": false,
        "rstrip": false, "normalized": false});
    let tokenizer = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": [special],
        "normalizer": null,
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": post_processed,
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [4], "tokens": ["<s>"]}},
        },
        "decoder": null,
        "model": {
            "type": "WordLevel",
            "vocab": {"<unk>": 0, "user": 1, "hello": 2, "world": 3},
            "unk_token": "<unk>"
        }
    });
    std::fs::write(folder.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    let template = "{% for m in messages %}{{ m.role }} {{ m.content }} {% endfor %}";
    std::fs::write(folder.join("chat_template.jinja"), template).unwrap();
    std::fs::write(folder.join("tokenizer_config.json"), "{}").unwrap();
}

fn demo_encoder() -> Arc<PromptEncoder> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../engine/demo-model");
    Arc::new(PromptEncoder::load(&folder).unwrap())
}

fn tokens(limits: TokenLimits) -> Tokens {
    Tokens::new([("model".to_owned(), encoder())], limits)
}

/// Limits under which everything but the empty text goes to the pool.
fn pooled() -> TokenLimits {
    TokenLimits {
        inline_bytes_max: 0,
        deadline: Duration::from_mins(1),
        ..TokenLimits::default()
    }
}

fn chat(content: &str) -> Prompt {
    Prompt::Chat(ChatPrompt::new(
        json!([{"role": "user", "content": content}]),
    ))
}

fn text(text: &str) -> Prompt {
    Prompt::Text(text.to_owned())
}

#[tokio::test]
async fn chats_and_texts_are_encoded_and_remembered() {
    let tokens = tokens(TokenLimits::default());
    for _ in 0..2 {
        let ids = tokens.encode("model", &chat("hello world")).await.unwrap();
        assert_eq!(&*ids, [1, 2, 3]);
        // The text of the chat as a prompt of its own: the same piece, and a BOS before it.
        let ids = tokens
            .encode("model", &text("user hello world "))
            .await
            .unwrap();
        assert_eq!(&*ids, [4, 1, 2, 3]);
    }
    let stats = tokens.stats();
    assert_eq!((stats.encoded, stats.cache_hits, stats.pooled), (4, 3, 0));
    assert_eq!((stats.encoded_bytes, stats.remembered_bytes), (17, 51));
    assert!(stats.cache_bytes > 0);
}

#[tokio::test]
async fn texts_that_are_more_than_framed_are_encoded_whole() {
    let sequence = json!({"Sequence": {"id": "A", "type_id": 0}});
    let encoder = encoder_with(&json!([sequence, sequence]));
    let tokens = Tokens::new([(String::new(), encoder)], TokenLimits::default());
    for hits in 0..2 {
        let ids = tokens.encode("model", &text("hello world")).await.unwrap();
        assert_eq!(&*ids, [2, 3, 2, 3]);
        assert_eq!(tokens.stats().cache_hits, hits);
    }
}

#[tokio::test]
async fn token_ids_need_no_tokenizer_and_text_does() {
    let tokens = tokens(TokenLimits::default());
    let ids = Prompt::Tokens(vec![9, 8]);
    assert_eq!(&*tokens.encode("other", &ids).await.unwrap(), [9, 8]);
    assert_eq!(
        tokens.encode("other", &text("hello")).await,
        Err(Unavailable::NoTokenizer)
    );
    assert!(tokens.knows("model") && !tokens.knows("other"));
    let any = Tokens::new([(String::new(), encoder())], TokenLimits::default());
    assert_eq!(&*any.encode("other", &text("hello")).await.unwrap(), [4, 2]);
}

#[tokio::test]
async fn a_bad_conversation_fails_with_its_reason() {
    let tokens = tokens(TokenLimits::default());
    let bad = Prompt::Chat(ChatPrompt::new(json!("not an array")));
    let error = tokens.encode("model", &bad).await.unwrap_err();
    assert_eq!(error.label(), "failed");
    assert!(error.to_string().contains("messages"), "{error}");
    assert_eq!(tokens.stats().failed, 1);
}

#[tokio::test]
async fn only_what_is_unseen_counts_as_long() {
    let tokens = Tokens::new(
        [(String::new(), demo_encoder())],
        TokenLimits {
            inline_bytes_max: 400,
            deadline: Duration::from_mins(1),
            ..TokenLimits::default()
        },
    );
    let turn = |number: usize| {
        let turn = [
            json!({"role": "user", "content": format!("What is {number}?")}),
            json!({"role": "assistant", "content": "x y ".repeat(20 + number)}),
        ];
        turn.into_iter()
    };
    let mut messages = vec![json!({"role": "system", "content": "Be brief. ".repeat(50)})];
    messages.extend((0..8).flat_map(turn));
    let chat = |messages: &[Value]| Prompt::Chat(ChatPrompt::new(Value::from(messages)));
    tokens.encode("", &chat(&messages)).await.unwrap();
    assert_eq!(tokens.stats().pooled, 1);
    for number in 8..16 {
        messages.extend(turn(number));
        let prompt = chat(&messages);
        let ids = tokens.encode("", &prompt).await.unwrap();
        assert_eq!(*ids, demo_encoder().encode(&prompt).unwrap());
    }
    let stats = tokens.stats();
    assert_eq!(
        stats.pooled, 1,
        "each new turn is short, though its chat is long"
    );
    let text_bytes = stats.encoded_bytes + stats.remembered_bytes;
    assert!(stats.encoded_bytes * 5 < text_bytes, "{stats:?}");
}

#[tokio::test]
async fn a_long_prompt_is_pooled_unread() {
    let tokens = tokens(TokenLimits {
        inline_prompt_bytes_max: 100,
        inline_bytes_max: 1_000,
        ..pooled()
    });
    tokens.encode("model", &chat("hello")).await.unwrap();
    assert_eq!(
        tokens.stats().pooled,
        1,
        "two containers cost more than their text"
    );
    tokens
        .encode("model", &text(&"hello ".repeat(17)))
        .await
        .unwrap();
    assert_eq!(tokens.stats().pooled, 2);
    tokens.encode("model", &text("hello")).await.unwrap();
    assert_eq!(tokens.stats().pooled, 2);
}

#[tokio::test]
async fn a_full_pool_refuses_at_once_and_what_is_known_needs_no_pool() {
    let closed = tokens(TokenLimits {
        running_max: 0,
        waiting_max: 0,
        inline_bytes_max: 5,
        ..pooled()
    });
    assert_eq!(
        closed.encode("model", &text("hello world")).await,
        Err(Unavailable::Busy)
    );
    assert!(closed.encode("model", &text("hello")).await.is_ok());
    let stats = closed.stats();
    assert_eq!((stats.busy, stats.encoded), (1, 1));
}

#[tokio::test]
#[expect(
    clippy::await_holding_lock,
    reason = "the lock keeps the pool's work from its end until its asker has left"
)]
async fn a_late_encoding_is_remembered() {
    let late = tokens(TokenLimits {
        inline_prompt_bytes_max: 10,
        inline_bytes_max: 100,
        deadline: Duration::ZERO,
        ..TokenLimits::default()
    });
    let held = late.shared.cache.lock();
    let outcome = late.encode("model", &text("hello world")).await;
    assert_eq!(outcome, Err(Unavailable::Deadline));
    drop(held);
    while late.stats().cache_bytes == 0 {
        tokio::task::yield_now().await;
    }
    let reader = late.shared.reader(0).unwrap();
    let prompt = text("hello world");
    let known = reader.text(&prompt).unwrap();
    assert_eq!(reader.look_up(&known).missing_bytes(), 0);
}

/// Messages out of a few texts, so that conversations share turns, with special tokens and
/// white space where clients would not put them.
fn messages() -> impl Strategy<Value = Vec<Value>> {
    let fragment = prop::sample::select(vec![
        "<|im_start|>",
        "<|im_end|>",
        "<|im_",
        "Hello",
        " world",
        "\n",
        "\n\n",
        "a line\nand another",
        " ",
        "  ",
        "é",
        "e\u{301}",
        "👩\u{200d}🚀",
        "12",
        "'s",
        "x y z ",
    ]);
    let content = prop::collection::vec(fragment, 0..30).prop_map(|fragments| fragments.concat());
    let role = prop::sample::select(vec!["user", "assistant", "system"]);
    let message =
        (role, content).prop_map(|(role, content)| json!({"role": role, "content": content}));
    prop::collection::vec(message, 1..8)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    /// Turn by turn, through caches of every size, as chats and as texts: what plain encoding gives.
    #[test]
    fn ids_are_those_of_plain_encoding(
        chats in prop::collection::vec(messages(), 1..6),
        cache_bytes_max in prop::sample::select(vec![0_usize, 2_000, 20_000, 64 << 20]),
        inline_bytes_max in prop::sample::select(vec![0_usize, 100, 1 << 20]),
    ) {
        let encoder = demo_encoder();
        let limits = TokenLimits { inline_bytes_max, cache_bytes_max, ..pooled() };
        let tokens = Tokens::new([(String::new(), Arc::clone(&encoder))], limits);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        for messages in chats.iter().chain(&chats) {
            for turn in 1..=messages.len() {
                let chat = ChatPrompt::new(Value::from(&messages[..turn]));
                let text = Prompt::Text(encoder.render(&chat).unwrap());
                for prompt in [Prompt::Chat(chat), text] {
                    let ids = runtime.block_on(tokens.encode("", &prompt)).unwrap();
                    prop_assert_eq!(&*ids, encoder.encode(&prompt).unwrap());
                    prop_assert!(tokens.stats().cache_bytes <= cache_bytes_max as u64);
                }
            }
        }
    }
}
