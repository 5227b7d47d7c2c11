//! Access-log mode, and what is seen of a response in stream mode.

use super::*;

fn parked(bench: &Bench) -> usize {
    let parks = bench.actions.iter();
    parks.filter(|action| **action == Action::Park).count()
}

#[test]
fn access_log_mode_parks_and_closes_with_the_last_answer() {
    let mut bench = Bench::watching(BodyMode::FullDuplex, BodyMode::None, Watch::Auto);
    bench.post();
    bench.body(b"{}", true);
    let expected: Vec<Action> = answers([
        Answer::RequestHeaders(routed()),
        Answer::RequestBody(chunk(b"{}", true), RouteChange::default()),
    ])
    .into_iter()
    .chain([Action::Park, Action::Close])
    .collect();
    assert_eq!(bench.picked(), expected);
    assert_eq!(bench.response(200, false), [], "nothing after the close");
    assert_eq!(bench.on(Event::StreamEnded), []);
}

#[test]
fn automatic_watching_follows_the_response_mode() {
    for (mode, parks) in [
        (BodyMode::None, 1),
        (BodyMode::FullDuplex, 0),
        (BodyMode::Buffered, 0),
        (BodyMode::Streamed, 0),
    ] {
        let mut bench = Bench::watching(BodyMode::FullDuplex, mode, Watch::Auto);
        bench.get();
        bench.picked();
        assert_eq!(parked(&bench), parks, "{mode:?}");
    }
}

#[test]
fn forced_access_log_closes_full_duplex_and_forced_stream_never_closes() {
    let mut closing = Bench::watching(BodyMode::FullDuplex, BodyMode::FullDuplex, Watch::AccessLog);
    closing.get();
    closing.picked();
    assert_eq!(parked(&closing), 1);

    let mut open = Bench::watching(BodyMode::FullDuplex, BodyMode::None, Watch::Stream);
    open.get();
    open.picked();
    assert_eq!(parked(&open), 0);
}

#[test]
fn headers_only_request_is_parked_at_its_headers() {
    let mut bench = Bench::watching(BodyMode::None, BodyMode::None, Watch::Auto);
    bench.post();
    let actions = bench.picked();
    assert_eq!(actions[1..], [Action::Park, Action::Close]);
}

#[test]
fn streamed_body_is_answered_to_its_end_before_the_close() {
    let mut bench = Bench::watching(BodyMode::Streamed, BodyMode::None, Watch::Auto);
    bench.post();
    bench.picked();
    bench.body(b"one", false);
    assert_eq!(parked(&bench), 0);
    let last = bench.body(b"two", true);
    assert_eq!(last[1..], [Action::Park, Action::Close]);
}

#[test]
fn early_response_in_access_log_mode_is_watched_to_its_end() {
    let mut bench = Bench::watching(BodyMode::Streamed, BodyMode::FullDuplex, Watch::AccessLog);
    bench.post();
    bench.picked();
    bench.response(413, true);
    assert_eq!(bench.end(), Some(&End::Completed));
    bench.body(b"rest", true);
    assert_eq!(parked(&bench), 0, "finished once, by the stream");
}

#[test]
fn refusal_in_access_log_mode_finishes_and_does_not_park() {
    let mut bench = Bench::watching(BodyMode::FullDuplex, BodyMode::None, Watch::Auto);
    bench.get();
    bench.on(Event::Refused(Refusal::no_endpoints()));
    assert!(matches!(bench.end(), Some(End::Refused(_))));
    assert_eq!(parked(&bench), 0);
}

#[test]
fn exchange_is_interrupted_until_its_response_begins() {
    let refusal = Refusal::evicted(DroppedReason::EvictedPriority);
    let mut waiting = Bench::full_duplex();
    waiting.get();
    assert_eq!(
        waiting.on(Event::Interrupted(refusal.clone())),
        [],
        "a decision is refused by itself"
    );
    waiting.picked();
    let actions = waiting.on(Event::Interrupted(refusal.clone()));
    assert_eq!(
        actions[0],
        Action::Answer(Answer::Immediate(refusal.clone()))
    );
    assert_eq!(waiting.end(), Some(&End::Refused(refusal.clone())));

    let mut running = Bench::full_duplex();
    running.get();
    running.picked();
    running.response(200, false);
    assert_eq!(running.on(Event::Interrupted(refusal)), []);
    assert!(!running.machine.can_interrupt());
}

#[test]
fn body_without_room_is_503_and_later_events_are_not() {
    let mut bench = Bench::full_duplex();
    bench.post();
    bench.on(Event::NoMemory);
    assert_eq!(bench.envoy.refused_with, Some(503));
    let Some(End::Refused(refusal)) = bench.end() else {
        panic!("refused")
    };
    assert_eq!(
        refusal.dropped_reason,
        Some(DroppedReason::RejectedSaturated)
    );

    let mut deciding = Bench::full_duplex();
    deciding.get();
    assert_eq!(deciding.on(Event::NoMemory), []);
}

#[test]
fn events_and_chunk_times_are_seen() {
    let mut bench = Bench::full_duplex();
    bench.get();
    bench.picked();
    bench.response(200, false);
    for (now_us, bytes) in [
        (10, &b"data: 1\n\nda"[..]),
        (20, b""),
        (30, b"ta: 2\n\ndata: [DONE]\n\n"),
    ] {
        bench.now_us = now_us;
        bench.response_body(bytes, false);
    }
    bench.now_us = 40;
    bench.response_body(b"", true);
    let outcome = bench.outcome().expect("finished");
    assert_eq!(outcome.seen.events, 2, "without the closing mark");
    assert_eq!(outcome.seen.first_chunk_us, Some(10));
    assert_eq!(outcome.seen.last_chunk_us, Some(30));
}

#[test]
fn usage_rides_on_the_answer_that_ends_the_response() {
    let usage = TokenUsage {
        prompt_tokens: 7,
        completion_tokens: 10,
        cached_tokens: None,
    };
    let body = b"{\"usage\":{\"prompt_tokens\":7,\"completion_tokens\":10}}";
    let mut bench = Bench::full_duplex();
    bench.get();
    bench.picked();
    bench.response(200, false);
    let first = bench.response_body(body, false);
    let untouched = Answer::ResponseBody(chunk(body, false), None);
    assert_eq!(first[1], Action::Answer(untouched));
    let last = bench.response_body(b"", true);
    let ending = Answer::ResponseBody(chunk(b"", true), Some(usage));
    assert_eq!(last[0], Action::Answer(ending));

    let mut trailed = Bench::full_duplex();
    trailed.get();
    trailed.picked();
    trailed.response(200, false);
    trailed.response_body(body, false);
    let ending = Action::Answer(Answer::ResponseTrailers(Some(usage)));
    assert_eq!(trailed.on(Event::ResponseTrailers)[0], ending);
}

#[test]
fn reply_of_the_gateway_before_the_pick_has_its_reason() {
    let mut bench = Bench::full_duplex();
    bench.post();
    bench.body(b"{}", true);
    bench.response(408, true);
    let reason = bench.outcome().map(|outcome| outcome.reason);
    assert_eq!(reason, Some(EndReason::LocalReply));
}
