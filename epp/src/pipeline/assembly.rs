//! Builds a pool: from what the operator wrote to rooms that are connected and tasks that run.
//!
//! Everything that can be wrong is found here, before a port opens, and named with its pool. Once it
//! runs, changes of the files (configuration, resources, endpoints) are taken over whole or refused
//! whole.

pub mod discovery;
mod signals;
mod tokenizers;

use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;

use anyhow::Context;
use tracing::warn;

use super::event_indexes::EventIndexes;
use super::policy::{Policy, PolicyError};
use super::pool::{Pool, Rooms, Rules};
use crate::clock::{Clock, unix_nanos};
use crate::config::epc::{CONFIG_BYTES_MAX, Catalogue, LoadOptions};
use crate::config::resolved::ResolvedConfig;
use crate::config::watch::{Reload, ReloadState};
use crate::config::{PoolSettings, Settings, epc, resources};
use crate::fleet::kv_events::{KvEventCounters, KvEvents};
use crate::fleet::scrape::{ScrapeCounters, Scraper};
use crate::fleet::{Fleet, NowMs};
use crate::flow::Gate;
use crate::index::approximate::{ApproximateIndex, PickLimits};
use crate::index::{IndexLimits, PrefixIndex};
use crate::observe::Metrics;

/// A task that runs for as long as the pool does.
pub type Task = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A pool that was built, and what has to run for it.
pub struct Assembled {
    pub pool: Arc<Pool>,
    pub tasks: Vec<Task>,
    /// Turns true once the endpoints were read for the first time.
    pub first_pages: tokio::sync::watch::Receiver<bool>,
    pub reads: Reads,
}

impl std::fmt::Debug for Assembled {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Assembled")
            .field("pool", &self.pool.name)
            .finish_non_exhaustive()
    }
}

/// Counts over all pools.
#[derive(Clone, Default, Debug)]
pub struct Counts {
    pub scrapes: Arc<ScrapeCounters>,
    pub kv_events: Arc<KvEventCounters>,
}

/// What is read off a pool's parts for the pages.
#[derive(Clone, Debug)]
pub struct Reads {
    /// Of the configuration file, where there is one that is followed.
    pub config: Option<(PathBuf, Arc<ReloadState>)>,
    /// Milliseconds since 1970.
    pub loaded_at_unix_ms: u64,
}

/// What the process gives to each pool.
#[derive(Clone, Copy, Debug)]
pub struct Process<'a> {
    pub settings: &'a Settings,
    pub catalogue: &'a Arc<Catalogue>,
    pub metrics: &'a Arc<Metrics>,
    pub clock: &'a Clock,
    pub counts: &'a Counts,
}

/// Builds a pool. Endpoints that are known at once are applied before it returns.
pub fn assemble(process: &Process<'_>, wanted: &PoolSettings) -> anyhow::Result<Assembled> {
    build(process, wanted).with_context(|| format!("pool {:?}", wanted.name))
}

fn build(process: &Process<'_>, wanted: &PoolSettings) -> anyhow::Result<Assembled> {
    let Process {
        settings,
        catalogue,
        metrics,
        clock,
        counts,
    } = *process;
    let options = LoadOptions {
        allow_experimental: settings.allow_experimental_plugins,
    };
    let loaded = wanted.config.load(catalogue, &options)?;
    for warning in &loaded.config.warnings {
        warn!(pool = wanted.name, "{warning}");
    }
    let policy = policy(loaded.config, settings)?;
    let tokens = tokenizers::load(&wanted.tokenizers, &policy, clock)?;
    let now: NowMs = Arc::new({
        let clock = clock.clone();
        move || clock.now_ms()
    });
    let fleet = Fleet::new();
    let (events_port, replay_port) = signals::kv_ports(&policy)?;
    fleet.set_kv_ports(events_port, replay_port);
    let mut tasks = discovery::start(wanted, &policy, &fleet)?;
    let scraper = Scraper::new(
        Arc::clone(&fleet),
        signals::scrape_options(&policy, settings)?,
        Arc::clone(&now),
    )?
    .with_counters(Arc::clone(&counts.scrapes));
    let index = Arc::new(PrefixIndex::new(IndexLimits::default()));
    let approximate = Arc::new(ApproximateIndex::new(PickLimits::default()));
    let indexes = EventIndexes {
        precise: Arc::clone(&index),
        approximate: Arc::clone(&approximate),
    };
    let kv_events = KvEvents::new(Arc::clone(&fleet), Arc::new(indexes), "", now)?
        .with_counters(Arc::clone(&counts.kv_events));
    let first_pages = scraper.first_pages();
    let rooms = Rooms {
        fleet: Arc::clone(&fleet),
        index: Arc::clone(&index),
        approximate: Arc::clone(&approximate),
        tokens,
    };
    let latency = signals::latency_options(&policy)?;
    let pool = Pool::connect(&wanted.name, rooms, policy, latency, metrics, clock);
    let gate = pool.gate.clone();
    tasks.push(Box::pin(scraper.run()));
    tasks.push(Box::pin(kv_events.run()));
    tasks.push(Box::pin(
        Arc::clone(&approximate).follow(Arc::clone(&fleet)),
    ));
    tasks.push(Box::pin(index.keep_reclaiming()));
    tasks.push(Box::pin(gate.timer()));
    tasks.push(Box::pin(wake_on_pages(fleet, gate)));
    let mut assembled = Assembled {
        pool: Arc::new(pool),
        tasks,
        first_pages,
        reads: Reads {
            config: None,
            loaded_at_unix_ms: unix_nanos() / 1_000_000,
        },
    };
    if let Some((path, text)) = loaded.followed {
        follow_config(process, &mut assembled, path, text);
    }
    follow_resources(wanted, settings.pools.len() == 1, &mut assembled)?;
    Ok(assembled)
}

/// The policy of a configuration under the process's flags.
fn policy(config: ResolvedConfig, settings: &Settings) -> Result<Policy, PolicyError> {
    let mut policy = Policy::build(config, settings.fallback_endpoints)?;
    let staleness_ms = settings.metrics_staleness_threshold.as_millis() as u64;
    policy.detector.set_idle_staleness(staleness_ms);
    Ok(policy)
}

/// A fresh page may show room. Where nothing waits, a wake costs a load.
async fn wake_on_pages(fleet: Arc<Fleet>, gate: Gate) {
    let mut membership = fleet.membership();
    loop {
        tokio::select! {
            () = fleet.page_read() => {}
            changed = membership.changed() => {
                if changed.is_err() {
                    return;
                }
            }
        }
        gate.wake();
    }
}

fn follow_config(process: &Process<'_>, assembled: &mut Assembled, path: PathBuf, text: String) {
    let label = path.display().to_string();
    let catalogue = Arc::clone(process.catalogue);
    let metrics = Arc::clone(process.metrics);
    let options = LoadOptions {
        allow_experimental: process.settings.allow_experimental_plugins,
    };
    let settings = process.settings.clone();
    let pool = Arc::clone(&assembled.pool);
    let take = move |text: &str| {
        let built = epc::load(&label, text, &catalogue, &options)
            .map_err(|errors| errors.to_string())
            .and_then(|config| policy(config, &settings).map_err(|error| error.to_string()));
        match built {
            Ok(policy) => {
                for warning in &policy.config.warnings {
                    warn!(pool = &*pool.name, "{warning}");
                }
                pool.gate.set_settings(policy.flow.clone());
                pool.policy.store(Arc::new(policy));
                pool.gate.wake();
                metrics.config_reloaded("applied");
                Ok(())
            }
            Err(error) => {
                metrics.config_reloaded("refused");
                Err(error)
            }
        }
    };
    let reload = Reload::new(path.clone(), CONFIG_BYTES_MAX, text, take);
    assembled.reads.config = Some((path, reload.state()));
    assembled.tasks.push(Box::pin(reload.run()));
}

/// The resources are those of the pool by name, or all of them where it is the only one.
fn follow_resources(
    wanted: &PoolSettings,
    is_only_pool: bool,
    assembled: &mut Assembled,
) -> anyhow::Result<()> {
    let Some(path) = &wanted.resources_file else {
        return Ok(());
    };
    let text =
        std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let label = path.display().to_string();
    let pool = Arc::clone(&assembled.pool);
    let take = move |text: &str| {
        let read = resources::parse(&label, text.as_bytes()).map_err(|error| error.to_string())?;
        for warning in &read.warnings {
            warn!(pool = &*pool.name, "{warning}");
        }
        let given = if is_only_pool {
            read.for_any_pool()
        } else {
            read.for_pool(&pool.name)
        };
        pool.rules.store(Arc::new(Rules::from(&given)));
        Ok(())
    };
    take(&text).map_err(|error: String| anyhow::anyhow!(error))?;
    let reload = Reload::new(path.clone(), resources::FILE_BYTES_MAX, text, take);
    assembled.tasks.push(Box::pin(reload.run()));
    Ok(())
}
