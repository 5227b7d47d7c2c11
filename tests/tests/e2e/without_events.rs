//! Endpoints that publish no KV events, and models without a tokenizer: what a worker holds is told by where its
//! requests went, and by what its answers say of them.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use anyhow::{Result, ensure};
use http::Response;
use http_body_util::{BodyExt, Full};
use pointsman_loadtest::stack::{Stack, StackOptions, Template, Watch};
use pointsman_tests::chat::{Chat, passage};
use pointsman_tests::eventually::eventually;
use pointsman_tests::upstream::Upstream;
use pointsman_tests::witness::{BLOCK_TOKENS, Witness, epp_series};
use serde_json::json;

const NO_EVENTS: &str = r#"--kv-events-config={"enable_kv_cache_events":false}"#;
const BELIEVED_BLOCKS: &str = "pointsman_approximate_index_blocks";

/// A tokenizer for another model, which leaves the demo's without one.
fn no_tokenizer(options: StackOptions) -> StackOptions {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../engine/demo-model");
    options.epp_flag(format!("--tokenizer=another-model={}", folder.display()))
}

/// Among three workers a picker without a memory stays on one through six turns in 1 of 243 runs; and cached tokens
/// that grow with the chat it cannot have at all without staying.
#[tokio::test]
async fn a_growing_chat_stays_without_tokens_or_events() -> Result<()> {
    let options = StackOptions::new().workers(3).worker_flag(NO_EVENTS);
    let stack = Stack::start(no_tokenizer(options)).await?;
    let mut chat = Chat::with_system(&passage("the line to the coast", 120)).user("Tell me more.");
    let first = stack.ask(&chat).await?;
    let mut previous = first.clone();
    for turn in 1..6 {
        chat = chat
            .assistant(&previous.text)
            .user(&format!("And then? Question {turn}."));
        let reply = stack.ask(&chat).await?;
        assert_eq!(reply.served_by, first.served_by, "turn {turn}");
        assert!(
            reply.cached_tokens >= previous.prompt_tokens / BLOCK_TOKENS * BLOCK_TOKENS,
            "turn {turn}: {} tokens cached of {}",
            reply.cached_tokens,
            previous.prompt_tokens
        );
        previous = reply;
    }
    assert!(
        stack.epp_gauge(epp_series::INDEX_BLOCKS).await? < 1.0,
        "blocks without an event"
    );
    let untold = stack.epp_gauge("pointsman_request_without_tokens_total");
    assert!((untold.await? - 6.0).abs() < 1e-6, "requests without ids");
    Ok(())
}

/// An upstream that says it had so many tokens of each prompt of a hundred cached.
async fn upstream(cached_tokens: &Arc<AtomicU64>) -> Result<Upstream> {
    let cached_tokens = Arc::clone(cached_tokens);
    Upstream::answering(move |_| {
        let body = json!({
            "choices": [{"message": {"role": "assistant", "content": "Yes."}}],
            "usage": {"prompt_tokens": 100, "completion_tokens": 2,
                "prompt_tokens_details": {"cached_tokens": cached_tokens.load(SeqCst)}},
        });
        async move { Ok(Response::new(Full::from(body.to_string()).boxed())) }
    })
    .await
}

#[tokio::test]
async fn answers_that_had_nothing_cached_end_the_belief() -> Result<()> {
    let cached_tokens = Arc::new(AtomicU64::new(96));
    let (one, other) = (
        upstream(&cached_tokens).await?,
        upstream(&cached_tokens).await?,
    );
    // Not every Envoy can read the counts of a whole answer for its access log.
    let endpoints = StackOptions::new()
        .workers(0)
        .watch(Watch::Stream)
        .endpoint(one.address())
        .endpoint(other.address());
    let stack = Stack::start(endpoints).await?;
    stack.epp_gauge_is(epp_series::READY_ENDPOINTS, 2.0).await;
    let chat = Chat::with_system(&passage("the line to the coast", 120)).user("Tell me more.");
    let first = stack.ask(&chat).await?.served_by;
    for _ in 0..4 {
        assert_eq!(stack.ask(&chat).await?.served_by, first);
    }
    assert!(stack.epp_gauge(BELIEVED_BLOCKS).await? > 0.0);
    cached_tokens.store(0, SeqCst);
    stack.ask(&chat).await?;
    stack.ask(&chat).await?;
    stack.epp_gauge_is(BELIEVED_BLOCKS, 0.0).await;
    Ok(())
}

#[tokio::test]
async fn an_endpoint_that_leaves_is_forgotten() -> Result<()> {
    let options = StackOptions::new()
        .workers(2)
        .worker_flag(NO_EVENTS)
        .template(Template::OriginalDst);
    let stack = Stack::start(no_tokenizer(options.endpoints_file())).await?;
    let chat = Chat::with_system(&passage("the line to the coast", 120)).user("Tell me more.");
    let first = stack.ask(&chat).await?.served_by;
    assert_eq!(stack.ask(&chat).await?.served_by, first);
    assert!(stack.epp_gauge(BELIEVED_BLOCKS).await? > 0.0);
    stack.write_endpoints(|endpoint| endpoint.to_string() != first)?;
    stack.epp_gauge_is(BELIEVED_BLOCKS, 0.0).await;
    stack.write_endpoints(|_| true)?;
    stack.epp_gauge_is(epp_series::READY_ENDPOINTS, 2.0).await;
    eventually("both serve again", async || {
        let served = stack
            .ask(&Chat::new().user("Who is there?"))
            .await?
            .served_by;
        ensure!(served == first, "{served}");
        Ok(())
    })
    .await;
    Ok(())
}
