//! Reads each endpoint's `/metrics` page: one task and one kept-alive connection an endpoint.
//!
//! The page is read into a buffer that the task keeps, and scanned in place by
//! [`exposition`](super::exposition); how often is decided by [`pace`](super::pace). A failing
//! endpoint keeps its last signals, which age, and is marked unhealthy once it is sure. Adapters are
//! handed over only when their labels are not those of the page before.

mod first_pages;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;
use tracing::{debug, info, warn};

use self::first_pages::FirstPages;
use super::NowMs;
use super::endpoint::{Adapters, Endpoint};
use super::engines::{EngineSeries, EngineTable};
use super::http::{ClientError, FetchError, WorkerClient, WorkerTls};
use super::live::LiveCell;
use super::pace::{Intervals, Pace, jittered};
use super::shell::Fleet;
use super::signals::{MissingSeries, read_signals};
use super::tasks::{PerEndpoint, follow};

/// Pages above this size are refused. Real ones have some tens of KiB.
const PAGE_BYTES_MAX: usize = 4 << 20;
/// How long one read may take, connecting included.
const TIMEOUT: Duration = Duration::from_secs(1);
/// Least time between a page and one that a request's arrival asks for. An endpoint that is busy
/// for moments only would otherwise be read once a request.
const WAKE_FLOOR: Duration = Duration::from_millis(20);

/// How long the start may wait for first pages. A worker that takes longer to say anything is not
/// one to send requests to first.
const FIRST_PAGES_BOUND: Duration = Duration::from_secs(2);

/// What to read, where and how often.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ScrapeOptions {
    /// Under which names each kind of engine exports its signals.
    pub series: Arc<EngineTable>,
    pub scheme: Scheme,
    /// Of the page, with the leading slash.
    pub path: String,
    /// Where the page is not at the port of inference. The same for every endpoint, so ranks of one
    /// address cannot be told apart with it.
    pub port: Option<u16>,
    pub tls: WorkerTls,
    pub intervals: Intervals,
}

impl Default for ScrapeOptions {
    fn default() -> Self {
        Self {
            series: Arc::default(),
            scheme: Scheme::Http,
            path: "/metrics".to_owned(),
            port: None,
            tls: WorkerTls::default(),
            intervals: Intervals::default(),
        }
    }
}

impl ScrapeOptions {
    /// Where the page of an endpoint is.
    pub fn url(&self, address: SocketAddr) -> String {
        let scheme = match self.scheme {
            Scheme::Http => "http",
            Scheme::Https => "https",
        };
        let address = SocketAddr::new(address.ip(), self.port.unwrap_or(address.port()));
        format!("{scheme}://{address}{}", self.path)
    }
}

/// How pages are transferred.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scheme {
    Http,
    Https,
}

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
    Missing(#[from] MissingSeries),
}

/// Reads the pages of a fleet.
pub struct Scraper {
    fleet: Arc<Fleet>,
    client: WorkerClient,
    options: ScrapeOptions,
    now: NowMs,
    counters: Arc<ScrapeCounters>,
    first_pages: Arc<FirstPages>,
}

impl std::fmt::Debug for Scraper {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Scraper")
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

impl Scraper {
    /// A scraper of `fleet`. `now` stamps the pages.
    pub fn new(fleet: Arc<Fleet>, options: ScrapeOptions, now: NowMs) -> Result<Self, ClientError> {
        Ok(Self {
            fleet,
            client: WorkerClient::with_tls(TIMEOUT, &options.tls)?,
            options,
            now,
            counters: Arc::default(),
            first_pages: Arc::default(),
        })
    }

    /// Turns true once every endpoint that was there when [`run`](Self::run) began has been read, has
    /// failed once or has left, and after two seconds at the latest. So a picker that becomes ready
    /// then does not pick blindly. Endpoints have to be applied to the fleet before `run`.
    pub fn first_pages(&self) -> watch::Receiver<bool> {
        self.first_pages.subscribe()
    }

    /// Counts where others count, too.
    #[must_use]
    pub fn with_counters(mut self, counters: Arc<ScrapeCounters>) -> Self {
        self.counters = counters;
        self
    }

    /// The counts, to be exported.
    pub fn counters(&self) -> Arc<ScrapeCounters> {
        Arc::clone(&self.counters)
    }

    /// Reads pages until the future is dropped.
    pub async fn run(self) {
        let members = Arc::clone(&self.fleet.membership().borrow());
        self.first_pages.begin(&members);
        let bound = async {
            tokio::time::sleep(FIRST_PAGES_BOUND).await;
            self.first_pages.give_up();
        };
        tokio::join!(follow(&self.fleet, &self), bound);
    }
}

impl PerEndpoint for Scraper {
    fn start(&self, endpoint: Arc<Endpoint>) -> AbortOnDropHandle<()> {
        let engine = self.options.series.engine(&endpoint.spec.labels);
        let series = self.options.series.series(engine);
        let cell = self.fleet.cell(endpoint.id, endpoint.generation);
        let (Some(series), Some(cell)) = (series, cell) else {
            if series.is_none() {
                let endpoint = &endpoint.spec.name;
                warn!(endpoint, engine, "engine type not known, not scraped");
            }
            self.first_pages.seen(&endpoint);
            return AbortOnDropHandle::new(tokio::spawn(async {}));
        };
        let reader = Reader {
            url: self.options.url(endpoint.spec.address),
            endpoint,
            cell,
            series: Arc::clone(series),
            fleet: Arc::clone(&self.fleet),
            client: self.client.clone(),
            now: Arc::clone(&self.now),
            counters: Arc::clone(&self.counters),
            first_pages: Arc::clone(&self.first_pages),
            body: Vec::new(),
            adapters_seen: None,
        };
        let pace = Pace::new(self.options.intervals);
        AbortOnDropHandle::new(tokio::spawn(reader.run(pace)))
    }

    fn serves(&self, old: &Endpoint, new: &Endpoint) -> bool {
        let table = &self.options.series;
        old.generation == new.generation
            && table.engine(&old.spec.labels) == table.engine(&new.spec.labels)
    }

    fn ended(&self, endpoint: &Endpoint) {
        self.first_pages.seen(endpoint);
    }
}

/// The task of one endpoint.
struct Reader {
    endpoint: Arc<Endpoint>,
    url: String,
    cell: Arc<LiveCell>,
    series: Arc<EngineSeries>,
    fleet: Arc<Fleet>,
    client: WorkerClient,
    now: NowMs,
    counters: Arc<ScrapeCounters>,
    first_pages: Arc<FirstPages>,
    body: Vec<u8>,
    /// The fingerprint of the adapter labels that were last handed over.
    adapters_seen: Option<u64>,
}

impl Reader {
    async fn run(mut self, mut pace: Pace) {
        let mut was_busy = false;
        let mut failing = false;
        loop {
            let started = Instant::now();
            let outcome = self.read().await;
            self.first_pages.seen(&self.endpoint);
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
        match read_signals(&self.body, &self.series) {
            Ok(reading) => {
                self.cell.record(&reading.scraped, (self.now)());
                self.fleet.note_page();
                self.counters.pages.fetch_add(1, Relaxed);
                let seen = reading.adapters.map(|sample| sample.fingerprint());
                if seen != self.adapters_seen {
                    self.adapters_seen = seen;
                    let adapters = reading
                        .adapters
                        .map_or_else(Adapters::default, |sample| sample.adapters());
                    let Endpoint { id, generation, .. } = *self.endpoint;
                    self.fleet.record_adapters(id, generation, adapters);
                }
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
