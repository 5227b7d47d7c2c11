//! The token ids of a chat that grows turn by turn: what epp puts together from pieces is what the worker computes.

use anyhow::{Context, Result};
use pointsman_loadtest::stack::{MODEL_NAME, Stack, StackOptions, Worker, workspace_root};
use pointsman_proto::prompt::{ChatPrompt, PromptEncoder};
use pointsman_tests::chat::{Chat, passage};
use pointsman_tests::client::Client;
use pointsman_tests::witness::Witness;
use serde_json::{Value, json};

/// The token ids that the worker makes of a conversation.
async fn tokens_of(worker: &Worker, messages: &Value) -> Result<Vec<u32>> {
    let request = Client::http1(worker.address())
        .post("/tokenize")
        .json(&json!({"model": MODEL_NAME, "messages": messages}));
    let mut answer = request.send().await?.json().await?;
    serde_json::from_value(answer["tokens"].take()).context("no token ids")
}

/// The token ids of the rendered pieces, each encoded on its own.
fn tokens_of_pieces(encoder: &PromptEncoder, messages: &Value) -> Result<(usize, Vec<u32>)> {
    let text = encoder.render(&ChatPrompt::new(messages.clone()))?;
    let pieces = encoder.cuts().pieces(&text);
    let mut tokens = Vec::new();
    for piece in &pieces {
        tokens.extend(encoder.encode_text(piece, false)?);
    }
    Ok((pieces.len(), tokens))
}

/// What a client writes: lines, runs of white space, characters of several code points, special tokens in its own text.
fn question(turn: usize) -> String {
    let lines: Vec<_> = (0..6)
        .map(|line| passage(&format!("turn {turn} line {line}"), 8))
        .collect();
    format!(
        "{}\n\n  It's the {turn}th: e\u{301} 👩\u{200d}🚀 <|im_end|>\n<|im_start|>user\nAnd? ",
        lines.join("\n")
    )
}

#[tokio::test]
async fn a_growing_chat_has_the_workers_ids_and_pays_for_its_new_turns_only() -> Result<()> {
    let stack = Stack::start(StackOptions::new().workers(1)).await?;
    let worker = &stack.workers()[0];
    let encoder = PromptEncoder::load(&workspace_root().join("engine").join("demo-model"))?;
    let mut chat = Chat::with_system(&passage("the rules of the house", 60));
    let (mut cached_tokens, mut text_bytes) = (0, 0);
    for turn in 0..4 {
        chat = chat.user(&question(turn));
        let messages = &chat.body()["messages"];
        let (pieces, tokens) = tokens_of_pieces(&encoder, messages)?;
        assert!(pieces > 2 * turn, "{pieces} pieces in turn {turn}");
        assert_eq!(tokens, tokens_of(worker, messages).await?, "turn {turn}");
        let text = encoder.render(&ChatPrompt::new(messages.clone()))?;
        text_bytes += text.len();
        let reply = stack.ask(&chat).await?;
        assert_eq!(reply.prompt_tokens, tokens.len() as u64);
        // epp sees the worker's blocks under its own ids, so it predicts the worker's hits only with the same ids.
        cached_tokens += reply.cached_tokens;
        stack
            .epp_gauge_is(
                "pointsman_request_predicted_cached_tokens_sum",
                cached_tokens as f64,
            )
            .await;
        stack.index_holds(&reply).await;
        chat = chat.assistant(&reply.text);
    }
    assert!(cached_tokens > 0, "nothing was cached");
    let encoded = stack
        .epp_gauge("pointsman_tokenizer_encoded_bytes_total")
        .await?;
    let remembered = stack
        .epp_gauge("pointsman_tokenizer_remembered_bytes_total")
        .await?;
    assert_eq!((encoded + remembered) as usize, text_bytes);
    assert!(
        encoded < text_bytes as f64 / 2.0,
        "{encoded} of {text_bytes} bytes"
    );
    Ok(())
}
