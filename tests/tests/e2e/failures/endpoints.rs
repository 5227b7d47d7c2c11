//! Workers that die, and pools without any: before the first byte the next of the list answers, after it the client
//! sees a cut stream, and nobody ever waits for the dead.

use anyhow::Result;
use http::StatusCode;
use http_body_util::{BodyExt, Empty};
use pointsman_loadtest::stack::{Stack, StackOptions, Template};
use pointsman_tests::chat::{Chat, passage};
use pointsman_tests::eventually::eventually;
use pointsman_tests::upstream::Upstream;
use pointsman_tests::witness::{Witness, epp_series};

/// Two endpoints of which epp prefers the first. The list for the gateway holds both.
async fn stack_preferring(first: &Upstream, second: &Upstream) -> Result<Stack> {
    second.pretend_waiting(100);
    let options = StackOptions::new().workers(0).endpoint(first.address());
    let options = options
        .endpoint(second.address())
        .epp_flag("--fallback-endpoints=1");
    let stack = Stack::start(options).await?;
    stack.epp_gauge_is(epp_series::MEAN_QUEUE, 50.0).await;
    Ok(stack)
}

/// epp scrapes the endpoint over a connection that it holds and believes it alive; Envoy, which connects anew, finds
/// it gone. So the pick is certain and so is its failure.
#[tokio::test]
async fn a_dead_endpoint_is_passed_over_for_the_next_of_the_list() -> Result<()> {
    let (dead, alive) = (Upstream::echo().await?, Upstream::echo().await?);
    let stack = stack_preferring(&dead, &alive).await?;
    dead.stop_accepting().await;
    let chat = Chat::new().user("Is anybody there?");
    let response = stack
        .post_chat(&chat)
        .header("x-request-id", "fallback")
        .send()
        .await?;
    assert_eq!(response.status, 200);
    assert_eq!(response.header("x-served-by"), alive.address().to_string());
    assert_eq!(
        response.json().await?,
        *chat.body(),
        "the second try has the whole body"
    );
    let entry = stack.logged("fallback").await?;
    assert_eq!(
        entry.picked,
        Some(format!("{},{}", dead.address(), alive.address()))
    );
    assert_eq!(entry.served, Some(alive.address().to_string()));
    assert_eq!(entry.attempts, Some(2));
    assert_eq!(alive.only_request().path, "/v1/chat/completions");
    Ok(())
}

/// A worker that drains or whose queue is full says 503 before it has begun; another may be free.
#[tokio::test]
async fn an_endpoint_that_refuses_is_passed_over() -> Result<()> {
    let refusing = Upstream::answering(|_| async {
        let mut response = http::Response::new(Empty::new().boxed());
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
        Ok(response)
    });
    let (refusing, alive) = (refusing.await?, Upstream::echo().await?);
    let stack = stack_preferring(&refusing, &alive).await?;
    let chat = Chat::new().user("May I?");
    let response = stack.post_chat(&chat).send().await?;
    assert_eq!(response.status, 200);
    assert_eq!(response.json().await?, *chat.body());
    assert_eq!((refusing.requests().len(), alive.requests().len()), (1, 1));
    Ok(())
}

/// Once a worker has the request it may be computing, so nobody else is given the same work behind the client's back.
#[tokio::test]
async fn an_endpoint_that_dies_with_the_request_in_hand_is_a_503() -> Result<()> {
    let (dying, alive) = (Upstream::breaking_off().await?, Upstream::echo().await?);
    let stack = stack_preferring(&dying, &alive).await?;
    let chat = Chat::new().user("Hold this for me.");
    let response = stack.post_chat(&chat).send().await?;
    assert_eq!(response.status, 503);
    assert_eq!((dying.requests().len(), alive.requests().len()), (1, 0));
    Ok(())
}

/// A real worker, killed while it holds the prefix that the next request asks for.
#[tokio::test]
async fn a_killed_worker_is_missed_by_nobody() -> Result<()> {
    let stack = Stack::start(StackOptions::new().workers(2)).await?;
    let system = passage("the night shift", 120);
    let first = stack
        .ask(&Chat::with_system(&system).user("Begin."))
        .await?;
    stack.index_holds(&first).await;
    let again = stack
        .ask(&Chat::with_system(&system).user("Continue."))
        .await?;
    assert_eq!(
        again.served_by, first.served_by,
        "the prefix draws to one worker"
    );
    stack.worker_at(&first.served_by)?.kill().await?;
    for turn in 0..5 {
        let chat = Chat::with_system(&system).user(&format!("Question {turn}."));
        let reply = stack.ask(&chat).await?;
        assert_ne!(reply.served_by, first.served_by, "turn {turn}");
    }
    Ok(())
}

/// A worker that hangs keeps its sockets and answers nothing, so no connection fails. Only the scrape tells.
#[tokio::test]
async fn a_worker_that_hangs_is_left_out_until_it_answers() -> Result<()> {
    let stack = Stack::start(StackOptions::new().workers(2)).await?;
    let system = passage("the day shift", 120);
    let first = stack
        .ask(&Chat::with_system(&system).user("Begin."))
        .await?;
    stack.index_holds(&first).await;
    stack.worker_at(&first.served_by)?.pause();
    stack.epp_gauge_is(epp_series::READY_ENDPOINTS, 1.0).await;
    for turn in 0..3 {
        let chat = Chat::with_system(&system).user(&format!("Question {turn}."));
        let reply = stack.ask(&chat).await?;
        assert_ne!(reply.served_by, first.served_by, "turn {turn}");
    }
    stack.worker_at(&first.served_by)?.resume();
    stack.all_ready().await;
    Ok(())
}

/// A worker that comes back under its address holds nothing of what it held, and must draw nobody for it.
#[tokio::test]
async fn a_restarted_worker_has_lost_its_blocks() -> Result<()> {
    let mut stack = Stack::start(StackOptions::new()).await?;
    let chat = Chat::with_system(&passage("the old days", 120)).user("Begin.");
    let first = stack.ask(&chat).await?;
    stack.index_holds(&first).await;
    stack.workers_mut()[0].restart().await?;
    stack.epp_gauge_is(epp_series::INDEX_BLOCKS, 0.0).await;
    let address = stack.workers()[0].address();
    stack.gateway().until_health(address, true).await?;
    let again = stack.ask(&chat).await?;
    assert_eq!(again.cached_tokens, 0);
    // Its new events are heard, too: the subscription survives the restart.
    stack.index_holds(&again).await;
    Ok(())
}

#[tokio::test]
async fn a_worker_killed_mid_stream_cuts_the_stream() -> Result<()> {
    for template in [Template::OverrideHost, Template::OriginalDst] {
        let stack = Stack::start(StackOptions::new().workers(2).template(template)).await?;
        let chat = Chat::new()
            .user("A very long story.")
            .max_tokens(1_900)
            .streaming();
        let request = stack.post_chat(&chat);
        let mut response = request.send().await?;
        response.event().await?;
        let served_by = response.header("x-served-by").to_owned();
        stack.worker_at(&served_by)?.kill().await?;
        let error = response
            .events()
            .await
            .expect_err("a cut stream has no proper end");
        assert!(
            error.to_string().contains("cut off"),
            "{template:?}: {error:#}"
        );

        // With ORIGINAL_DST there is no second try: the pick must come to know of the death.
        let chat = Chat::new().user("And again?");
        let reply = eventually("the next one is served", async || stack.ask(&chat).await).await;
        assert_ne!(reply.served_by, served_by, "{template:?}");
    }
    Ok(())
}

#[tokio::test]
async fn a_pool_without_endpoints_says_so() -> Result<()> {
    for template in [Template::OverrideHost, Template::OriginalDst] {
        // By a file, because epp takes a command line without an endpoint for a mistake.
        let options = StackOptions::new().workers(0).endpoints_file();
        let stack = Stack::start(options.template(template)).await?;
        let chat = Chat::new().user("Anybody?");
        let post = stack.post_chat(&chat);
        for request in [post, stack.client().get("/v1/models")] {
            let response = request.send().await?;
            assert_eq!(response.status, 503, "{template:?}");
            let reason = response.header("x-llm-d-request-dropped-reason");
            assert_eq!(reason, "rejected-no-endpoints", "{template:?}");
            let expected = "inference error: ServiceUnavailable - \
                            failed to find endpoint candidates for serving the request";
            assert_eq!(response.text().await?, expected, "{template:?}");
        }
    }
    Ok(())
}
