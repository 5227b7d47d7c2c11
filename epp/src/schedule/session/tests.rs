//! Sessions: who is found, when a binding moves, ends or makes room, and which parameters are
//! refused.

use serde_json::{Value, json};

use super::super::fixtures::{HeaderList, request, snapshot};
use super::*;
use crate::config::plugins::check;
use crate::fleet::{Live, Matches, Snapshot};

fn affinity(parameters: &Value) -> SessionAffinity {
    SessionAffinity::from(&plugins::read::<Parameters>(parameters).unwrap())
}

fn by_id() -> SessionAffinity {
    affinity(&json!({"strategy": "session_id", "sessionIdConfig": {"evictionTtlSeconds": 10}}))
}

fn fleet() -> Snapshot {
    snapshot(&[Live::default(); 3])
}

fn with<R>(
    fleet: &Snapshot,
    headers: &HeaderList,
    now_ms: u64,
    read: impl FnOnce(&Context<'_>) -> R,
) -> R {
    let matches = Matches::default();
    let mut request = request(0, &matches, 0);
    request.headers = headers;
    read(&Context {
        snapshot: fleet,
        request: &request,
        now_ms,
    })
}

fn session(name: &str) -> HeaderList {
    HeaderList::one("x-session-id", name)
}

#[test]
fn the_token_of_a_response_leads_back_to_its_endpoint() {
    let affinity = affinity(&Value::Null);
    let fleet = fleet();
    let mut sent = Vec::new();
    with(&fleet, &HeaderList(Vec::new()), 0, |context| {
        assert_eq!(affinity.find(context, &[0, 1, 2]), None);
        affinity.response_headers(context, &[1, 0], &mut sent);
    });
    // base64 of worker-1.
    assert_eq!(
        sent,
        [("x-session-token".to_owned(), "d29ya2VyLTE=".to_owned())]
    );
    let found = |token: &str, candidates: &[usize]| {
        let headers = HeaderList::one("x-session-token", token);
        with(&fleet, &headers, 0, |context| {
            affinity.find(context, candidates)
        })
    };
    assert_eq!(found("d29ya2VyLTE=", &[2, 1, 0]), Some(1));
    assert_eq!(found("d29ya2VyLTE=", &[2, 0]), None);
    for nonsense in ["", " ", "worker-1", "%%%", "d29ya2VyLTk="] {
        assert_eq!(found(nonsense, &[0, 1, 2]), None, "{nonsense:?}");
    }
}

#[test]
fn header_names_are_the_operators_in_any_case() {
    let affinity = affinity(&json!({"encodedEndpointHeaderConfig": {"header": " X-My-Token "}}));
    let fleet = fleet();
    let mut sent = Vec::new();
    let headers = HeaderList::one("x-my-token", "d29ya2VyLTI=");
    with(&fleet, &headers, 0, |context| {
        assert_eq!(affinity.find(context, &[0, 1, 2]), Some(2));
        affinity.response_headers(context, &[0], &mut sent);
    });
    assert_eq!(sent[0].0, "x-my-token");
}

#[test]
fn a_named_session_stays_where_its_first_pick_was() {
    let affinity = by_id();
    let fleet = fleet();
    let mut sent = Vec::new();
    with(&fleet, &session("a"), 0, |context| {
        assert_eq!(affinity.find(context, &[0, 1, 2]), None);
        affinity.picked(context, &[2, 0]);
        assert_eq!(affinity.find(context, &[0, 1, 2]), Some(2));
        // Another one was preferred, with the session's own at hand: it stays.
        affinity.picked(context, &[0]);
        assert_eq!(affinity.find(context, &[1, 2]), Some(1));
        affinity.response_headers(context, &[2], &mut sent);
    });
    assert!(sent.is_empty());
    with(&fleet, &session("b"), 0, |context| {
        assert_eq!(affinity.find(context, &[0, 1, 2]), None);
    });
    with(&fleet, &HeaderList(Vec::new()), 0, |context| {
        affinity.picked(context, &[1]);
        assert_eq!(affinity.find(context, &[0, 1, 2]), None);
    });
}

#[test]
fn a_session_moves_when_its_endpoint_is_not_there() {
    let affinity = by_id();
    let fleet = fleet();
    with(&fleet, &session("a"), 0, |context| {
        affinity.picked(context, &[2]);
        assert_eq!(affinity.find(context, &[0, 1]), None);
        affinity.picked(context, &[1]);
        assert_eq!(affinity.find(context, &[0, 1, 2]), Some(1));
    });
    // A worker that came back under the same number is another one.
    let mut again = fleet.clone();
    let mut members = again.members.to_vec();
    let mut member = Endpoint::clone(&members[1]);
    member.generation = Generation(2);
    members[1] = member.into();
    again.members = members.into();
    with(&again, &session("a"), 0, |context| {
        assert_eq!(affinity.find(context, &[0, 1, 2]), None);
    });
}

#[test]
fn an_endpoint_that_is_back_before_the_pick_keeps_its_session() {
    let affinity = by_id();
    let fleet = fleet();
    with(&fleet, &session("a"), 0, |context| {
        affinity.picked(context, &[2]);
        assert_eq!(affinity.find(context, &[0, 1]), None);
        assert_eq!(affinity.find(context, &[0, 1, 2]), Some(2));
        affinity.picked(context, &[1]);
        assert_eq!(affinity.find(context, &[0, 1, 2]), Some(2));
    });
}

#[test]
fn an_unused_session_is_forgotten() {
    let affinity = by_id();
    let fleet = fleet();
    let found = |now_ms| {
        with(&fleet, &session("a"), now_ms, |context| {
            affinity.find(context, &[0, 1, 2])
        })
    };
    with(&fleet, &session("a"), 1_000, |context| {
        affinity.picked(context, &[2]);
    });
    assert_eq!(found(11_000), Some(2));
    assert_eq!(found(11_001), None);
    // A use renews it; a pick elsewhere does not.
    with(&fleet, &session("a"), 11_000, |context| {
        affinity.picked(context, &[2]);
    });
    with(&fleet, &session("a"), 20_000, |context| {
        affinity.picked(context, &[0]);
    });
    assert_eq!(found(21_000), Some(2));
    assert_eq!(found(21_001), None);
    // After its end the session is new.
    with(&fleet, &session("a"), 30_000, |context| {
        affinity.picked(context, &[0]);
    });
    assert_eq!(found(30_000), Some(0));
}

fn remembered(affinity: &SessionAffinity) -> usize {
    match &affinity.how {
        How::Id { bound, .. } => bound.lock().len(),
        How::Token { .. } => 0,
    }
}

#[test]
fn what_is_remembered_is_bounded_and_swept() {
    let affinity = by_id();
    let fleet = fleet();
    for number in 0..SESSIONS_MAX + 100 {
        with(&fleet, &session(&number.to_string()), 0, |context| {
            affinity.picked(context, &[0]);
        });
    }
    assert_eq!(remembered(&affinity), SESSIONS_MAX);
    let found = |number: usize| {
        with(&fleet, &session(&number.to_string()), 0, |context| {
            affinity.find(context, &[0])
        })
    };
    assert_eq!(found(99), None);
    assert_eq!(found(100), Some(0));
    with(&fleet, &session("new"), 60_000, |context| {
        affinity.picked(context, &[0]);
    });
    assert_eq!(remembered(&affinity), SESSIONS_MAX - SWEEP_MAX + 1);
}

#[test]
fn the_first_source_that_names_a_session_counts() {
    let affinity = affinity(&json!({
        "strategy": "session_id",
        "sessionIdConfig": {"sources": [{"header": "X-First"}, {"header": "x-second"}]},
    }));
    let fleet = fleet();
    let both = HeaderList(vec![
        ("x-first", "one".to_owned()),
        ("x-second", "two".to_owned()),
    ]);
    with(&fleet, &both, 0, |context| affinity.picked(context, &[1]));
    let found = |headers: HeaderList| {
        with(&fleet, &headers, 0, |context| {
            affinity.find(context, &[0, 1, 2])
        })
    };
    assert_eq!(found(HeaderList::one("x-first", "one")), Some(1));
    assert_eq!(found(HeaderList::one("x-second", "one")), Some(1));
    assert_eq!(found(HeaderList::one("x-second", "two")), None);
    let blank = HeaderList(vec![
        ("x-first", " ".to_owned()),
        ("x-second", "one".to_owned()),
    ]);
    assert_eq!(found(blank), Some(1));
}

#[test]
fn parameters_that_make_no_sense_are_refused() {
    let path = |parameters: Value| check::<Parameters>(&parameters).unwrap_err().path;
    assert_eq!(path(json!({"strategy": "cookie"})), "strategy");
    assert_eq!(
        path(json!({"sessionIdConfig": {"sources": [{"header": "a"}, {}]}})),
        "sessionIdConfig.sources[1].header"
    );
    assert_eq!(
        path(json!({"sessionIdConfig": {"sources": [{"attribute": "agent-identity"}]}})),
        "sessionIdConfig.sources[0].attribute"
    );
    assert_eq!(
        path(json!({"sessionIdConfig": {"evictionTtlSeconds": -1}})),
        "sessionIdConfig.evictionTtlSeconds"
    );
    let zero = json!({"strategy": "session_id", "sessionIdConfig": {"evictionTtlSeconds": 0}});
    let How::Id { ttl_ms, .. } = affinity(&zero).how else {
        panic!("another strategy");
    };
    assert_eq!(ttl_ms, 300_000);
}
