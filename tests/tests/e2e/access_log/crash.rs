//! epp dies while responses run, and comes back.

use anyhow::{Result, ensure};
use futures_util::future::join_all;
use pointsman_loadtest::stack::{Stack, Template};
use pointsman_tests::chat::Chat;
use pointsman_tests::client::Response;
use pointsman_tests::eventually::eventually;
use pointsman_tests::upstream::{HELD_EVENTS, Upstream};
use pointsman_tests::witness::{Witness, epp_series};

use super::{on_each_envoy, read_to_done};

const STREAMS: usize = 50;

/// So many streams of which the first event has been read. One that is refused is asked for again: each of Envoy's
/// workers learns by itself, and a little after the admin page, that epp is back.
async fn running_streams(stack: &Stack, count: usize) -> Vec<Response> {
    let streams = (0..count).map(async |turn| {
        let chat = Chat::new()
            .user(&format!("Count to two, {turn}."))
            .streaming();
        eventually("a stream begins", async || {
            let mut response = stack.post_chat(&chat).send().await?;
            let event = response.event().await?;
            ensure!(event.data == HELD_EVENTS[0], "{event:?}");
            Ok(response)
        })
        .await
    });
    join_all(streams).await
}

/// The promise of this mode: SIGKILL, at the worst moment, and nobody who reads notices.
#[tokio::test]
async fn a_crash_of_epp_cuts_no_stream() -> Result<()> {
    for template in [Template::OverrideHost, Template::OriginalDst] {
        on_each_envoy(async |options| {
            let (upstream, gate) = Upstream::held_streams().await?;
            let options = options.endpoint(upstream.address()).template(template);
            let stack = Stack::start(options).await?;
            let streams = running_streams(&stack, STREAMS).await;
            gate.arrived(STREAMS).await;
            stack.epp().kill().await?;
            // Envoy has seen that epp is gone before it has another byte to pass on.
            stack.epp_seen(false).await?;
            gate.open();
            for stream in streams {
                read_to_done(stream).await?;
            }
            Ok(())
        })
        .await?;
    }
    Ok(())
}

/// Responses that began under the epp that died end under the next one, which has never heard of them. It must neither
/// count them nor take them off.
#[tokio::test]
async fn a_restarted_epp_counts_its_own() -> Result<()> {
    on_each_envoy(async |options| {
        let (upstream, gate) = Upstream::held_streams().await?;
        let mut stack = Stack::start(options.endpoint(upstream.address())).await?;
        let mut old = running_streams(&stack, STREAMS).await;
        let in_flight = epp_series::REQUESTS_IN_FLIGHT;
        stack.epp_gauge_is(in_flight, STREAMS as f64).await;
        stack.epp().kill().await?;
        stack.epp_seen(false).await?;
        stack.epp_mut().restart().await?;
        stack.epp_gauge_is(epp_series::READY_ENDPOINTS, 1.0).await;
        stack.epp_seen(true).await?;
        let new = running_streams(&stack, 3).await;
        stack.epp_gauge_is(in_flight, 3.0).await;
        // The old ones end first: their entries come, and what the new epp counts is left alone. The first ends by
        // itself: its entry opens Envoy's log stream anew, and what comes before that stands is lost.
        drop(old.pop());
        stack.log_entries("foreign", 1).await;
        drop(old);
        stack.log_entries("foreign", STREAMS as u64).await;
        stack.epp_gauge_is(in_flight, 3.0).await;
        gate.open();
        for stream in new {
            read_to_done(stream).await?;
        }
        stack.nothing_in_flight().await;
        ensure!(stack.expired_leases().await? == 0, "a lease ran out");
        Ok(())
    })
    .await
}
