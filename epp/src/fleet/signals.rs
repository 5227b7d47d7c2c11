//! An endpoint's signals from its page.
//!
//! A page may hold several engines (data-parallel ranks) and models. Counts are summed over them, as
//! they share the endpoint; usage is their mean. What an engine is known to export must be there;
//! cache information and adapters are optional, because queues and usage are of use without them.
//!
//! Adapters are not read with every page: they stand in labels as lists of names and change seldom,
//! so the page's reader gets the sample and a fingerprint of its labels, and builds the lists when
//! the fingerprint is another one.

use xxhash_rust::xxh3::xxh3_64;

use pointsman_proto::series;

use super::endpoint::Adapters;
use super::engines::{EngineSeries, SIGNALS, Signal};
use super::exposition::{Sample, samples, unescaped};
use super::live::Scraped;

/// Adapters in one list; those beyond are left out. Engines hold some tens.
pub const ADAPTERS_MAX: usize = 1024;

/// What a page says.
#[derive(Clone, Copy, Debug)]
pub struct Reading<'page> {
    pub scraped: Scraped,
    /// `None` where the page lists no adapters.
    pub adapters: Option<AdapterSample<'page>>,
}

/// A page that is not that of the expected engine.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the page has no series {0}")]
pub struct MissingSeries(pub String);

/// Reads the signals off a page. Allocates only to say what is missing.
pub fn read_signals<'page>(
    page: &'page [u8],
    engine: &EngineSeries,
) -> Result<Reading<'page>, MissingSeries> {
    let mut gauges = [Gauge::default(); SIGNALS];
    let mut scraped = Scraped::default();
    let mut adapters: Option<AdapterSample<'page>> = None;
    for sample in samples(page) {
        for (signal, spec) in engine.wanted() {
            if !spec.matches(&sample) {
                continue;
            }
            match signal {
                Signal::CacheInfo => add_cache_info(&sample, engine, &mut scraped),
                Signal::Adapters => {
                    let found = AdapterSample::new(sample);
                    let newer = |known: AdapterSample<'_>| known.changed_at <= found.changed_at;
                    if adapters.is_none_or(newer) {
                        adapters = Some(found);
                    }
                }
                _ => gauges[*signal as usize].add(&sample),
            }
        }
    }
    for signal in [Signal::Waiting, Signal::Running, Signal::KvUsage] {
        if let Some(spec) = engine
            .spec(signal)
            .filter(|_| gauges[signal as usize].samples == 0)
        {
            return Err(MissingSeries(spec.to_string()));
        }
    }
    let gauge = |signal: Signal| gauges[signal as usize];
    // A float converts to the nearest u32, so that a negative or absurd gauge stays in range.
    scraped.waiting = gauge(Signal::Waiting).sum as u32;
    scraped.running = gauge(Signal::Running).sum as u32;
    scraped.kv_usage = gauge(Signal::KvUsage).mean().clamp(0.0, 1.0) as f32;
    if gauge(Signal::BlockSize).samples > 0 {
        scraped.block_size = gauge(Signal::BlockSize).mean() as u32;
    }
    if gauge(Signal::Blocks).samples > 0 {
        scraped.blocks = gauge(Signal::Blocks).sum as u32;
    }
    Ok(Reading { scraped, adapters })
}

fn add_cache_info(sample: &Sample<'_>, engine: &EngineSeries, scraped: &mut Scraped) {
    let number = |label| sample.label(label)?.parse::<u32>().ok();
    scraped.block_size = number(&engine.block_size_label).unwrap_or(scraped.block_size);
    let blocks = number(&engine.blocks_label).unwrap_or(0);
    scraped.blocks = scraped.blocks.saturating_add(blocks);
}

/// The sample that lists the adapters. Of several the one that changed last counts, and of equals
/// the last one of the page: engines leave samples of earlier label values behind.
#[derive(Clone, Copy, Debug)]
pub struct AdapterSample<'page> {
    sample: Sample<'page>,
    /// Unix seconds; before all time where the value is no number.
    changed_at: f64,
}

impl<'page> AdapterSample<'page> {
    fn new(sample: Sample<'page>) -> Self {
        let changed_at = sample.value().filter(|value| !value.is_nan());
        Self {
            sample,
            changed_at: changed_at.unwrap_or(f64::NEG_INFINITY),
        }
    }

    /// Equal as long as the labels are.
    pub fn fingerprint(&self) -> u64 {
        xxh3_64(self.sample.labels_text())
    }

    /// Reads the lists.
    pub fn adapters(&self) -> Adapters {
        let max = self.sample.label(series::MAX_LORA);
        Adapters {
            max: max.and_then(|text| text.trim().parse().ok()).unwrap_or(0),
            running: self.names(series::RUNNING_LORA_ADAPTERS),
            waiting: self.names(series::WAITING_LORA_ADAPTERS),
        }
    }

    fn names(&self, label: &str) -> Vec<Box<str>> {
        let list = unescaped(self.sample.label(label).unwrap_or_default());
        list.split(',')
            .map(str::trim)
            .filter(|name| !name.is_empty())
            .take(ADAPTERS_MAX)
            .map(Box::from)
            .collect()
    }
}

/// Sum and number of the samples of one gauge. What is not a number is left out.
#[derive(Clone, Copy, Default)]
struct Gauge {
    sum: f64,
    samples: u32,
}

impl Gauge {
    fn add(&mut self, sample: &Sample<'_>) {
        if let Some(value) = sample.value().filter(|value| value.is_finite()) {
            self.sum += value;
            self.samples += 1;
        }
    }

    /// 0 without samples.
    fn mean(self) -> f64 {
        self.sum / f64::from(self.samples.max(1))
    }
}

#[cfg(test)]
mod tests;
