//! Random streams: any modes, chunkings, ends and interleavings, judged by the model of Envoy.

use proptest::prelude::*;

use super::*;

/// What carries the end mark of a direction.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Ending {
    Headers,
    Body,
    /// HTTP/1.1 with a content length: the end mark comes in an empty message of its own.
    EmptyChunk,
    Trailers,
}

#[derive(Clone, Debug)]
struct Plan {
    modes: Modes,
    watch: Watch,
    rewrites: bool,
    request: Vec<Vec<u8>>,
    request_ending: Ending,
    response: Vec<Vec<u8>>,
    response_ending: Ending,
    /// How many request messages arrive between the start of the decision and its end, and between
    /// it and the response.
    messages_while_deciding: usize,
    duplicate_end: bool,
    local_reply_before_pick: bool,
    refuse: bool,
}

fn body_mode() -> impl Strategy<Value = BodyMode> {
    prop_oneof![
        4 => Just(BodyMode::FullDuplex),
        1 => Just(BodyMode::Buffered),
        1 => Just(BodyMode::Streamed),
        1 => Just(BodyMode::None),
    ]
}

fn ending() -> impl Strategy<Value = Ending> {
    prop_oneof![
        Just(Ending::Headers),
        Just(Ending::Body),
        Just(Ending::EmptyChunk),
        Just(Ending::Trailers),
    ]
}

fn chunks() -> impl Strategy<Value = Vec<Vec<u8>>> {
    prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..8)
}

fn plan() -> impl Strategy<Value = Plan> {
    let shape = (
        body_mode(),
        body_mode(),
        chunks(),
        ending(),
        chunks(),
        ending(),
    );
    let chance = (
        0_usize..6,
        any::<bool>(),
        prop::bool::weighted(0.1),
        prop::bool::weighted(0.1),
        prop::sample::select(vec![Watch::Auto, Watch::AccessLog, Watch::Stream]),
        any::<bool>(),
    );
    (shape, chance).prop_map(
        |(
            (request_mode, response_mode, request, request_ending, response, response_ending),
            chance,
        )| {
            let (
                messages_while_deciding,
                duplicate_end,
                local_reply_before_pick,
                refuse,
                watch,
                rewrites,
            ) = chance;
            Plan {
                modes: Modes {
                    request: request_mode,
                    response: response_mode,
                },
                watch,
                rewrites,
                request,
                request_ending,
                response,
                response_ending,
                messages_while_deciding,
                duplicate_end,
                local_reply_before_pick,
                refuse,
            }
        },
    )
}

/// The messages of one direction after its headers, as Envoy sends them in this mode.
fn messages(mode: BodyMode, chunks: &[Vec<u8>], ending: Ending) -> Vec<(Vec<u8>, bool)> {
    if ending == Ending::Headers || mode == BodyMode::None {
        return Vec::new();
    }
    let mut chunks = chunks.to_vec();
    if mode == BodyMode::Buffered {
        chunks = vec![chunks.concat()];
    } else if ending == Ending::EmptyChunk || (chunks.is_empty() && ending == Ending::Body) {
        chunks.push(Vec::new());
    }
    let last = chunks.len();
    let ends = ending != Ending::Trailers;
    let numbered = chunks.into_iter().enumerate();
    numbered
        .map(|(index, bytes)| (bytes, ends && index + 1 == last))
        .collect()
}

fn request_events(plan: &Plan) -> Vec<Event> {
    let mut events: Vec<Event> = messages(plan.modes.request, &plan.request, plan.request_ending)
        .into_iter()
        .map(|(bytes, end_of_stream)| Event::RequestBody {
            bytes,
            end_of_stream,
        })
        .collect();
    if plan.request_ending == Ending::Trailers {
        events.push(Event::RequestTrailers);
    }
    events
}

fn response_events(plan: &Plan) -> Vec<Event> {
    let end_of_stream = plan.response_ending == Ending::Headers;
    let mut events = vec![Event::ResponseHeaders {
        status: Some(200),
        has_content_length: false,
        end_of_stream,
    }];
    events.extend(
        messages(plan.modes.response, &plan.response, plan.response_ending)
            .into_iter()
            .map(|(bytes, end_of_stream)| Event::ResponseBody {
                bytes,
                end_of_stream,
            }),
    );
    if plan.response_ending == Ending::Trailers {
        events.push(Event::ResponseTrailers);
    }
    events
}

/// Feeds the request until the machine asks for a decision; returns whether it did.
fn feed_until_decide(
    bench: &mut Bench,
    events: &mut std::vec::IntoIter<Event>,
    first: Event,
) -> bool {
    let mut next = Some(first);
    while let Some(event) = next {
        if bench.on(event).contains(&Action::Decide) {
            return true;
        }
        let forwarded = bench.envoy.request_forwarded();
        assert_eq!(forwarded, (&[][..], 0), "nothing goes on before the pick");
        next = events.next();
    }
    false
}

fn duplicate_end(bench: &mut Bench) {
    // Sent past the model: Envoy does not wait for an answer to it.
    let mut actions = Vec::new();
    let event = Event::RequestBody {
        bytes: Vec::new(),
        end_of_stream: true,
    };
    bench.machine.on_event(event, 0, &mut actions);
    assert_eq!(actions, []);
}

fn run(plan: &Plan) {
    let mut bench = Bench::watching(plan.modes.request, plan.modes.response, plan.watch);
    let head = RequestHead::from([(":path", "/"), ("x-prefiller-host-port", "evil")]);
    let end_of_stream = plan.request_ending == Ending::Headers;
    let headers = Event::RequestHeaders {
        head,
        end_of_stream,
    };
    let mut events = request_events(plan).into_iter();
    assert!(
        feed_until_decide(&mut bench, &mut events, headers),
        "every request is decided"
    );
    assert_eq!(bench.envoy.destination, None);

    if plan.local_reply_before_pick {
        let reply = Event::ResponseHeaders {
            status: Some(408),
            has_content_length: false,
            end_of_stream: true,
        };
        assert!(bench.on(reply).contains(&Action::CancelDecision));
        assert_eq!(bench.picked(), []);
        assert_eq!(bench.end(), Some(&End::Completed));
        return;
    }
    for event in events.by_ref().take(plan.messages_while_deciding) {
        assert_eq!(bench.on(event), [], "nothing is answered while deciding");
    }
    if plan.refuse {
        bench.on(Event::Refused(Refusal::saturated()));
        assert_eq!(bench.envoy.refused_with, Some(429));
        bench.on(Event::StreamEnded);
        assert!(matches!(bench.end(), Some(End::Refused(_))));
        return;
    }
    bench.on(Event::Picked(Destination {
        rewritten_body: plan.rewrites.then(rewritten),
        ..destination()
    }));
    assert_eq!(bench.envoy.destination.as_deref(), Some(ENDPOINT));
    for event in events {
        // Without a body mode the trailers may come after the close, and Envoy then sends none.
        if bench.actions.last() == Some(&Action::Close) {
            break;
        }
        bench.on(event);
    }
    assert!(
        !bench.envoy.request_waits(),
        "everything of the request is answered"
    );
    assert_eq!(bench.envoy.removed, ["x-prefiller-host-port"]);
    if plan.duplicate_end && plan.modes.request == BodyMode::FullDuplex {
        duplicate_end(&mut bench);
    }
    if bench.machine.will_park() {
        check_parked(plan, &mut bench);
        return;
    }
    for event in response_events(plan) {
        bench.on(event);
        assert!(!bench.envoy.response_waits(), "a response never waits");
    }
    check_forwarded(plan, &bench);
    assert_eq!(bench.end(), Some(&End::Completed));
    bench.on(Event::StreamEnded);
    assert_eq!(bench.end(), Some(&End::Completed));
}

fn rewritten() -> Vec<Vec<u8>> {
    vec![b"another ".to_vec(), b"body".to_vec()]
}

/// The stream is over with the last answer of the request, and nothing is answered after it.
fn check_parked(plan: &Plan, bench: &mut Bench) {
    check_request_forwarded(plan, bench);
    let parks = bench
        .actions
        .iter()
        .filter(|action| **action == Action::Park);
    assert_eq!(parks.count(), 1);
    assert_eq!(bench.actions.last(), Some(&Action::Close));
    assert_eq!(bench.outcome(), None);
    for event in response_events(plan) {
        let mut actions = Vec::new();
        bench.machine.on_event(event, 0, &mut actions);
        assert_eq!(actions, []);
    }
    assert_eq!(bench.on(Event::StreamEnded), []);
}

fn check_request_forwarded(plan: &Plan, bench: &Bench) {
    let (bytes, ends) = bench.envoy.request_forwarded();
    let is_rewritten = plan.rewrites && plan.request_ending != Ending::Headers;
    match plan.modes.request {
        BodyMode::FullDuplex if plan.request_ending != Ending::Headers => {
            let expected = if is_rewritten {
                rewritten()
            } else {
                plan.request.clone()
            };
            assert_eq!(
                bytes,
                expected.concat(),
                "the bytes that came, or all new ones"
            );
            assert_eq!(ends, 1, "exactly one end mark");
        }
        BodyMode::Buffered if is_rewritten => assert_eq!(bytes, rewritten().concat()),
        _ => assert_eq!(bytes, b""),
    }
}

fn check_forwarded(plan: &Plan, bench: &Bench) {
    check_request_forwarded(plan, bench);
    let directions = [(
        plan.modes.response,
        plan.response_ending,
        &plan.response,
        bench.envoy.response_forwarded(),
    )];
    for (mode, ending, sent, (bytes, ends)) in directions {
        if mode == BodyMode::FullDuplex && ending != Ending::Headers {
            assert_eq!(
                bytes,
                sent.concat(),
                "the bytes that came are the bytes that go on"
            );
            assert_eq!(ends, 1, "exactly one end mark");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn answers_are_always_what_envoy_waits_for(plan in plan()) {
        run(&plan);
    }

    /// Events in any order at all, as no Envoy sends them: no panic, at most one end, nothing after
    /// the close.
    #[test]
    fn arbitrary_events_never_break_the_machine(
        modes in (body_mode(), body_mode()),
        watch in prop::sample::select(vec![Watch::Auto, Watch::AccessLog, Watch::Stream]),
        events in prop::collection::vec(arbitrary_event(), 0..30),
    ) {
        let mut machine = Machine::new(LIMIT_BYTES, watch);
        machine.learn_modes(Modes { request: modes.0, response: modes.1 });
        let mut actions = Vec::new();
        for event in events {
            machine.on_event(event, 0, &mut actions);
        }
        machine.on_event(Event::StreamEnded, 0, &mut actions);
        let finished = actions
            .iter()
            .filter(|action| matches!(action, Action::Finished(_) | Action::Park))
            .count();
        prop_assert_eq!(finished, 1);
        let closed = actions.iter().position(|action| *action == Action::Close);
        prop_assert_eq!(closed, Some(actions.len() - 1));
    }
}

fn arbitrary_event() -> impl Strategy<Value = Event> {
    let bytes = || prop::collection::vec(any::<u8>(), 0..300);
    prop_oneof![
        any::<bool>().prop_map(|end_of_stream| Event::RequestHeaders {
            head: RequestHead::default(),
            end_of_stream
        }),
        (bytes(), any::<bool>()).prop_map(|(bytes, end_of_stream)| Event::RequestBody {
            bytes,
            end_of_stream
        }),
        Just(Event::RequestTrailers),
        Just(Event::Picked(destination())),
        Just(Event::Refused(Refusal::saturated())),
        Just(Event::DecisionTimedOut),
        Just(Event::NoMemory),
        Just(Event::Interrupted(Refusal::evicted(DroppedReason::Evicted))),
        any::<bool>().prop_map(|end_of_stream| Event::ResponseHeaders {
            status: Some(200),
            has_content_length: false,
            end_of_stream
        }),
        (bytes(), any::<bool>()).prop_map(|(bytes, end_of_stream)| Event::ResponseBody {
            bytes,
            end_of_stream
        }),
        Just(Event::ResponseTrailers),
    ]
}
