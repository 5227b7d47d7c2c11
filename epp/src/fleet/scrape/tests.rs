//! The scraper against pages served over a real socket.

use std::net::SocketAddr;
use std::sync::atomic::AtomicU32;

use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;

use super::super::endpoint::{EndpointSpec, Live, Snapshot};
use super::*;

const DEADLINE: Duration = Duration::from_secs(10);

/// A worker whose page shows `waiting`, or fails while it is `u32::MAX`.
async fn worker(waiting: Arc<AtomicU32>, pages: Arc<AtomicU32>) -> SocketAddr {
    let page = move || {
        let waiting = waiting.load(Relaxed);
        pages.fetch_add(1, Relaxed);
        async move {
            if waiting == u32::MAX {
                return Err(StatusCode::INTERNAL_SERVER_ERROR);
            }
            Ok(format!(
                "vllm:num_requests_waiting{{engine=\"0\"}} {waiting}\n\
                 vllm:num_requests_running{{engine=\"0\"}} 1\n\
                 vllm:kv_cache_usage_perc{{engine=\"0\"}} 0.5\n"
            ))
        }
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let app = Router::new().route("/metrics", get(page));
    tokio::spawn(async move { axum::serve(listener, app).await });
    address
}

fn scraped_fleet(address: SocketAddr, intervals: Intervals) -> (Arc<Fleet>, AbortOnDropHandle<()>) {
    let fleet = Fleet::new();
    fleet
        .apply(vec![EndpointSpec::new("worker", address)])
        .unwrap();
    let started = Instant::now();
    let now: NowMs = Arc::new(move || started.elapsed().as_millis() as u64);
    let options = ScrapeOptions {
        intervals,
        ..ScrapeOptions::default()
    };
    let scraper = Scraper::new(Arc::clone(&fleet), options, now).unwrap();
    let task = AbortOnDropHandle::new(tokio::spawn(scraper.run()));
    (fleet, task)
}

/// Waits until the endpoint's signals satisfy `wanted`.
async fn until(fleet: &Fleet, wanted: impl Fn(&Live) -> bool) -> Live {
    let mut snapshot = Snapshot::default();
    let seen = async {
        loop {
            fleet.snapshot_into(&mut snapshot);
            if let Some(live) = snapshot.live.first().filter(|live| wanted(live)) {
                return *live;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(DEADLINE, seen).await.unwrap()
}

#[tokio::test]
async fn signals_follow_the_page_and_failures_make_it_unhealthy() {
    let waiting = Arc::new(AtomicU32::new(3));
    let address = worker(Arc::clone(&waiting), Arc::default()).await;
    let intervals = Intervals {
        base: Duration::from_millis(5),
        idle: Duration::from_millis(10),
        failing: Duration::from_millis(10),
    };
    let (fleet, _task) = scraped_fleet(address, intervals);
    let live = until(&fleet, |live| live.healthy).await;
    assert_eq!((live.waiting, live.running), (3, 1));
    assert!(live.scraped_at_ms > 0);

    waiting.store(9, Relaxed);
    until(&fleet, |live| live.waiting == 9).await;
    waiting.store(u32::MAX, Relaxed);
    let failed = until(&fleet, |live| !live.healthy).await;
    assert_eq!(failed.waiting, 9, "the last signals stay");
    waiting.store(0, Relaxed);
    until(&fleet, |live| live.healthy && live.waiting == 0).await;
}

#[tokio::test]
async fn a_first_request_wakes_the_reader_of_an_idle_endpoint() {
    let waiting = Arc::new(AtomicU32::new(0));
    let pages = Arc::new(AtomicU32::new(0));
    let address = worker(Arc::clone(&waiting), Arc::clone(&pages)).await;
    // So slow that without the wake-up no second page is read before the deadline.
    let hour = Duration::from_hours(1);
    let intervals = Intervals {
        base: hour,
        idle: hour,
        failing: hour,
    };
    let (fleet, _task) = scraped_fleet(address, intervals);
    until(&fleet, |live| live.healthy).await;
    waiting.store(4, Relaxed);
    let member = Arc::clone(&fleet.membership().borrow()[0]);
    let _lease = fleet.lease(member.id, member.generation, 1);
    until(&fleet, |live| live.waiting == 4).await;
    assert_eq!(pages.load(Relaxed), 2);
}

#[tokio::test]
async fn an_endpoint_that_nobody_serves_is_never_healthy() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let fleet = Fleet::new();
    fleet
        .apply(vec![EndpointSpec::new("gone", address)])
        .unwrap();
    let now: NowMs = Arc::new(|| 1);
    let scraper = Scraper::new(Arc::clone(&fleet), ScrapeOptions::default(), now).unwrap();
    let counters = scraper.counters();
    let _task = AbortOnDropHandle::new(tokio::spawn(scraper.run()));
    let failed = async {
        while counters.errors.load(Relaxed) == 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(DEADLINE, failed).await.unwrap();
    let live = until(&fleet, |_| true).await;
    assert!(!live.healthy && live.scraped_at_ms == 0);
}

/// A worker that serves a fixed page at any path.
async fn fixed(page: &'static str) -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let app = Router::new().route("/other/page", get(move || async move { page }));
    tokio::spawn(async move { axum::serve(listener, app).await });
    address
}

#[tokio::test]
async fn adapters_and_another_engine_are_read_at_another_port_and_path() {
    let address = fixed(
        "nv_trt_llm_request_metrics{request_type=\"waiting\"} 5\n\
         nv_trt_llm_request_metrics{request_type=\"scheduled\"} 6\n\
         nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type=\"fraction\"} 0.5\n",
    )
    .await;
    let fleet = Fleet::new();
    let elsewhere = SocketAddr::new(address.ip(), 1);
    let mut spec = EndpointSpec::new("triton", elsewhere);
    let engine = "triton-tensorrt-llm".to_owned();
    spec.labels
        .insert("llm-d.ai/engine-type".to_owned(), engine);
    fleet.apply(vec![spec]).unwrap();
    let options = ScrapeOptions {
        path: "/other/page".to_owned(),
        port: Some(address.port()),
        ..ScrapeOptions::default()
    };
    let now: NowMs = Arc::new(|| 1);
    let scraper = Scraper::new(Arc::clone(&fleet), options, now).unwrap();
    let _task = AbortOnDropHandle::new(tokio::spawn(scraper.run()));
    let live = until(&fleet, |live| live.healthy).await;
    assert_eq!((live.waiting, live.running), (5, 6));
}

#[tokio::test]
async fn adapters_of_the_page_come_to_the_snapshot() {
    let address = fixed(
        "vllm:num_requests_waiting 0\nvllm:num_requests_running 0\nvllm:kv_cache_usage_perc 0\n\
         vllm:lora_requests_info{max_lora=\"2\",running_lora_adapters=\"sql\"} 1.7e9\n",
    )
    .await;
    let fleet = Fleet::new();
    fleet
        .apply(vec![EndpointSpec::new("worker", address)])
        .unwrap();
    let options = ScrapeOptions {
        path: "/other/page".to_owned(),
        ..ScrapeOptions::default()
    };
    let now: NowMs = Arc::new(|| 1);
    let scraper = Scraper::new(Arc::clone(&fleet), options, now).unwrap();
    let mut first_pages = scraper.first_pages();
    let _task = AbortOnDropHandle::new(tokio::spawn(scraper.run()));
    let ready = first_pages.wait_for(|done| *done);
    tokio::time::timeout(DEADLINE, ready)
        .await
        .unwrap()
        .unwrap();
    let mut snapshot = Snapshot::default();
    fleet.snapshot_into(&mut snapshot);
    assert!(snapshot.live[0].healthy);
    assert_eq!(snapshot.adapters[0].max, 2);
    assert_eq!(snapshot.adapters[0].running, ["sql".into()]);
}

#[tokio::test(start_paused = true)]
async fn the_start_waits_for_first_pages_and_not_for_ever() {
    let fleet = Fleet::new();
    let now: NowMs = Arc::new(|| 1);
    let scraper = |fleet: &Arc<Fleet>| {
        Scraper::new(
            Arc::clone(fleet),
            ScrapeOptions::default(),
            Arc::clone(&now),
        )
        .unwrap()
    };
    let empty = scraper(&fleet);
    let mut first_pages = empty.first_pages();
    assert!(!*first_pages.borrow());
    let started = Instant::now();
    let task = AbortOnDropHandle::new(tokio::spawn(empty.run()));
    first_pages.wait_for(|done| *done).await.unwrap();
    assert_eq!(started.elapsed(), Duration::ZERO);
    drop(task);

    let pages = FirstPages::default();
    let mut done = pages.subscribe();
    fleet
        .apply(vec![
            EndpointSpec::new("a", ([127, 0, 0, 1], 1).into()),
            EndpointSpec::new("b", ([127, 0, 0, 1], 2).into()),
        ])
        .unwrap();
    let members = Arc::clone(&fleet.membership().borrow());
    pages.begin(&members);
    pages.seen(&members[0]);
    pages.seen(&members[0]);
    assert!(!*done.borrow_and_update());
    pages.seen(&members[1]);
    assert!(*done.borrow_and_update());
    let other = FirstPages::default();
    other.begin(&members);
    other.give_up();
    assert!(*other.subscribe().borrow());
}

#[test]
fn urls_are_those_of_ipv6_too() {
    let options = ScrapeOptions {
        scheme: Scheme::Https,
        port: Some(9400),
        ..ScrapeOptions::default()
    };
    let address = "[fd00::1]:8000".parse().unwrap();
    assert_eq!(options.url(address), "https://[fd00::1]:9400/metrics");
    let plain = ScrapeOptions::default();
    assert_eq!(plain.url(address), "http://[fd00::1]:8000/metrics");
}
