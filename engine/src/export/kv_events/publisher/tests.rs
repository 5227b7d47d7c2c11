//! The publisher against real ZMQ sockets in this process.

use std::future::Future;

use pointsman_proto::kv_events::{BlockRemoved, EngineHash, Medium, decode};
use zeromq::{DealerSocket, ReqSocket, SubSocket};

use super::*;

const DEADLINE: Duration = Duration::from_secs(20);

fn config(buffer_steps: usize) -> KvEventsConfig {
    KvEventsConfig {
        enable_kv_cache_events: true,
        endpoint: "tcp://127.0.0.1:0".to_owned(),
        replay_endpoint: Some("tcp://127.0.0.1:0".to_owned()),
        topic: "kv@test@demo".to_owned(),
        buffer_steps,
        ..KvEventsConfig::default()
    }
}

/// What subscribers get of [`removed`].
fn removed_as_sent(hash: u64) -> Vec<Event> {
    vec![Event::BlockRemoved(BlockRemoved {
        block_hashes: vec![EngineHash(hash)],
        medium: Medium::Gpu,
    })]
}

/// An event about the block whose digest goes out as the integer `hash`.
fn removed(hash: u64) -> Vec<Event<BlockDigest>> {
    let mut digest = BlockDigest::default();
    digest[24..].copy_from_slice(&hash.to_be_bytes());
    vec![Event::BlockRemoved(BlockRemoved {
        block_hashes: vec![digest],
        medium: Medium::Gpu,
    })]
}

async fn within<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, work)
        .await
        .expect("the sockets answer in time")
}

fn sequence(frame: &Bytes) -> u64 {
    u64::from_be_bytes(frame.as_ref().try_into().unwrap())
}

/// Asks for everything from `first` on and returns the answers up to the end marker: `(topic, sequence, payload)`.
async fn replay(
    socket: &mut (impl SocketSend + SocketRecv),
    request: Vec<Bytes>,
) -> Vec<Vec<Bytes>> {
    send(socket, request).await.unwrap();
    let mut answers = Vec::new();
    loop {
        let frames = within(socket.recv()).await.unwrap().into_vec();
        let end = frames[frames.len() - 2].as_ref() == super::super::replay::END_SEQUENCE;
        answers.push(frames);
        if end {
            return answers;
        }
    }
}

/// Publishes until the subscriber has got a message, because a subscription takes a moment to arrive; returns it.
async fn first_message(publisher: &mut KvEventPublisher, socket: &mut SubSocket) -> Vec<Bytes> {
    within(async {
        loop {
            publisher.publish(removed(1));
            let wait = Duration::from_millis(20);
            if let Ok(message) = tokio::time::timeout(wait, socket.recv()).await {
                return message.unwrap().into_vec();
            }
        }
    })
    .await
}

#[tokio::test]
async fn batches_arrive_in_order_with_topic_and_sequence() {
    let (mut publisher, source) = start(&config(100), 0, Form::Map, Counter::default())
        .await
        .unwrap();
    assert!(
        !source.endpoint.ends_with(":0"),
        "the port that was bound is told"
    );
    let mut socket = SubSocket::new();
    socket.connect(&source.endpoint).await.unwrap();
    socket.subscribe("kv@test").await.unwrap();
    let frames = first_message(&mut publisher, &mut socket).await;
    let [topic, number, payload] = frames.as_slice() else {
        panic!("three frames: {frames:?}")
    };
    assert_eq!(topic.as_ref(), b"kv@test@demo");
    let decoded = decode(payload).unwrap();
    assert!(decoded.skipped.is_empty());
    assert_eq!(decoded.batch.events, removed_as_sent(1));
    assert_eq!(decoded.batch.data_parallel_rank, Some(0));
    assert!(decoded.batch.timestamp_s > 1.6e9);
    let mut expected = sequence(number);
    publisher.publish(removed(2));
    loop {
        let frames = within(socket.recv()).await.unwrap().into_vec();
        expected += 1;
        assert_eq!(sequence(&frames[1]), expected);
        if decode(&frames[2]).unwrap().batch.events == removed_as_sent(2) {
            break;
        }
    }
}

#[tokio::test]
async fn blocks_are_named_by_whole_digests_where_that_is_asked_for() {
    let config = KvEventsConfig {
        hashes: HashForm::Bytes,
        ..config(3)
    };
    let (mut publisher, source) = start(&config, 0, Form::Map, Counter::default())
        .await
        .unwrap();
    let removed = Event::BlockRemoved(BlockRemoved {
        block_hashes: vec![[7; 32]],
        medium: Medium::Gpu,
    });
    publisher.publish(vec![removed]);
    let mut socket = DealerSocket::new();
    socket
        .connect(&source.replay_endpoint.unwrap())
        .await
        .unwrap();
    let request = vec![Bytes::copy_from_slice(&0_u64.to_be_bytes())];
    let payload = within(async {
        loop {
            let answers = replay(&mut socket, request.clone()).await;
            if answers.len() > 1 {
                return answers[0][2].clone();
            }
        }
    })
    .await;
    let mut bin = vec![0xc4, 32];
    bin.extend([7; 32]);
    assert!(payload.windows(34).any(|window| window == bin));
}

#[tokio::test]
async fn replay_serves_what_is_kept_and_then_the_end() {
    let (mut publisher, source) = start(&config(3), 0, Form::Map, Counter::default())
        .await
        .unwrap();
    for hash in 0..5 {
        publisher.publish(removed(hash));
    }
    let endpoint = source.replay_endpoint.unwrap();
    for delimiter in [true, false] {
        let mut socket = DealerSocket::new();
        socket.connect(&endpoint).await.unwrap();
        let lead = if delimiter {
            vec![Bytes::new()]
        } else {
            vec![]
        };
        let request = [
            lead.clone(),
            vec![Bytes::copy_from_slice(&1_u64.to_be_bytes())],
        ]
        .concat();
        // The publisher task may not have taken all five batches yet.
        let answers = within(async {
            loop {
                let answers = replay(&mut socket, request.clone()).await;
                let newest = answers.iter().rev().nth(1);
                if newest.is_some_and(|frames| sequence(&frames[frames.len() - 2]) == 4) {
                    return answers;
                }
            }
        })
        .await;
        let numbers: Vec<u64> = answers
            .iter()
            .map(|frames| sequence(&frames[frames.len() - 2]))
            .collect();
        assert_eq!(
            numbers,
            [2, 3, 4, u64::MAX],
            "the buffer holds three batches"
        );
        for frames in &answers {
            assert_eq!(
                frames.len(),
                3 + lead.len(),
                "the envelope is answered in kind"
            );
            assert!(!delimiter || frames[0].is_empty());
        }
        let batch = &answers[0];
        assert_eq!(batch[lead.len()].as_ref(), b"kv@test@demo");
        assert_eq!(
            decode(&batch[lead.len() + 2]).unwrap().batch.events,
            removed_as_sent(2)
        );
        let end = &answers[3];
        assert!(end[lead.len()].is_empty() && end[lead.len() + 2].is_empty());
    }
}

#[tokio::test]
async fn a_req_client_gets_an_answer() {
    let (_publisher, source) = start(&config(3), 0, Form::Map, Counter::default())
        .await
        .unwrap();
    let mut socket = ReqSocket::new();
    socket
        .connect(&source.replay_endpoint.unwrap())
        .await
        .unwrap();
    let request = vec![Bytes::copy_from_slice(&0_u64.to_be_bytes())];
    let answers = replay(&mut socket, request).await;
    assert_eq!(
        answers.len(),
        1,
        "nothing was published, so the end is the first answer"
    );
}

#[tokio::test]
async fn a_collector_is_connected_to() {
    // Not an address of the worker's own in name, so it is a collector; it resolves to loopback all the same.
    let mut collector = SubSocket::new();
    let Endpoint::Tcp(_, port) = collector.bind("tcp://127.0.0.1:0").await.unwrap() else {
        panic!("a TCP endpoint")
    };
    collector.subscribe("").await.unwrap();
    let mut tasks = JoinSet::new();
    let (sender, sockets) = mpsc::channel(1);
    tasks.spawn(keep_connected(format!("tcp://127.0.0.1:{port}"), sender));
    let (sender, batches) = mpsc::channel(16);
    let mut publisher = KvEventPublisher {
        sender,
        next_sequence: 0,
        rank: 0,
        lost: Counter::default(),
    };
    let state = PublishState {
        buffer: Arc::new(Mutex::new(ReplayBuffer::new(4))),
        topic: Bytes::new(),
        form: Form::Array,
        hashes: HashForm::Integer,
        _tasks: tasks,
    };
    tokio::spawn(publish(batches, sockets, state));
    let frames = first_message(&mut publisher, &mut collector).await;
    assert_eq!(decode(&frames[2]).unwrap().batch.events, removed_as_sent(1));
}

#[tokio::test]
async fn a_full_queue_drops_the_batch_and_keeps_its_number() {
    let (sender, mut batches) = mpsc::channel(1);
    let lost = Counter::default();
    let mut publisher = KvEventPublisher {
        sender,
        next_sequence: 0,
        rank: 0,
        lost: lost.clone(),
    };
    publisher.publish(removed(0));
    publisher.publish(removed(1));
    assert_eq!(batches.try_recv().unwrap().sequence, 0);
    publisher.publish(removed(2));
    assert_eq!(batches.try_recv().unwrap().sequence, 2, "the gap shows");
    assert_eq!(lost.get(), 1);
}

#[tokio::test]
async fn an_address_in_use_is_named() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("tcp://{}", taken.local_addr().unwrap());
    let config = KvEventsConfig {
        endpoint: endpoint.clone(),
        ..config(3)
    };
    let error = start(&config, 0, Form::Map, Counter::default())
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains(&format!("endpoint {endpoint}")), "{error}");
}
