//! A publisher of blocks with a bounded replay buffer, the network between, and a subscriber that
//! does what the verdicts say. What its sink holds is compared with what the publisher holds.

use std::collections::{BTreeSet, VecDeque};

use proptest::prelude::*;

use super::super::*;

/// What one batch did to the publisher's cache.
#[derive(Clone, Debug)]
struct Content {
    stored: BTreeSet<u8>,
    removed: BTreeSet<u8>,
}

#[derive(Clone, Copy, Debug)]
enum Step {
    /// Stores one block and removes others; not delivered = the network, or a full queue, lost it.
    Publish {
        store: u8,
        remove: u8,
        delivered: bool,
    },
    /// The batch last published comes again.
    Repeat,
    /// A number is used up without its batch ever being published.
    SkipNumber,
    Reconnect,
    /// A new life. It breaks the connection.
    Restart,
    /// The replay server does not answer from here on, or answers again.
    ReplayWorks(bool),
    /// The quiet time between bursts is over.
    Check,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let publish =
        (0_u8..8, 0_u8..16, any::<bool>()).prop_map(|(store, remove, delivered)| Step::Publish {
            store,
            remove,
            delivered,
        });
    let step = prop_oneof![
        12 => publish,
        1 => Just(Step::Repeat),
        1 => Just(Step::SkipNumber),
        1 => Just(Step::Reconnect),
        1 => Just(Step::Restart),
        1 => any::<bool>().prop_map(Step::ReplayWorks),
        1 => Just(Step::Check),
    ];
    proptest::collection::vec(step, 0..80)
}

#[derive(Debug)]
struct World {
    // The publisher.
    life: u64,
    next: u64,
    held: BTreeSet<u8>,
    buffer: VecDeque<(u64, Content)>,
    buffer_steps: usize,
    replay_works: bool,
    /// Answers that a replay's queue takes before it drops one.
    queue: usize,
    // The subscriber.
    tracker: Sequence,
    sink: BTreeSet<u8>,
    has_replay: bool,
}

impl World {
    fn new(has_replay: bool, buffer_steps: usize, queue: usize) -> Self {
        let mut world = Self {
            life: 0,
            next: 0,
            held: BTreeSet::new(),
            buffer: VecDeque::new(),
            buffer_steps,
            replay_works: true,
            queue,
            tracker: Sequence::new(),
            sink: BTreeSet::new(),
            has_replay,
        };
        world.connect();
        world
    }

    fn fingerprint(&self, number: u64) -> u64 {
        self.life << 32 | number
    }

    fn can_replay(&self) -> bool {
        self.has_replay
    }

    fn take(&mut self, content: &Content) {
        for block in &content.removed {
            self.sink.remove(block);
        }
        self.sink.extend(&content.stored);
    }

    fn start_over(&mut self) {
        self.sink.clear();
        self.tracker.start_over();
    }

    fn connect(&mut self) {
        self.tracker.connected();
        if self.can_replay() {
            self.catch_up();
        }
    }

    fn catch_up(&mut self) {
        self.tracker.begin_catch_up();
        while let Some(first) = self.tracker.ask() {
            if self.replay_works && self.round(first) {
                return;
            }
        }
    }

    /// One replay; true when it came to its end.
    fn round(&mut self, first: u64) -> bool {
        let answers: Vec<_> = self
            .buffer
            .iter()
            .filter(|(number, _)| *number >= first)
            .cloned()
            .collect();
        for (place, (number, content)) in answers.iter().enumerate() {
            // The queue overflows: one answer in the middle is dropped.
            if place == self.queue && place + 1 < answers.len() {
                continue;
            }
            match self.tracker.answered(*number, self.fingerprint(*number)) {
                Answered::Take { .. } => self.take(content),
                Answered::Skip => {}
                Answered::Clear(_) => {
                    self.sink.clear();
                    self.take(content);
                }
                Answered::AskAgain => return false,
                Answered::StartOver => {
                    self.start_over();
                    return false;
                }
            }
        }
        let ended = self.tracker.end_replay();
        if !ended {
            self.start_over();
        }
        ended
    }

    fn check(&mut self) {
        if !self.can_replay() {
            return;
        }
        if !self.tracker.is_complete() && self.replay_works {
            self.start_over();
        }
        self.catch_up();
    }

    fn deliver(&mut self, number: u64, content: &Content) {
        let fingerprint = self.fingerprint(number);
        let verdict = match self.tracker.live(number, fingerprint, self.can_replay()) {
            Verdict::Replay => {
                self.catch_up();
                self.tracker.settle(number, fingerprint)
            }
            verdict => verdict,
        };
        match verdict {
            Verdict::Take => self.take(content),
            Verdict::Clear(_) => {
                self.sink.clear();
                self.take(content);
            }
            Verdict::Skip => {}
            Verdict::Replay => panic!("settled by a replay"),
        }
    }

    fn publish(&mut self, store: u8, remove: u8, delivered: bool) {
        let removed: BTreeSet<u8> = self
            .held
            .iter()
            .copied()
            .filter(|block| remove >> (block % 4) & 1 == 1)
            .collect();
        self.held.retain(|block| !removed.contains(block));
        self.held.insert(store);
        let content = Content {
            stored: BTreeSet::from([store]),
            removed,
        };
        let number = self.next;
        self.next += 1;
        if self.buffer.len() == self.buffer_steps {
            self.buffer.pop_front();
        }
        self.buffer.push_back((number, content.clone()));
        if delivered {
            self.deliver(number, &content);
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Publish {
                store,
                remove,
                delivered,
            } => self.publish(store, remove, delivered),
            Step::Repeat => {
                if let Some((number, content)) = self.buffer.back().cloned() {
                    self.deliver(number, &content);
                }
            }
            Step::SkipNumber => self.next += 1,
            Step::Reconnect => self.connect(),
            Step::Restart => {
                self.life += 1;
                self.next = 0;
                self.held.clear();
                self.buffer.clear();
                self.connect();
            }
            Step::ReplayWorks(works) => self.replay_works = works,
            Step::Check => self.check(),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    /// With a replay server and a buffer that reaches back to the first batch: after it settles the
    /// sink holds exactly what the publisher holds, whatever was lost and whoever restarted.
    #[test]
    fn with_replay_the_sink_settles_to_what_the_publisher_holds(
        steps in steps(),
        queue in 3_usize..30,
    ) {
        let mut world = World::new(true, usize::MAX, queue);
        let skips_numbers = steps.iter().any(|step| matches!(step, Step::SkipNumber));
        for step in steps {
            world.step(step);
        }
        world.replay_works = true;
        world.connect();
        // One more replay, if the server was away while something was lost.
        world.check();
        prop_assert!(world.tracker.is_complete());
        if skips_numbers {
            prop_assert!(world.sink.is_subset(&world.held), "{:?}", world);
        } else {
            prop_assert_eq!(&world.sink, &world.held, "{:?}", world);
        }
    }

    /// With a short buffer, it never settles to more than the publisher holds.
    #[test]
    fn with_a_short_buffer_the_sink_never_settles_to_more(
        steps in steps(),
        buffer_steps in 1_usize..12,
        queue in 3_usize..12,
    ) {
        let mut world = World::new(true, buffer_steps, queue);
        for step in steps {
            world.step(step);
        }
        world.replay_works = true;
        world.connect();
        world.check();
        prop_assert!(world.sink.is_subset(&world.held), "{:?}", world);
    }

    /// Without a replay server, each delivered batch leaves the sink with no more than the publisher
    /// holds. (A new life that is first heard with the very number expected next cannot be told, so
    /// every one begins with a batch that arrives.)
    #[test]
    fn without_replay_the_sink_never_holds_more(steps in steps()) {
        let mut world = World::new(false, 0, 0);
        for step in steps {
            match step {
                Step::Restart => {
                    world.step(step);
                    world.publish(0, 0, true);
                }
                Step::Publish { delivered, .. } => {
                    world.step(step);
                    if delivered {
                        prop_assert!(world.sink.is_subset(&world.held), "{:?}", world);
                    }
                }
                Step::Repeat | Step::SkipNumber => {}
                step => world.step(step),
            }
        }
    }
}
