//! Where requests go: to the worker that holds their prefix, and spread where none does.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use pointsman_loadtest::stack::{Stack, StackOptions, Template, Worker};
use pointsman_tests::chat::{Chat, passage};
use pointsman_tests::eventually::eventually;
use pointsman_tests::witness::{BLOCK_TOKENS, Witness, epp_series};

/// Among three workers a picker that does not know the prefix stays on one through six turns in 1 of 243 runs; and
/// cached tokens that grow with the chat it cannot have at all without staying.
#[tokio::test]
async fn a_growing_chat_stays_with_the_worker_that_holds_it() -> Result<()> {
    let stack = Stack::start(StackOptions::new().workers(3)).await?;
    let mut chat = Chat::with_system(&passage("the line to the coast", 120)).user("Tell me more.");
    let first = stack.ask(&chat).await?;
    assert_eq!(first.cached_tokens, 0, "nobody has seen this text");
    let mut previous = first.clone();
    for turn in 1..6 {
        stack.index_holds(&previous).await;
        chat = chat
            .assistant(&previous.text)
            .user(&format!("And then? Question {turn}."));
        let reply = stack.ask(&chat).await?;
        assert_eq!(reply.served_by, first.served_by, "turn {turn}");
        let whole_blocks = previous.prompt_tokens / BLOCK_TOKENS * BLOCK_TOKENS;
        assert!(
            reply.cached_tokens >= whole_blocks && whole_blocks > 0,
            "turn {turn}: {} tokens cached of a prefix of {whole_blocks}",
            reply.cached_tokens
        );
        previous = reply;
    }
    Ok(())
}

#[tokio::test]
async fn unlike_prefixes_spread() -> Result<()> {
    let stack = Stack::start(StackOptions::new().workers(2)).await?;
    let mut served = BTreeSet::new();
    for topic in 0..16 {
        let text = passage(&format!("topic {topic}"), 60);
        served.insert(
            stack
                .ask(&Chat::with_system(&text).user("Go on."))
                .await?
                .served_by,
        );
    }
    assert_eq!(
        served,
        stack.worker_addresses(),
        "both workers serve some of 16 unlike chats"
    );
    Ok(())
}

/// Endpoints come and go with the file that names them, while requests are served.
#[tokio::test]
async fn the_endpoints_file_is_followed() -> Result<()> {
    let options = StackOptions::new()
        .workers(2)
        .template(Template::OriginalDst);
    let stack = Stack::start(options.endpoints_file()).await?;
    let workers: Vec<_> = stack.workers().iter().map(Worker::address).collect();
    for kept in [workers[0], workers[1]] {
        stack.write_endpoints(|endpoint| endpoint == kept)?;
        stack.epp_gauge_is(epp_series::READY_ENDPOINTS, 1.0).await;
        let chat = Chat::new().user("Who is left?");
        eventually("the file is read", async || {
            let reply = stack.ask(&chat).await?;
            ensure!(reply.served_by == kept.to_string(), "{reply:?}");
            Ok(())
        })
        .await;
        for _ in 0..4 {
            assert_eq!(stack.ask(&chat).await?.served_by, kept.to_string());
        }
    }
    stack.write_endpoints(|_| true)?;
    stack.epp_gauge_is(epp_series::READY_ENDPOINTS, 2.0).await;
    Ok(())
}

#[tokio::test]
async fn the_served_endpoint_is_the_picked_one() -> Result<()> {
    let stack = Stack::start(StackOptions::new().workers(2)).await?;
    stack.all_ready().await;
    for turn in 0..4 {
        let id = format!("served-{turn}");
        let chat = Chat::new().user(&format!("Question {turn}."));
        let response = stack
            .post_chat(&chat)
            .header("x-request-id", &id)
            .send()
            .await?;
        let served_by = response.header("x-served-by").to_owned();
        response.json().await?;
        let entry = stack.logged(&id).await?;
        assert_eq!((entry.code, entry.attempts), (200, Some(1)));
        assert_eq!(entry.served.as_deref(), Some(served_by.as_str()));
        let picked = entry.picked.unwrap_or_default();
        let picked: Vec<_> = picked.split(',').collect();
        assert_eq!(picked[0], served_by, "the first of {picked:?}");
        let picked: BTreeSet<_> = picked.into_iter().map(str::to_owned).collect();
        assert_eq!(
            picked,
            stack.worker_addresses(),
            "the list holds every worker once"
        );
    }
    Ok(())
}
