//! What a sequence number means in one engine's stream of events. Pure: numbers in, verdicts out.
//!
//! An engine numbers its batches from 0 and keeps the last few thousand for replay. A subscriber
//! may join late, lose batches (a publisher drops what a slow reader does not take), be
//! disconnected, and come back to another life of the engine that started over at 0. Numbers alone
//! cannot tell a late duplicate from a new life: after a reconnect, number 3 where 5,000 was
//! expected may be either. So every replay starts one batch before the expected one. The same
//! publisher answers with the very batch seen last, byte for byte (compared by a hash of its
//! payload); anything else is another life, and everything known of the earlier one is void.
//!
//! Without a replay address the rule is weaker: on a new connection a number below the expected one
//! means a new life, and a number above it is taken for a gap.

/// What to do with a message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Take it over. `lost` batches before it are missing and will stay so.
    Apply { lost: u64 },
    /// It was taken over already.
    Duplicate,
    /// Batches `from..to` are missing. Replay, then [`accept`](Sequence::accept) the message.
    Gap { from: u64, to: u64 },
    /// The engine started over. Drop what it had, [`restart`](Sequence::restart), replay, then
    /// accept the message.
    Reset,
}

/// Where a subscriber stands in one engine's stream.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Sequence {
    next: u64,
    /// Fingerprint of batch `next - 1`; absent until a first batch was taken over.
    last: Option<u64>,
    /// The number last seen live on this connection.
    live: Option<u64>,
    /// Whether this connection is known to reach the life of the engine that `next` belongs to.
    same_life: bool,
    /// A replay has begun and its first answer must be the batch seen last.
    overlap_due: bool,
}

impl Sequence {
    /// A stream of which nothing was seen.
    pub fn new() -> Self {
        Self::default()
    }

    /// A connection was made. Who is at its other end is not known yet.
    pub fn connected(&mut self) {
        self.live = None;
        self.same_life = false;
        self.overlap_due = false;
    }

    /// The engine started over, and so does this.
    pub fn restart(&mut self) {
        *self = Self::default();
    }

    /// Judges a live message.
    pub fn live(&mut self, sequence: u64, fingerprint: u64) -> Verdict {
        if self.live.is_some_and(|live| sequence <= live) {
            return Verdict::Reset;
        }
        self.live = Some(sequence);
        if sequence > self.next {
            return Verdict::Gap {
                from: self.next,
                to: sequence,
            };
        }
        if sequence < self.next && !self.same_life {
            return Verdict::Reset;
        }
        self.advance(sequence, fingerprint)
    }

    /// Takes over a live message after what could be replayed before it was. Only `Apply` and
    /// `Duplicate` result.
    pub fn accept(&mut self, sequence: u64, fingerprint: u64) -> Verdict {
        self.live = Some(sequence);
        self.advance(sequence, fingerprint)
    }

    /// Begins a replay: the number to ask from.
    pub fn begin_replay(&mut self) -> u64 {
        self.overlap_due = self.last.is_some();
        self.next.saturating_sub(u64::from(self.overlap_due))
    }

    /// Judges an answer of a replay. Only `Apply`, `Duplicate` and `Reset` result; after a `Reset`
    /// the replay is to be begun anew.
    pub fn replayed(&mut self, sequence: u64, fingerprint: u64) -> Verdict {
        if std::mem::take(&mut self.overlap_due) {
            if sequence.checked_add(1) != Some(self.next) || self.last != Some(fingerprint) {
                return Verdict::Reset;
            }
            self.same_life = true;
            return Verdict::Duplicate;
        }
        self.same_life = true;
        self.advance(sequence, fingerprint)
    }

    /// Judges the end of a replay: false when the batch seen last was not there, which means that
    /// the engine started over and has published nothing since.
    pub fn end_replay(&mut self) -> bool {
        let continues = !std::mem::take(&mut self.overlap_due);
        self.same_life |= continues;
        continues
    }

    fn advance(&mut self, sequence: u64, fingerprint: u64) -> Verdict {
        if sequence < self.next {
            return Verdict::Duplicate;
        }
        // What was published before a first batch was seen is not lost: it was never ours.
        let lost = if self.last.is_some() {
            sequence - self.next
        } else {
            0
        };
        self.next = sequence.saturating_add(1);
        self.last = Some(fingerprint);
        Verdict::Apply { lost }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const APPLY: Verdict = Verdict::Apply { lost: 0 };

    /// A fingerprint that differs between lives.
    fn mark(life: u64, sequence: u64) -> u64 {
        life * 1_000 + sequence
    }

    fn seen_up_to(sequence: u64) -> Sequence {
        let mut tracker = Sequence::new();
        tracker.connected();
        for number in 0..=sequence {
            assert_eq!(tracker.live(number, mark(0, number)), APPLY);
        }
        tracker
    }

    #[test]
    fn a_stream_without_loss_is_applied_in_order() {
        let mut tracker = seen_up_to(2);
        assert_eq!(tracker.live(3, mark(0, 3)), APPLY);
    }

    #[test]
    fn a_gap_is_replayed_with_one_batch_of_overlap() {
        let mut tracker = seen_up_to(2);
        assert_eq!(tracker.live(5, mark(0, 5)), Verdict::Gap { from: 3, to: 5 });
        assert_eq!(tracker.begin_replay(), 2);
        assert_eq!(tracker.replayed(2, mark(0, 2)), Verdict::Duplicate);
        assert_eq!(tracker.replayed(3, mark(0, 3)), APPLY);
        assert_eq!(tracker.replayed(4, mark(0, 4)), APPLY);
        assert_eq!(tracker.replayed(5, mark(0, 5)), APPLY);
        assert!(tracker.end_replay());
        assert_eq!(tracker.accept(5, mark(0, 5)), Verdict::Duplicate);
        assert_eq!(tracker.live(6, mark(0, 6)), APPLY);
    }

    #[test]
    fn a_gap_without_replay_is_lost() {
        let mut tracker = seen_up_to(2);
        tracker.live(5, mark(0, 5));
        assert_eq!(tracker.accept(5, mark(0, 5)), Verdict::Apply { lost: 2 });
    }

    #[test]
    fn who_joins_late_has_lost_nothing() {
        let mut tracker = Sequence::new();
        tracker.connected();
        assert_eq!(
            tracker.live(40, mark(0, 40)),
            Verdict::Gap { from: 0, to: 40 }
        );
        assert_eq!(tracker.accept(40, mark(0, 40)), APPLY);
    }

    #[test]
    fn a_new_life_shows_in_the_overlap() {
        let mut tracker = seen_up_to(2);
        tracker.connected();
        assert_eq!(tracker.begin_replay(), 2);
        // The new life is past our number already, but its batch is another.
        assert_eq!(tracker.replayed(2, mark(1, 2)), Verdict::Reset);

        let mut tracker = seen_up_to(2);
        tracker.connected();
        tracker.begin_replay();
        // The new life has published less than that.
        assert!(!tracker.end_replay());

        let mut tracker = seen_up_to(2);
        tracker.connected();
        tracker.begin_replay();
        // The batch seen last left the buffer: whatever lies between is lost, removals included.
        assert_eq!(tracker.replayed(9, mark(0, 9)), Verdict::Reset);
    }

    #[test]
    fn without_replay_a_lower_number_on_a_new_connection_is_a_new_life() {
        let mut tracker = seen_up_to(2);
        tracker.connected();
        assert_eq!(tracker.live(1, mark(1, 1)), Verdict::Reset);
        tracker.restart();
        assert_eq!(tracker.accept(1, mark(1, 1)), APPLY);
        assert_eq!(tracker.live(2, mark(1, 2)), APPLY);
    }

    #[test]
    fn after_a_replay_a_lower_number_is_a_duplicate_and_going_back_is_a_new_life() {
        let mut tracker = Sequence::new();
        tracker.connected();
        assert_eq!(tracker.begin_replay(), 0);
        for number in 0..5 {
            assert_eq!(tracker.replayed(number, mark(0, number)), APPLY);
        }
        assert!(tracker.end_replay());
        assert_eq!(tracker.live(3, mark(0, 3)), Verdict::Duplicate);
        assert_eq!(tracker.live(4, mark(0, 4)), Verdict::Duplicate);
        assert_eq!(tracker.live(5, mark(0, 5)), APPLY);
        assert_eq!(tracker.live(0, mark(1, 0)), Verdict::Reset);
    }

    #[test]
    fn the_last_number_of_all_does_not_overflow() {
        let mut tracker = Sequence::new();
        tracker.accept(u64::MAX, 1);
        assert_eq!(tracker.live(u64::MAX, 1), Verdict::Reset);
    }

    /// What happens to a publisher and its subscriber.
    #[derive(Clone, Copy, Debug)]
    enum Step {
        Publish { delivered: bool },
        Reconnect,
        Restart,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            6 => any::<bool>().prop_map(|delivered| Step::Publish { delivered }),
            1 => Just(Step::Reconnect),
            1 => Just(Step::Restart),
        ];
        proptest::collection::vec(step, 0..60)
    }

    /// A publisher that keeps everything, and a subscriber that does what the verdicts say. What
    /// the subscriber took over is compared with what the publisher's present life published.
    #[derive(Default)]
    struct World {
        life: u64,
        published: u64,
        tracker: Sequence,
        taken: Vec<u64>,
    }

    impl World {
        fn take(&mut self, verdict: Verdict, fingerprint: u64) {
            match verdict {
                Verdict::Apply { lost: 0 } => self.taken.push(fingerprint),
                Verdict::Duplicate => {}
                other => panic!("{other:?}"),
            }
        }

        fn replay(&mut self) {
            loop {
                let from = self.tracker.begin_replay();
                let mut reset = false;
                for number in from..self.published {
                    let fingerprint = mark(self.life, number);
                    match self.tracker.replayed(number, fingerprint) {
                        Verdict::Reset => {
                            reset = true;
                            break;
                        }
                        verdict => self.take(verdict, fingerprint),
                    }
                }
                if !reset && self.tracker.end_replay() {
                    return;
                }
                self.start_over();
            }
        }

        fn start_over(&mut self) {
            self.taken.clear();
            self.tracker.restart();
        }

        fn deliver(&mut self, number: u64) {
            let fingerprint = mark(self.life, number);
            match self.tracker.live(number, fingerprint) {
                Verdict::Reset => {
                    self.start_over();
                    self.replay();
                }
                Verdict::Gap { .. } => self.replay(),
                verdict => return self.take(verdict, fingerprint),
            }
            let verdict = self.tracker.accept(number, fingerprint);
            self.take(verdict, fingerprint);
        }

        fn connect(&mut self) {
            self.tracker.connected();
            self.replay();
        }
    }

    proptest! {
        /// With a replay, the subscriber has after every delivery exactly what the engine's present
        /// life published: nothing missing, nothing twice, nothing of an earlier life.
        #[test]
        fn with_replay_nothing_is_missed(steps in steps()) {
            let mut world = World::default();
            world.connect();
            for step in steps {
                match step {
                    Step::Publish { delivered } => {
                        world.published += 1;
                        if delivered {
                            world.deliver(world.published - 1);
                            let expected: Vec<u64> = (0..world.published)
                                .map(|number| mark(world.life, number))
                                .collect();
                            prop_assert_eq!(&world.taken, &expected);
                        }
                    }
                    Step::Reconnect => world.connect(),
                    // A restart closes the connection.
                    Step::Restart => {
                        world.life += 1;
                        world.published = 0;
                        world.connect();
                        prop_assert!(world.taken.is_empty());
                    }
                }
            }
        }

        #[test]
        fn no_numbers_make_it_panic(
            numbers in proptest::collection::vec((0_u8..6, 0_u64..4, any::<bool>()), 0..60)
        ) {
            let mut tracker = Sequence::new();
            for (what, number, high) in numbers {
                let number = if high { u64::MAX - number } else { number };
                match what {
                    0 => tracker.connected(),
                    1 => { tracker.begin_replay(); }
                    2 => { tracker.replayed(number, number); }
                    3 => { tracker.end_replay(); }
                    4 => { tracker.accept(number, number); }
                    _ => { tracker.live(number, number); }
                }
            }
        }
    }
}
