//! Live bytes: after the workload, and after everything was removed again.

use crate::allocator;
use crate::subject::Subject;
use crate::workload::{Event, Workload};

/// Stages after which a subject's background work is due: five minutes of the trace.
const STAGES_A_MAINTENANCE: usize = 32;

/// Live bytes of one subject.
#[derive(Debug, Clone, Copy)]
pub struct Memory {
    pub loaded_bytes: usize,
    pub emptied_bytes: usize,
}

/// Plays a workload to a fresh subject, then `teardown`, and counts what it keeps.
pub fn memory<S: Subject>(workload: &Workload, teardown: &[Event]) -> Memory {
    allocator::start();
    let subject = S::new(workload.workers, 1);
    let mut lane = subject.lane();
    for (index, stage) in workload.stages.iter().enumerate() {
        play(&subject, &mut lane, workload, &stage.events);
        if (index + 1) % STAGES_A_MAINTENANCE == 0 {
            subject.maintain();
        }
    }
    let loaded_bytes = allocator::live_bytes();
    play(&subject, &mut lane, workload, teardown);
    subject.maintain();
    let emptied_bytes = allocator::live_bytes();
    drop(lane);
    drop(subject);
    allocator::stop();
    Memory {
        loaded_bytes,
        emptied_bytes,
    }
}

/// Applies events one by one, so that a queue of them never weighs in.
fn play<S: Subject>(subject: &S, lane: &mut S::Lane, workload: &Workload, events: &[Event]) {
    for events in events.chunks(512) {
        for event in events {
            subject.apply(lane, &mut S::payload(workload, event));
        }
        subject.drain();
    }
}
