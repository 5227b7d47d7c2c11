//! Reads each endpoint's `/metrics` page: one task and one kept-alive connection an endpoint.
//!
//! The page is read into a buffer that the task keeps, and scanned in place by
//! [`exposition`](super::exposition); how often is decided by [`pace`](super::pace). A failing
//! endpoint keeps its last signals, which age, and is marked unhealthy once it is sure.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;
use tracing::{debug, info, warn};

use super::NowMs;
use super::endpoint::Endpoint;
use super::exposition::{ENGINE_TYPE_LABEL, EngineSeries, engine_series, read_signals};
use super::http::{FetchError, WorkerClient};
use super::live::LiveCell;
use super::pace::{Intervals, Pace, jittered};
use super::shell::Fleet;
use super::tasks::{PerEndpoint, follow};

/// Pages above this size are refused. Real ones have some tens of KiB.
const PAGE_BYTES_MAX: usize = 4 << 20;
/// How long one read may take, connecting included.
const TIMEOUT: Duration = Duration::from_secs(1);
/// Least time between a page and one that a request's arrival asks for. An endpoint that is busy
/// for moments only would otherwise be read once a request.
const WAKE_FLOOR: Duration = Duration::from_millis(20);

/// Counts of all endpoints since the start.
#[derive(Debug, Default)]
pub struct ScrapeCounters {
    pub pages: AtomicU64,
    /// Nobody listens, or no answer in time, or a broken transfer.
    pub errors: AtomicU64,
    /// Pages that are too large or lack the engine's series.
    pub unreadable: AtomicU64,
}

/// Why a page gave no signals.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
enum ScrapeError {
    #[error(transparent)]
    Fetch(#[from] FetchError),
    #[error(transparent)]
    Missing(#[from] super::exposition::MissingSeries),
}

/// Reads the pages of a fleet.
pub struct Scraper {
    fleet: Arc<Fleet>,
    client: WorkerClient,
    intervals: Intervals,
    now: NowMs,
    counters: Arc<ScrapeCounters>,
}

impl std::fmt::Debug for Scraper {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Scraper")
            .field("intervals", &self.intervals)
            .finish_non_exhaustive()
    }
}

impl Scraper {
    /// A scraper of `fleet` at the given intervals. `now` stamps the pages.
    pub fn new(
        fleet: Arc<Fleet>,
        intervals: Intervals,
        now: NowMs,
    ) -> Result<Self, reqwest::Error> {
        Ok(Self {
            fleet,
            client: WorkerClient::new(TIMEOUT)?,
            intervals,
            now,
            counters: Arc::default(),
        })
    }

    /// The counts, to be exported.
    pub fn counters(&self) -> Arc<ScrapeCounters> {
        Arc::clone(&self.counters)
    }

    /// Reads pages until the future is dropped.
    pub async fn run(self) {
        follow(&self.fleet, &self).await;
    }
}

impl PerEndpoint for Scraper {
    fn start(&self, endpoint: Arc<Endpoint>) -> AbortOnDropHandle<()> {
        let engine = endpoint
            .spec
            .labels
            .get(ENGINE_TYPE_LABEL)
            .map(String::as_str);
        let series = engine_series(engine);
        let cell = self.fleet.cell(endpoint.id, endpoint.generation);
        let (Some(series), Some(cell)) = (series, cell) else {
            if let Some(engine) = engine {
                warn!(
                    endpoint = endpoint.spec.name,
                    engine, "engine type not known, not scraped"
                );
            }
            return AbortOnDropHandle::new(tokio::spawn(async {}));
        };
        let reader = Reader {
            url: format!("http://{}/metrics", endpoint.spec.address),
            endpoint,
            cell,
            series,
            client: self.client.clone(),
            now: Arc::clone(&self.now),
            counters: Arc::clone(&self.counters),
            body: Vec::new(),
        };
        AbortOnDropHandle::new(tokio::spawn(reader.run(Pace::new(self.intervals))))
    }

    fn serves(&self, old: &Endpoint, new: &Endpoint) -> bool {
        let engine = |endpoint: &Endpoint| endpoint.spec.labels.get(ENGINE_TYPE_LABEL).cloned();
        old.generation == new.generation && engine(old) == engine(new)
    }

    fn ended(&self, _: &Endpoint) {}
}

/// The task of one endpoint.
struct Reader {
    endpoint: Arc<Endpoint>,
    url: String,
    cell: Arc<LiveCell>,
    series: &'static EngineSeries,
    client: WorkerClient,
    now: NowMs,
    counters: Arc<ScrapeCounters>,
    body: Vec<u8>,
}

impl Reader {
    async fn run(mut self, mut pace: Pace) {
        let mut was_busy = false;
        let mut failing = false;
        loop {
            let started = Instant::now();
            let outcome = self.read().await;
            let took = started.elapsed();
            let busy = self.cell.in_flight_requests() > 0;
            let delay = match outcome {
                Ok(()) => {
                    if std::mem::take(&mut failing) {
                        info!(endpoint = self.endpoint.spec.name, "endpoint answers");
                    }
                    pace.after_page(busy || was_busy, took)
                }
                Err(error) => {
                    let refused = matches!(error, ScrapeError::Fetch(FetchError::Connect(_)));
                    let (delay, unhealthy) = pace.after_failure(refused, took);
                    debug!(endpoint = self.endpoint.spec.name, %error, "scrape failed");
                    if unhealthy && !std::mem::replace(&mut failing, true) {
                        let endpoint = &self.endpoint.spec.name;
                        warn!(endpoint, %error, "endpoint does not answer");
                        self.cell.mark_unhealthy();
                    }
                    delay
                }
            };
            was_busy = busy;
            was_busy |= self.rest(jittered(delay, rand::random()), failing).await;
        }
    }

    /// Waits for the next turn; true when a first request ended the wait early. Requests do not
    /// hurry a failing endpoint.
    async fn rest(&self, delay: Duration, failing: bool) -> bool {
        if failing {
            tokio::time::sleep(delay).await;
            return false;
        }
        let floor = delay.min(WAKE_FLOOR);
        tokio::time::sleep(floor).await;
        tokio::select! {
            () = tokio::time::sleep(delay.saturating_sub(floor)) => false,
            () = self.cell.became_busy() => true,
        }
    }

    async fn read(&mut self) -> Result<(), ScrapeError> {
        let fetched = self
            .client
            .get(&self.url, PAGE_BYTES_MAX, &mut self.body)
            .await;
        if let Err(error) = fetched {
            let counter = match error {
                FetchError::TooLarge(_) => &self.counters.unreadable,
                _ => &self.counters.errors,
            };
            counter.fetch_add(1, Relaxed);
            return Err(error.into());
        }
        match read_signals(&self.body, self.series) {
            Ok(scraped) => {
                self.cell.record(&scraped, (self.now)());
                self.counters.pages.fetch_add(1, Relaxed);
                Ok(())
            }
            Err(missing) => {
                self.counters.unreadable.fetch_add(1, Relaxed);
                Err(missing.into())
            }
        }
    }
}

#[cfg(test)]
mod tests;
