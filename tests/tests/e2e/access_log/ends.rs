//! Every way in which a response ends, and what epp knows of it afterwards: nothing is in flight any more, and not
//! because a lease ran out.

use anyhow::{Result, ensure};
use bytes::Bytes;
use http::StatusCode;
use http_body_util::{BodyExt, Empty};
use pointsman_loadtest::stack::{Stack, UsageFilter};
use pointsman_tests::chat::Chat;
use pointsman_tests::upstream::Upstream;
use pointsman_tests::witness::{Witness, epp_series};

use super::{led_astray, on_each_envoy, rate_limited, read_to_done, whole_answer};

/// Nothing is in flight, so many entries came, and no lease ran out: 60 s would have to pass first.
async fn settled(stack: &Stack, entries: u64) -> Result<()> {
    stack.log_entries("end", entries).await;
    stack.nothing_in_flight().await;
    ensure!(stack.expired_leases().await? == 0, "a lease ran out");
    Ok(())
}

#[tokio::test]
async fn a_streamed_answer_is_in_flight_to_its_end_and_counted() -> Result<()> {
    on_each_envoy(async |options| {
        let (upstream, gate) = Upstream::held_streams().await?;
        let stack = Stack::start(options.endpoint(upstream.address())).await?;
        let chat = Chat::new().user("Count to two.").streaming();
        let mut response = stack.post_chat(&chat).send().await?;
        response.event().await?;
        stack
            .epp_gauge_is(epp_series::REQUESTS_IN_FLIGHT, 1.0)
            .await;
        // Only the log can tell of the rest: epp's stream is closed already.
        stack.epp_gauge_is(epp_series::STREAMS_IN_FLIGHT, 0.0).await;
        gate.open();
        read_to_done(response).await?;
        settled(&stack, 1).await?;
        for (series, tokens) in [
            (epp_series::INPUT_TOKENS, 70.0),
            (epp_series::OUTPUT_TOKENS, 10.0),
            (epp_series::CACHED_TOKENS, 64.0),
        ] {
            stack.epp_gauge_is(series, tokens).await;
        }
        Ok(())
    })
    .await
}

/// A whole answer is counted where Envoy has a filter that reads one without holding it back; elsewhere it is not.
#[tokio::test]
async fn a_whole_answer_is_counted_where_envoy_can() -> Result<()> {
    on_each_envoy(async |options| {
        let upstream = Upstream::answering(whole_answer).await?;
        let stack = Stack::start(options.endpoint(upstream.address())).await?;
        let response = stack.post_chat(&Chat::new().user("Yes?")).send().await?;
        ensure!(response.status == 200, "status {}", response.status);
        response.json().await?;
        settled(&stack, 1).await?;
        if stack.envoy().usage_filter() == UsageFilter::AiProtocolManager {
            stack.epp_gauge_is(epp_series::INPUT_TOKENS, 30.0).await;
            stack.epp_gauge_is(epp_series::OUTPUT_TOKENS, 2.0).await;
        }
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_client_that_leaves_frees_its_lease() -> Result<()> {
    on_each_envoy(async |options| {
        let (upstream, gate) = Upstream::held_streams().await?;
        let stack = Stack::start(options.endpoint(upstream.address())).await?;
        let chat = Chat::new().user("Count to two.").streaming();
        let mut response = stack.post_chat(&chat).send().await?;
        response.event().await?;
        gate.arrived(1).await;
        stack
            .epp_gauge_is(epp_series::REQUESTS_IN_FLIGHT, 1.0)
            .await;
        drop(response);
        settled(&stack, 1).await
    })
    .await
}

#[tokio::test]
async fn a_client_that_leaves_before_the_first_byte_frees_its_lease() -> Result<()> {
    on_each_envoy(async |options| {
        let (upstream, gate) = Upstream::gated().await?;
        let stack = Stack::start(options.endpoint(upstream.address())).await?;
        let request = stack.post_chat(&Chat::new().user("Anybody?"));
        let request = tokio::spawn(request.send());
        gate.arrived(1).await;
        stack
            .epp_gauge_is(epp_series::REQUESTS_IN_FLIGHT, 1.0)
            .await;
        request.abort();
        settled(&stack, 1).await
    })
    .await
}

#[tokio::test]
async fn an_endpoint_that_dies_mid_stream_frees_its_leases() -> Result<()> {
    on_each_envoy(async |options| {
        let (upstream, gate) = Upstream::held_streams().await?;
        let stack = Stack::start(options.endpoint(upstream.address())).await?;
        let chat = Chat::new().user("Count to two.").streaming();
        let mut response = stack.post_chat(&chat).send().await?;
        response.event().await?;
        gate.arrived(1).await;
        drop(upstream);
        let cut = response.events().await;
        ensure!(cut.is_err(), "a cut stream has no proper end");
        settled(&stack, 1).await
    })
    .await
}

#[tokio::test]
async fn a_retry_to_the_next_of_the_list_frees_its_lease() -> Result<()> {
    on_each_envoy(async |options| {
        let (dead, alive) = (Upstream::echo().await?, Upstream::echo().await?);
        alive.pretend_waiting(100);
        let options = options.endpoint(dead.address()).endpoint(alive.address());
        let stack = Stack::start(options.epp_flag("--fallback-endpoints=1")).await?;
        stack.epp_gauge_is(epp_series::MEAN_QUEUE, 50.0).await;
        dead.stop_accepting().await;
        let chat = Chat::new().user("Is anybody there?");
        let response = stack.post_chat(&chat).send().await?;
        ensure!(response.status == 200, "status {}", response.status);
        let served_by = response.header("x-served-by").to_owned();
        ensure!(served_by == alive.address().to_string(), "{served_by}");
        response.bytes().await?;
        settled(&stack, 1).await
    })
    .await
}

#[tokio::test]
async fn a_refusal_by_every_endpoint_frees_its_lease() -> Result<()> {
    on_each_envoy(async |options| {
        let refusing = Upstream::answering(|_| async {
            let mut response = http::Response::new(Empty::<Bytes>::new().boxed());
            *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
            Ok(response)
        });
        let refusing = refusing.await?;
        let stack = Stack::start(options.endpoint(refusing.address())).await?;
        let response = stack.post_chat(&Chat::new().user("May I?")).send().await?;
        ensure!(response.status == 500, "status {}", response.status);
        drop(response);
        settled(&stack, 1).await
    })
    .await
}

/// Envoy answers by itself when the pick is made already. No endpoint hears of it, so nobody but the log can tell.
#[tokio::test]
async fn a_refusal_by_envoy_after_the_pick_frees_its_lease() -> Result<()> {
    on_each_envoy(async |options| {
        let echo = Upstream::echo().await?;
        let stack = Stack::start(rate_limited(options.endpoint(echo.address()))).await?;
        for status in [200, 429] {
            let response = stack.post_chat(&Chat::new().user("Me too.")).send().await?;
            ensure!(
                response.status == status,
                "{} not {status}",
                response.status
            );
            response.bytes().await?;
        }
        ensure!(echo.requests().len() == 1, "{:?}", echo.requests());
        settled(&stack, 2).await
    })
    .await
}

#[tokio::test]
async fn a_pick_that_leaves_envoy_nobody_frees_its_lease() -> Result<()> {
    on_each_envoy(async |options| {
        let echo = Upstream::echo().await?;
        let stack = Stack::start(led_astray(options.endpoint(echo.address()))).await?;
        echo.fall_ill();
        stack.gateway().until_health(echo.address(), false).await?;
        let response = stack
            .post_chat(&Chat::new().user("Anybody?"))
            .send()
            .await?;
        ensure!(response.status == 503, "status {}", response.status);
        drop(response);
        settled(&stack, 1).await
    })
    .await
}
