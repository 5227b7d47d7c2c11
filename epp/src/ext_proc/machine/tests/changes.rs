//! What a decision changes on the way: headers, bodies, and the model's name in the response.

use std::borrow::Cow;

use super::*;

fn picked(bench: &mut Bench, destination: Destination) -> Vec<Action> {
    bench.on(Event::Picked(destination))
}

fn header(name: &'static str, value: &str) -> (Name, String) {
    (Cow::Borrowed(name), value.to_owned())
}

fn rewritten() -> Destination {
    Destination {
        rewritten_body: Some(vec![b"{\"model\":".to_vec(), b"\"other\"}".to_vec()]),
        ..destination()
    }
}

#[test]
fn headers_of_the_decision_replace_the_clients() {
    let mut bench = Bench::full_duplex();
    let head = RequestHead::from([
        ("x-prefiller-host-port", "10.9.9.9:1"),
        ("x-encoder-hosts-ports", "10.9.9.9:2"),
    ]);
    bench.request(head, true);
    picked(
        &mut bench,
        Destination {
            set_headers: vec![header("x-prefiller-host-port", "[fd00::1]:8000")],
            remove_headers: vec![Cow::Borrowed("x-secret")],
            ..destination()
        },
    );
    assert_eq!(
        bench.envoy.set,
        [header("x-prefiller-host-port", "[fd00::1]:8000")]
    );
    assert_eq!(
        bench.envoy.removed,
        ["x-secret", "x-encoder-hosts-ports"],
        "what is set is not removed"
    );
}

#[test]
fn rewritten_body_takes_the_place_of_the_whole_one_and_states_its_length() {
    let mut bench = Bench::full_duplex();
    bench.request(RequestHead::from([("content-length", "5")]), false);
    bench.body(b"abcde", false);
    bench.body(b"", true);
    picked(&mut bench, rewritten());
    let whole = b"{\"model\":\"other\"}";
    assert_eq!(bench.envoy.request_forwarded(), (&whole[..], 1));
    assert_eq!(bench.envoy.set, [header("content-length", "17")]);
}

#[test]
fn rewritten_body_without_a_stated_length_states_none() {
    let mut bench = Bench::full_duplex();
    bench.post();
    bench.body(b"abcde", true);
    picked(&mut bench, rewritten());
    assert_eq!(bench.envoy.set, []);
}

#[test]
fn rewritten_body_in_buffered_is_one_replacement() {
    let mut bench = Bench::new(BodyMode::Buffered, BodyMode::None);
    bench.request(RequestHead::from([("content-length", "5")]), false);
    bench.body(b"abcde", true);
    let actions = picked(&mut bench, rewritten());
    let [Action::Answer(Answer::RequestBody(BodyAnswer::Replace(bytes), change))] = &actions[..]
    else {
        panic!("one replacement: {actions:?}");
    };
    assert_eq!(bytes, b"{\"model\":\"other\"}");
    assert_eq!(change.headers.set, [header("content-length", "17")]);
}

#[test]
fn request_without_a_body_gets_none() {
    for mode in [BodyMode::FullDuplex, BodyMode::Streamed, BodyMode::None] {
        let mut bench = Bench::new(mode, BodyMode::FullDuplex);
        bench.get();
        picked(&mut bench, rewritten());
        assert_eq!(bench.envoy.request_forwarded(), (&[][..], 0), "{mode:?}");
        assert_eq!(bench.envoy.set, []);
    }
}

#[test]
fn lease_token_rides_on_the_destination() {
    let token = LeaseToken {
        boot: 1,
        counter: 2,
    };
    let mut bench = Bench::full_duplex();
    bench.get();
    let leased = Destination {
        token: Some(token),
        ..destination()
    };
    let actions = picked(&mut bench, leased);
    let Action::Answer(Answer::RequestHeaders(change)) = &actions[0] else {
        panic!("a headers answer");
    };
    assert_eq!(
        change.destination.as_ref().and_then(|to| to.token),
        Some(token)
    );
}

#[test]
fn response_headers_are_set_and_the_served_endpoint_echoed() {
    let mut bench = Bench::full_duplex();
    bench.get();
    picked(
        &mut bench,
        Destination {
            response_headers: vec![header("x-session-token", "t")],
            echo_served: true,
            ..destination()
        },
    );
    bench.machine.learn_context(Context {
        served: Some(ENDPOINT.to_owned()),
        subset: None,
    });
    let change = HeaderChange {
        set: vec![
            header("x-session-token", "t"),
            header("x-conformance-test-served-endpoint", ENDPOINT),
        ],
        remove: Vec::new(),
    };
    let expected = answers([Answer::ResponseHeaders(change)]);
    assert_eq!(bench.response(200, false), expected);
}

/// A response to a request whose model was rewritten, by its headers.
fn write_back(response: BodyMode, has_content_length: bool) -> (Bench, Vec<Action>) {
    let mut bench = Bench::new(BodyMode::FullDuplex, response);
    bench.get();
    picked(
        &mut bench,
        Destination {
            model_write_back: WriteBack::new("served", "asked-for"),
            ..destination()
        },
    );
    let actions = bench.on(Event::ResponseHeaders {
        status: Some(200),
        has_content_length,
        end_of_stream: false,
    });
    (bench, actions)
}

#[test]
fn model_is_written_back_across_chunks() {
    let (mut bench, _) = write_back(BodyMode::FullDuplex, false);
    bench.response_body(b"{\"model\":\"ser", false);
    let middle = bench.response_body(b"ved", false);
    assert_eq!(middle, [], "held back");
    bench.response_body(b"\",\"x\":1}", true);
    let expected = b"{\"model\":\"asked-for\",\"x\":1}".to_vec();
    assert_eq!(bench.response_forwarded(), (expected, 1));
    let outcome = bench.outcome().expect("finished");
    assert_eq!(outcome.response_bytes, 24, "as the worker sent it");
}

#[test]
fn what_is_held_back_goes_on_before_the_trailers() {
    let (mut bench, _) = write_back(BodyMode::FullDuplex, false);
    bench.response_body(b"x\"model\":\"serv", false);
    bench.on(Event::ResponseTrailers);
    let expected = b"x\"model\":\"serv".to_vec();
    assert_eq!(bench.response_forwarded(), (expected, 1));
}

#[test]
fn kept_content_length_is_removed_where_the_length_may_change() {
    let removed = HeaderChange {
        set: Vec::new(),
        remove: vec![Cow::Borrowed("content-length")],
    };
    let (_, actions) = write_back(BodyMode::FullDuplex, true);
    assert_eq!(actions, answers([Answer::ResponseHeaders(removed)]));
    let (_, actions) = write_back(BodyMode::Buffered, true);
    let untouched = answers([Answer::ResponseHeaders(HeaderChange::default())]);
    assert_eq!(actions, untouched);
}

#[test]
fn without_the_response_headers_nothing_is_written_back() {
    let mut bench = Bench::full_duplex();
    bench.get();
    picked(
        &mut bench,
        Destination {
            model_write_back: WriteBack::new("served", "asked-for"),
            ..destination()
        },
    );
    let body = b"{\"model\":\"served\"}";
    bench.response_body(body, true);
    assert_eq!(bench.response_forwarded(), (body.to_vec(), 1));
}
