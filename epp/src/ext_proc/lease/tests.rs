//! The table against a plain map, and each behaviour on its own.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

const LIMITS: LeaseLimits = LeaseLimits {
    length_ms: 100,
    entries: 4,
};

fn table() -> LeaseTable<&'static str, &'static str> {
    LeaseTable::new(7, LIMITS)
}

fn park(
    table: &mut LeaseTable<&'static str, &'static str>,
    exchange: &'static str,
    now_ms: u64,
) -> LeaseToken {
    let token = table.open();
    assert_eq!(
        table.park(token, exchange, now_ms, &mut Vec::new()),
        Parked::Waiting
    );
    token
}

#[test]
fn tokens_are_text_and_back() {
    let token = LeaseToken {
        boot: 0xab,
        counter: 0x1f,
    };
    assert_eq!(token.to_string(), "00000000000000ab-1f");
    assert_eq!("00000000000000ab-1f".parse(), Ok(token));
    for wrong in [
        "",
        "-",
        "ab-1f",
        "00000000000000ab",
        "00000000000000ab-",
        "00000000000000ab-+1",
        "+0000000000000ab-1",
        "00000000000000ab-11111111111111111",
        "00000000000000xy-1",
    ] {
        let parsed = wrong.parse::<LeaseToken>();
        assert_eq!(parsed, Err(NotAToken), "{wrong}");
    }
}

#[test]
fn end_entry_releases_once() {
    let mut table = table();
    let token = park(&mut table, "a", 0);
    assert_eq!(table.release(token, || "end"), Released::Exchange("a"));
    assert_eq!(table.release(token, || "end"), Released::Unknown);
    assert_eq!((table.parked(), table.next_expiry()), (0, None));
}

#[test]
fn end_entry_that_overtakes_the_parking_is_found_by_it() {
    let mut table = table();
    let token = table.open();
    assert_eq!(table.release(token, || "end"), Released::Early);
    let parked = table.park(token, "a", 0, &mut Vec::new());
    assert_eq!(parked, Parked::Ended("a", "end"));
    assert_eq!(table.parked(), 0);
}

#[test]
fn closed_token_is_unknown() {
    let mut table = table();
    let token = table.open();
    table.close(token);
    assert_eq!(table.release(token, || "end"), Released::Unknown);
    assert_eq!(
        table.park(token, "a", 0, &mut Vec::new()),
        Parked::NotOpen("a")
    );
}

#[test]
fn closing_leaves_a_parked_exchange_alone() {
    let mut table = table();
    let token = park(&mut table, "a", 0);
    table.close(token);
    assert_eq!(table.release(token, || "end"), Released::Exchange("a"));
}

#[test]
fn token_of_another_boot_touches_nothing() {
    let mut table = table();
    let ours = park(&mut table, "a", 0);
    let foreign = LeaseToken { boot: 8, ..ours };
    assert_eq!(table.renew(foreign, 50), None);
    assert_eq!(table.release(foreign, || "end"), Released::Unknown);
    assert_eq!(table.release(ours, || "end"), Released::Exchange("a"));
}

#[test]
fn lease_expires_unless_it_is_renewed() {
    let mut table = table();
    let renewed = park(&mut table, "renewed", 0);
    park(&mut table, "silent", 10);
    assert_eq!(table.renew(renewed, 90), Some(&mut "renewed"));
    let mut expired = Vec::new();
    table.expire(109, &mut expired);
    assert_eq!(expired, [""; 0]);
    table.expire(110, &mut expired);
    assert_eq!(expired, ["silent"]);
    assert_eq!(table.next_expiry(), Some(190));
}

#[test]
fn past_the_bound_the_oldest_is_given_up() {
    let mut table = table();
    let first = park(&mut table, "0", 0);
    for (now_ms, exchange) in (1..).zip(["1", "2", "3"]) {
        park(&mut table, exchange, now_ms);
    }
    table.renew(first, 5);
    let token = table.open();
    let mut given_up = Vec::new();
    assert_eq!(table.park(token, "4", 6, &mut given_up), Parked::Waiting);
    assert_eq!(given_up, ["1"], "the first one was renewed");
    assert_eq!(table.parked(), 4);
}

#[derive(Clone, Debug)]
enum Step {
    Open,
    Park(usize),
    Close(usize),
    Renew(usize),
    Release(usize),
    Wait(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => Just(Step::Open),
        3 => (0_usize..12).prop_map(Step::Park),
        1 => (0_usize..12).prop_map(Step::Close),
        2 => (0_usize..12).prop_map(Step::Renew),
        2 => (0_usize..12).prop_map(Step::Release),
        2 => (0_u64..60).prop_map(Step::Wait),
    ]
}

/// What a token stands for in the model: `None` open without a note, `Some(true)` with one.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Known {
    Open { ended: bool },
    Parked { expires_ms: u64 },
}

proptest! {
    #[test]
    fn behaves_as_a_plain_map(steps in prop::collection::vec(step(), 0..80)) {
        let mut table: LeaseTable<u64, ()> = LeaseTable::new(7, LIMITS);
        let mut model: BTreeMap<u64, Known> = BTreeMap::new();
        let mut tokens: Vec<LeaseToken> = Vec::new();
        let mut now_ms = 0;
        for step in steps {
            let token = |at: usize| tokens.get(at).copied();
            match step {
                Step::Open => {
                    let token = table.open();
                    model.insert(token.counter, Known::Open { ended: false });
                    tokens.push(token);
                }
                Step::Park(at) => {
                    let Some(token) = token(at) else { continue };
                    let mut given_up = Vec::new();
                    let parked = table.park(token, token.counter, now_ms, &mut given_up);
                    let expected = match model.get(&token.counter) {
                        Some(Known::Open { ended: false }) => {
                            let soonest = parked_in(&model);
                            if soonest.len() >= LIMITS.entries {
                                prop_assert_eq!(&given_up, &[soonest[0].1]);
                                model.remove(&soonest[0].1);
                            } else {
                                prop_assert!(given_up.is_empty());
                            }
                            let expires_ms = now_ms + LIMITS.length_ms;
                            model.insert(token.counter, Known::Parked { expires_ms });
                            Parked::Waiting
                        }
                        Some(Known::Open { ended: true }) => {
                            model.remove(&token.counter);
                            Parked::Ended(token.counter, ())
                        }
                        _ => Parked::NotOpen(token.counter),
                    };
                    prop_assert_eq!(parked, expected);
                }
                Step::Close(at) => {
                    let Some(token) = token(at) else { continue };
                    table.close(token);
                    if matches!(model.get(&token.counter), Some(Known::Open { .. })) {
                        model.remove(&token.counter);
                    }
                }
                Step::Renew(at) => {
                    let Some(token) = token(at) else { continue };
                    let renewed = table.renew(token, now_ms).is_some();
                    let known = model.get_mut(&token.counter);
                    let is_parked = matches!(known, Some(Known::Parked { .. }));
                    if let Some(Known::Parked { expires_ms }) = known {
                        *expires_ms = now_ms + LIMITS.length_ms;
                    }
                    prop_assert_eq!(renewed, is_parked);
                }
                Step::Release(at) => {
                    let Some(token) = token(at) else { continue };
                    let expected = match model.remove(&token.counter) {
                        Some(Known::Parked { .. }) => Released::Exchange(token.counter),
                        Some(Known::Open { .. }) => {
                            model.insert(token.counter, Known::Open { ended: true });
                            Released::Early
                        }
                        None => Released::Unknown,
                    };
                    prop_assert_eq!(table.release(token, || ()), expected);
                }
                Step::Wait(wait_ms) => {
                    now_ms += wait_ms;
                    let mut expired = Vec::new();
                    table.expire(now_ms, &mut expired);
                    let over: Vec<u64> = parked_in(&model)
                        .into_iter()
                        .filter(|(expires_ms, _)| *expires_ms <= now_ms)
                        .map(|(_, counter)| counter)
                        .collect();
                    for counter in &over {
                        model.remove(counter);
                    }
                    prop_assert_eq!(expired, over);
                }
            }
            let parked = parked_in(&model);
            prop_assert_eq!(table.parked(), parked.len());
            prop_assert_eq!(table.next_expiry(), parked.first().map(|(expiry, _)| *expiry));
        }
    }
}

/// The parked ones, soonest first.
fn parked_in(model: &BTreeMap<u64, Known>) -> Vec<(u64, u64)> {
    let mut parked: Vec<(u64, u64)> = model
        .iter()
        .filter_map(|(counter, known)| match known {
            Known::Parked { expires_ms } => Some((*expires_ms, *counter)),
            Known::Open { .. } => None,
        })
        .collect();
    parked.sort_unstable();
    parked
}
