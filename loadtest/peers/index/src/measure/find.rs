//! Lookups: alone, by two threads, and while another thread applies events at full speed.
//!
//! Before each timed call the prompt's hashes are copied into a buffer, as they would be fresh from
//! hashing, and the scores are cleared. What is timed is the lookup and the writing of its answer
//! into an array by worker.

use std::hint::black_box;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::{Latencies, Timer, thread_cpu};
use crate::subject::Subject;
use crate::workload::{Event, Span, Workload};

/// Events that the writer applies before it waits for the subject to have applied them: a bound on
/// the queue of a subject that has one.
const EVENTS_IN_FLIGHT: usize = 512;

/// What lookups cost while nothing else happens.
#[derive(Debug, Default)]
pub struct Quiet {
    pub latencies: Latencies,
    pub lookups: usize,
    pub cpu: Duration,
}

impl Quiet {
    pub fn append(&mut self, other: Self) {
        self.latencies.append(other.latencies);
        self.lookups += other.lookups;
        self.cpu += other.cpu;
    }
}

/// Asks every prompt of a stage on `threads` threads: once timed call by call, and once more for
/// CPU time, from which the same loop without the lookup is subtracted.
pub fn quiet<S: Subject>(
    subject: &S,
    workload: &Workload,
    prompts: &[Span],
    timer: Timer,
    threads: usize,
) -> Quiet {
    let mut all = Quiet::default();
    thread::scope(|scope| {
        let readers: Vec<_> = (0..threads)
            .map(|first| {
                let mine = prompts.iter().skip(first).step_by(threads);
                scope.spawn(move || quiet_reader(subject, workload, &mine, timer))
            })
            .collect();
        for reader in readers {
            all.append(reader.join().expect("a reader does not panic"));
        }
    });
    all
}

fn quiet_reader<'a, S: Subject>(
    subject: &S,
    workload: &Workload,
    prompts: &(impl Iterator<Item = &'a Span> + Clone),
    timer: Timer,
) -> Quiet {
    let mut prompt = S::Prompt::default();
    let mut scores = vec![0; workload.workers as usize];
    let mut quiet = Quiet::default();
    // Threads and buffers live long in a router: what their first lookup sets up is not timed.
    if let Some(last) = prompts.clone().last() {
        S::ask(workload, workload.ids(last), &mut prompt);
        subject.find(&mut prompt, &mut scores);
    }
    for asked in prompts.clone() {
        S::ask(workload, workload.ids(asked), &mut prompt);
        scores.fill(0);
        timer.time(&mut quiet.latencies, || {
            subject.find(&mut prompt, black_box(&mut scores));
        });
        quiet.lookups += 1;
    }
    let mut pass = |lookups: bool| {
        let start = thread_cpu();
        for asked in prompts.clone() {
            S::ask(workload, workload.ids(asked), &mut prompt);
            scores.fill(0);
            if lookups {
                subject.find(&mut prompt, black_box(&mut scores));
            } else {
                black_box((&mut prompt, &mut scores));
            }
        }
        thread_cpu().saturating_sub(start)
    };
    let with = pass(true);
    let without = pass(false);
    quiet.cpu = with.saturating_sub(without);
    quiet
}

/// What lookups cost while events are applied, and how fast those were.
#[derive(Debug, Default)]
pub struct Busy {
    pub latencies: Latencies,
    pub events: usize,
    pub elapsed: Duration,
}

impl Busy {
    pub fn append(&mut self, other: Self) {
        self.latencies.append(other.latencies);
        self.events += other.events;
        self.elapsed += other.elapsed;
    }
}

/// Asks prompts over and over on this thread until another has applied all `events`.
pub fn busy<'a, S: Subject>(
    subject: &S,
    lane: &mut S::Lane,
    workload: &Workload,
    prompts: &[Span],
    events: impl Iterator<Item = &'a Event>,
    timer: Timer,
) -> Busy {
    let mut payloads: Vec<S::Payload> = events.map(|event| S::payload(workload, event)).collect();
    let mut busy = Busy {
        events: payloads.len(),
        ..Busy::default()
    };
    let done = AtomicBool::new(false);
    let mut prompt = S::Prompt::default();
    let mut scores = vec![0; workload.workers as usize];
    thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let start = Instant::now();
            for in_flight in payloads.chunks_mut(EVENTS_IN_FLIGHT) {
                for payload in in_flight {
                    subject.apply(lane, payload);
                }
                subject.drain();
            }
            done.store(true, Ordering::Release);
            start.elapsed()
        });
        for asked in prompts.iter().cycle() {
            if done.load(Ordering::Acquire) {
                break;
            }
            S::ask(workload, workload.ids(asked), &mut prompt);
            scores.fill(0);
            timer.time(&mut busy.latencies, || {
                subject.find(&mut prompt, black_box(&mut scores));
            });
        }
        busy.elapsed = writer.join().expect("the writer does not panic");
    });
    busy
}
