//! Which ranks are followed, and what the worker has to say about it.

use super::*;

#[tokio::test]
async fn a_worker_says_which_ranks_publish_where() {
    let (mut first, first_ports) = Publisher::start(None).await;
    let (second, second_ports) = Publisher::start(None).await;
    let entry = |ports: (u16, u16)| {
        format!(
            r#"{{"endpoint": "tcp://*:{}", "replay_endpoint": "tcp://*:{}"}}"#,
            ports.0, ports.1
        )
    };
    let answer = format!(
        r#"{{"0": {}, "3": {}}}"#,
        entry(first_ports),
        entry(second_ports)
    );
    for hash in 500..505 {
        second.buffer.lock().push(batch_of(vec![stored(hash)], 3));
    }
    let (address, _server) = worker_that_says(Some(answer)).await;
    let world = follow_worker(EndpointSpec::new("worker", address));
    first
        .publish_until(&world.sink, 0, |hashes| hashes.len() >= 2)
        .await;
    assert!(is_unbroken(&world.sink.hashes()));
    until(&world.sink, |seen| {
        seen.hashes.get(&3) == Some(&vec![500, 501, 502, 503, 504]) && seen.followed.len() == 2
    })
    .await;
    assert_eq!(world.counters.rank_mismatches.get(), 0);
}

#[tokio::test]
async fn a_worker_without_events_is_never_said_to_be_followed() {
    let (address, _server) = worker_that_says(None).await;
    let world = follow_worker(EndpointSpec::new("worker", address));
    // Another endpoint shows that time has passed.
    let (mut publisher, ports) = Publisher::start(None).await;
    let other = spec(ports, true);
    let quiet = EndpointSpec::new("quiet", address);
    world.fleet.apply(vec![quiet, other]).unwrap();
    publisher
        .publish_until(&world.sink, 0, |hashes| hashes.len() >= 2)
        .await;
    until(&world.sink, |seen| !seen.followed.is_empty()).await;
    assert_eq!(world.sink.followed(), [0]);
    assert_eq!(world.counters.without_replay.get(), 0);
}

#[tokio::test]
async fn a_batch_of_another_rank_belongs_to_the_rank_whose_publisher_sent_it() {
    let (publisher, ports) = Publisher::start(None).await;
    for hash in 0..3 {
        let payload = batch_of(vec![stored(hash)], 1_000 + hash as u32);
        publisher.buffer.lock().push(payload);
    }
    let world = follow_worker(spec(ports, true));
    until(&world.sink, |seen| seen.followed == [0]).await;
    assert_eq!(world.sink.hashes(), [0, 1, 2]);
    assert_eq!(world.sink.seen.lock().hashes.len(), 1);
    assert_eq!(world.counters.rank_mismatches.get(), 3);
}
