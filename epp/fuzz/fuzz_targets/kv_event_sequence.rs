//! The sequence core against a publisher of blocks, driven by bytes.
//!
//! Each byte pair is a step: a batch that arrives or is lost, a reconnect, a restart, a replay server
//! that comes and goes, a quiet check. In between the sink may be behind; once a replay that answers
//! has settled it, it never holds a block that the publisher does not hold, and exactly those where
//! the replay buffer reaches back to the first batch.

#![no_main]

use std::collections::BTreeSet;

use libfuzzer_sys::fuzz_target;
use pointsman_epp::fleet::kv_events::sequence::{Answered, Sequence, Verdict};

/// A block stored, and those removed before it.
#[derive(Clone, Debug)]
struct Content {
    stored: u8,
    removed: BTreeSet<u8>,
}

#[derive(Default, Debug)]
struct World {
    life: u64,
    published: Vec<Content>,
    held: BTreeSet<u8>,
    buffer_steps: usize,
    replay_works: bool,
    tracker: Sequence,
    sink: BTreeSet<u8>,
}

impl World {
    fn fingerprint(&self, number: u64) -> u64 {
        self.life << 32 | number
    }

    fn take(&mut self, number: u64) {
        let content = self.published[number as usize].clone();
        self.sink.retain(|block| !content.removed.contains(block));
        self.sink.insert(content.stored);
    }

    fn clear_and_take(&mut self, number: u64) {
        self.sink.clear();
        self.take(number);
    }

    fn start_over(&mut self) {
        self.sink.clear();
        self.tracker.start_over();
    }

    fn catch_up(&mut self) {
        self.tracker.begin_catch_up();
        let mut rounds = 0;
        while let Some(first) = self.tracker.ask() {
            rounds += 1;
            assert!(rounds < 10_000, "asks for ever: {self:?}");
            if self.replay_works && self.round(first) {
                return;
            }
        }
    }

    fn round(&mut self, first: u64) -> bool {
        let oldest = self.published.len().saturating_sub(self.buffer_steps) as u64;
        for number in first.max(oldest)..self.published.len() as u64 {
            match self.tracker.answered(number, self.fingerprint(number)) {
                Answered::Take { .. } => self.take(number),
                Answered::Skip => {}
                Answered::Clear(_) => self.clear_and_take(number),
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

    fn connect(&mut self) {
        self.tracker.connected();
        self.catch_up();
    }

    fn check(&mut self) {
        if !self.tracker.is_complete() && self.replay_works {
            self.start_over();
        }
        self.catch_up();
    }

    fn deliver(&mut self, number: u64) {
        let fingerprint = self.fingerprint(number);
        let verdict = match self.tracker.live(number, fingerprint, true) {
            Verdict::Replay => {
                self.catch_up();
                self.tracker.settle(number, fingerprint)
            }
            verdict => verdict,
        };
        match verdict {
            Verdict::Take => self.take(number),
            Verdict::Clear(_) => self.clear_and_take(number),
            Verdict::Skip => {}
            Verdict::Replay => panic!("settled by a replay"),
        }
    }

    fn publish(&mut self, what: u8, delivered: bool) {
        let removed: BTreeSet<u8> = self
            .held
            .iter()
            .copied()
            .filter(|block| what >> (4 + block % 4) & 1 == 1)
            .collect();
        self.held.retain(|block| !removed.contains(block));
        let stored = what & 0x0f;
        self.held.insert(stored);
        self.published.push(Content { stored, removed });
        if delivered {
            self.deliver(self.published.len() as u64 - 1);
        }
    }

    fn step(&mut self, step: u8, what: u8) {
        match step % 16 {
            0 => self.connect(),
            1 => {
                self.life += 1;
                self.published.clear();
                self.held.clear();
                self.connect();
            }
            2 => self.replay_works = !self.replay_works,
            3 => self.check(),
            // A batch comes again, be it an old one.
            4 if !self.published.is_empty() => {
                self.deliver(u64::from(what) % self.published.len() as u64);
            }
            5..=9 => self.publish(what, false),
            _ => self.publish(what, true),
        }
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((&buffer_steps, steps)) = data.split_first() else {
        return;
    };
    let mut world = World {
        buffer_steps: match buffer_steps {
            0..128 => usize::MAX,
            steps => usize::from(steps) - 127,
        },
        replay_works: true,
        ..World::default()
    };
    world.connect();
    for step in steps.chunks_exact(2) {
        world.step(step[0], step[1]);
    }
    world.replay_works = true;
    world.connect();
    world.check();
    assert!(world.tracker.is_complete(), "{world:?}");
    if world.buffer_steps == usize::MAX {
        assert_eq!(world.sink, world.held, "{world:?}");
    } else {
        assert!(world.sink.is_subset(&world.held), "{world:?}");
    }
});
