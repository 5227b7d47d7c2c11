//! Events: CPU time to apply them, queues drained, by one event thread and by two.

use std::hint::black_box;
use std::thread;
use std::time::Duration;

use super::{process_cpu, thread_cpu};
use crate::subject::Subject;
use crate::workload::{Event, Workload};

/// What a batch of events cost.
#[derive(Debug, Clone, Copy, Default)]
pub struct LaneCost {
    pub events: usize,
    pub stored: usize,
    pub removed: usize,
    /// Of all threads of the process: nothing else runs meanwhile.
    pub cpu: Duration,
}

impl LaneCost {
    pub fn append(&mut self, other: Self) {
        self.events += other.events;
        self.stored += other.stored;
        self.removed += other.removed;
        self.cpu += other.cpu;
    }

    fn of(events: &[Event]) -> Self {
        Self {
            events: events.len(),
            stored: events.iter().map(Event::stored).sum(),
            removed: events.iter().map(Event::removed).sum(),
            cpu: Duration::ZERO,
        }
    }
}

/// Applies events on this thread and waits until they are applied.
pub fn load<S: Subject>(
    subject: &S,
    lane: &mut S::Lane,
    workload: &Workload,
    events: &[Event],
) -> LaneCost {
    let mut payloads: Vec<S::Payload> = events
        .iter()
        .map(|event| S::payload(workload, event))
        .collect();
    let start = process_cpu();
    for payload in &mut payloads {
        subject.apply(lane, payload);
    }
    subject.drain();
    LaneCost {
        cpu: process_cpu().saturating_sub(start),
        ..LaneCost::of(events)
    }
}

/// As [`load`], for the events that take everything out again.
pub fn unload<S: Subject>(
    subject: &S,
    lane: &mut S::Lane,
    workload: &Workload,
    events: &[Event],
) -> LaneCost {
    let cost = load(subject, lane, workload, events);
    subject.maintain();
    cost
}

/// Applies events on two threads, each those of half of the workers.
pub fn load_with_two_lanes<S: Subject>(workload: &Workload, events: &[Event]) -> LaneCost {
    let subject = S::new(workload.workers, 2);
    let mut lanes: Vec<(S::Lane, Vec<S::Payload>)> = (0..2)
        .map(|lane| {
            let mine = events.iter().filter(|event| event.worker % 2 == lane);
            let payloads = mine.map(|event| S::payload(workload, event)).collect();
            (subject.lane(), payloads)
        })
        .collect();
    let start = process_cpu();
    thread::scope(|scope| {
        for (lane, payloads) in &mut lanes {
            let subject = &subject;
            scope.spawn(move || {
                for payload in payloads {
                    subject.apply(lane, payload);
                }
            });
        }
    });
    subject.drain();
    LaneCost {
        cpu: process_cpu().saturating_sub(start),
        ..LaneCost::of(events)
    }
}

/// Nanoseconds to hash a prompt of 4,096 tokens for a lookup.
pub fn hash_cost<S: Subject>() -> f64 {
    const ROUNDS: u32 = 4_000;
    let tokens: Vec<u32> = (0..4_096)
        .map(|place: u32| place.wrapping_mul(40_503) % 128_000)
        .collect();
    let mut prompt = S::Prompt::default();
    let start = thread_cpu();
    for _ in 0..ROUNDS {
        black_box(S::hash(black_box(&tokens), &mut prompt));
    }
    thread_cpu().saturating_sub(start).as_nanos() as f64 / f64::from(ROUNDS)
}
