//! What a test asks of a running stack: a reply, a line of the access log, a gauge of epp or of a worker.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};

use anyhow::{Context, Result, anyhow, ensure};
use pointsman_loadtest::stack::{AccessLogEntry, Stack, Worker};
use serde_json::Value;

use crate::chat::Chat;
use crate::client::{Client, Event, Outgoing};
use crate::eventually::{eventually, within_deadline};
use crate::exposition::Exposition;

/// Gauges of epp.
pub mod epp_series {
    /// ext_proc streams that are open.
    pub const STREAMS_IN_FLIGHT: &str = "llm_d_epp_extproc_streams_inflight";
    /// Requests that hold a lease on an endpoint.
    pub const REQUESTS_IN_FLIGHT: &str = "llm_d_epp_inflight_requests";
    /// Blocks in the prefix index.
    pub const INDEX_BLOCKS: &str = "llm_d_epp_prefix_indexer_size";
    /// Endpoints that answer the scrape.
    pub const READY_ENDPOINTS: &str = "llm_d_epp_ready_endpoints";
    /// Leases that ended because nobody ended them.
    pub const EXPIRED_LEASES: &str = "pointsman_expired_leases_total";
    /// Entries of Envoy's access log that epp received, by `kind`.
    pub const LOG_ENTRIES: &str = "pointsman_access_log_entries_total";
    /// Prompt tokens, as the usage of responses says.
    pub const INPUT_TOKENS: &str = "llm_d_epp_request_input_tokens_sum";
    /// Generated tokens, as the usage of responses says.
    pub const OUTPUT_TOKENS: &str = "llm_d_epp_request_output_tokens_sum";
    /// Prompt tokens that workers had in their caches, as the usage of responses says.
    pub const CACHED_TOKENS: &str = "llm_d_epp_request_cached_tokens_sum";
    /// Mean number of waiting requests over the endpoints.
    pub const MEAN_QUEUE: &str = "llm_d_epp_average_queue_size";
}

/// Tokens in a block of the demo's workers.
pub const BLOCK_TOKENS: u64 = 16;

/// A finished answer, and who gave it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// `ip:port` of the endpoint.
    pub served_by: String,
    pub text: String,
    pub prompt_tokens: u64,
    pub completion_tokens: u64,
    /// Of the prompt's, those that the worker had in its cache.
    pub cached_tokens: u64,
}

impl Reply {
    /// Full blocks of the prompt and of those generated tokens that were fed back, which is all but the last.
    pub fn cached_blocks_after(&self) -> u64 {
        (self.prompt_tokens + self.completion_tokens - 1) / BLOCK_TOKENS
    }
}

/// Looks at a stack from outside: through its gateway, its log and its metrics.
#[expect(
    async_fn_in_trait,
    reason = "only the tests of this crate use it, none of them across threads"
)]
pub trait Witness {
    /// Where the gateway listens.
    fn listener(&self) -> SocketAddr;

    /// Envoy's admin port.
    fn admin(&self) -> Result<SocketAddr>;

    /// An HTTP/1 client of the gateway.
    fn client(&self) -> Client {
        Client::http1(self.listener())
    }

    /// The chat as a request to the gateway, yet to be sent.
    fn post_chat(&self, chat: &Chat) -> Outgoing {
        self.client().post("/v1/chat/completions").json(chat.body())
    }

    /// Sends the chat through the gateway. Anything but a whole answer under status 200 is an error.
    async fn ask(&self, chat: &Chat) -> Result<Reply>;

    /// The line that the gateway wrote about the request with this `x-request-id`.
    async fn logged(&self, request_id: &str) -> Result<AccessLogEntry>;

    /// `ip:port` of every worker of the stack.
    fn worker_addresses(&self) -> BTreeSet<String>;

    /// The worker at `ip:port`.
    fn worker_at(&self, address: &str) -> Result<&Worker>;

    /// The sum of a series of epp. A name that epp does not have is an error, and not a zero.
    async fn epp_gauge(&self, name: &str) -> Result<f64>;

    /// Waits until a gauge of epp has exactly this value.
    async fn epp_gauge_is(&self, name: &str, value: f64) {
        eventually(&format!("{name} is {value}"), async || {
            let seen = self.epp_gauge(name).await?;
            ensure!((seen - value).abs() < 1e-6, "{name} is {seen}");
            Ok(())
        })
        .await;
    }

    /// Waits until epp has received so many entries of this kind from Envoy's access log.
    async fn log_entries(&self, kind: &str, at_least: u64);

    /// How many leases have ended because nobody ended them; 0 while there is no such series.
    async fn expired_leases(&self) -> Result<u64>;

    /// Waits until epp's index holds at least what the worker caches after this reply.
    async fn index_holds(&self, reply: &Reply) {
        eventually("the KV events have reached the index", async || {
            let blocks = self.epp_gauge(epp_series::INDEX_BLOCKS).await?;
            let expected = reply.cached_blocks_after() as f64;
            ensure!(blocks >= expected, "{blocks} of {expected} blocks");
            Ok(())
        })
        .await;
    }

    /// Waits until epp has heard from every worker of the stack. Before that it prefers those that it has heard from.
    async fn all_ready(&self) {
        let workers = self.worker_addresses().len();
        self.epp_gauge_is(epp_series::READY_ENDPOINTS, workers as f64)
            .await;
    }

    /// Waits until epp has let go of every request.
    async fn nothing_in_flight(&self) {
        for gauge in [
            epp_series::STREAMS_IN_FLIGHT,
            epp_series::REQUESTS_IN_FLIGHT,
        ] {
            self.epp_gauge_is(gauge, 0.0).await;
        }
    }

    /// Waits until Envoy's health check finds epp up or down.
    async fn epp_seen(&self, up: bool) -> Result<()>;
}

impl Witness for Stack {
    fn listener(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.gateway().port()))
    }

    fn admin(&self) -> Result<SocketAddr> {
        let url = self.gateway().admin_url();
        let address = url
            .strip_prefix("http://")
            .context("an admin URL over http")?;
        Ok(address.parse()?)
    }

    async fn ask(&self, chat: &Chat) -> Result<Reply> {
        let response = self.post_chat(chat).send().await?;
        let served_by = response.header("x-served-by").to_owned();
        let status = response.status;
        let text = response.text().await?;
        ensure!(status == 200, "status {status}: {text}");
        reply_of(served_by, &serde_json::from_str(&text)?).with_context(|| text.clone())
    }

    async fn logged(&self, request_id: &str) -> Result<AccessLogEntry> {
        let wanted = |entry: &AccessLogEntry| entry.request_id.as_deref() == Some(request_id);
        let what = format!("a line of the access log about {request_id}");
        within_deadline(&what, self.gateway().logged(wanted)).await
    }

    fn worker_addresses(&self) -> BTreeSet<String> {
        self.workers()
            .iter()
            .map(|worker| worker.address().to_string())
            .collect()
    }

    fn worker_at(&self, address: &str) -> Result<&Worker> {
        let found = self
            .workers()
            .iter()
            .find(|worker| worker.address().to_string() == address);
        found.ok_or_else(|| anyhow!("no worker at {address:?}"))
    }

    async fn epp_gauge(&self, name: &str) -> Result<f64> {
        let page = Exposition::parse(&self.epp().metrics().await?)?;
        page.sum(name, &[])
            .with_context(|| format!("epp has no series {name}"))
    }

    async fn log_entries(&self, kind: &str, at_least: u64) {
        eventually(&format!("{at_least} entries of kind {kind}"), async || {
            let page = Exposition::parse(&self.epp().metrics().await?)?;
            let seen = page.count(epp_series::LOG_ENTRIES, &[("kind", kind)]);
            ensure!(seen >= Some(at_least), "{seen:?} entries");
            Ok(())
        })
        .await;
    }

    async fn expired_leases(&self) -> Result<u64> {
        let page = Exposition::parse(&self.epp().metrics().await?)?;
        Ok(page
            .count(epp_series::EXPIRED_LEASES, &[])
            .unwrap_or_default())
    }

    async fn epp_seen(&self, up: bool) -> Result<()> {
        let what = format!("Envoy sees epp {}", if up { "up" } else { "down" });
        within_deadline(&what, self.gateway().until_health(self.epp().address(), up)).await
    }
}

fn reply_of(served_by: String, body: &Value) -> Result<Reply> {
    let usage = &body["usage"];
    let tokens = |value: &Value| value.as_u64().context("usage without a count");
    Ok(Reply {
        served_by,
        text: body["choices"][0]["message"]["content"]
            .as_str()
            .context("no content")?
            .to_owned(),
        prompt_tokens: tokens(&usage["prompt_tokens"])?,
        completion_tokens: tokens(&usage["completion_tokens"])?,
        cached_tokens: tokens(&usage["prompt_tokens_details"]["cached_tokens"])?,
    })
}

/// The text of a streamed chat, put together from its chunks.
///
/// # Errors
/// When an event before `[DONE]` is no chunk, or there is no `[DONE]`.
pub fn content_of(events: &[Event]) -> Result<String> {
    let (last, chunks) = events.split_last().context("no event")?;
    ensure!(last.data == "[DONE]", "the last event is {:?}", last.data);
    let mut text = String::new();
    for chunk in chunks {
        let chunk: Value = serde_json::from_str(&chunk.data)?;
        text.push_str(
            chunk["choices"][0]["delta"]["content"]
                .as_str()
                .unwrap_or_default(),
        );
    }
    Ok(text)
}
