//! Holding the scheduler still, so that weights or KV memory can change under it.
//!
//! Two kinds, as vLLM has them: either nothing is computed at all, or what runs goes on to its end and only nobody new
//! begins. Requests may be added all the while; they wait, within the bounds of the queue.

use super::Scheduler;

/// How still a paused scheduler holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pause {
    /// Requests that run go on; nobody who waits is admitted.
    Admission,
    /// No step is formed.
    Everything,
}

impl Scheduler {
    /// Holds still from the next step on, until [`Scheduler::resume`]. A second call replaces the first.
    pub fn pause(&mut self, pause: Pause) {
        self.paused = Some(pause);
    }

    /// Goes on as if nothing had been.
    pub fn resume(&mut self) {
        self.paused = None;
    }

    /// Whether and how the scheduler holds still.
    pub fn paused(&self) -> Option<Pause> {
        self.paused
    }

    /// Whether a step can be formed: some request is alive, and no pause is in its way.
    pub fn has_work(&self) -> bool {
        match self.paused {
            None => !self.is_empty(),
            Some(Pause::Admission) => !self.running.is_empty(),
            Some(Pause::Everything) => false,
        }
    }

    /// Sends every running request back to waiting, so that nobody holds a block. Between two steps only.
    pub fn preempt_all(&mut self) {
        while self.preempt_last().is_some() {}
    }
}
