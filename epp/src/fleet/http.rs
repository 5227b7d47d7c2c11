//! Bounded GETs to workers: one keep-alive client for pages and small JSON answers.

use std::time::Duration;

/// Why a page could not be read.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum FetchError {
    /// Nobody listens there.
    #[error("cannot connect: {0}")]
    Connect(String),
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    #[error("status {0}")]
    Status(u16),
    #[error("the answer is larger than {0} bytes")]
    TooLarge(usize),
    #[error("{0}")]
    Transfer(String),
}

/// A client that keeps one idle connection per worker, follows no redirect and no proxy variable:
/// workers are dialled by address.
#[derive(Clone, Debug)]
pub struct WorkerClient {
    client: reqwest::Client,
    timeout: Duration,
}

impl WorkerClient {
    /// A client whose whole exchanges end within `timeout`. Fails where the TLS set-up of the
    /// process does.
    pub fn new(timeout: Duration) -> Result<Self, reqwest::Error> {
        // The client is built with TLS support even though workers are read in the clear, and takes
        // the process's provider; where another part installed one already, that one stays.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = reqwest::Client::builder()
            .timeout(timeout)
            .connect_timeout(timeout)
            .pool_max_idle_per_host(1)
            .http1_only()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .build()?;
        Ok(Self { client, timeout })
    }

    /// Reads a page into `body`, whose allocation is reused. A body of more than `bytes_max` is
    /// refused.
    pub async fn get(
        &self,
        url: &str,
        bytes_max: usize,
        body: &mut Vec<u8>,
    ) -> Result<(), FetchError> {
        body.clear();
        let mut response = self
            .client
            .get(url)
            .send()
            .await
            .map_err(|error| self.classify(&error))?;
        if !response.status().is_success() {
            return Err(FetchError::Status(response.status().as_u16()));
        }
        while let Some(chunk) = response
            .chunk()
            .await
            .map_err(|error| self.classify(&error))?
        {
            if body.len() + chunk.len() > bytes_max {
                return Err(FetchError::TooLarge(bytes_max));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(())
    }

    fn classify(&self, error: &reqwest::Error) -> FetchError {
        if error.is_timeout() {
            FetchError::Timeout(self.timeout)
        } else if error.is_connect() {
            FetchError::Connect(error.to_string())
        } else {
            FetchError::Transfer(error.to_string())
        }
    }
}
