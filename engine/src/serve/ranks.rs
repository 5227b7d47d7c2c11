//! Starts the data-parallel ranks of a worker: one engine thread each, over weights that they share.

use std::collections::BTreeMap;
use std::thread::JoinHandle;

use pointsman_proto::block_hash::BlockDigest;
use pointsman_proto::kv_events::{Event, Form, HashForm};
use tracing::{info, warn};

use super::ServeError;
use super::simulation::Simulation;
use super::warm_up::WarmedUp;
use crate::backend::Backend;
use crate::export::kv_events::{self, KvEventsConfig, Source};
use crate::export::metrics::{MetricsObserver, MetricsPage};
use crate::flags::{EventForm, Flags};
use crate::worker::{self, EventSink, Ranks, SchedulerConfig};

/// The engines of a worker, running.
pub(super) struct Engines {
    pub(super) ranks: Ranks,
    pub(super) threads: Vec<JoinHandle<()>>,
    /// Where each rank publishes its KV events; empty where none does.
    pub(super) sources: BTreeMap<String, Source>,
}

/// What every rank starts from.
pub(super) struct Start<'a> {
    pub(super) flags: &'a Flags,
    pub(super) config: &'a SchedulerConfig,
    pub(super) page: &'a MetricsPage,
    pub(super) simulation: Option<&'a Simulation>,
}

impl Start<'_> {
    /// Starts one rank for each observer; the first computes on `backend`, the others on backends like it.
    pub(super) async fn all(
        &self,
        backend: Box<dyn Backend>,
        observers: Vec<MetricsObserver>,
    ) -> Result<Engines, ServeError> {
        let others: Result<Vec<_>, _> = observers
            .iter()
            .skip(1)
            .map(|_| backend.another())
            .collect();
        let backends = std::iter::once(backend).chain(others?);
        let (mut handles, mut threads, mut sources) = (Vec::new(), Vec::new(), BTreeMap::new());
        for (rank, (observer, backend)) in (0..).zip(observers.into_iter().zip(backends)) {
            let (sink, source) = self.event_sink(rank).await?;
            sources.extend(source.map(|source| (rank.to_string(), source)));
            let backend = Box::new(WarmedUp(backend));
            let config = self.config.clone();
            let (handle, thread) = worker::start(config, backend, sink, Box::new(observer))?;
            handles.push(handle);
            threads.push(thread);
        }
        let mut handles = handles.into_iter();
        let first = handles.next().ok_or(ServeError::NoRank)?;
        Ok(Engines {
            ranks: Ranks::new(first, handles.collect()),
            threads,
            sources,
        })
    }

    /// Where a rank's KV events go, and what `/kv_event_sources` says of it.
    async fn event_sink(
        &self,
        rank: u32,
    ) -> Result<(Box<dyn EventSink>, Option<Source>), ServeError> {
        let flags = self.flags;
        let config = flags.kv_events_config.as_ref();
        let Some(config) = config.filter(|config| KvEventsConfig::publishes(config)) else {
            return Ok((Box::new(NoEvents), None));
        };
        if !flags.prefix_caching() {
            warn!("prefix caching is off, so there will be no kv events");
        }
        let form = match flags.kv_events_form {
            EventForm::Map => Form::Map,
            EventForm::Array => Form::Array,
        };
        let mut config = config
            .for_rank(rank)
            .map_err(kv_events::KvEventsError::from)?;
        if !flags.kv_events_int_block_hashes {
            config.hashes = HashForm::Bytes;
        }
        let lost = self.page.kv_event_batches_lost(rank);
        let (sink, source) = kv_events::start(&config, rank, form, lost).await?;
        info!(
            rank,
            endpoint = source.endpoint,
            replay_endpoint = source.replay_endpoint,
            "kv events"
        );
        let sink: Box<dyn EventSink> = match self.simulation {
            Some(simulation) => simulation.sink(Box::new(sink)),
            None => Box::new(sink),
        };
        Ok((sink, Some(source)))
    }
}

/// The sink of a worker without KV events.
struct NoEvents;

impl EventSink for NoEvents {
    fn publish(&mut self, _events: Vec<Event<BlockDigest>>) {}
}
