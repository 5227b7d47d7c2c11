//! A log that does not arrive: leases run out in its place, and no request is the worse for it.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, ensure};
use bytes::Bytes;
use futures_util::future::try_join_all;
use pointsman_loadtest::stack::{Stack, StackOptions, free_port};
use pointsman_tests::chat::Chat;
use pointsman_tests::eventually::eventually;
use pointsman_tests::silent::SilentServer;
use pointsman_tests::upstream::Upstream;
use pointsman_tests::witness::{Witness, epp_series};

use super::{on_each_envoy, read_to_done};

const SHORT_LEASE: &str = "--access-log-lease=2s";
/// What is sent at once while nobody takes the log.
const REQUESTS: usize = 200;

/// Waits until so many leases have run out, and no other is left.
async fn leases_run_out(stack: &Stack, count: u64) {
    eventually(&format!("{count} leases run out"), async || {
        let expired = stack.expired_leases().await?;
        ensure!(expired == count, "{expired} have");
        Ok(())
    })
    .await;
    stack.nothing_in_flight().await;
}

/// All are answered while their log goes where nobody takes it; the leases then run out.
async fn served_without_a_log(options: StackOptions, receiver: SocketAddr) -> Result<()> {
    let echo = Upstream::echo().await?;
    let options = options
        .endpoint(echo.address())
        .epp_flag(SHORT_LEASE)
        .log_receiver(receiver);
    let stack = Stack::start(options).await?;
    let requests = (0..REQUESTS).map(async |turn| {
        let chat = Chat::new().user(&format!("Question {turn}."));
        let response = stack.post_chat(&chat).send().await?;
        let status = response.status;
        ensure!(status == 200, "status {status}");
        ensure!(response.json().await? == *chat.body(), "another body");
        Ok(())
    });
    try_join_all(requests).await?;
    ensure!(echo.requests().len() == REQUESTS, "asked more than once");
    leases_run_out(&stack, REQUESTS as u64).await;
    Ok(())
}

#[tokio::test]
async fn a_log_that_nobody_takes_costs_leases_and_no_request() -> Result<()> {
    on_each_envoy(async |options| {
        let nobody = SocketAddr::from(([127, 0, 0, 1], free_port()?));
        served_without_a_log(options, nobody).await
    })
    .await
}

/// One that hangs is the worse case: Envoy can connect, and must bound what it holds.
#[tokio::test]
async fn a_log_that_hangs_costs_leases_and_no_request() -> Result<()> {
    on_each_envoy(async |options| {
        let silent = SilentServer::start().await?;
        served_without_a_log(options, silent.address()).await
    })
    .await
}

/// A response may run longer than a lease: Envoy says at times that it still does.
#[tokio::test]
async fn a_long_stream_keeps_its_lease() -> Result<()> {
    on_each_envoy(async |options| {
        let (upstream, gate) = Upstream::held_streams().await?;
        let options = options
            .endpoint(upstream.address())
            .epp_flag(SHORT_LEASE)
            .renewal(Duration::from_millis(500));
        let stack = Stack::start(options).await?;
        let chat = Chat::new().user("Count to two.").streaming();
        let mut response = stack.post_chat(&chat).send().await?;
        response.event().await?;
        // Eight halves of a second are twice the lease.
        stack.log_entries("periodic", 8).await;
        let in_flight = stack.epp_gauge(epp_series::REQUESTS_IN_FLIGHT).await?;
        ensure!((in_flight - 1.0).abs() < 1e-6, "{in_flight} in flight");
        ensure!(stack.expired_leases().await? == 0, "the lease ran out");
        gate.open();
        read_to_done(response).await?;
        stack.nothing_in_flight().await;
        ensure!(stack.expired_leases().await? == 0, "the lease ran out");
        Ok(())
    })
    .await
}

/// While an answer has not begun, too: a prompt may wait in a worker's queue for longer than a lease.
#[tokio::test]
async fn a_request_that_waits_for_its_first_byte_keeps_its_lease() -> Result<()> {
    on_each_envoy(async |options| {
        let (upstream, gate) = Upstream::gated().await?;
        let options = options
            .endpoint(upstream.address())
            .epp_flag(SHORT_LEASE)
            .renewal(Duration::from_millis(500));
        let stack = Stack::start(options).await?;
        let request = stack.post_chat(&Chat::new().user("Take your time."));
        let request = tokio::spawn(request.send());
        gate.arrived(1).await;
        stack.log_entries("periodic", 8).await;
        let in_flight = stack.epp_gauge(epp_series::REQUESTS_IN_FLIGHT).await?;
        ensure!((in_flight - 1.0).abs() < 1e-6, "{in_flight} in flight");
        ensure!(stack.expired_leases().await? == 0, "the lease ran out");
        gate.open();
        let body = request.await??.bytes().await?;
        ensure!(body == Bytes::from_static(b"{}"), "{body:?}");
        stack.nothing_in_flight().await;
        Ok(())
    })
    .await
}
