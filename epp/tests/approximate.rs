//! The pipeline over endpoints of which only our own picks tell what they hold.
//!
//! The clock stands still, and the workers are what the tests say they are: the first one is always
//! a little busier than the others, so that nothing but a believed prefix draws a request to it.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

mod support;

use std::sync::Arc;

use pointsman_epp::clock::{Clock, ManualClock};
use pointsman_epp::ext_proc::usage::TokenUsage;
use pointsman_epp::ext_proc::{Decider, End, Exchange, Intake, Outcome, RequestHead};
use pointsman_epp::fleet::kv_events::{BlockSink, EventSource};
use pointsman_epp::fleet::{EndpointId, EndpointSpec, Fleet, Generation, Scraped, Snapshot};
use pointsman_epp::index::PrefixIndex;
use pointsman_epp::index::speculative::CONFIRM_MS;
use pointsman_epp::pipeline::{EventIndexes, InFlight, Pipeline};
use pointsman_proto::kv_events::{BlockStored, EngineHash, Event, Medium};
use serde_json::{Value, json};

const WORKERS: u16 = 4;
const FIRST: &str = "10.0.0.1:8000";

struct Pool {
    pipeline: Pipeline,
    fleet: Arc<Fleet>,
    hand: ManualClock,
    clock: Clock,
}

impl Pool {
    fn new() -> Self {
        let (clock, hand) = Clock::manual();
        let fleet = Fleet::new();
        let made = support::made(Arc::clone(&fleet), clock.clone());
        let pipeline = made.pipeline();
        let pool = Self {
            pipeline,
            fleet,
            hand,
            clock,
        };
        pool.members(1..=WORKERS);
        pool
    }

    /// Makes the fleet these workers.
    fn members(&self, workers: impl Iterator<Item = u16>) {
        let spec = |number: u16| {
            let address = ([10, 0, 0, number as u8], 8000).into();
            EndpointSpec::new(format!("worker-{number}"), address)
        };
        self.fleet.apply(workers.map(spec).collect()).unwrap();
        self.scrape();
    }

    /// Reads every worker's page.
    fn scrape(&self) {
        let mut snapshot = Snapshot::default();
        self.fleet.snapshot_into(&mut snapshot);
        for member in snapshot.members.iter() {
            let page = Scraped {
                waiting: u32::from(member.spec.address.to_string() == FIRST),
                running: 1,
                kv_usage: 0.1,
                block_size: 16,
                blocks: 1000,
            };
            let cell = self.fleet.cell(member.id, member.generation).unwrap();
            cell.record(&page, self.clock.now_ms());
        }
    }

    /// Lets time go by.
    fn wait_ms(&self, wait_ms: u64) {
        self.hand.advance_ms(wait_ms);
        self.scrape();
    }

    /// Picks for a request; the gateway may confine it to one endpoint.
    async fn sent(&self, body: &Value, only: Option<&str>) -> (InFlight, String) {
        let path = if body.get("messages").is_some() {
            "/v1/chat/completions"
        } else {
            "/v1/completions"
        };
        let head = RequestHead::from([(":method", "POST"), (":path", path)]);
        let intake = Intake {
            head: Arc::new(head),
            body: Arc::new(vec![body.to_string().into_bytes()]),
            subset: only.map(|only| Arc::from([only.to_owned()])),
            ..Intake::default()
        };
        let mut exchange = self.pipeline.begin(intake).await.unwrap();
        let destination = exchange.pick().await.unwrap();
        (exchange, destination.endpoints)
    }

    /// Where a request goes that leaves no trace.
    async fn drawn_to(&self, body: &Value) -> String {
        let (exchange, endpoint) = self.sent(body, None).await;
        exchange.finish(&outcome(End::Aborted, None, None));
        endpoint
    }

    /// A whole exchange.
    async fn served(&self, body: &Value, only: Option<&str>, cached_tokens: u64) -> String {
        let (mut exchange, endpoint) = self.sent(body, only).await;
        exchange.first_byte();
        exchange.finish(&answered(cached_tokens));
        endpoint
    }

    fn rooms(&self) -> &pointsman_epp::pipeline::Pool {
        &self.pipeline.pools().all()[0]
    }

    fn believed_blocks(&self) -> usize {
        self.rooms().approximate.stats().blocks
    }
}

fn outcome(end: End, status: Option<u16>, usage: Option<TokenUsage>) -> Outcome {
    Outcome {
        status,
        response_bytes: if status.is_some() { 100 } else { 0 },
        usage,
        ..Outcome::new(end)
    }
}

fn answered(cached_tokens: u64) -> Outcome {
    let usage = TokenUsage {
        prompt_tokens: 500,
        completion_tokens: 10,
        cached_tokens: Some(cached_tokens),
    };
    outcome(End::Completed, Some(200), Some(usage))
}

/// A chat of so many turns, of some 2,000 characters each.
fn chat(turns: usize) -> Value {
    let messages = (0..turns).map(|turn| {
        let role = if turn % 2 == 0 { "user" } else { "assistant" };
        json!({"role": role, "content": format!("Turn {turn}. ").repeat(200)})
    });
    json!({"model": "m", "messages": messages.collect::<Vec<_>>()})
}

#[tokio::test]
async fn a_chat_stays_where_it_began_without_tokens_or_events() {
    let pool = Pool::new();
    pool.served(&chat(5), Some(FIRST), 0).await;
    for turns in 6..12 {
        // Long after any pick could pass for a speculation.
        pool.wait_ms(3_600_000);
        let endpoint = pool.served(&chat(turns), None, 400).await;
        assert_eq!(endpoint, FIRST, "turn {turns}");
    }
    assert_ne!(
        pool.drawn_to(&json!({"model": "m", "prompt": "x"})).await,
        FIRST
    );
}

#[tokio::test]
async fn another_model_salt_or_tool_is_another_chat() {
    let pool = Pool::new();
    pool.served(&chat(5), Some(FIRST), 0).await;
    for (field, value) in [
        ("model", json!("other")),
        ("cache_salt", json!("mine")),
        (
            "tools",
            json!([{"type": "function", "function": {"name": "f"}}]),
        ),
        ("chat_template_kwargs", json!({"enable_thinking": false})),
    ] {
        let mut body = chat(5);
        body[field] = value;
        assert_ne!(pool.drawn_to(&body).await, FIRST, "{field}");
    }
    assert_eq!(pool.drawn_to(&chat(5)).await, FIRST);
}

#[tokio::test]
async fn requests_of_one_new_prefix_follow_the_first() {
    let pool = Pool::new();
    let (_first, first) = pool.sent(&chat(3), None).await;
    let mut in_flight = Vec::new();
    for _ in 0..8 {
        let (exchange, endpoint) = pool.sent(&chat(3), None).await;
        assert_eq!(endpoint, first);
        in_flight.push(exchange);
    }
}

#[tokio::test]
async fn two_reports_of_nothing_cached_end_the_belief() {
    let pool = Pool::new();
    pool.served(&chat(5), Some(FIRST), 0).await;
    assert_eq!(pool.served(&chat(5), None, 0).await, FIRST);
    assert_eq!(pool.served(&chat(5), None, 0).await, FIRST, "one is none");
    assert_eq!(pool.believed_blocks(), 0);
    assert_ne!(pool.drawn_to(&chat(5)).await, FIRST);
    let counters = pool.rooms().approximate.counters();
    assert_eq!(
        counters
            .shortfalls
            .load(std::sync::atomic::Ordering::Relaxed),
        2
    );
}

#[tokio::test]
async fn what_failed_or_went_elsewhere_is_not_believed() {
    let pool = Pool::new();
    let elsewhere = Outcome {
        served: Some("10.0.0.2:8000".to_owned()),
        ..answered(0)
    };
    let ends = [
        outcome(End::Completed, Some(503), None),
        outcome(End::Aborted, None, None),
        elsewhere,
    ];
    for end in ends {
        let (mut exchange, _) = pool.sent(&chat(5), Some(FIRST)).await;
        exchange.first_byte();
        assert!(pool.believed_blocks() > 0, "while it runs");
        exchange.finish(&end);
        assert_eq!(pool.believed_blocks(), 0, "{end:?}");
    }
    let (exchange, _) = pool.sent(&chat(5), Some(FIRST)).await;
    exchange.finish(&outcome(End::Unseen, None, None));
    assert_eq!(
        pool.drawn_to(&chat(5)).await,
        FIRST,
        "nobody said otherwise"
    );
}

#[tokio::test]
async fn an_endpoint_that_comes_back_holds_nothing() {
    let pool = Pool::new();
    let follow = Arc::clone(&pool.rooms().approximate).follow(Arc::clone(&pool.fleet));
    tokio::spawn(follow);
    pool.served(&chat(5), Some(FIRST), 0).await;
    assert_eq!(pool.drawn_to(&chat(5)).await, FIRST);
    pool.members(2..=WORKERS);
    while pool.believed_blocks() > 0 {
        tokio::task::yield_now().await;
    }
    pool.members(1..=WORKERS);
    assert_ne!(pool.drawn_to(&chat(5)).await, FIRST);
}

#[tokio::test]
async fn an_engine_that_emptied_its_cache_holds_nothing() {
    let pool = Pool::new();
    let parts = pool.rooms();
    let sink = EventIndexes {
        precise: Arc::clone(&parts.index),
        approximate: Arc::clone(&parts.approximate),
    };
    pool.served(&chat(5), Some(FIRST), 0).await;
    let source = EventSource {
        endpoint: EndpointId(0),
        generation: Generation(1),
        rank: 0,
    };
    sink.clear(source);
    assert_eq!(pool.drawn_to(&chat(5)).await, FIRST, "events were lost");
    sink.apply(source, "m", &Event::AllBlocksCleared);
    assert_ne!(pool.drawn_to(&chat(5)).await, FIRST);
}

/// Where events tell what an endpoint holds, a pick counts until they must have come.
#[tokio::test]
async fn with_events_a_pick_counts_until_they_should_be_there() {
    let pool = Pool::new();
    let index = &pool.rooms().index;
    follow_first(index);
    let body = json!({"model": "m", "prompt": (0..640).collect::<Vec<u32>>()});
    let (mut exchange, _) = pool.sent(&body, Some(FIRST)).await;
    pool.wait_ms(30_000);
    assert_eq!(pool.drawn_to(&body).await, FIRST, "it waits in a queue");
    exchange.first_byte();
    pool.wait_ms(CONFIRM_MS - 1);
    assert_eq!(pool.drawn_to(&body).await, FIRST);
    pool.wait_ms(1);
    assert_ne!(
        pool.drawn_to(&body).await,
        FIRST,
        "the events have not said so"
    );
    // The same endpoint without token ids: the picks are all there is.
    pool.served(&chat(5), Some(FIRST), 0).await;
    pool.wait_ms(CONFIRM_MS);
    assert_eq!(pool.drawn_to(&chat(5)).await, FIRST);
}

/// Events of the first worker have come, of a prompt that nobody asks for.
fn follow_first(index: &PrefixIndex) {
    let stored = Event::BlockStored(BlockStored {
        block_hashes: vec![EngineHash(1)],
        parent: None,
        token_ids: (5000..5016).collect(),
        block_size: 16,
        lora_name: None,
        medium: Medium::Gpu,
        cache_salt: None,
        extras: Vec::new(),
    });
    let source = EventSource {
        endpoint: EndpointId(0),
        generation: Generation(1),
        rank: 0,
    };
    index.apply(source, "m", &stored);
    index.followed(source);
}
