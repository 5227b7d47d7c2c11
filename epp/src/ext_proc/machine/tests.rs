//! The rows of what Envoy was seen to do, each as plain events, and random streams against a model
//! of Envoy.

mod changes;
mod random_streams;
mod watching;

use super::envoy_model::EnvoyModel;
use super::*;
use crate::ext_proc::head::RequestHead;
use crate::ext_proc::lease::LeaseToken;
use crate::ext_proc::refusal::{DroppedReason, RefusalCode};
use crate::ext_proc::usage::TokenUsage;
use crate::ext_proc::write_back::WriteBack;

const LIMIT_BYTES: usize = 1000;
const ENDPOINT: &str = "10.0.0.1:8000";

/// A machine and an Envoy that checks each of its answers.
struct Bench {
    machine: Machine,
    envoy: EnvoyModel,
    /// Everything the machine asked for, answers included.
    actions: Vec<Action>,
    now_us: u64,
}

impl Bench {
    fn new(request: BodyMode, response: BodyMode) -> Self {
        Self::watching(request, response, Watch::Stream)
    }

    fn watching(request: BodyMode, response: BodyMode, watch: Watch) -> Self {
        let modes = Modes { request, response };
        let mut machine = Machine::new(LIMIT_BYTES, watch);
        machine.learn_modes(modes);
        Self {
            machine,
            envoy: EnvoyModel::new(modes),
            actions: Vec::new(),
            now_us: 0,
        }
    }

    fn full_duplex() -> Self {
        Self::new(BodyMode::FullDuplex, BodyMode::FullDuplex)
    }

    /// Feeds one event; returns what it made the machine do.
    fn on(&mut self, event: Event) -> Vec<Action> {
        self.envoy.sends(&event);
        let mut actions = Vec::new();
        self.machine.on_event(event, self.now_us, &mut actions);
        for action in &actions {
            if let Action::Answer(answer) = action {
                self.envoy.judges(answer);
            }
        }
        self.actions.extend(actions.iter().cloned());
        actions
    }

    fn request(&mut self, headers: RequestHead, end_of_stream: bool) -> Vec<Action> {
        self.on(Event::RequestHeaders {
            head: headers,
            end_of_stream,
        })
    }

    fn post(&mut self) -> Vec<Action> {
        self.request(
            RequestHead::from([(":method", "POST"), (":path", "/v1/completions")]),
            false,
        )
    }

    fn get(&mut self) -> Vec<Action> {
        self.request(
            RequestHead::from([(":method", "GET"), (":path", "/v1/models")]),
            true,
        )
    }

    fn body(&mut self, bytes: &[u8], end_of_stream: bool) -> Vec<Action> {
        self.on(Event::RequestBody {
            bytes: bytes.to_vec(),
            end_of_stream,
        })
    }

    fn picked(&mut self) -> Vec<Action> {
        self.on(Event::Picked(destination()))
    }

    fn response(&mut self, status: u16, end_of_stream: bool) -> Vec<Action> {
        self.on(Event::ResponseHeaders {
            status: Some(status),
            has_content_length: false,
            end_of_stream,
        })
    }

    fn response_body(&mut self, bytes: &[u8], end_of_stream: bool) -> Vec<Action> {
        self.on(Event::ResponseBody {
            bytes: bytes.to_vec(),
            end_of_stream,
        })
    }

    fn outcome(&self) -> Option<&Outcome> {
        let mut outcomes = self.actions.iter().filter_map(|action| match action {
            Action::Finished(outcome) => Some(outcome),
            _ => None,
        });
        let outcome = outcomes.next();
        assert_eq!(outcomes.next(), None, "finished twice");
        outcome
    }

    fn end(&self) -> Option<&End> {
        self.outcome().map(|outcome| &outcome.end)
    }
}

fn destination() -> Destination {
    Destination {
        endpoints: ENDPOINT.to_owned(),
        ..Destination::default()
    }
}

fn routed() -> RouteChange {
    RouteChange {
        destination: Some(destination()),
        ..RouteChange::default()
    }
}

fn chunk(bytes: &[u8], end_of_stream: bool) -> BodyAnswer {
    BodyAnswer::Chunk {
        bytes: bytes.to_vec(),
        end_of_stream,
    }
}

fn answers(answers: impl IntoIterator<Item = Answer>) -> Vec<Action> {
    answers.into_iter().map(Action::Answer).collect()
}

#[test]
fn full_duplex_post_over_http1_holds_everything_until_the_pick() {
    let mut bench = Bench::full_duplex();
    assert_eq!(bench.post(), []);
    assert_eq!(bench.body(b"{\"model\"", false), []);
    // HTTP/1.1 with a content length ends in an empty message of its own.
    assert_eq!(bench.body(b"", true), [Action::Decide]);
    assert_eq!(*bench.machine.intake().body, [b"{\"model\"".to_vec()]);
    let expected = answers([
        Answer::RequestHeaders(routed()),
        Answer::RequestBody(chunk(b"{\"model\"", true), RouteChange::default()),
    ]);
    assert_eq!(bench.picked(), expected);
}

#[test]
fn full_duplex_body_of_no_bytes_still_gets_its_end_mark() {
    let mut bench = Bench::full_duplex();
    bench.post();
    assert_eq!(bench.body(b"", true), [Action::Decide]);
    let expected = answers([
        Answer::RequestHeaders(routed()),
        Answer::RequestBody(chunk(b"", true), RouteChange::default()),
    ]);
    assert_eq!(bench.picked(), expected);
}

#[test]
fn full_duplex_large_chunks_go_on_as_they_came() {
    let mut machine = Machine::new(1 << 20, Watch::Stream);
    let mut actions = Vec::new();
    let head = RequestHead::default();
    machine.on_event(
        Event::RequestHeaders {
            head,
            end_of_stream: false,
        },
        0,
        &mut actions,
    );
    let chunks = [vec![b'a'; 60_000], vec![b'b'; 60_000], vec![b'c'; 10]];
    let addresses: Vec<_> = chunks[..2].iter().map(Vec::as_ptr).collect();
    for (index, bytes) in chunks.into_iter().enumerate() {
        machine.on_event(
            Event::RequestBody {
                bytes,
                end_of_stream: index == 2,
            },
            0,
            &mut actions,
        );
    }
    assert_eq!(
        machine
            .intake()
            .body
            .iter()
            .map(Vec::len)
            .collect::<Vec<_>>(),
        [60_000, 60_010]
    );
    assert_eq!(
        machine.intake().body[0].as_ptr(),
        addresses[0],
        "the first chunk was copied"
    );
}

#[test]
fn get_is_decided_on_its_headers() {
    let mut bench = Bench::full_duplex();
    assert_eq!(bench.get(), [Action::Decide]);
    assert_eq!(bench.picked(), answers([Answer::RequestHeaders(routed())]));
    assert!(!bench.envoy.request_waits());
}

#[test]
fn request_trailers_end_the_body_and_all_is_answered() {
    let mut bench = Bench::full_duplex();
    bench.post();
    bench.body(b"abc", false);
    assert_eq!(bench.on(Event::RequestTrailers), [Action::Decide]);
    let expected = answers([
        Answer::RequestHeaders(routed()),
        Answer::RequestBody(chunk(b"abc", false), RouteChange::default()),
        Answer::RequestTrailers(RouteChange::default()),
    ]);
    assert_eq!(bench.picked(), expected);
}

#[test]
fn what_follows_the_end_of_the_request_counts_for_nothing() {
    let mut bench = Bench::full_duplex();
    bench.post();
    bench.body(b"abc", true);
    assert_eq!(
        bench.body(b"", true),
        [],
        "the duplicate end mark of large bodies"
    );
    bench.picked();
    assert_eq!(bench.body(b"more", true), []);
    assert_eq!(bench.on(Event::RequestTrailers), []);
    assert_eq!(bench.envoy.request_forwarded(), (&b"abc"[..], 1));
}

#[test]
fn client_copies_of_routing_headers_are_removed_and_nothing_else_is_touched() {
    let mut bench = Bench::full_duplex();
    let head = RequestHead::from([
        (":path", "/v1/models"),
        ("content-length", "0"),
        ("x-gateway-destination-endpoint", "127.0.0.1:19901"),
        ("x-prefiller-host-port", "10.9.9.9:1"),
        ("x-llm-d-inference-objective", "gold"),
        ("x-request-id", "7"),
    ]);
    bench.request(head, true);
    bench.picked();
    assert_eq!(
        bench.envoy.destination.as_deref(),
        Some(ENDPOINT),
        "overwritten"
    );
    let mut removed = bench.envoy.removed.clone();
    removed.sort_unstable();
    assert_eq!(
        removed,
        ["x-llm-d-inference-objective", "x-prefiller-host-port"]
    );
}

#[test]
fn buffered_answers_the_headers_first_and_routes_in_the_body_answer() {
    let mut bench = Bench::new(BodyMode::Buffered, BodyMode::Buffered);
    // Envoy sends no body before this answer: waiting here for the pick is a deadlock.
    assert_eq!(
        bench.post(),
        answers([Answer::RequestHeaders(RouteChange::default())])
    );
    assert_eq!(bench.body(b"{}", true), [Action::Decide]);
    assert_eq!(
        bench.picked(),
        answers([Answer::RequestBody(BodyAnswer::Continue, routed())])
    );
    bench.response(200, false);
    let body = bench.response_body(b"{}", true);
    assert!(body.contains(&Action::Answer(Answer::ResponseBody(
        BodyAnswer::Continue,
        None
    ))));
    assert_eq!(bench.end(), Some(&End::Completed));
}

#[test]
fn buffered_with_trailers_decides_on_the_one_body_message() {
    let mut bench = Bench::new(BodyMode::Buffered, BodyMode::None);
    bench.post();
    assert_eq!(bench.body(b"{}", false), [Action::Decide]);
    bench.picked();
    assert_eq!(
        bench.on(Event::RequestTrailers),
        answers([Answer::RequestTrailers(RouteChange::default())])
    );
}

#[test]
fn streamed_and_none_are_decided_on_the_headers() {
    for mode in [BodyMode::Streamed, BodyMode::None] {
        let mut bench = Bench::new(mode, BodyMode::None);
        assert_eq!(bench.post(), [Action::Decide], "{mode:?}");
        assert_eq!(
            bench.picked(),
            answers([Answer::RequestHeaders(routed())]),
            "{mode:?}"
        );
    }
}

#[test]
fn streamed_body_is_continued_chunk_by_chunk_also_when_it_overtakes_the_pick() {
    let mut bench = Bench::new(BodyMode::Streamed, BodyMode::Streamed);
    bench.post();
    assert_eq!(bench.body(b"early", false), []);
    let continued = Answer::RequestBody(BodyAnswer::Continue, RouteChange::default());
    let expected = answers([Answer::RequestHeaders(routed()), continued.clone()]);
    assert_eq!(bench.picked(), expected);
    assert_eq!(bench.body(b"late", true), answers([continued]));
    assert!(!bench.envoy.request_waits());
}

#[test]
fn streamed_body_has_no_limit_because_nothing_of_it_is_held() {
    let mut bench = Bench::new(BodyMode::Streamed, BodyMode::None);
    bench.post();
    bench.picked();
    for _ in 0..10 {
        bench.body(&[b'x'; LIMIT_BYTES], false);
    }
    assert_eq!(bench.end(), None);
}

#[test]
fn body_without_headers_is_routed_all_the_same() {
    let mut bench = Bench::full_duplex();
    assert_eq!(bench.body(b"{}", true), [Action::Decide]);
    assert_eq!(
        bench.picked(),
        answers([Answer::RequestBody(chunk(b"{}", true), routed())])
    );
}

#[test]
fn modes_are_learned_once_and_default_to_the_protocol() {
    let mut machine = Machine::new(LIMIT_BYTES, Watch::Stream);
    let mut actions = Vec::new();
    let head = RequestHead::default();
    machine.on_event(
        Event::RequestHeaders {
            head,
            end_of_stream: false,
        },
        0,
        &mut actions,
    );
    machine.learn_modes(Modes {
        request: BodyMode::None,
        response: BodyMode::None,
    });
    machine.on_event(
        Event::RequestBody {
            bytes: vec![1],
            end_of_stream: true,
        },
        0,
        &mut actions,
    );
    machine.on_event(Event::Picked(destination()), 0, &mut actions);
    let body = Answer::RequestBody(chunk(&[1], true), RouteChange::default());
    assert_eq!(actions.last(), Some(&Action::Answer(body)));
}

#[test]
fn too_large_a_body_is_refused_as_soon_as_it_is_known() {
    let mut announced = Bench::full_duplex();
    announced.request(RequestHead::from([("content-length", "1001")]), false);
    assert_eq!(announced.envoy.refused_with, Some(413));

    let mut counted = Bench::full_duplex();
    counted.post();
    assert_eq!(counted.body(&[b'x'; LIMIT_BYTES], false), []);
    let actions = counted.body(b"x", false);
    assert_eq!(counted.envoy.refused_with, Some(413));
    assert_eq!(actions.last(), Some(&Action::Close));
    assert!(
        counted.machine.intake().body.is_empty(),
        "a refused body is let go"
    );
    assert!(matches!(counted.end(), Some(End::Refused(_))));
}

#[test]
fn body_of_exactly_the_limit_passes() {
    let mut bench = Bench::full_duplex();
    bench.request(RequestHead::from([("content-length", "1000")]), false);
    assert_eq!(bench.body(&[b'x'; LIMIT_BYTES], true), [Action::Decide]);
}

#[test]
fn small_chunks_are_gathered() {
    let mut bench = Bench::full_duplex();
    bench.post();
    for _ in 0..LIMIT_BYTES {
        bench.body(b"x", false);
    }
    assert_eq!(bench.machine.intake().body.len(), 1);
}

#[test]
fn refusal_is_the_only_answer_and_closes() {
    let mut bench = Bench::full_duplex();
    bench.post();
    bench.body(b"{}", true);
    let refusal = Refusal::no_endpoints();
    let actions = bench.on(Event::Refused(refusal.clone()));
    assert_eq!(
        actions[0],
        Action::Answer(Answer::Immediate(refusal.clone()))
    );
    assert_eq!(actions.last(), Some(&Action::Close));
    assert_eq!(bench.end(), Some(&End::Refused(refusal)));
    // Envoy resets the stream after an immediate response; that is no second end.
    assert_eq!(bench.on(Event::StreamEnded), []);
}

#[test]
fn decision_past_its_deadline_is_503() {
    let mut bench = Bench::full_duplex();
    bench.get();
    let actions = bench.on(Event::DecisionTimedOut);
    assert_eq!(actions[0], Action::CancelDecision);
    assert_eq!(bench.envoy.refused_with, Some(503));
    let Some(End::Refused(refusal)) = bench.end() else {
        panic!("refused")
    };
    assert_eq!(refusal.code, RefusalCode::ServiceUnavailable);
    assert_eq!(
        bench.picked(),
        [],
        "a pick that comes too late changes nothing"
    );
}

#[test]
fn client_gone_while_waiting_calls_the_decision_off() {
    let mut bench = Bench::full_duplex();
    bench.post();
    bench.body(b"{}", true);
    let actions = bench.on(Event::StreamEnded);
    assert_eq!(actions[0], Action::CancelDecision);
    assert_eq!(bench.end(), Some(&End::Aborted));
}

#[test]
fn local_reply_of_envoy_before_the_pick_calls_the_decision_off_and_is_answered() {
    let mut bench = Bench::full_duplex();
    bench.post();
    bench.body(b"{}", true);
    let actions = bench.response(408, true);
    assert_eq!(actions[0], Action::CancelDecision);
    assert_eq!(
        actions[1],
        Action::Answer(Answer::ResponseHeaders(HeaderChange::default()))
    );
    assert_eq!(
        bench.picked(),
        [],
        "nothing of the request is answered any more"
    );
    let outcome = bench.outcome().expect("finished");
    assert_eq!(
        (outcome.status, outcome.end.clone()),
        (Some(408), End::Completed)
    );
}

#[test]
fn response_is_forwarded_untouched_and_watched() {
    let mut bench = Bench::full_duplex();
    bench.get();
    bench.picked();
    assert_eq!(
        bench.response(200, false),
        answers([Answer::ResponseHeaders(HeaderChange::default())])
    );
    let first = bench.response_body(b"data: {\"usage\":{\"prompt_tok", false);
    assert_eq!(first[0], Action::FirstByte);
    let second = bench.response_body(b"ens\":7,\"completion_tokens\":10}}\n\n", false);
    assert!(!second.contains(&Action::FirstByte), "only once");
    bench.machine.learn_context(Context {
        served: Some(ENDPOINT.to_owned()),
        subset: None,
    });
    bench.response_body(b"", true);
    let outcome = bench.outcome().expect("finished");
    assert_eq!(outcome.end, End::Completed);
    assert_eq!(outcome.served.as_deref(), Some(ENDPOINT));
    let usage = TokenUsage {
        prompt_tokens: 7,
        completion_tokens: 10,
        cached_tokens: None,
    };
    assert_eq!(outcome.usage, Some(usage));
    assert_eq!(outcome.response_bytes, 60);
    // The reset that Envoy ends every finished stream with.
    assert_eq!(bench.on(Event::StreamEnded), [Action::Close]);
    assert_eq!(bench.end(), Some(&End::Completed));
}

#[test]
fn response_trailers_complete_the_response() {
    let mut bench = Bench::full_duplex();
    bench.get();
    bench.picked();
    bench.response(200, false);
    bench.response_body(b"x", false);
    let actions = bench.on(Event::ResponseTrailers);
    assert_eq!(actions[0], Action::Answer(Answer::ResponseTrailers(None)));
    assert_eq!(bench.end(), Some(&End::Completed));
    assert_eq!(bench.response_forwarded(), (b"x".to_vec(), 1));
}

#[test]
fn stream_that_ends_in_mid_response_is_an_abort() {
    let mut bench = Bench::full_duplex();
    bench.get();
    bench.picked();
    bench.response(200, false);
    bench.response_body(b"half", false);
    bench.on(Event::StreamEnded);
    let outcome = bench.outcome().expect("finished");
    assert_eq!((&outcome.end, outcome.status), (&End::Aborted, Some(200)));
}

#[test]
fn hidden_response_body_completes_at_the_headers() {
    let mut bench = Bench::new(BodyMode::FullDuplex, BodyMode::None);
    bench.get();
    bench.picked();
    bench.response(200, false);
    assert_eq!(bench.end(), Some(&End::Completed));
    assert_eq!(
        bench.on(Event::ResponseTrailers),
        answers([Answer::ResponseTrailers(None)]),
        "trailers may be sent without the body and then wait for an answer"
    );
}

#[test]
fn hidden_response_is_neither_complete_nor_aborted() {
    let mut bench = Bench::new(BodyMode::FullDuplex, BodyMode::None);
    bench.get();
    bench.picked();
    bench.on(Event::StreamEnded);
    assert_eq!(bench.end(), Some(&End::Unseen));
}

#[test]
fn subset_hint_of_an_earlier_message_is_kept() {
    let mut bench = Bench::full_duplex();
    let subset: Option<Arc<[String]>> = Some(Arc::from(["10.0.0.3".to_owned()]));
    bench.machine.learn_context(Context {
        served: None,
        subset: subset.clone(),
    });
    bench.get();
    bench.machine.learn_context(Context::default());
    assert_eq!(bench.machine.intake().subset, subset);
}

impl Bench {
    fn response_forwarded(&self) -> (Vec<u8>, u32) {
        let (bytes, ends) = self.envoy.response_forwarded();
        (bytes.to_vec(), ends)
    }
}
