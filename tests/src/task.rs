//! A tokio task that ends with its handle, so that nothing a test started outlives the test, even when it panics.

use tokio::task::JoinHandle;

/// Aborts the task when dropped.
#[derive(Debug)]
pub struct Task(JoinHandle<()>);

impl Task {
    pub fn spawn(future: impl Future<Output = ()> + Send + 'static) -> Self {
        Self(tokio::spawn(future))
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}
