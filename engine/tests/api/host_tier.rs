//! The second tier of the KV cache, as clients and pickers see it.

use pointsman_proto::kv_events::{Event, Medium};
use serde_json::{Value, json};

use crate::admin::replayed;
use crate::support::Worker;

/// Four blocks on the device, so that the second prompt takes the first one's.
#[tokio::test]
async fn a_prompt_that_was_evicted_comes_back_from_host_memory() {
    let config = json!({
        "enable_kv_cache_events": true,
        "endpoint": "tcp://127.0.0.1:0",
        "replay_endpoint": "tcp://127.0.0.1:0",
    });
    let worker = Worker::start(&[
        "--block-size",
        "16",
        "--num-gpu-blocks-override",
        "5",
        "--kv-offloading-size",
        "16MiB",
        "--kv-events-config",
        &config.to_string(),
    ])
    .await;
    let body = |first: u32| {
        let prompt: Vec<u32> = (first..first + 50).collect();
        json!({"prompt": prompt, "max_tokens": 4, "temperature": 0})
    };
    let cached = |answer: &Value| answer["usage"]["prompt_tokens_details"]["cached_tokens"].clone();
    let mut answers = Vec::new();
    for first in [300, 400, 300] {
        answers.push(worker.ask("/v1/completions", &body(first)).await);
    }
    let [first, other, again] = answers.as_slice() else {
        panic!("three answers")
    };
    assert_eq!(
        (cached(first), cached(other), cached(again)),
        (json!(0), json!(0), json!(48))
    );
    assert_eq!(first["choices"][0]["text"], again["choices"][0]["text"]);
    for (source, tokens) in [("device", "0"), ("host", "48")] {
        let series = format!(
            "vllm:prompt_tokens_cached_by_source_total{{model_name=\"demo\",engine=\"0\",source=\"{source}\"}}"
        );
        assert_eq!(worker.metric(&series).await, tokens, "{source}");
    }
    let sources = worker.get("/kv_event_sources").await.json();
    let endpoint = sources["0"]["replay_endpoint"].as_str().unwrap();
    let batches = replayed(endpoint, |batches| batches.len() >= 4).await;
    let events = batches.into_iter().flat_map(|(_, events)| events);
    let stored: Vec<_> = events
        .filter_map(|event| match event {
            Event::BlockStored(stored) => Some((
                stored.medium,
                stored.token_ids[0],
                stored.block_hashes.len(),
            )),
            _ => None,
        })
        .collect();
    assert_eq!(
        stored,
        [
            (Medium::Gpu, 300, 3),
            (Medium::Cpu, 300, 3),
            (Medium::Gpu, 400, 3),
            (Medium::Cpu, 400, 3),
            (Medium::Gpu, 300, 3),
        ]
    );
}
