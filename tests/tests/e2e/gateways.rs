//! What gateways are configured with beyond the templates' defaults: TLS to epp, subset hints, endpoints over IPv6.

use std::net::{IpAddr, Ipv6Addr, TcpListener};

use anyhow::{Result, ensure};
use http_body_util::{BodyExt, Full};
use pointsman_loadtest::stack::{FilterPlace, Stack, StackOptions, Template, Watch};
use pointsman_tests::chat::Chat;
use pointsman_tests::upstream::Upstream;
use pointsman_tests::witness::{Witness, epp_series};
use serde_json::{Value, json};

/// epp's default: TLS with a certificate that it signs itself.
#[tokio::test]
async fn envoy_reaches_epp_over_tls() -> Result<()> {
    for (template, watch) in [
        (Template::OverrideHost, Watch::AccessLog),
        (Template::OriginalDst, Watch::Stream),
    ] {
        let echo = Upstream::echo().await?;
        let options = StackOptions::new().workers(0).endpoint(echo.address());
        let stack = Stack::start(options.template(template).watch(watch).tls()).await?;
        let chat = Chat::new().user("Who listens?");
        let response = stack.post_chat(&chat).send().await?;
        assert_eq!(response.status, 200, "{template:?}");
        assert_eq!(response.json().await?, *chat.body(), "{template:?}");
        let plain = stack.client().get("/v1/models").send().await?;
        assert_eq!(plain.status, 200, "{template:?}");
        let handshakes = stack.gateway().stat("cluster.epp.ssl.handshake").await?;
        assert!(handshakes > 0, "{template:?}");
    }
    Ok(())
}

#[tokio::test]
async fn the_access_log_reaches_epp_over_tls() -> Result<()> {
    let echo = Upstream::echo().await?;
    let options = StackOptions::new().workers(0).endpoint(echo.address());
    let stack = Stack::start(options.tls()).await?;
    let response = stack.post_chat(&Chat::new().user("Who listens?")).send();
    response.await?.bytes().await?;
    stack.log_entries("end", 1).await;
    stack.nothing_in_flight().await;
    Ok(())
}

/// A gateway that knows better which endpoints a request may take, as other filters of Envoy can.
fn hinting(options: StackOptions, endpoints: &[String]) -> StackOptions {
    let filter = json!({
        "name": "envoy.filters.http.set_metadata",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.set_metadata.v3.Config",
            "metadata": [{
                "metadata_namespace": "envoy.lb.subset_hint",
                "value": {"x-gateway-destination-endpoint-subset": endpoints},
            }],
        },
    });
    options.filter(FilterPlace::BeforePick, filter)
}

#[tokio::test]
async fn a_subset_hint_narrows_the_pick() -> Result<()> {
    for template in [Template::OverrideHost, Template::OriginalDst] {
        let (idle, busy) = (Upstream::echo().await?, Upstream::echo().await?);
        busy.pretend_waiting(100);
        let options = StackOptions::new()
            .workers(0)
            .endpoint(idle.address())
            .endpoint(busy.address())
            .template(template);
        let stack = Stack::start(hinting(options, &[busy.address().to_string()])).await?;
        stack.epp_gauge_is(epp_series::MEAN_QUEUE, 50.0).await;
        for turn in 0..6 {
            let chat = Chat::new().user(&format!("Question {turn}."));
            let response = stack.post_chat(&chat).send().await?;
            assert_eq!(response.status, 200, "{template:?}");
            let served_by = response.header("x-served-by").to_owned();
            assert_eq!(served_by, busy.address().to_string(), "{template:?}");
        }
        assert!(idle.requests().is_empty(), "{template:?}");
    }
    Ok(())
}

#[tokio::test]
async fn a_subset_hint_that_fits_no_endpoint_is_refused() -> Result<()> {
    let echo = Upstream::echo().await?;
    // The right address with another port is another endpoint.
    let other_port = format!("{}:1", echo.address().ip());
    for hint in [vec![], vec![other_port]] {
        let options = StackOptions::new().workers(0).endpoint(echo.address());
        let stack = Stack::start(hinting(options, &hint)).await?;
        let response = stack
            .post_chat(&Chat::new().user("Where to?"))
            .send()
            .await?;
        assert_eq!(response.status, 503, "{hint:?}");
        assert!(echo.requests().is_empty(), "{hint:?}");
    }
    Ok(())
}

/// Where a machine has no IPv6 there is nothing to test.
#[tokio::test]
async fn endpoints_may_have_ipv6_addresses() -> Result<()> {
    if TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_err() {
        return Ok(());
    }
    for template in [Template::OverrideHost, Template::OriginalDst] {
        let loopback = IpAddr::V6(Ipv6Addr::LOCALHOST);
        let echo = Upstream::answering_at(loopback, |request| async move {
            Ok(http::Response::new(Full::new(request.body).boxed()))
        });
        let echo = echo.await?;
        let options = StackOptions::new().workers(0).endpoint(echo.address());
        let stack = Stack::start(options.template(template)).await?;
        let request = stack.post_chat(&Chat::new().user("Six?"));
        let response = request.header("x-request-id", "six").send().await?;
        ensure!(response.status == 200, "{template:?}: {}", response.status);
        let body: Value = response.json().await?;
        assert_eq!(body["messages"][0]["content"], "Six?", "{template:?}");
        let entry = stack.logged("six").await?;
        assert_eq!(entry.picked, Some(echo.address().to_string()));
        assert_eq!(entry.served, Some(echo.address().to_string()));
    }
    Ok(())
}
