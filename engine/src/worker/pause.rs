//! Pausing, sleeping and waking, on the engine thread.
//!
//! A pause is asked for by one command and takes hold when nothing runs any more, at once or steps later. Whoever asked
//! is answered then. A resume in between drops the question, which its asker sees.

use tokio::sync::oneshot;
use tracing::{error, info};

use super::command::{PauseMode, Quiet, SleepError};
use super::engine::Engine;
use crate::backend::SleepLevel;
use crate::scheduler::{Finish, Pause};

impl Engine {
    /// Begins a pause. [`Engine::settle`] does the rest when the engine holds still.
    pub(super) fn pause(&mut self, mode: PauseMode, then: Quiet) {
        info!(?mode, "pausing");
        match mode {
            PauseMode::Abort => {
                let clients = self.clients.keys();
                self.leaving
                    .extend(clients.map(|number| (*number, Finish::Abort)));
                self.end();
                self.scheduler.pause(Pause::Everything);
            }
            // A pause that already holds everything still is not weakened.
            PauseMode::Wait if self.scheduler.paused() == Some(Pause::Everything) => {}
            PauseMode::Wait => self.scheduler.pause(Pause::Admission),
            PauseMode::Keep => self.scheduler.pause(Pause::Everything),
        }
        self.shared.set_paused(true);
        self.quiet.push(then);
    }

    /// Does what was to be done once the engine holds still, if it does. It is published before its asker hears of it.
    pub(super) fn settle(&mut self) {
        if self.quiet.is_empty() || self.scheduler.has_work() {
            return;
        }
        self.scheduler.pause(Pause::Everything);
        for then in std::mem::take(&mut self.quiet) {
            match then {
                Quiet::Pause { clear_cache, reply } => {
                    if clear_cache {
                        self.clear_cache();
                    }
                    self.publish_gauges();
                    tell(reply, ());
                }
                Quiet::Sleep { level, reply } => {
                    let slept = self.sleep(level);
                    self.publish_gauges();
                    tell(reply, slept);
                }
            }
        }
    }

    /// Goes on. False, and nothing changes, while the backend sleeps.
    pub(super) fn resume(&mut self) -> bool {
        if self.asleep.is_some() {
            return false;
        }
        info!("resuming");
        self.quiet.clear();
        self.scheduler.resume();
        self.shared.set_paused(false);
        true
    }

    /// Wakes the backend, if it sleeps, and goes on.
    pub(super) fn wake(&mut self) -> Result<(), SleepError> {
        if self.asleep.is_some() {
            if let Err(reason) = self.backend.wake() {
                let reason = reason.to_string();
                error!(reason, "the backend does not wake up");
                self.fail(&reason);
                return Err(SleepError::Backend(reason));
            }
            self.set_asleep(None);
        }
        self.resume();
        Ok(())
    }

    /// Empties the prefix cache whoever holds blocks; they compute their tokens again.
    pub(super) fn clear_cache(&mut self) -> bool {
        self.scheduler.preempt_all();
        let done = self.scheduler.reset_prefix_cache();
        self.publish_events();
        done
    }

    /// Puts the backend to sleep. If it cannot, the engine goes on: nobody would wake it.
    fn sleep(&mut self, level: Option<SleepLevel>) -> Result<(), SleepError> {
        if self.asleep.is_some() {
            return Err(SleepError::Asleep);
        }
        let Some(level) = level else { return Ok(()) };
        self.clear_cache();
        if let Err(reason) = self.backend.sleep(level) {
            self.resume();
            return Err(SleepError::Backend(reason.to_string()));
        }
        info!(level = level.number(), "asleep");
        self.set_asleep(Some(level));
        Ok(())
    }

    fn set_asleep(&mut self, level: Option<SleepLevel>) {
        self.asleep = level;
        self.shared.set_asleep(level);
    }
}

/// Answers; whoever asked may be gone.
pub(super) fn tell<T>(reply: oneshot::Sender<T>, answer: T) {
    if reply.send(answer).is_err() {
        tracing::debug!("nobody waits for the answer");
    }
}
