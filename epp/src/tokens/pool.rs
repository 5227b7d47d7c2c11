//! Work that is too long for an async thread, on a bounded number of blocking ones.
//!
//! Two bounds: how much work runs at once, and how much may be admitted, running or waiting. What
//! comes on top is refused at once rather than queued, because whoever asks can go on without the
//! result. Work that was admitted is done even if its asker stops waiting at the deadline: its
//! result is remembered for the next one. Its place is given back when it is done, not when its
//! asker leaves, so late work cannot pile up behind the deadline.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;

/// Why there is no result.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PoolError {
    #[error("too much work is waiting")]
    Full,
    #[error("the work took too long")]
    Deadline,
    #[error("the work failed: {0}")]
    Panicked(String),
}

/// See the module.
#[derive(Debug)]
pub struct Pool {
    admitted: Arc<Semaphore>,
    running: Arc<Semaphore>,
    deadline: Duration,
}

impl Pool {
    /// A pool that runs up to `running_max` works at once and lets `waiting_max` more wait.
    pub fn new(running_max: usize, waiting_max: usize, deadline: Duration) -> Self {
        Self {
            admitted: Arc::new(Semaphore::new(running_max + waiting_max)),
            running: Arc::new(Semaphore::new(running_max)),
            deadline,
        }
    }

    /// The result of `work`, if it is there before the deadline. Waiting for a place to run counts.
    pub async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, PoolError> {
        let admission = Arc::clone(&self.admitted)
            .try_acquire_owned()
            .map_err(|_| PoolError::Full)?;
        let running = Arc::clone(&self.running);
        let done = tokio::spawn(async move {
            // Nobody closes the semaphore, so there is always a permit in the end.
            let permit = running.acquire_owned().await;
            let result = tokio::task::spawn_blocking(work).await;
            drop((permit, admission));
            result
        });
        match tokio::time::timeout(self.deadline, done).await {
            Ok(Ok(Ok(result))) => Ok(result),
            Ok(Ok(Err(error)) | Err(error)) => Err(PoolError::Panicked(error.to_string())),
            Err(_) => Err(PoolError::Deadline),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    const LONG: Duration = Duration::from_mins(1);

    #[tokio::test]
    async fn results_come_back_and_panics_do_not_spread() {
        let pool = Pool::new(1, 0, LONG);
        assert_eq!(pool.run(|| 7).await, Ok(7));
        let failed = pool.run(|| panic!("no words")).await;
        assert!(
            matches!(failed, Err::<(), _>(PoolError::Panicked(_))),
            "{failed:?}"
        );
        assert_eq!(pool.run(|| 8).await, Ok(8), "the place was given back");
    }

    #[tokio::test]
    async fn what_is_admitted_is_done_after_its_deadline_and_keeps_its_place_until_then() {
        let pool = Pool::new(1, 1, Duration::ZERO);
        let (release, held) = mpsc::sync_channel::<()>(1);
        let (tell, told) = tokio::sync::oneshot::channel();
        assert_eq!(
            pool.run(move || held.recv()).await,
            Err(PoolError::Deadline)
        );
        // The second waits for the first to end, and is done although nobody waits for it.
        assert_eq!(
            pool.run(move || tell.send(7)).await,
            Err(PoolError::Deadline)
        );
        assert_eq!(pool.run(|| 9).await, Err(PoolError::Full));
        release.send(()).unwrap();
        assert_eq!(told.await, Ok(7));
    }
}
