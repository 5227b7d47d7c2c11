//! Replays of servers that are old, forgetful, lossy or dead.

use super::*;

/// How a replay server answers.
#[derive(Clone, Copy)]
struct Habits {
    /// Whether the topic stands before the number.
    has_topic: bool,
    /// The oldest batch that it still has.
    oldest: usize,
    /// Batches that it sends per request before it drops one.
    sends: usize,
}

/// A replay server of `payloads`, and its address.
async fn replay_server(payloads: Vec<Bytes>, habits: Habits) -> (String, AbortOnDropHandle<()>) {
    let mut router = RouterSocket::new();
    let address = bind(&mut router, 0).await.to_string();
    let task = tokio::spawn(async move {
        while let Ok(request) = router.recv().await {
            let frames = request.into_vec();
            let id = frames[0].clone();
            let first = u64::from_be_bytes(frames[2].as_ref().try_into().unwrap()) as usize;
            let answers = payloads.iter().enumerate().skip(first.max(habits.oldest));
            for (place, (number, payload)) in answers.enumerate() {
                if place == habits.sends && number + 1 < payloads.len() {
                    continue;
                }
                let mut frames = vec![id.clone(), Bytes::new()];
                if habits.has_topic {
                    frames.push(Bytes::from(TOPIC));
                }
                frames.extend([sequence_frame(number as u64), payload.clone()]);
                router.send(message(frames)).await.unwrap();
            }
            let mut end = vec![id, Bytes::new()];
            if habits.has_topic {
                end.push(Bytes::new());
            }
            end.extend([sequence_frame(u64::MAX), Bytes::new()]);
            router.send(message(end)).await.unwrap();
        }
    });
    (address, AbortOnDropHandle::new(task))
}

/// Follows a silent publisher beside this replay server until it is caught up.
async fn caught_up(payloads: Vec<Bytes>, habits: Habits, model: &str) -> World {
    let (_publisher, ports) = Publisher::start(None).await;
    let (replay, _server) = replay_server(payloads, habits).await;
    let mut spec = spec(ports, false);
    spec.kv_replay = Some(replay);
    let world = follow_as(spec, model);
    until(&world.sink, |seen| seen.followed == [0]).await;
    world
}

fn batches(count: u64) -> Vec<Bytes> {
    (0..count).map(batch).collect()
}

#[tokio::test]
async fn servers_of_both_ages_are_understood() {
    for has_topic in [true, false] {
        let habits = Habits {
            has_topic,
            oldest: 0,
            sends: usize::MAX,
        };
        let world = caught_up(batches(20), habits, "org/model").await;
        let all: Vec<u64> = (0..20).collect();
        assert_eq!(world.sink.hashes(), all);
        assert_eq!(world.counters.replays.get(), 1);
        assert_eq!(world.counters.truncated_replays.get(), 0);
    }
}

#[tokio::test]
async fn a_replay_that_does_not_reach_back_is_taken_as_far_as_it_goes() {
    let habits = Habits {
        has_topic: true,
        oldest: 15,
        sends: usize::MAX,
    };
    let world = caught_up(batches(20), habits, "org/model").await;
    assert_eq!(world.sink.hashes(), [15, 16, 17, 18, 19]);
    assert_eq!(world.counters.truncated_replays.get(), 1);
    assert_eq!(world.sink.seen.lock().clears, 0);
}

#[tokio::test]
async fn what_the_server_drops_on_the_way_is_asked_for_again() {
    let habits = Habits {
        has_topic: true,
        oldest: 0,
        sends: 7,
    };
    let world = caught_up(batches(20), habits, "org/model").await;
    let all: Vec<u64> = (0..20).collect();
    assert_eq!(world.sink.hashes(), all);
    assert!(world.counters.replays.get() >= 3);
    assert_eq!(world.counters.lost_batches.get(), 0);
}

#[tokio::test]
async fn a_dead_replay_server_is_given_up_and_the_stream_goes_on() {
    let (mut publisher, ports) = Publisher::start(None).await;
    let mut spec = spec(ports, false);
    let unbound = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    spec.kv_replay = Some(format!("tcp://{}", unbound.local_addr().unwrap()));
    drop(unbound);
    let world = follow_worker(spec);
    publisher
        .publish_until(&world.sink, 0, |hashes| hashes.len() >= 3)
        .await;
    assert_eq!(world.counters.replay_failures.get(), 1);
    assert_eq!(
        world.counters.replays.get(),
        u64::from(sequence::ASKS_WITHOUT_PROGRESS_MAX)
    );
}

#[tokio::test]
async fn hundreds_of_endpoints_catch_up_a_few_at_a_time() {
    let (_publisher, ports) = Publisher::start(None).await;
    let habits = Habits {
        has_topic: true,
        oldest: 0,
        sends: usize::MAX,
    };
    let (replay, _server) = replay_server(batches(10), habits).await;
    let fleet = (1..=200_u16).map(|number| {
        let mut spec = spec(ports, false);
        spec.name = format!("worker-{number}");
        spec.address = ([127, 0, 0, 1], number).into();
        spec.kv_replay = Some(replay.clone());
        spec
    });
    let world = follow_worker(spec(ports, false));
    world.fleet.apply(fleet.collect()).unwrap();
    until(&world.sink, |seen| seen.followed.len() >= 200).await;
    assert_eq!(world.counters.replay_failures.get(), 0);
    assert_eq!(world.counters.lost_batches.get(), 0);
}
