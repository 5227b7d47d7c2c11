//! Publishers that no engine would be.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::super::zmtp;
use super::*;

/// A peer that greets, says READY as a publisher and then sends `bytes`, to everyone who connects.
async fn raw_peer(bytes: Vec<u8>) -> (String, AbortOnDropHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("tcp://{}", listener.local_addr().unwrap());
    let task = tokio::spawn(async move {
        loop {
            let (mut socket, _) = listener.accept().await.unwrap();
            let bytes = bytes.clone();
            tokio::spawn(async move {
                let mut hello = zmtp::greeting().to_vec();
                hello.extend(b"\x04\x19\x05READY\x0bSocket-Type\x00\x00\x00\x03PUB");
                hello.extend(bytes);
                // The other side may hang up at any time.
                let _ = socket.write_all(&hello).await;
                let _ = socket.read_to_end(&mut Vec::new()).await;
            });
        }
    });
    (address, AbortOnDropHandle::new(task))
}

fn live(sequence: u64, payload: Bytes) -> Bytes {
    zmtp::message(&[Bytes::from(TOPIC), sequence_frame(sequence), payload])
}

fn spec_of(events: String) -> EndpointSpec {
    let mut spec = EndpointSpec::new("worker", ([127, 0, 0, 1], 1).into());
    spec.kv_events = Some(events);
    spec
}

#[tokio::test]
async fn an_announced_length_takes_no_memory_and_ends_only_its_own_connection() {
    let mut bytes = vec![2];
    bytes.extend((1_u64 << 62).to_be_bytes());
    let (hostile, _peer) = raw_peer(bytes).await;
    let world = follow_worker(spec_of(hostile.clone()));
    let (mut publisher, ports) = Publisher::start(None).await;
    let mut broken = spec_of(hostile);
    broken.name = "broken".to_owned();
    broken.address = ([127, 0, 0, 1], 2).into();
    world.fleet.apply(vec![broken, spec(ports, true)]).unwrap();
    publisher
        .publish_until(&world.sink, 0, |hashes| hashes.len() >= 3)
        .await;
    assert!(world.counters.connects.get() >= 2);
}

#[tokio::test]
async fn numbers_and_payloads_of_all_kinds_are_survived() {
    let mut bytes = Vec::new();
    for number in [0, 1, 5, 4, 4, u64::MAX - 1, 0, 1] {
        bytes.extend(live(number, batch(number)));
    }
    let whole = batch(1);
    for length in 0..whole.len() {
        bytes.extend(live(2 + length as u64, whole.slice(..length)));
    }
    let last = 2 + whole.len() as u64;
    bytes.extend(live(last, Bytes::from(vec![0x91; 10_000])));
    bytes.extend(zmtp::message(&[Bytes::new()]));
    bytes.extend(live(last + 1, batch(77)));
    let (hostile, _peer) = raw_peer(bytes).await;
    let world = follow_worker(spec_of(hostile));
    until(&world.sink, |seen| {
        seen.hashes.get(&0).is_some_and(|hashes| hashes == &[77])
    })
    .await;
    let counters = &world.counters;
    assert_eq!(counters.malformed_batches.get(), whole.len() as u64 + 2);
    assert!(counters.gaps.get() >= 2);
    assert!(counters.resets.get() > whole.len() as u64);
}

#[tokio::test]
async fn a_million_events_in_one_batch_leave_room_for_others() {
    let removed = |hash| {
        Event::BlockRemoved(pointsman_proto::kv_events::BlockRemoved {
            block_hashes: vec![EngineHash(hash)],
            medium: Medium::Gpu,
        })
    };
    let giant = batch_of((0..150_000).map(removed).collect(), 0);
    let (hostile, _peer) = raw_peer(live(0, giant).to_vec()).await;
    let world = follow_worker(spec_of(hostile));
    // One thread serves both, so this gets its turn only if the giant makes way.
    let mut turns = 0_u32;
    let counting = async {
        while world.counters.events.get() < 150_000 {
            turns += 1;
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(DEADLINE, counting).await.unwrap();
    assert!(turns > 500, "{turns} turns");
}

#[tokio::test]
async fn a_removal_that_cannot_be_read_voids_what_is_known() {
    let mut broken = vec![0x92, 0x01, 0x91, 0x92, 0xac];
    broken.extend(b"BlockRemoved");
    broken.push(0x07);
    let mut unknown = vec![0x92, 0x01, 0x91, 0x91, 0xa5];
    unknown.extend(b"Moved");
    let mut bytes = Vec::new();
    bytes.extend(live(0, batch(0)));
    bytes.extend(live(1, unknown.into()));
    bytes.extend(live(2, batch(1)));
    let (peer, _task) = raw_peer(bytes.clone()).await;
    let world = follow_worker(spec_of(peer));
    until(&world.sink, |seen| {
        seen.hashes.get(&0).is_some_and(|hashes| hashes.len() == 2)
    })
    .await;
    assert_eq!(world.counters.unknown_events.get(), 1);
    assert_eq!(world.sink.followed(), [0], "heard from its first batch on");

    bytes.extend(live(3, broken.into()));
    let (peer, _task) = raw_peer(bytes).await;
    let world = follow_worker(spec_of(peer));
    until(&world.sink, |seen| seen.clears == 1).await;
    assert_eq!(world.counters.malformed_events.get(), 1);
    assert_eq!(world.sink.followed(), [0_u32; 0]);
}
