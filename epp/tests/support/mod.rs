//! A picker in this process and a client that plays Envoy, so that a case is a few lines.
//!
//! [`picker_with`] makes a picker of one pool from the parts of [`made`], [`picker_of_pipeline`] one
//! of any pipeline. A [`Gateway`] is a connection to a picker, in this process or in another one, and
//! an [`EnvoyStream`] one request on it.

#![allow(dead_code, reason = "each test program uses a part of it")]
#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

pub(crate) mod envoy;

use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::extensions::filters::http::ext_proc::v3::processing_mode::BodySendMode;
use pointsman_epp::clock::Clock;
use pointsman_epp::config::epc::{self, LoadOptions};
use pointsman_epp::config::resources;
use pointsman_epp::ext_proc::health::Health;
use pointsman_epp::ext_proc::listen::{self, PortLimits};
use pointsman_epp::ext_proc::{
    Decider, LeaseLimits, Leases, Processor, StreamLimits, Watch, server,
};
use pointsman_epp::fleet::{Adapters, EndpointSpec, Fleet, Scraped, Snapshot};
use pointsman_epp::observe::Metrics;
use pointsman_epp::observe::exposition::Page;
use pointsman_epp::pipeline::assembly::Counts;
use pointsman_epp::pipeline::catalogue::catalogue;
use pointsman_epp::pipeline::status::Status;
use pointsman_epp::pipeline::{Options, Pipeline, Policy, Pool, Pools, Rooms, Rules, Shared};
use pointsman_epp::schedule::latency::LatencyOptions;
use tokio::task::JoinSet;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::transport::{Certificate, Channel, ClientTlsConfig};

#[allow(unused_imports, reason = "each test program uses a part of it")]
pub(crate) use envoy::{EnvoyStream, Gateway, refusal_header};

/// How long any one answer may take before a test fails.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a worker reports: waiting requests and KV usage.
#[derive(Clone, Copy)]
pub(crate) struct P(pub(crate) u32, pub(crate) f32);

/// A running picker.
pub(crate) struct Picker {
    pub(crate) fleet: Arc<Fleet>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) health: Health,
    /// What the pages read; only of a picker with a pipeline.
    pub(crate) status: Option<Arc<Status>>,
    /// `http://ip:port` of its ext_proc port.
    pub(crate) uri: String,
    gateway: Gateway,
    /// The gates' timers.
    timers: JoinSet<()>,
    _stop: DropGuard,
}

pub(crate) const LIMITS: StreamLimits = StreamLimits {
    max_request_body_bytes: 64 * 1024,
    max_held_bytes: 1 << 20,
    decision_timeout: Duration::from_secs(5),
};

/// A picker over workers `192.168.1.1:8000`, `192.168.1.2:8000`, ... that report these signals.
pub(crate) async fn picker(workers: &[P]) -> Picker {
    picker_with(workers, |_| {}).await
}

pub(crate) async fn picker_with(workers: &[P], adjust: impl FnOnce(&mut Made)) -> Picker {
    let mut parts = made(fleet_of(workers), Clock::monotonic());
    adjust(&mut parts);
    picker_of_pipeline(parts.pipeline()).await
}

/// A picker of this pipeline. Its fleet is the first pool's.
pub(crate) async fn picker_of_pipeline(pipeline: Pipeline) -> Picker {
    picker_within(pipeline, LIMITS).await
}

/// The same under limits of its own.
pub(crate) async fn picker_within(pipeline: Pipeline, limits: StreamLimits) -> Picker {
    let pools = Arc::clone(pipeline.pools());
    let (first, shared) = (&pools.all()[0], Arc::clone(pipeline.shared()));
    let rooms = (Arc::clone(&first.fleet), Arc::clone(&shared.metrics));
    let mut picker = serve(pipeline.clone(), limits, rooms, None).await;
    for pool in pools.all() {
        picker.timers.spawn(pool.gate.timer());
    }
    picker.status = Some(Arc::new(Status {
        leases: Leases::new(1, LeaseLimits::default(), shared.clock.clone()),
        counts: Counts::default(),
        reads: Vec::new(),
        started_ms: shared.clock.now_ms(),
        pipeline,
    }));
    picker
}

/// A picker behind this certificate, and a client that trusts it.
pub(crate) async fn picker_over_tls(
    workers: &[P],
    certificate: Arc<rustls::ServerConfig>,
    trusted_pem: &str,
) -> Picker {
    let parts = made(fleet_of(workers), Clock::monotonic());
    let (fleet, metrics) = (
        Arc::clone(&parts.pool.fleet),
        Arc::clone(&parts.shared.metrics),
    );
    let trusted = Certificate::from_pem(trusted_pem);
    let client = ClientTlsConfig::new()
        .domain_name("localhost")
        .ca_certificate(trusted);
    serve(
        parts.pipeline(),
        LIMITS,
        (fleet, metrics),
        Some((certificate, client)),
    )
    .await
}

/// A picker with any decider behind the stream.
pub(crate) async fn picker_of(decider: impl Decider, limits: StreamLimits) -> Picker {
    serve(
        decider,
        limits,
        (Fleet::new(), Arc::new(Metrics::new())),
        None,
    )
    .await
}

/// What a picker is made of, for a test to change.
pub(crate) struct Made {
    pub(crate) shared: Shared,
    pub(crate) pool: Pool,
}

/// A pool over a fleet, under the configuration that runs without one.
pub(crate) fn pool(name: &str, fleet: Arc<Fleet>, metrics: &Arc<Metrics>, clock: &Clock) -> Pool {
    let policy = Policy::field_default(0).unwrap();
    let latency = LatencyOptions::default();
    Pool::connect(name, Rooms::over(fleet), policy, latency, metrics, clock)
}

/// The parts of a picker over a fleet, under the configuration that runs without one.
pub(crate) fn made(fleet: Arc<Fleet>, clock: Clock) -> Made {
    let metrics = Arc::new(Metrics::new());
    let pool = pool("default", fleet, &metrics, &clock);
    let shared = Shared {
        metrics,
        decisions: Arc::default(),
        spans: None,
        clock,
        options: Options {
            use_subset_hint: true,
            emit_scores: false,
            debug_header: None,
            seed: 7,
        },
    };
    Made { shared, pool }
}

impl Made {
    pub(crate) fn pipeline(self) -> Pipeline {
        Pipeline::new(self.shared, Pools::one(self.pool))
    }

    /// Puts another configuration in force.
    pub(crate) fn configure(&mut self, text: &str) {
        let options = LoadOptions {
            allow_experimental: true,
        };
        let config = epc::load("test", text, &catalogue(), &options).unwrap();
        let policy = Policy::build(config, 0).unwrap();
        self.pool.gate.set_settings(policy.flow.clone());
        self.pool.policy.store(Arc::new(policy));
    }

    /// Takes over InferenceObjectives and InferenceModelRewrites of the pool `default`.
    pub(crate) fn resources(&mut self, text: &str) {
        let read = resources::parse("test", text.as_bytes()).unwrap();
        let rules = Rules::from(&read.for_pool("default"));
        self.pool.rules.store(Arc::new(rules));
    }
}

async fn serve(
    decider: impl Decider,
    limits: StreamLimits,
    (fleet, metrics): (Arc<Fleet>, Arc<Metrics>),
    tls: Option<(Arc<rustls::ServerConfig>, ClientTlsConfig)>,
) -> Picker {
    let (listener, address) = listen::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let stop = CancellationToken::new();
    let health = Health::new().await;
    let clock = Clock::monotonic();
    let processor = Processor::new(server::Parts {
        decider: Arc::new(decider),
        limits,
        watch: Watch::Stream,
        leases: Leases::new(1, LeaseLimits::default(), clock.clone()),
        clock,
        streams_in_flight: metrics.process.streams_in_flight.clone(),
        stream_ended: None,
    });
    let port_limits = PortLimits {
        concurrent_streams: 100,
        receive_message_bytes: 1 << 20,
        send_message_bytes: usize::MAX,
    };
    let (server_tls, client_tls) = tls.unzip();
    tokio::spawn({
        let (stopped, health) = (stop.clone().cancelled_owned(), health.clone());
        async move {
            listen::serve_ext_proc(
                listener,
                server_tls,
                port_limits,
                processor,
                &health,
                stopped,
            )
            .await
        }
    });
    let scheme = if client_tls.is_some() {
        "https"
    } else {
        "http"
    };
    let uri = format!("{scheme}://{address}");
    let mut endpoint = Channel::from_shared(uri.clone()).unwrap();
    if let Some(client_tls) = client_tls {
        endpoint = endpoint.tls_config(client_tls).unwrap();
    }
    Picker {
        fleet,
        metrics,
        health,
        status: None,
        uri,
        gateway: Gateway::over(endpoint.connect().await.unwrap()),
        timers: JoinSet::new(),
        _stop: stop.drop_guard(),
    }
}

/// Workers `worker-1` at `192.168.1.1:8000` and so on, each read once.
pub(crate) fn fleet_of(workers: &[P]) -> Arc<Fleet> {
    let specs = (1..).zip(workers).map(|(number, _)| {
        EndpointSpec::new(
            format!("worker-{number}"),
            ([192, 168, 1, number], 8000).into(),
        )
    });
    fleet_at(specs.collect(), workers)
}

/// These endpoints, each read once.
pub(crate) fn fleet_at(specs: Vec<EndpointSpec>, workers: &[P]) -> Arc<Fleet> {
    let fleet = Fleet::new();
    fleet.apply(specs).unwrap();
    let mut snapshot = Snapshot::default();
    fleet.snapshot_into(&mut snapshot);
    for (member, worker) in snapshot.members.iter().zip(workers) {
        let page = Scraped {
            waiting: worker.0,
            running: 1,
            kv_usage: worker.1,
            block_size: 16,
            blocks: 1000,
        };
        fleet
            .cell(member.id, member.generation)
            .unwrap()
            .record(&page, 1);
    }
    fleet
}

/// Says which adapters run at each worker, as a page without a maximum does.
pub(crate) fn adapters(fleet: &Fleet, running: &[&[&str]]) {
    let mut snapshot = Snapshot::default();
    fleet.snapshot_into(&mut snapshot);
    for (member, names) in snapshot.members.iter().zip(running) {
        let adapters = Adapters {
            max: 0,
            running: names.iter().map(|name| Box::from(*name)).collect(),
            waiting: Vec::new(),
        };
        fleet.record_adapters(member.id, member.generation, adapters);
    }
}

impl Picker {
    pub(crate) fn channel(&self) -> Channel {
        self.gateway.channel()
    }

    pub(crate) fn gateway(&self) -> &Gateway {
        &self.gateway
    }

    /// A stream whose gateway is configured for full duplex both ways.
    pub(crate) async fn stream(&self) -> EnvoyStream {
        self.gateway.stream().await
    }

    pub(crate) async fn stream_in(
        &self,
        request: BodySendMode,
        response: BodySendMode,
    ) -> EnvoyStream {
        self.gateway.stream_in(request, response).await
    }

    /// The pools' parts.
    pub(crate) fn pipeline(&self) -> &Pipeline {
        &self.status.as_ref().unwrap().pipeline
    }

    /// The first pool.
    pub(crate) fn pool(&self) -> &Arc<Pool> {
        &self.pipeline().pools().all()[0]
    }

    /// The metrics page.
    pub(crate) fn page(&self) -> String {
        let Some(status) = &self.status else {
            return self.metrics.render();
        };
        let mut page = Page::new();
        status.write_metrics(&mut page);
        page.into_text()
    }

    /// Waits until this many requests wait at the first pool's gate.
    pub(crate) async fn until_waiting(&self, expected: u64) {
        self.until(|picker| picker.pool().gate.view().requests == expected)
            .await;
    }

    /// Requests of ours in flight at each worker.
    pub(crate) fn in_flight(&self) -> Vec<u32> {
        let mut snapshot = Snapshot::default();
        self.fleet.snapshot_into(&mut snapshot);
        snapshot
            .live
            .iter()
            .map(|live| live.in_flight_requests)
            .collect()
    }

    /// Waits until the workers have this many requests of ours in flight.
    pub(crate) async fn until_in_flight(&self, expected: &[u32]) {
        self.until(|picker| picker.in_flight() == expected).await;
    }

    /// Waits until the metrics page has this line.
    pub(crate) async fn until_metric(&self, line: &str) {
        let has = |picker: &Self| picker.page().lines().any(|written| written == line);
        if !self.comes_to(has).await {
            let family = line.split(['{', ' ']).next().unwrap_or_default();
            let page = self.page();
            let written: Vec<_> = page
                .lines()
                .filter(|line| line.starts_with(family))
                .collect();
            panic!("no {line}\nbut {written:#?}");
        }
    }

    /// Waits until something is so.
    pub(crate) async fn until(&self, reached: impl Fn(&Self) -> bool) {
        let is_reached = self.comes_to(reached).await;
        assert!(is_reached, "in flight: {:?}", self.in_flight());
    }

    async fn comes_to(&self, reached: impl Fn(&Self) -> bool) -> bool {
        let waited = tokio::time::timeout(PATIENCE, async {
            while !reached(self) {
                tokio::task::yield_now().await;
            }
        });
        waited.await.is_ok()
    }
}
