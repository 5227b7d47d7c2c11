//! Where request bodies are parsed and prompts are tokenised: on the spot if short, on the blocking pool if long.
//!
//! A megabyte of text takes about a second to tokenise. On an async thread that would hold up every stream that
//! shares the thread, so long bodies go to the blocking pool, one per core at a time. At most
//! [`WAITING_MAX`] may stand in line; one more is refused like a full queue, because that is what it is.

use std::sync::Arc;
use std::thread::available_parallelism;

use tokio::sync::Semaphore;

use super::error::ApiError;

/// Bodies up to this many bytes are handled where they arrive: at a megabyte a second, about two milliseconds.
const INLINE_BYTES_MAX: usize = 2 << 10;

/// Long bodies in line or in work; one more is answered 503.
const WAITING_MAX: usize = 1024;

/// The way into the blocking pool.
#[derive(Debug)]
pub(super) struct Intake {
    places: Arc<Semaphore>,
    workers: Arc<Semaphore>,
}

impl Intake {
    pub(super) fn new() -> Self {
        let cores = available_parallelism().map_or(1, usize::from);
        Self {
            places: Arc::new(Semaphore::new(WAITING_MAX)),
            workers: Arc::new(Semaphore::new(cores)),
        }
    }

    /// Runs `work` over a body of `bytes` bytes.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        bytes: usize,
        work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        if bytes <= INLINE_BYTES_MAX {
            return work();
        }
        let gone = |_| ApiError::internal("the worker is stopping");
        let _place = self.places.try_acquire().map_err(|_| {
            ApiError::overloaded("too many long prompts are waiting to be tokenised")
        })?;
        let worker = Arc::clone(&self.workers)
            .acquire_owned()
            .await
            .map_err(gone)?;
        let result = tokio::task::spawn_blocking(move || {
            // The permit belongs to the thread: a client that leaves does not stop the work it caused.
            let _worker = worker;
            work()
        });
        result
            .await
            .map_err(|error| ApiError::internal(format!("request intake: {error}")))?
    }
}
