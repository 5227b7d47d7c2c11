//! The whole follower against a publisher and a replay server over real sockets.

mod hostile;
mod ranks;
mod replays;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Instant;

use bytes::Bytes;
use parking_lot::Mutex;
use pointsman_proto::kv_events::{BlockStored, EngineHash, EventBatch, Form, Medium, encode};
use tokio::sync::Notify;
use zeromq::prelude::*;
use zeromq::{PubSocket, RouterSocket, ZmqMessage};

use super::super::endpoint::EndpointSpec;
use super::*;

const DEADLINE: Duration = Duration::from_secs(20);
const TOPIC: &str = "kv@worker@org/model";

/// What the sink saw: hashes of stored blocks by rank, and what else was called.
#[derive(Default)]
struct Recorder {
    seen: Mutex<Seen>,
    changed: Notify,
}

#[derive(Clone, Default, PartialEq, Eq, Debug)]
struct Seen {
    hashes: BTreeMap<u32, Vec<u64>>,
    followed: Vec<u32>,
    clears: u32,
    forgotten: u32,
}

impl Recorder {
    fn note(&self, note: impl FnOnce(&mut Seen)) {
        note(&mut self.seen.lock());
        self.changed.notify_one();
    }

    /// What rank 0 stored.
    fn hashes(&self) -> Vec<u64> {
        let seen = self.seen.lock();
        seen.hashes.get(&0).cloned().unwrap_or_default()
    }

    fn followed(&self) -> Vec<u32> {
        self.seen.lock().followed.clone()
    }
}

impl BlockSink for Recorder {
    fn apply(&self, source: EventSource, model: &str, event: &Event) {
        assert_eq!(model, "org/model");
        self.note(|seen| {
            if let Event::BlockStored(stored) = event {
                let hashes = stored.block_hashes.iter().map(|hash| hash.0);
                seen.hashes.entry(source.rank).or_default().extend(hashes);
            }
        });
    }

    fn followed(&self, source: EventSource) {
        self.note(|seen| seen.followed.push(source.rank));
    }

    fn clear(&self, source: EventSource) {
        self.note(|seen| {
            seen.hashes.remove(&source.rank);
            seen.followed.retain(|rank| *rank != source.rank);
            seen.clears += 1;
        });
    }

    fn forget(&self, _: EndpointId, _: Generation) {
        self.note(|seen| {
            seen.hashes.clear();
            seen.forgotten += 1;
        });
    }
}

/// A batch that stores one block of this hash.
fn batch(hash: u64) -> Bytes {
    batch_of(vec![stored(hash)], 0)
}

fn stored(hash: u64) -> Event {
    Event::BlockStored(BlockStored {
        block_hashes: vec![EngineHash(hash)],
        parent: None,
        token_ids: vec![1],
        block_size: 1,
        lora_name: None,
        medium: Medium::Gpu,
        cache_salt: None,
        extras: Vec::new(),
    })
}

fn batch_of(events: Vec<Event>, rank: u32) -> Bytes {
    let batch = EventBatch {
        timestamp_s: 1.0,
        events,
        data_parallel_rank: Some(rank),
    };
    let mut out = Vec::new();
    encode(&batch, Form::Map, &mut out);
    out.into()
}

fn message(frames: Vec<Bytes>) -> ZmqMessage {
    ZmqMessage::try_from(frames).unwrap()
}

fn sequence_frame(sequence: u64) -> Bytes {
    Bytes::copy_from_slice(&sequence.to_be_bytes())
}

/// One life of an engine's publisher.
struct Publisher {
    socket: PubSocket,
    buffer: Arc<Mutex<Vec<Bytes>>>,
    _replay: AbortOnDropHandle<()>,
}

impl Publisher {
    async fn start(ports: Option<(u16, u16)>) -> (Self, (u16, u16)) {
        let (events, replay) = ports.unwrap_or((0, 0));
        let mut socket = PubSocket::new();
        let events = bind(&mut socket, events).await;
        let mut router = RouterSocket::new();
        let replay = bind(&mut router, replay).await;
        let buffer: Arc<Mutex<Vec<Bytes>>> = Arc::default();
        let task = tokio::spawn(serve_replays(router, Arc::clone(&buffer)));
        let publisher = Self {
            socket,
            buffer,
            _replay: AbortOnDropHandle::new(task),
        };
        let port = |endpoint: &zeromq::Endpoint| {
            endpoint
                .to_string()
                .rsplit_once(':')
                .unwrap()
                .1
                .parse()
                .unwrap()
        };
        (publisher, (port(&events), port(&replay)))
    }

    /// Publishes a batch; one that is not delivered is in the replay buffer only, like one that a
    /// slow subscriber lost.
    async fn publish(&mut self, payload: Bytes, delivered: bool) {
        let sequence = {
            let mut buffer = self.buffer.lock();
            buffer.push(payload.clone());
            buffer.len() as u64 - 1
        };
        if delivered {
            let frames = vec![Bytes::from(TOPIC), sequence_frame(sequence), payload];
            self.socket.send(message(frames)).await.unwrap();
        }
    }

    /// Publishes blocks numbered from `next` on, until the sink has what is `wanted`. A
    /// subscription takes effect at the publisher some time after it was made, so there is no one
    /// batch of which a test could say that it arrives.
    async fn publish_until(&mut self, sink: &Recorder, next: u64, wanted: impl Fn(&[u64]) -> bool) {
        let publishing = async {
            for hash in next.. {
                if wanted(&sink.hashes()) {
                    return;
                }
                self.publish(batch(hash), true).await;
                let _ =
                    tokio::time::timeout(Duration::from_millis(20), sink.changed.notified()).await;
            }
        };
        tokio::time::timeout(DEADLINE, publishing).await.unwrap();
    }
}

/// Binds a port that an earlier socket may be about to give up.
async fn bind(socket: &mut impl Socket, port: u16) -> zeromq::Endpoint {
    let address = format!("tcp://127.0.0.1:{port}");
    let binding = async {
        loop {
            match socket.bind(&address).await {
                Ok(endpoint) => return endpoint,
                Err(_) => tokio::task::yield_now().await,
            }
        }
    };
    tokio::time::timeout(DEADLINE, binding).await.unwrap()
}

async fn serve_replays(mut router: RouterSocket, buffer: Arc<Mutex<Vec<Bytes>>>) {
    while let Ok(request) = router.recv().await {
        let frames = request.into_vec();
        let [id, envelope, from] = frames.as_slice() else {
            panic!("{frames:?}");
        };
        assert!(envelope.is_empty());
        let from = u64::from_be_bytes(from.as_ref().try_into().unwrap());
        let batches: Vec<Bytes> = buffer.lock().clone();
        for (sequence, payload) in batches.into_iter().enumerate().skip(from as usize) {
            let topic = Bytes::from(TOPIC);
            let sequence = sequence_frame(sequence as u64);
            let frames = vec![id.clone(), Bytes::new(), topic, sequence, payload];
            router.send(message(frames)).await.unwrap();
        }
        let end = sequence_frame(u64::MAX);
        let frames = vec![id.clone(), Bytes::new(), Bytes::new(), end, Bytes::new()];
        router.send(message(frames)).await.unwrap();
    }
}

struct World {
    fleet: Arc<Fleet>,
    sink: Arc<Recorder>,
    counters: Arc<KvEventCounters>,
    _task: AbortOnDropHandle<()>,
}

fn follow_worker(spec: EndpointSpec) -> World {
    follow_as(spec, "fallback")
}

/// Follows a worker whose events are of `model` where their topic names none.
fn follow_as(spec: EndpointSpec, model: &str) -> World {
    let fleet = Fleet::new();
    fleet.apply(vec![spec]).unwrap();
    let sink = Arc::new(Recorder::default());
    let began = Instant::now();
    let now: NowMs = Arc::new(move || began.elapsed().as_millis() as u64);
    let events = KvEvents::new(Arc::clone(&fleet), Arc::clone(&sink) as _, model, now).unwrap();
    let counters = events.counters();
    let task = AbortOnDropHandle::new(tokio::spawn(events.run()));
    World {
        fleet,
        sink,
        counters,
        _task: task,
    }
}

fn spec(ports: (u16, u16), replay: bool) -> EndpointSpec {
    let mut spec = EndpointSpec::new("worker", ([127, 0, 0, 1], 1).into());
    spec.kv_events = Some(format!("tcp://127.0.0.1:{}", ports.0));
    spec.kv_replay = replay.then(|| format!("tcp://127.0.0.1:{}", ports.1));
    spec
}

async fn until(sink: &Recorder, wanted: impl Fn(&Seen) -> bool) {
    let waiting = async {
        loop {
            let changed = sink.changed.notified();
            if wanted(&sink.seen.lock()) {
                return;
            }
            changed.await;
        }
    };
    tokio::time::timeout(DEADLINE, waiting).await.unwrap();
}

/// A worker's HTTP side that says where its events come from; `None` = it says 404.
async fn worker_that_says(answer: Option<String>) -> (SocketAddr, AbortOnDropHandle<()>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut app = axum::Router::new();
    if let Some(answer) = answer {
        let answer = axum::routing::get(move || async move { answer.clone() });
        app = app.route("/kv_event_sources", answer);
    }
    let server = tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
    (address, AbortOnDropHandle::new(server))
}

fn is_unbroken(hashes: &[u64]) -> bool {
    hashes
        .iter()
        .enumerate()
        .all(|(place, hash)| place as u64 == *hash)
}

#[tokio::test]
async fn what_was_published_before_and_what_got_lost_is_replayed() {
    let (mut publisher, ports) = Publisher::start(None).await;
    for hash in 0..5 {
        publisher.publish(batch(hash), false).await;
    }
    let world = follow_worker(spec(ports, true));
    until(&world.sink, |seen| {
        seen.hashes.values().any(|hashes| hashes.len() == 5)
    })
    .await;

    publisher.publish(batch(5), false).await;
    publisher.publish(batch(6), false).await;
    publisher
        .publish_until(&world.sink, 7, |hashes| hashes.len() > 8)
        .await;
    assert!(
        is_unbroken(&world.sink.hashes()),
        "{:?}",
        world.sink.hashes()
    );
    assert!(world.counters.gaps.get() >= 1);
    assert_eq!(world.counters.lost_batches.get(), 0);
    assert_eq!(world.sink.seen.lock().clears, 0);
}

#[tokio::test]
async fn an_engine_that_starts_over_is_cleared_and_followed_again() {
    let (mut publisher, ports) = Publisher::start(None).await;
    let world = follow_worker(spec(ports, true));
    publisher
        .publish_until(&world.sink, 0, |hashes| hashes.len() >= 3)
        .await;
    assert!(is_unbroken(&world.sink.hashes()));
    drop(publisher);

    let (mut publisher, _) = Publisher::start(Some(ports)).await;
    for hash in 100..120 {
        publisher.publish(batch(hash), false).await;
    }
    publisher
        .publish_until(&world.sink, 120, |hashes| {
            hashes.first() == Some(&100) && hashes.len() > 21
        })
        .await;
    let hashes = world.sink.hashes();
    let from_100: Vec<u64> = hashes.iter().map(|hash| hash - 100).collect();
    assert!(is_unbroken(&from_100), "{hashes:?}");
    assert_eq!(world.sink.seen.lock().clears, 1);
}

#[tokio::test]
async fn without_replay_the_stream_is_followed_from_where_it_is() {
    let (mut publisher, ports) = Publisher::start(None).await;
    publisher.publish(batch(0), false).await;
    let world = follow_worker(spec(ports, false));
    publisher
        .publish_until(&world.sink, 1, |hashes| hashes.len() >= 2)
        .await;
    assert_eq!(world.sink.followed(), [0_u32; 0]);
    publisher.publish(batch(1_000), false).await;
    publisher
        .publish_until(&world.sink, 2_000, |hashes| hashes.first() >= Some(&2_000))
        .await;
    // What is lost may have removed blocks, so what was known before is void.
    assert!(!world.sink.hashes().contains(&1_000));
    let lost = world.counters.lost_batches.get();
    assert_eq!(lost, 1);
    assert_eq!(world.counters.without_replay.get(), 1);
    assert_eq!(world.sink.seen.lock().clears, 1);
    // An emptied cache is known in full.
    let cleared = batch_of(vec![Event::AllBlocksCleared], 0);
    publisher.publish(cleared, true).await;
    until(&world.sink, |seen| seen.followed == [0]).await;
}

#[tokio::test]
async fn a_malformed_batch_does_not_end_the_stream() {
    let (mut publisher, ports) = Publisher::start(None).await;
    let world = follow_worker(spec(ports, true));
    publisher
        .publish(Bytes::from_static(b"\xc1nonsense"), false)
        .await;
    publisher
        .publish_until(&world.sink, 0, |hashes| hashes.len() >= 2)
        .await;
    let malformed = &world.counters.malformed_batches;
    assert_eq!(malformed.get(), 1);
}

#[tokio::test]
async fn a_removed_endpoint_is_cleared() {
    let (mut publisher, ports) = Publisher::start(None).await;
    let world = follow_worker(spec(ports, true));
    publisher
        .publish_until(&world.sink, 0, |hashes| !hashes.is_empty())
        .await;
    world.fleet.apply(Vec::new()).unwrap();
    until(&world.sink, |seen| seen.forgotten == 1).await;
    // The task has ended before that, so nothing comes after it.
    publisher.publish(batch(77), true).await;
    assert!(world.sink.hashes().is_empty());
}
