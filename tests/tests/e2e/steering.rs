//! Clients that try to choose the endpoint themselves. They never do: with ORIGINAL_DST the header could name any
//! address that Envoy reaches, its own admin port among them, and least of all may it work while epp is down.

use anyhow::Result;
use pointsman_loadtest::stack::{Stack, StackOptions, Template};
use pointsman_tests::chat::Chat;
use pointsman_tests::client::{Client, Outgoing};
use pointsman_tests::eventually::eventually;
use pointsman_tests::upstream::Upstream;
use pointsman_tests::witness::{Witness, epp_series};

/// Every way to name an endpoint that some gateway or picker of the field listens to.
fn steered(client: Client, to: &str) -> Outgoing {
    client
        .post("/v1/chat/completions")
        .json(Chat::new().user("Take me elsewhere.").body())
        .header("x-gateway-destination-endpoint", to)
        .header("x-gateway-destination-endpoint", to)
        .header("x-gateway-destination-endpoint-subset", to)
        .header("x-gateway-destination-endpoint-served", to)
        .header("x-prefiller-host-port", to)
        .header("x-data-parallel-host-port", to)
}

/// Nobody called the trap; and had somebody, it would have shown.
async fn assert_untouched(trap: &Upstream) -> Result<()> {
    assert_eq!(
        trap.connections(),
        0,
        "a client's header reached {}",
        trap.address()
    );
    Client::http1(trap.address()).get("/").send().await?;
    assert_eq!(trap.connections(), 1, "the trap does not notice callers");
    Ok(())
}

#[tokio::test]
async fn a_clients_destination_header_goes_unread_while_epp_is_up() -> Result<()> {
    for template in [Template::OverrideHost, Template::OriginalDst] {
        let trap = Upstream::echo().await?;
        let stack = Stack::start(StackOptions::new().workers(1).template(template)).await?;
        let worker = stack.worker_addresses();
        let response = steered(stack.client(), &trap.address().to_string())
            .send()
            .await?;
        assert_eq!(response.status, 200, "{template:?}");
        assert!(
            worker.contains(response.header("x-served-by")),
            "{template:?}"
        );
        assert!(response.json().await?["choices"].is_array(), "{template:?}");
        // A request without a body takes another path through epp.
        let admin = stack.admin()?.to_string();
        let models = stack
            .client()
            .get("/v1/models")
            .header("x-gateway-destination-endpoint", &admin);
        assert!(
            models.send().await?.json().await?["data"].is_array(),
            "{template:?}"
        );
        assert_untouched(&trap).await?;
    }
    Ok(())
}

/// A header that names another *member* must not win either: the pick is epp's.
#[tokio::test]
async fn a_clients_header_does_not_choose_among_the_workers() -> Result<()> {
    let (idle, busy) = (Upstream::echo().await?, Upstream::echo().await?);
    busy.pretend_waiting(100);
    let endpoints = StackOptions::new()
        .workers(0)
        .endpoint(idle.address())
        .endpoint(busy.address());
    let stack = Stack::start(endpoints).await?;
    stack.epp_gauge_is(epp_series::MEAN_QUEUE, 50.0).await;
    for _ in 0..8 {
        let response = steered(stack.client(), &busy.address().to_string())
            .send()
            .await?;
        assert_eq!(response.header("x-served-by"), idle.address().to_string());
    }
    assert!(busy.requests().is_empty());
    let received = idle.requests();
    assert_eq!(received.len(), 8);
    for name in [
        "x-gateway-destination-endpoint-subset",
        "x-prefiller-host-port",
    ] {
        assert!(
            !received[0].headers.contains_key(name),
            "{name} was passed on"
        );
    }
    Ok(())
}

#[tokio::test]
async fn a_clients_destination_header_goes_unread_while_epp_is_down() -> Result<()> {
    let trap = Upstream::echo().await?;
    let address = trap.address().to_string();
    let stack = Stack::start(StackOptions::new().workers(1).fail_open(true)).await?;
    stack.epp().kill().await?;
    let response = eventually("Envoy serves without epp", async || {
        let response = steered(stack.client(), &address).send().await?;
        anyhow::ensure!(response.status == 200, "status {}", response.status);
        Ok(response)
    });
    assert!(
        stack
            .worker_addresses()
            .contains(response.await.header("x-served-by"))
    );
    assert_untouched(&trap).await
}

/// ORIGINAL_DST has no address without epp: all it can do is refuse, even when told to fail open.
#[tokio::test]
async fn original_dst_without_epp_goes_nowhere() -> Result<()> {
    let trap = Upstream::echo().await?;
    let address = trap.address().to_string();
    let options = StackOptions::new()
        .workers(1)
        .template(Template::OriginalDst)
        .fail_open(true);
    let stack = Stack::start(options).await?;
    stack.epp().kill().await?;
    for client in [
        Client::http1(stack.listener()),
        Client::http2(stack.listener()),
    ] {
        // The first requests fall before Envoy's health check sees the outage, the later ones after it.
        stack.epp_seen(false).await?;
        let response = steered(client, &address).send().await?;
        assert_eq!(response.status, 503);
        let get = client
            .get("/v1/models")
            .header("x-gateway-destination-endpoint", &address);
        assert_eq!(get.send().await?.status, 503);
    }
    assert_untouched(&trap).await
}
