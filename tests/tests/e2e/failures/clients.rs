//! Clients that go away, in the middle of their answer and before it. What they held must come free: the worker's
//! blocks and its place in the batch, and epp's record of the request.

use anyhow::{Context, Result, ensure};
use pointsman_loadtest::stack::{Stack, StackOptions};
use pointsman_tests::chat::Chat;
use pointsman_tests::eventually::eventually;
use pointsman_tests::exposition::Exposition;
use pointsman_tests::witness::Witness;

/// Long enough that no worker ends it while the test looks elsewhere; the model's context holds 2,048.
const ENDLESS_TOKENS: u32 = 1_900;

/// The worker's page once `settled` accepts it.
async fn worker_settles(stack: &Stack, what: &str, settled: impl Fn(&Load) -> bool) -> Load {
    let address = stack.workers()[0].address();
    eventually(what, async || {
        let load = Load::of(&Exposition::scrape(address).await?)?;
        ensure!(settled(&load), "{load:?}");
        Ok(load)
    })
    .await
}

#[derive(Debug)]
struct Load {
    running: u64,
    waiting: u64,
    kv_usage: f64,
    aborted: u64,
    ended_by_length: u64,
}

impl Load {
    fn of(page: &Exposition) -> Result<Self> {
        let requests = |name: &str| page.count(name, &[]).with_context(|| name.to_owned());
        let ended = |reason| {
            let labels = [("finished_reason", reason)];
            page.count("vllm:request_success_total", &labels)
                .unwrap_or_default()
        };
        Ok(Self {
            running: requests("vllm:num_requests_running")?,
            waiting: requests("vllm:num_requests_waiting")?,
            kv_usage: page
                .sum("vllm:kv_cache_usage_perc", &[])
                .context("no KV usage")?,
            aborted: ended("abort"),
            ended_by_length: ended("length"),
        })
    }

    fn is_idle(&self) -> bool {
        self.running == 0 && self.waiting == 0 && self.kv_usage <= 0.0
    }
}

#[tokio::test]
async fn a_client_that_leaves_mid_stream_frees_what_it_held() -> Result<()> {
    let stack = Stack::start(StackOptions::new()).await?;
    let chat = Chat::new()
        .user("A very long story.")
        .max_tokens(ENDLESS_TOKENS)
        .streaming();
    let request = stack.post_chat(&chat);
    let mut response = request.send().await?;
    response.event().await?;
    drop(response);
    let load = worker_settles(&stack, "the worker is idle again", Load::is_idle).await;
    // Idle because it was told, and not because it came to the end.
    assert_eq!((load.aborted, load.ended_by_length), (1, 0));
    stack.nothing_in_flight().await;
    Ok(())
}

#[tokio::test]
async fn a_client_that_leaves_while_queued_harms_nobody() -> Result<()> {
    let stack = Stack::start(StackOptions::new().worker_flag("--max-num-seqs=1")).await?;
    let chat = Chat::new()
        .user("The first in line.")
        .max_tokens(ENDLESS_TOKENS)
        .streaming();
    let request = stack.post_chat(&chat);
    let mut first = request.send().await?;
    first.event().await?;

    let second = Chat::new().user("The second in line.");
    let second = stack.post_chat(&second);
    let second = tokio::spawn(second.send());
    worker_settles(&stack, "the second waits", |load| load.waiting == 1).await;
    second.abort();
    let load = worker_settles(&stack, "nobody waits", |load| load.waiting == 0).await;
    assert_eq!(
        (load.running, load.aborted),
        (1, 1),
        "only the one that waited is gone"
    );

    let events = first.events().await?;
    assert_eq!(
        events.last().map(|event| event.data.as_str()),
        Some("[DONE]")
    );
    let usage = events.iter().rev().nth(1).context("no usage")?;
    assert!(
        usage
            .data
            .contains(&format!("\"completion_tokens\":{ENDLESS_TOKENS}")),
        "{usage:?}"
    );
    worker_settles(&stack, "the worker is idle again", Load::is_idle).await;
    stack.nothing_in_flight().await;
    Ok(())
}
