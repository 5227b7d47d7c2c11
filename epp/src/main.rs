//! The `epp` program: flags → parts → run.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::error::ErrorKind;
use clap::{CommandFactory, Parser};
use pointsman_epp::clock::{self, Clock};
use pointsman_epp::config::epc::Catalogue;
use pointsman_epp::config::{
    EndpointSource, Flags, LogFormat, LogLevel, ResponseWatch, Settings, TlsMode, commands,
};
use pointsman_epp::ext_proc::health::Health;
use pointsman_epp::ext_proc::listen::{self, PortLimits};
use pointsman_epp::ext_proc::server::Parts;
use pointsman_epp::ext_proc::{LeaseLimits, Leases, Processor, StreamLimits, Watch, tls};
use pointsman_epp::observe::decisions::DecisionLog;
use pointsman_epp::observe::page::{self, Pages};
use pointsman_epp::observe::spans::{Spans, TraceSettings};
use pointsman_epp::observe::{Metrics, logging};
use pointsman_epp::pipeline::assembly::{self, Counts, Process, Task, discovery};
use pointsman_epp::pipeline::catalogue::catalogue;
use pointsman_epp::pipeline::status::Status;
use pointsman_epp::pipeline::{InFlight, Options, Pipeline, Pools, Shared};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

/// Bytes of request bodies held at a time, over all requests.
const HELD_BYTES_MAX: usize = 2 << 30;
/// Exchanges that run without their stream at a time.
const LEASES_MAX: usize = 200_000;
/// How long the last spans may take on their way out.
const SPANS_SHUTDOWN: Duration = Duration::from_secs(2);

fn main() -> ExitCode {
    let flags = Flags::parse();
    if let Some(command) = &flags.command {
        return match commands::run(command, &catalogue(), &mut std::io::stdout().lock()) {
            Ok(status) => ExitCode::from(status),
            Err(_) => ExitCode::FAILURE,
        };
    }
    let settings = match checked(flags) {
        Ok(settings) => settings,
        Err(error) => Flags::command()
            .error(ErrorKind::ValueValidation, format!("{error:#}"))
            .exit(),
    };
    match run(&settings) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The settings, with the endpoints that the command line names read once, so that a wrong one is an
/// error of the command line.
fn checked(flags: Flags) -> anyhow::Result<Settings> {
    let settings = Settings::try_from(flags)?;
    for pool in &settings.pools {
        if let EndpointSource::Static(texts) = &pool.endpoints {
            discovery::named(texts)?;
        }
    }
    Ok(settings)
}

fn run(settings: &Settings) -> anyhow::Result<()> {
    start_logging(settings)?;
    tls::install_provider();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let outcome = runtime.block_on(serve(settings));
    // Streams that outlived the drain are cut here.
    runtime.shutdown_background();
    outcome
}

async fn serve(settings: &Settings) -> anyhow::Result<()> {
    let health = Health::new().await;
    let clock = Clock::monotonic();
    let metrics = Arc::new(Metrics::new());
    let catalogue: Arc<Catalogue> = Arc::new(catalogue());
    let counts = Counts::default();
    let process = Process {
        settings,
        catalogue: &catalogue,
        metrics: &metrics,
        clock: &clock,
        counts: &counts,
    };
    let mut tasks = JoinSet::new();
    let (mut pools, mut reads, mut first_pages) = (Vec::new(), Vec::new(), Vec::new());
    for wanted in &settings.pools {
        let built = assembly::assemble(&process, wanted)?;
        built
            .tasks
            .into_iter()
            .for_each(|task: Task| drop(tasks.spawn(task)));
        pools.push((built.pool, wanted.authorities.clone(), wanted.is_default));
        reads.push(built.reads);
        first_pages.push(built.first_pages);
    }
    let shared = Shared {
        metrics,
        decisions: Arc::new(DecisionLog::new(settings.decision_log_size)),
        spans: spans(settings)?,
        clock: clock.clone(),
        options: Options {
            use_subset_hint: settings.use_subset_hint,
            emit_scores: settings.emit_scores,
            debug_header: settings.debug_header.clone(),
            seed: clock::unix_nanos(),
        },
    };
    let pipeline = Pipeline::new(shared, Pools::new(pools));
    let leases = leases(settings, &clock);
    tasks.spawn(Arc::clone(&leases).keep_expiring());
    let status = Status {
        pipeline: pipeline.clone(),
        leases: Arc::clone(&leases),
        counts,
        reads,
        started_ms: clock.now_ms(),
    };
    let ready = health.clone();
    tasks.spawn(async move {
        for mut pages in first_pages {
            // A sender that is gone says nothing more; there is nothing to wait for.
            let _ = pages.wait_for(|read| *read).await;
        }
        ready.set_ready(true).await;
    });
    let served = Box::pin(serve_ports(
        settings,
        &pipeline,
        leases,
        pages(status, &pipeline),
        &health,
    ))
    .await;
    if let Some(spans) = &pipeline.shared().spans {
        spans.shutdown(SPANS_SHUTDOWN);
    }
    served
}

/// The table of the exchanges that run without their stream.
fn leases(settings: &Settings, clock: &Clock) -> Arc<Leases<InFlight>> {
    let limits = LeaseLimits {
        length_ms: settings.access_log_lease.as_millis() as u64,
        entries: LEASES_MAX,
    };
    Leases::new(clock::unix_nanos(), limits, clock.clone())
}

/// Where spans go, if they go anywhere.
fn spans(settings: &Settings) -> anyhow::Result<Option<Spans>> {
    if !settings.tracing {
        return Ok(None);
    }
    let Some(settings) = TraceSettings::read(|name| std::env::var(name).ok())? else {
        return Ok(None);
    };
    info!(collector = settings.endpoint, "spans are exported");
    let spans = Spans::start(&settings).context("cannot export spans")?;
    Ok(Some(spans))
}

fn pages(status: Status, pipeline: &Pipeline) -> Pages {
    let status = Arc::new(status);
    let (metrics, plugins) = (Arc::clone(&status), Arc::clone(&status));
    Pages {
        metrics: Arc::new(move |page| metrics.write_metrics(page)),
        plugins: Arc::new(move || plugins.plugins()),
        status: Arc::new(move || status.view()),
        decisions: Arc::clone(&pipeline.shared().decisions),
    }
}

/// Opens the ports and serves until a signal; then drains.
async fn serve_ports(
    settings: &Settings,
    pipeline: &Pipeline,
    leases: Arc<Leases<InFlight>>,
    pages: Pages,
    health: &Health,
) -> anyhow::Result<()> {
    let (ext_proc, ext_proc_address) = bind("ext_proc", settings.ext_proc_address).await?;
    let (health_listener, health_address) = bind("health", settings.health_address).await?;
    let (metrics_listener, metrics_address) = bind("metrics", settings.metrics_address).await?;
    let drain = CancellationToken::new();
    let stop = CancellationToken::new();
    let certificate = certificate(settings)?;
    info!(service = "ext_proc", address = %ext_proc_address, tls = certificate.is_some(), "listening");
    info!(service = "health", address = %health_address, "listening");
    info!(service = "metrics", address = %metrics_address, "listening");

    let side_ports = async {
        tokio::try_join!(
            async {
                let stopped = stop.clone().cancelled_owned();
                listen::serve_health(health_listener, health, stopped)
                    .await
                    .context("the health port failed")
            },
            async {
                let stopped = stop.clone().cancelled_owned();
                page::serve(metrics_listener, pages, stopped)
                    .await
                    .context("the metrics port failed")
            },
        )
    };
    let main_port = async {
        let drained = drain.clone().cancelled_owned();
        let served = listen::serve_ext_proc(
            ext_proc,
            certificate,
            port_limits(settings),
            processor(settings, pipeline, leases),
            health,
            drained,
        )
        .await;
        stop.cancel();
        served.context("the ext_proc port failed")
    };
    let mut ports = std::pin::pin!(async { tokio::try_join!(main_port, side_ports).map(|_| ()) });
    tokio::select! {
        ended = &mut ports => return ended,
        signal = shutdown_signal() => info!(signal = signal?, "draining"),
    }
    health.set_ready(false).await;
    drain.cancel();
    for pool in pipeline.pools().all() {
        pool.gate.shut_down();
    }
    if let Ok(ended) = tokio::time::timeout(settings.drain_timeout, &mut ports).await {
        info!("drained");
        return ended;
    }
    warn!(drain_timeout = ?settings.drain_timeout, "streams were still open after the drain");
    Ok(())
}

fn processor(
    settings: &Settings,
    pipeline: &Pipeline,
    leases: Arc<Leases<InFlight>>,
) -> Processor<Pipeline> {
    let metrics = Arc::clone(&pipeline.shared().metrics);
    let streams_in_flight = metrics.process.streams_in_flight.clone();
    let stream_ended = move |code: tonic::Code, lasted: Duration| {
        metrics.stream_ended(&format!("{code:?}"), lasted.as_secs_f64());
    };
    Processor::new(Parts {
        decider: Arc::new(pipeline.clone()),
        limits: StreamLimits {
            max_request_body_bytes: settings.max_request_body_bytes,
            max_held_bytes: HELD_BYTES_MAX,
            decision_timeout: settings.decision_timeout,
        },
        watch: match settings.response_watch {
            ResponseWatch::Auto => Watch::Auto,
            ResponseWatch::AccessLog => Watch::AccessLog,
            ResponseWatch::Stream => Watch::Stream,
        },
        leases,
        clock: pipeline.shared().clock.clone(),
        streams_in_flight,
        stream_ended: settings
            .grpc_stream_metrics
            .then(|| Arc::new(stream_ended) as _),
    })
}

fn port_limits(settings: &Settings) -> PortLimits {
    PortLimits {
        concurrent_streams: settings.max_concurrent_streams,
        receive_message_bytes: settings.receive_message_bytes,
        send_message_bytes: settings.send_message_bytes,
    }
}

fn certificate(settings: &Settings) -> anyhow::Result<Option<Arc<rustls::ServerConfig>>> {
    let folder = match &settings.tls {
        TlsMode::ClearText => return Ok(None),
        TlsMode::SelfSigned => None,
        TlsMode::Certificate(folder) => Some(folder.as_path()),
    };
    let made = tls::server_tls(folder, &settings.tls_options)?;
    if let Some(reload) = made.reload {
        tokio::spawn(reload.run());
    }
    Ok(Some(made.config))
}

async fn bind(
    service: &str,
    address: std::net::SocketAddr,
) -> anyhow::Result<(TcpListener, std::net::SocketAddr)> {
    listen::bind(address)
        .await
        .with_context(|| format!("cannot open {address} for {service}"))
}

async fn shutdown_signal() -> anyhow::Result<&'static str> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => Ok("SIGTERM"),
        _ = interrupt.recv() => Ok("SIGINT"),
    }
}

fn start_logging(settings: &Settings) -> anyhow::Result<()> {
    let level = match settings.log_level {
        LogLevel::Warn => "warn",
        LogLevel::Info => "info",
        LogLevel::Debug => "debug",
        LogLevel::Trace => "trace",
    };
    logging::start(level, settings.log_format == LogFormat::Json)?;
    if !settings.ignored_flags.is_empty() {
        warn!(
            flags = settings.ignored_flags.join(" "),
            "flags accepted and without effect"
        );
    }
    for (flag, instead) in &settings.deprecated_flags {
        warn!(flag, instead, "deprecated flag");
    }
    Ok(())
}
