//! What a worker tells the world, read as another program would: its events off the wire, its metrics page, its end.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use pointsman_loadtest::stack::{MODEL_NAME, Stack, StackOptions, Worker};
use pointsman_proto::kv_events::Event;
use pointsman_tests::chat::{Chat, passage};
use pointsman_tests::client::Client;
use pointsman_tests::eventually::eventually;
use pointsman_tests::exposition::Exposition;
use pointsman_tests::kv_events::{Published, Subscription, replay};
use pointsman_tests::witness::{BLOCK_TOKENS, Witness, content_of};
use serde_json::{Value, json};

/// Where the worker says that its events are: (live, replay).
async fn event_sources(worker: &Worker) -> Result<(String, String)> {
    let response = Client::http1(worker.address())
        .get("/kv_event_sources")
        .send()
        .await?;
    let sources = response.json().await?;
    let endpoint = |name: &str| {
        let endpoint = sources["0"][name].as_str().map(str::to_owned);
        endpoint.with_context(|| format!("no {name} in {sources}"))
    };
    Ok((endpoint("endpoint")?, endpoint("replay_endpoint")?))
}

/// The token ids that the worker makes of a prompt.
async fn tokens_of(worker: &Worker, prompt: &str) -> Result<Vec<u32>> {
    let body = json!({"model": MODEL_NAME, "prompt": prompt});
    let response = Client::http1(worker.address())
        .post("/tokenize")
        .json(&body)
        .send()
        .await?;
    Ok(serde_json::from_value(
        response.json().await?["tokens"].take(),
    )?)
}

async fn complete(stack: &Stack, prompt: &str) -> Result<()> {
    let body = json!({"model": MODEL_NAME, "prompt": prompt, "max_tokens": 1, "temperature": 0});
    let response = stack
        .client()
        .post("/v1/completions")
        .json(&body)
        .send()
        .await?;
    ensure!(response.status == 200, "status {}", response.status);
    response.bytes().await?;
    Ok(())
}

/// The blocks of a prompt that the batches tell of, as one run of tokens: from the block without a parent, each block to
/// the next that names it.
fn told_of(batches: &[Published], tokens: &[u32]) -> Result<Vec<u32>> {
    let mut told: Vec<u32> = Vec::new();
    let mut parent = None;
    for batch in batches {
        let decoded = batch.decode()?;
        ensure!(decoded.skipped.is_empty(), "skipped {:?}", decoded.skipped);
        for event in decoded.batch.events {
            let Event::BlockStored(stored) = event else {
                continue;
            };
            let block_tokens = stored.block_hashes.len() * BLOCK_TOKENS as usize;
            ensure!(stored.token_ids.len() == block_tokens, "{stored:?}");
            if stored.parent == parent && tokens[told.len()..].starts_with(&stored.token_ids) {
                told.extend(&stored.token_ids);
                parent = stored.block_hashes.last().copied();
            }
        }
    }
    Ok(told)
}

/// Replays until the batches tell of every full block of the prompt: a worker publishes beside its answer, not before.
async fn replayed_with(endpoint: &str, worker: &Worker, prompt: &str) -> Result<Vec<Published>> {
    let tokens = tokens_of(worker, prompt).await?;
    let whole = tokens.len() / BLOCK_TOKENS as usize * BLOCK_TOKENS as usize;
    ensure!(whole > 0, "a prompt of less than a block tells nothing");
    let what = format!("the events of {prompt:?}");
    let batches = eventually(&what, async || {
        let batches = replay(endpoint, 0).await?;
        let told = told_of(&batches, &tokens)?;
        ensure!(told == tokens[..whole], "{} of {whole} tokens", told.len());
        Ok(batches)
    });
    Ok(batches.await)
}

#[tokio::test]
async fn kv_events_tell_which_tokens_a_worker_holds() -> Result<()> {
    let stack = Stack::start(StackOptions::new()).await?;
    let worker = &stack.workers()[0];
    let (_, endpoint) = event_sources(worker).await?;
    let prompts: Vec<_> = (0..4)
        .map(|topic| passage(&format!("event {topic}"), 60))
        .collect();
    for prompt in &prompts {
        complete(&stack, prompt).await?;
    }
    for prompt in &prompts {
        replayed_with(&endpoint, worker, prompt).await?;
    }
    let batches = replay(&endpoint, 0).await?;
    let first = batches[0].decode()?.batch.events;
    assert!(matches!(first[..], [Event::AllBlocksCleared]), "{first:?}");
    for (sequence, batch) in batches.iter().enumerate() {
        assert_eq!(batch.sequence, sequence as u64, "a gap or a repetition");
        assert_eq!(batch.topic, format!("kv@{}@{MODEL_NAME}", worker.address()));
    }
    assert_eq!(replay(&endpoint, 2).await?, batches[2..], "from the middle");
    Ok(())
}

#[tokio::test]
async fn live_events_are_the_ones_that_a_replay_repeats() -> Result<()> {
    let stack = Stack::start(StackOptions::new()).await?;
    let worker = &stack.workers()[0];
    let (live_endpoint, replay_endpoint) = event_sources(worker).await?;
    let mut subscription = Subscription::open(&live_endpoint).await?;
    // A subscription takes effect a moment after it is made, and what falls before is not received: so prompts are sent
    // until the first is heard.
    let first = tokio::select! {
        first = subscription.next() => first?,
        failed = complete_ever_new_prompts(&stack) => match failed? {},
    };
    let prompt = passage("the last of the live ones", 60);
    complete(&stack, &prompt).await?;
    replayed_with(&replay_endpoint, worker, &prompt).await?;
    let replayed = replay(&replay_endpoint, first.sequence).await?;
    let mut live = vec![first];
    while live.len() < replayed.len() {
        live.push(subscription.next().await?);
    }
    assert!(live.len() > 1 && live == replayed, "{live:?}\n{replayed:?}");
    Ok(())
}

async fn complete_ever_new_prompts(stack: &Stack) -> Result<Infallible> {
    let mut number = 0;
    loop {
        complete(stack, &passage(&format!("live event {number}"), 60)).await?;
        number += 1;
    }
}

#[tokio::test]
async fn a_worker_that_is_told_to_end_finishes_its_streams() -> Result<()> {
    const TOKENS: u32 = 800;
    let stack = Stack::start(StackOptions::new().worker_flag("--drain-timeout=30s")).await?;
    let worker = &stack.workers()[0];
    let chat = Chat::new()
        .user("A last story.")
        .max_tokens(TOKENS)
        .streaming();
    let mut response = stack.post_chat(&chat).send().await?;
    let first = response.event().await?;
    let (end, events) = tokio::join!(
        worker.process().stop(Duration::from_secs(40)),
        response.events()
    );
    let events = [vec![first], events?].concat();
    content_of(&events)?;
    let usage: Value = serde_json::from_str(&events[events.len() - 2].data)?;
    assert_eq!(
        usage["usage"]["completion_tokens"], TOKENS,
        "all that was asked for"
    );
    assert_eq!(end?.code(), Some(0), "{}", worker.process().log_tail());
    Ok(())
}

/// What pickers, autoscalers and dashboards of the field read: (family, type).
const SERIES: [(&str, &str); 19] = [
    ("vllm:num_requests_running", "gauge"),
    ("vllm:num_requests_waiting", "gauge"),
    ("vllm:kv_cache_usage_perc", "gauge"),
    ("vllm:cache_config_info", "gauge"),
    ("vllm:prefix_cache_queries_total", "counter"),
    ("vllm:prefix_cache_hits_total", "counter"),
    ("vllm:num_preemptions_total", "counter"),
    ("vllm:prompt_tokens_total", "counter"),
    ("vllm:generation_tokens_total", "counter"),
    ("vllm:request_success_total", "counter"),
    ("vllm:time_to_first_token_seconds", "histogram"),
    ("vllm:inter_token_latency_seconds", "histogram"),
    ("vllm:e2e_request_latency_seconds", "histogram"),
    ("vllm:request_queue_time_seconds", "histogram"),
    ("vllm:request_prefill_time_seconds", "histogram"),
    ("vllm:request_decode_time_seconds", "histogram"),
    ("vllm:request_prompt_tokens", "histogram"),
    ("vllm:request_generation_tokens", "histogram"),
    ("vllm:iteration_tokens_total", "histogram"),
];

#[tokio::test]
async fn the_metrics_page_has_vllms_names_and_adds_up() -> Result<()> {
    let stack = Stack::start(StackOptions::new()).await?;
    let chat = Chat::with_system(&passage("counting", 60)).user("Count.");
    let replies = [stack.ask(&chat).await?, stack.ask(&chat).await?];
    let address = stack.workers()[0].address();
    let page = eventually("both requests are counted", async || {
        let page = Exposition::scrape(address).await?;
        let ended = page.count("vllm:request_success_total", &[]);
        ensure!(ended == Some(2), "{ended:?} ended");
        Ok(page)
    })
    .await;
    for (family, kind) in SERIES {
        assert_eq!(
            page.types.get(family).map(String::as_str),
            Some(kind),
            "{family}"
        );
        if kind == "histogram" {
            assert_histogram(&page, family)?;
        }
    }
    let total = |name: &str| page.count(name, &[("model_name", MODEL_NAME)]);
    let of_replies = |part: fn(&_) -> u64| Some(replies.iter().map(part).sum::<u64>());
    assert_eq!(
        total("vllm:prompt_tokens_total"),
        of_replies(|reply| reply.prompt_tokens)
    );
    assert_eq!(
        total("vllm:generation_tokens_total"),
        of_replies(|reply| reply.completion_tokens)
    );
    assert_eq!(
        total("vllm:prefix_cache_hits_total"),
        of_replies(|reply| reply.cached_tokens)
    );
    assert!(replies[1].cached_tokens > 0);
    assert_eq!(total("vllm:time_to_first_token_seconds_count"), Some(2));
    assert_eq!(
        page.count("vllm:cache_config_info", &[("block_size", "16")]),
        Some(1)
    );
    Ok(())
}

/// Buckets never fall, and the last of them holds everything.
fn assert_histogram(page: &Exposition, family: &str) -> Result<()> {
    let bucket = format!("{family}_bucket");
    let buckets: Vec<_> = page
        .samples
        .iter()
        .filter(|sample| sample.name == bucket)
        .collect();
    let bounds: BTreeSet<_> = buckets.iter().map(|sample| &sample.labels["le"]).collect();
    assert!(
        bounds.len() == buckets.len() && bounds.len() > 3,
        "bounds of {family}: {bounds:?}"
    );
    assert!(
        buckets.is_sorted_by_key(|sample| sample.value),
        "{family}: {buckets:?}"
    );
    let count = page
        .count(&format!("{family}_count"), &[])
        .context("no count")?;
    assert_eq!(
        page.count(&bucket, &[("le", "+Inf")]),
        Some(count),
        "{family}"
    );
    assert!(
        page.sum(&format!("{family}_sum"), &[]).is_some(),
        "{family}"
    );
    Ok(())
}
