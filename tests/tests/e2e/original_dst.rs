//! The same on gateways that take one address from a header (ORIGINAL_DST), over HTTP/1 and HTTP/2.

use anyhow::Result;
use pointsman_loadtest::stack::{Stack, StackOptions, Template};
use pointsman_tests::chat::{Chat, passage};
use pointsman_tests::client::Client;
use pointsman_tests::witness::{Witness, content_of};

fn options() -> StackOptions {
    StackOptions::new().template(Template::OriginalDst)
}

#[tokio::test]
async fn one_address_routes_by_prefix() -> Result<()> {
    let stack = Stack::start(options().workers(3)).await?;
    let system = passage("single addresses", 120);
    let first = stack
        .ask(&Chat::with_system(&system).user("Begin."))
        .await?;
    for turn in 1..5 {
        stack.index_holds(&first).await;
        let chat = Chat::with_system(&system).user(&format!("Question {turn}."));
        let reply = stack.ask(&chat).await?;
        assert_eq!(reply.served_by, first.served_by, "turn {turn}");
        assert!(
            reply.cached_tokens > first.prompt_tokens / 2,
            "turn {turn}: {reply:?}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn the_log_names_one_address() -> Result<()> {
    let stack = Stack::start(options().workers(2)).await?;
    let response = stack
        .client()
        .post("/v1/chat/completions")
        .header("x-request-id", "one-address")
        .json(Chat::new().user("Which one?").body())
        .send()
        .await?;
    assert_eq!(response.status, 200);
    response.json().await?;
    let entry = stack.logged("one-address").await?;
    let picked = entry.picked.unwrap_or_default();
    assert!(
        stack.worker_addresses().contains(&picked),
        "picked {picked:?}, a list perhaps"
    );
    assert_eq!(entry.served, Some(picked));
    Ok(())
}

#[tokio::test]
async fn a_stream_passes_over_both_protocols_alike() -> Result<()> {
    let stack = Stack::start(options().workers(1)).await?;
    let chat = Chat::new()
        .user("Count the stations.")
        .max_tokens(40)
        .streaming();
    let mut texts = Vec::new();
    for client in [
        Client::http1(stack.listener()),
        Client::http2(stack.listener()),
    ] {
        let request = client.post("/v1/chat/completions").json(chat.body());
        let response = request.send().await?;
        assert_eq!(response.status, 200);
        let events = response.events().await?;
        assert_eq!(
            events.last().map(|event| event.data.as_str()),
            Some("[DONE]")
        );
        texts.push(content_of(&events)?);
    }
    assert_eq!(texts[0], texts[1], "greedy answers to the same prompt");
    assert!(!texts[0].is_empty());
    Ok(())
}
