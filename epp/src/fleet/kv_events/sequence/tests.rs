//! Single verdicts, and the whole against a publisher that loses, truncates and restarts.

mod world;

use proptest::prelude::*;

use super::*;

/// A fingerprint that differs between lives.
fn mark(life: u64, sequence: u64) -> u64 {
    life * 1_000 + sequence
}

/// Heard live from the first batch to this one.
fn heard_up_to(sequence: u64) -> Sequence {
    let mut tracker = Sequence::new();
    tracker.connected();
    for number in 0..=sequence {
        assert_eq!(tracker.live(number, mark(0, number), false), Verdict::Take);
    }
    tracker
}

/// The same on a new connection.
fn reconnected(sequence: u64) -> Sequence {
    let mut tracker = heard_up_to(sequence);
    tracker.connected();
    tracker
}

const TAKE: Answered = Answered::Take { skipped: 0 };

#[test]
fn a_stream_without_loss_is_taken_in_order_and_complete_from_its_first_batch_on() {
    let mut tracker = heard_up_to(2);
    assert!(tracker.is_complete());
    assert_eq!(tracker.live(3, mark(0, 3), true), Verdict::Take);
}

#[test]
fn a_gap_is_replayed_with_one_batch_of_overlap() {
    let mut tracker = heard_up_to(2);
    assert_eq!(tracker.live(5, mark(0, 5), true), Verdict::Replay);
    tracker.begin_catch_up();
    assert_eq!(tracker.ask(), Some(2));
    assert_eq!(tracker.answered(2, mark(0, 2)), Answered::Skip);
    for number in 3..=5 {
        assert_eq!(tracker.answered(number, mark(0, number)), TAKE);
    }
    assert!(tracker.end_replay());
    assert_eq!(tracker.settle(5, mark(0, 5)), Verdict::Skip);
    assert_eq!(tracker.live(6, mark(0, 6), true), Verdict::Take);
}

#[test]
fn a_gap_that_is_not_replayed_voids_what_is_known() {
    let mut tracker = heard_up_to(2);
    let lost = Verdict::Clear(Void::Lost(2));
    assert_eq!(tracker.live(5, mark(0, 5), false), lost);
    assert!(!tracker.is_complete());
    tracker.emptied();
    assert!(tracker.is_complete());

    let mut tracker = heard_up_to(2);
    assert_eq!(tracker.live(5, mark(0, 5), true), Verdict::Replay);
    assert_eq!(tracker.settle(5, mark(0, 5)), lost);
}

#[test]
fn who_joins_late_has_nothing_to_void_and_is_not_complete() {
    let mut tracker = Sequence::new();
    tracker.connected();
    assert_eq!(tracker.live(40, mark(0, 40), false), Verdict::Take);
    assert_eq!(tracker.live(41, mark(0, 41), false), Verdict::Take);
    assert!(!tracker.is_complete());
    // A replay goes as far back as it goes.
    let mut tracker = Sequence::new();
    assert_eq!(tracker.ask(), Some(0));
    let truncated = Answered::Take { skipped: 40 };
    assert_eq!(tracker.answered(40, mark(0, 40)), truncated);
    assert_eq!(tracker.answered(41, mark(0, 41)), TAKE);
    assert!(tracker.end_replay() && tracker.is_complete());
}

#[test]
fn a_new_life_shows_in_the_overlap() {
    // The new life is past our number already, but its batch is another.
    let mut tracker = reconnected(2);
    assert_eq!(tracker.ask(), Some(2));
    assert_eq!(tracker.answered(2, mark(1, 2)), Answered::StartOver);
    // The new life has published less than that.
    let mut tracker = reconnected(2);
    tracker.ask();
    assert!(!tracker.end_replay());
    // The batch seen last left the buffer, and with it whatever was removed since.
    let mut tracker = reconnected(2);
    tracker.ask();
    assert_eq!(tracker.answered(9, mark(0, 9)), Answered::StartOver);
    tracker.start_over();
    assert_eq!(tracker.ask(), Some(0));
}

#[test]
fn a_hole_in_a_replay_is_asked_for_until_that_brings_nothing() {
    let mut tracker = heard_up_to(0);
    tracker.begin_catch_up();
    for times in 1..=ASKS_WITHOUT_PROGRESS_MAX {
        assert_eq!(tracker.ask(), Some(0));
        assert_eq!(tracker.answered(0, mark(0, 0)), Answered::Skip);
        let expected = if times < ASKS_WITHOUT_PROGRESS_MAX {
            Answered::AskAgain
        } else {
            Answered::Clear(Void::Lost(3))
        };
        assert_eq!(tracker.answered(4, mark(0, 4)), expected);
    }
    assert!(tracker.end_replay() && tracker.is_complete());
    // Progress begins the count anew.
    let mut tracker = heard_up_to(0);
    for number in 1..10 {
        assert!(tracker.ask().is_some());
        tracker.answered(number - 1, mark(0, number - 1));
        assert_eq!(tracker.answered(number, mark(0, number)), TAKE);
        assert_eq!(
            tracker.answered(number + 5, mark(0, number + 5)),
            Answered::AskAgain
        );
    }
    // A server that does not answer at all is not asked for ever.
    let mut tracker = heard_up_to(0);
    let asked = (0..9).map_while(|_| tracker.ask()).count();
    assert_eq!(asked, ASKS_WITHOUT_PROGRESS_MAX as usize);
}

#[test]
fn without_replay_numbers_alone_decide() {
    let mut tracker = reconnected(2);
    let new_life = Verdict::Clear(Void::NewLife);
    assert_eq!(tracker.live(1, mark(1, 1), false), new_life);
    assert!(!tracker.is_complete());
    assert_eq!(tracker.live(2, mark(1, 2), false), Verdict::Take);
    let mut tracker = reconnected(2);
    assert_eq!(tracker.live(0, mark(1, 0), false), new_life);
    assert!(tracker.is_complete(), "heard from its first batch on");
    let mut tracker = reconnected(2);
    assert_eq!(tracker.live(3, mark(0, 3), false), Verdict::Take);
}

#[test]
fn going_back_on_one_connection_is_a_new_life_unless_a_replay_says_otherwise() {
    let mut tracker = heard_up_to(4);
    assert_eq!(tracker.live(3, mark(0, 3), true), Verdict::Replay);
    assert_eq!(tracker.ask(), Some(4));
    assert_eq!(tracker.answered(4, mark(0, 4)), Answered::Skip);
    assert!(tracker.end_replay());
    assert_eq!(tracker.settle(3, mark(0, 3)), Verdict::Skip);

    let mut tracker = heard_up_to(4);
    let new_life = Verdict::Clear(Void::NewLife);
    assert_eq!(tracker.live(0, mark(1, 0), false), new_life);
}

#[test]
fn what_a_replay_brought_is_skipped_when_it_comes_live() {
    let mut tracker = Sequence::new();
    tracker.connected();
    assert_eq!(tracker.ask(), Some(0));
    for number in 0..5 {
        assert_eq!(tracker.answered(number, mark(0, number)), TAKE);
    }
    assert!(tracker.end_replay());
    assert_eq!(tracker.live(3, mark(0, 3), true), Verdict::Skip);
    assert_eq!(tracker.live(4, mark(0, 4), true), Verdict::Skip);
    assert_eq!(tracker.live(5, mark(0, 5), true), Verdict::Take);
}

#[test]
fn a_spoiled_batch_ends_completeness() {
    let mut tracker = heard_up_to(2);
    tracker.spoil();
    assert!(!tracker.is_complete());
    assert_eq!(tracker.live(3, mark(0, 3), true), Verdict::Take);
    assert!(!tracker.is_complete());
}

#[test]
fn the_last_number_of_all_does_not_overflow() {
    let mut tracker = Sequence::new();
    tracker.settle(u64::MAX, 1);
    tracker.live(u64::MAX, 1, false);
    tracker.live(u64::MAX, 1, true);
    assert_eq!(tracker.ask(), Some(u64::MAX - 1));
    tracker.answered(u64::MAX, 1);
}

proptest! {
    #[test]
    fn no_numbers_make_it_panic(
        calls in proptest::collection::vec((0_u8..9, 0_u64..4, any::<bool>()), 0..60)
    ) {
        let mut tracker = Sequence::new();
        for (what, number, high) in calls {
            let number = if high { u64::MAX - number } else { number };
            match what {
                0 => tracker.connected(),
                1 => { tracker.ask(); }
                2 => { tracker.answered(number, number); }
                3 => { tracker.end_replay(); }
                4 => { tracker.settle(number, number); }
                5 => tracker.begin_catch_up(),
                6 => tracker.start_over(),
                _ => { tracker.live(number, number, what == 7); }
            }
        }
    }
}
