//! epp itself gone, and back.

use anyhow::{Result, ensure};
use pointsman_loadtest::stack::{Stack, StackOptions, Watch};
use pointsman_tests::chat::{Chat, passage};
use pointsman_tests::eventually::eventually;
use pointsman_tests::exposition::Exposition;
use pointsman_tests::witness::{Witness, epp_series};

#[tokio::test]
async fn a_gateway_that_fails_open_serves_without_epp() -> Result<()> {
    let stack = Stack::start(StackOptions::new().workers(2).fail_open(true)).await?;
    stack.epp().kill().await?;
    stack.epp_seen(false).await?;
    for turn in 0..4 {
        let id = format!("without-epp-{turn}");
        let chat = Chat::new().user(&format!("Question {turn}."));
        let request = stack
            .client()
            .post("/v1/chat/completions")
            .header("x-request-id", &id);
        let response = request.json(chat.body()).send().await?;
        assert_eq!(response.status, 200, "turn {turn}");
        assert!(
            stack
                .worker_addresses()
                .contains(response.header("x-served-by"))
        );
        assert_eq!(response.json().await?["usage"]["completion_tokens"], 8);
        assert_eq!(
            stack.logged(&id).await?.picked,
            None,
            "epp is dead and cannot pick"
        );
    }
    Ok(())
}

/// An epp that hangs keeps its sockets, and in full duplex Envoy waits for it without a limit: only the health check
/// tells.
#[tokio::test]
async fn a_gateway_that_fails_open_serves_past_an_epp_that_hangs() -> Result<()> {
    let stack = Stack::start(StackOptions::new().fail_open(true)).await?;
    stack.epp().pause();
    stack.epp_seen(false).await?;
    let chat = Chat::new().user("Still there?");
    stack.ask(&chat).await?;
    stack.epp().resume();
    stack.epp_seen(true).await?;
    stack.ask(&chat).await?;
    Ok(())
}

#[tokio::test]
async fn a_gateway_that_fails_closed_refuses_without_epp() -> Result<()> {
    let stack = Stack::start(StackOptions::new()).await?;
    let chat = Chat::new().user("Still there?");
    let post = || stack.post_chat(&chat).send();
    assert_eq!(post().await?.status, 200);
    stack.epp().kill().await?;
    assert_eq!(
        post().await?.status,
        503,
        "before the health check sees the outage"
    );
    stack.epp_seen(false).await?;
    assert_eq!(post().await?.status, 503, "after it");
    assert_eq!(stack.client().get("/v1/models").send().await?.status, 503);
    Ok(())
}

/// A stream that passes epp does not survive its crash, but it ends: the client is told, not left waiting. Those that epp
/// watches through the access log do survive it, see `access_log`.
#[tokio::test]
async fn a_crash_of_epp_cuts_the_streams_that_pass_it_and_frees_the_worker() -> Result<()> {
    let options = StackOptions::new().watch(Watch::Stream).fail_open(true);
    let stack = Stack::start(options).await?;
    let chat = Chat::new()
        .user("A very long story.")
        .max_tokens(1_900)
        .streaming();
    let mut response = stack.post_chat(&chat).send().await?;
    response.event().await?;
    stack.epp().kill().await?;
    assert!(
        response.events().await.is_err(),
        "a cut stream has no proper end"
    );
    eventually("the worker is idle again", async || {
        let page = Exposition::scrape(stack.workers()[0].address()).await?;
        let running = page.count("vllm:num_requests_running", &[]);
        ensure!(running == Some(0), "{running:?} requests run");
        Ok(())
    })
    .await;
    Ok(())
}

/// The index lives in epp's memory only. What the workers cached before is learned again by replaying their events.
#[tokio::test]
async fn a_restarted_epp_learns_the_index_by_replay() -> Result<()> {
    let mut stack = Stack::start(StackOptions::new().workers(3)).await?;
    let system = passage("the great restart", 120);
    let first = stack
        .ask(&Chat::with_system(&system).user("Begin."))
        .await?;
    stack.index_holds(&first).await;
    let blocks = stack.epp_gauge(epp_series::INDEX_BLOCKS).await?;
    assert!(blocks > 0.0);
    stack.epp_mut().restart().await?;
    // Nothing is sent meanwhile: whatever epp knows, it asked for.
    stack.epp_gauge_is(epp_series::INDEX_BLOCKS, blocks).await;
    stack.all_ready().await;
    stack.epp_seen(true).await?;
    for turn in 0..5 {
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
