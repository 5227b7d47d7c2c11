//! The worker's Prometheus page, under vLLM's series names.
//!
//! The gauges are what endpoint pickers steer by, so they are set after every turn of the engine's loop, not
//! sampled by a timer; requests that are submitted but not yet seen by the engine thread are added when the page
//! is written, so that a burst shows at once. Counters that the engine keeps itself are copied, not counted again:
//! the page and [`Stats`] can never disagree.
//!
//! Every series of the engine is there from the start, so that a rate over it has a first value. The page has no
//! `_created` series: they double its length, and nobody reads them.

mod buckets;
mod cells;
mod http;
mod observer;
mod page;
mod rank;
mod samples;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::RwLock;
use pointsman_proto::series;

use crate::worker::Stats;
pub use cells::{Counter, Gauge, Histogram, Summary};
use http::HttpSeries;
pub use http::Served;
pub use observer::MetricsObserver;
use page::{Labels, Page};
use rank::RankSeries;

/// Counter of KV-event batches that were dropped because the publisher was behind.
const KV_EVENT_BATCHES_LOST: &str = "pointsman:kv_event_batches_lost_total";
/// Counter of ended requests whose span or log line was dropped because its writer was behind.
const REQUEST_RECORDS_LOST: &str = "pointsman:request_records_lost_total";
/// Gauge: seconds that each part of the start took.
const START_SECONDS: &str = "pointsman:start_seconds";
/// Histogram as vLLM's of nearly the same name, with buckets below 10 ms.
const INTER_TOKEN_LATENCY_SECONDS: &str = "pointsman:inter_token_latency_seconds";
/// Histogram of the time of a step.
const STEP_DURATION_SECONDS: &str = "pointsman:step_duration_seconds";

/// What stands on the page from the start and does not change.
#[derive(Debug, Clone, Default)]
pub struct Identity {
    /// The served model's name, a label of every series of the engine.
    pub model: String,
    /// Data-parallel ranks; at least 1.
    pub ranks: u32,
    /// Tokens per KV block.
    pub block_size: u32,
    /// KV blocks of each rank, the null block included, as vLLM counts them.
    pub blocks: u32,
    /// KV blocks in host memory.
    pub host_blocks: u32,
    /// Whether prompts are looked up in the prefix cache.
    pub prefix_caching: bool,
    /// The name of the block-hash recipe.
    pub hash_algorithm: String,
    /// The longest context in tokens; the upper bound of the token buckets.
    pub context_tokens: u32,
    /// Show some series under their old names, too.
    pub legacy_names: bool,
}

/// Why the queue refused a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rejection {
    /// As many requests wait as may wait.
    Requests,
    /// As many tokens wait as may wait.
    Tokens,
}

/// The page, and the series that are not an engine thread's. Cheap to clone.
#[derive(Debug, Clone)]
pub struct MetricsPage(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    page: RwLock<Page>,
    ranks: Vec<RankSeries>,
    http: HttpSeries,
    lora: Gauge,
    rejected_requests: Counter,
    rejected_tokens: Counter,
    request_records_lost: Counter,
    /// Bytes of the latest page: the next one is about as long.
    length: AtomicUsize,
}

impl MetricsPage {
    /// The text of the page. For each rank, its numbers and how many requests are submitted and not yet in them.
    pub fn render(&self, ranks: impl IntoIterator<Item = (Stats, u32)>) -> String {
        let shared = &*self.0;
        for (series, (stats, unseen)) in shared.ranks.iter().zip(ranks) {
            let waiting = f64::from(stats.waiting.saturating_add(unseen));
            series.waiting.set(waiting);
            let deferred = f64::from(stats.waiting_deferred);
            series
                .waiting_for_capacity
                .set((waiting - deferred).max(0.0));
            series.waiting_deferred.set(deferred);
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        shared.lora.set(now.unwrap_or_default().as_secs_f64());
        let mut text = String::with_capacity(shared.length.load(Ordering::Relaxed) + 1024);
        shared.page.read().render(&mut text);
        shared.length.store(text.len(), Ordering::Relaxed);
        text
    }

    /// Counts a request that was refused at the door.
    pub fn rejected(&self, by: Rejection) {
        match by {
            Rejection::Requests => self.0.rejected_requests.increment(1),
            Rejection::Tokens => self.0.rejected_tokens.increment(1),
        }
    }

    /// Counts an HTTP request that was answered.
    pub fn served(&self, served: &Served<'_>) {
        self.0.http.record(served, &self.0.page);
    }

    /// Counts a prompt whose choices have all ended: how many there were, and the tokens of the longest.
    pub fn answered(&self, rank: u32, choices: usize, longest: u32) {
        if let Some(series) = self.0.ranks.get(rank as usize) {
            series.requests.answered(choices, longest);
        }
    }

    /// Notes at which level the worker sleeps; 0 is awake.
    pub fn sleep_level(&self, level: u8) {
        for series in &self.0.ranks {
            for (state, gauge) in series.sleep.iter().enumerate() {
                let is_state = state == usize::from(level.min(2));
                gauge.set(f64::from(u8::from(is_state)));
            }
        }
    }

    /// Notes how long a part of the start took.
    pub fn start_took(&self, part: &str, took: Duration) {
        let labels = Labels::default().and("part", part);
        let help = "Seconds of the start by part.";
        let gauge = self.0.page.write().gauge(START_SECONDS, help, &labels);
        gauge.set(took.as_secs_f64());
    }

    /// The counter of a rank's KV-event batches that were dropped unsent.
    pub fn kv_event_batches_lost(&self, rank: u32) -> Counter {
        let series = self.0.ranks.get(rank as usize);
        series.map_or_else(Counter::default, |series| {
            series.kv_event_batches_lost.clone()
        })
    }

    /// The counter of ended requests of which no span was sent and no line logged.
    pub fn request_records_lost(&self) -> Counter {
        self.0.request_records_lost.clone()
    }
}

/// Registers every series; an observer for each rank.
pub fn build(identity: &Identity) -> (MetricsPage, Vec<MetricsObserver>) {
    let mut page = Page::default();
    let ranks: Vec<RankSeries> = (0..identity.ranks.max(1))
        .map(|rank| {
            cache_config(&mut page, identity, rank);
            RankSeries::new(&mut page, identity, rank)
        })
        .collect();
    let observers = ranks.iter().cloned().map(MetricsObserver::new).collect();
    let rejected = |page: &mut Page, reason| {
        let labels = Labels::default()
            .and(series::MODEL_NAME, &identity.model)
            .and(series::REASON, reason);
        let help = "Requests refused because the queue was full.";
        page.counter(series::ADMISSION_REJECTIONS, help, &labels)
    };
    let shared = Shared {
        ranks,
        rejected_requests: rejected(&mut page, "max_num_queued_reqs"),
        rejected_tokens: rejected(&mut page, "max_num_queued_tokens"),
        lora: lora(&mut page),
        request_records_lost: page.counter(
            REQUEST_RECORDS_LOST,
            "Ended requests without a span or a log line, because too many ended at once.",
            &Labels::default(),
        ),
        http: HttpSeries::new(&mut page),
        length: AtomicUsize::new(0),
        page: RwLock::new(page),
    };
    (MetricsPage(Arc::new(shared)), observers)
}

/// `cache_config_info` is always 1 and says everything in its labels. Python's spelling of booleans, and of values
/// that are not set, is part of the contract.
fn cache_config(page: &mut Page, identity: &Identity, rank: u32) {
    let block_size = identity.block_size;
    // The null block holds no tokens.
    let size_tokens = u64::from(identity.blocks.saturating_sub(1)) * u64::from(block_size);
    let concurrency = size_tokens as f64 / f64::from(identity.context_tokens.max(1));
    let prefix_caching = if identity.prefix_caching {
        "True"
    } else {
        "False"
    };
    let host_blocks = match identity.host_blocks {
        0 => "None".to_owned(),
        blocks => blocks.to_string(),
    };
    let labels = Labels::default()
        .and(series::BLOCK_SIZE, block_size)
        .and("cache_dtype", "auto")
        .and("cache_hit_alignment_tokens", block_size)
        .and("enable_prefix_caching", prefix_caching)
        // The memory is set in bytes or blocks, not as a share of a device.
        .and("gpu_memory_utilization", "None")
        .and("hash_block_size", block_size)
        .and("kv_cache_max_concurrency", format_args!("{concurrency:.2}"))
        .and("kv_cache_size_tokens", size_tokens)
        .and("num_cpu_blocks", host_blocks)
        .and(series::NUM_GPU_BLOCKS, identity.blocks)
        .and("prefix_caching_hash_algo", &identity.hash_algorithm)
        .and(series::ENGINE, rank);
    let help = "Always 1; the labels say how the KV cache is cut.";
    page.gauge(series::CACHE_CONFIG_INFO, help, &labels)
        .set(1.0);
}

/// No adapters: pickers of the field still look for the series, and read "nothing runs" from it.
fn lora(page: &mut Page) -> Gauge {
    let labels = Labels::default()
        .and(series::MAX_LORA, 0)
        .and(series::RUNNING_LORA_ADAPTERS, "")
        .and(series::WAITING_LORA_ADAPTERS, "");
    let help = "Adapters that run and wait, in the labels; the value is the time of the page.";
    page.gauge(series::LORA_REQUESTS_INFO, help, &labels)
}
