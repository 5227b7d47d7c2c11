//! The `epp` program: flags → parts → run.

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use clap::error::ErrorKind;
use clap::{CommandFactory, Parser};
use pointsman_epp::clock::{self, Clock};
use pointsman_epp::config::{EndpointSource, Flags, LogFormat, LogLevel, Settings, TlsMode};
use pointsman_epp::ext_proc::health::Health;
use pointsman_epp::ext_proc::listen::{self, PortLimits};
use pointsman_epp::ext_proc::{Processor, StreamLimits, tls};
use pointsman_epp::fleet::discovery::file::FileWatch;
use pointsman_epp::fleet::discovery::static_list::parse_endpoint;
use pointsman_epp::fleet::kv_events::KvEvents;
use pointsman_epp::fleet::members::check_unique;
use pointsman_epp::fleet::pace::Intervals;
use pointsman_epp::fleet::scrape::Scraper;
use pointsman_epp::fleet::{EndpointSpec, Fleet, NowMs, Snapshot};
use pointsman_epp::flow::UtilizationDetector;
use pointsman_epp::index::approximate::{ApproximateIndex, PickLimits};
use pointsman_epp::index::{IndexLimits, PrefixIndex};
use pointsman_epp::observe::exposition::Page;
use pointsman_epp::observe::flow::{self, FlowView};
use pointsman_epp::observe::page::Pages;
use pointsman_epp::observe::{Metrics, logging, page, pool};
use pointsman_epp::pipeline::page as rooms;
use pointsman_epp::pipeline::{EventIndexes, Options, Parts, Pipeline};
use pointsman_epp::schedule::Profile;
use pointsman_epp::tokens::{TokenLimits, Tokens};
use pointsman_proto::prompt::PromptEncoder;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

/// The label of pool metrics where no InferencePool gives a name.
const POOL_NAME: &str = "default";

fn main() -> ExitCode {
    let (settings, endpoints) = match checked(Flags::parse()) {
        Ok(checked) => checked,
        Err(error) => Flags::command()
            .error(ErrorKind::ValueValidation, format!("{error:#}"))
            .exit(),
    };
    match run(settings, endpoints) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The settings, and the endpoints that the command line names; none where a file lists them.
fn checked(flags: Flags) -> anyhow::Result<(Settings, Vec<EndpointSpec>)> {
    let settings = Settings::try_from(flags)?;
    let EndpointSource::Static(texts) = &settings.endpoints else {
        return Ok((settings, Vec::new()));
    };
    let endpoints: Vec<EndpointSpec> = texts
        .iter()
        .map(|text| parse_endpoint(text).with_context(|| format!("--endpoint {text}")))
        .collect::<Result<_, _>>()?;
    check_unique(&endpoints).context("--endpoint")?;
    Ok((settings, endpoints))
}

fn run(settings: Settings, endpoints: Vec<EndpointSpec>) -> anyhow::Result<()> {
    start_logging(&settings)?;
    tls::install_provider();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let outcome = runtime.block_on(serve(settings, endpoints));
    // Streams that outlived the drain are cut here.
    runtime.shutdown_background();
    outcome
}

async fn serve(settings: Settings, endpoints: Vec<EndpointSpec>) -> anyhow::Result<()> {
    let health = Health::new().await;
    let mut tasks = JoinSet::new();
    let clock = Clock::monotonic();
    let fleet = Fleet::new();
    let index = Arc::new(PrefixIndex::new(IndexLimits::default()));
    let approximate = Arc::new(ApproximateIndex::new(PickLimits::default()));
    let metrics = Arc::new(Metrics::new());
    let tokens = load_tokenizers(&settings)?;
    let now: NowMs = Arc::new({
        let clock = clock.clone();
        move || clock.now_ms()
    });

    let base = settings.refresh_metrics_interval;
    let scraper = Scraper::new(
        Arc::clone(&fleet),
        Intervals {
            base,
            ..Intervals::default()
        },
        Arc::clone(&now),
    )?;
    let kv_events = KvEvents::new(
        Arc::clone(&fleet),
        Arc::new(EventIndexes {
            precise: Arc::clone(&index),
            approximate: Arc::clone(&approximate),
        }),
        "",
        now,
    )?;
    let pipeline = Pipeline::new(Parts {
        fleet: Arc::clone(&fleet),
        index: Arc::clone(&index),
        approximate: Arc::clone(&approximate),
        tokens,
        profile: Profile::field_default().with_fallback_endpoints(settings.fallback_endpoints),
        detector: detector(&settings),
        metrics,
        clock,
        options: Options {
            use_subset_hint: settings.use_subset_hint,
            emit_scores: settings.emit_scores,
            seed: clock::unix_nanos(),
        },
    });
    let pages = pages(&pipeline, &scraper, &kv_events);
    tasks.spawn(scraper.run());
    tasks.spawn(kv_events.run());
    tasks.spawn(approximate.follow(Arc::clone(&fleet)));
    tasks.spawn(Arc::clone(&index).keep_reclaiming());
    discover(&settings.endpoints, endpoints, &fleet, &mut tasks)?;
    health.set_ready(true).await;
    serve_ports(&settings, pipeline, pages, &health).await
}

/// Opens the ports and serves until a signal; then drains.
async fn serve_ports(
    settings: &Settings,
    pipeline: Pipeline,
    pages: Pages,
    health: &Health,
) -> anyhow::Result<()> {
    let (ext_proc, ext_proc_address) = bind("ext_proc", settings.ext_proc_address).await?;
    let (health_listener, health_address) = bind("health", settings.health_address).await?;
    let (metrics_listener, metrics_address) = bind("metrics", settings.metrics_address).await?;
    let drain = CancellationToken::new();
    let stop = CancellationToken::new();
    let metrics = Arc::clone(&pipeline.parts().metrics);
    let processor = Processor::new(
        Arc::new(pipeline),
        StreamLimits {
            max_request_body_bytes: settings.max_request_body_bytes,
            decision_timeout: settings.decision_timeout,
        },
        metrics.process.streams_in_flight.clone(),
    );
    let certificate = match &settings.tls {
        TlsMode::ClearText => None,
        TlsMode::SelfSigned => Some(tls::server_config(None)?),
        TlsMode::Certificate(folder) => Some(tls::server_config(Some(folder))?),
    };
    let limits = PortLimits {
        concurrent_streams: settings.max_concurrent_streams,
        receive_message_bytes: settings.receive_message_bytes,
        send_message_bytes: settings.send_message_bytes,
    };
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
        let served =
            listen::serve_ext_proc(ext_proc, certificate, limits, processor, health, drained).await;
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
    if let Ok(ended) = tokio::time::timeout(settings.drain_timeout, &mut ports).await {
        info!("drained");
        return ended;
    }
    warn!(drain_timeout = ?settings.drain_timeout, "streams were still open after the drain");
    Ok(())
}

async fn bind(
    service: &str,
    address: std::net::SocketAddr,
) -> anyhow::Result<(tokio::net::TcpListener, std::net::SocketAddr)> {
    listen::bind(address)
        .await
        .with_context(|| format!("cannot open {address} for {service}"))
}

fn discover(
    source: &EndpointSource,
    named: Vec<EndpointSpec>,
    fleet: &Arc<Fleet>,
    tasks: &mut JoinSet<()>,
) -> anyhow::Result<()> {
    match source {
        EndpointSource::Static(_) => {
            let endpoints = named.len();
            fleet.apply(named)?;
            info!(endpoints, "endpoints named on the command line");
        }
        EndpointSource::File(path) => {
            tasks.spawn(FileWatch::start(path.clone(), Arc::clone(fleet))?.run());
        }
    }
    Ok(())
}

fn load_tokenizers(settings: &Settings) -> anyhow::Result<Tokens> {
    let mut encoders = Vec::new();
    for tokenizer in &settings.tokenizers {
        let folder = tokenizer.folder.display();
        let encoder = PromptEncoder::load(&tokenizer.folder)
            .with_context(|| format!("cannot load the tokenizer in {folder}"))?;
        let model = tokenizer.model.clone().unwrap_or_default();
        info!(%folder, model, vocabulary = encoder.vocab_size(), cuts = %encoder.cuts(), "tokenizer loaded");
        encoders.push((model, Arc::new(encoder)));
    }
    Ok(Tokens::new(encoders, TokenLimits::default()))
}

fn detector(settings: &Settings) -> UtilizationDetector {
    let staleness_ms = settings.metrics_staleness_threshold.as_millis() as u64;
    UtilizationDetector {
        staleness_ms,
        idle_staleness_ms: staleness_ms,
        ..UtilizationDetector::default()
    }
}

/// What the metrics port shows: read off the rooms whenever somebody asks.
fn pages(pipeline: &Pipeline, scraper: &Scraper, kv_events: &KvEvents) -> Pages {
    let of_metrics = pipeline.clone();
    let of_status = pipeline.clone();
    let scrapes = scraper.counters();
    let events = kv_events.counters();
    let metrics = move |page: &mut Page| {
        let parts = of_metrics.parts();
        parts.metrics.write(page);
        let mut snapshot = Snapshot::default();
        parts.fleet.snapshot_into(&mut snapshot);
        pool::render(&[(POOL_NAME, &snapshot)], page);
        flow::render(&FlowView::default(), page);
        rooms::render_index(&parts.index.stats(), page);
        let approximate = &parts.approximate;
        rooms::render_approximate(&approximate.stats(), approximate.counters(), page);
        rooms::render_kv_events(&events, page);
        rooms::render_scrapes(&scrapes, page);
        rooms::render_tokens(&parts.tokens.stats(), page);
    };
    Pages {
        metrics: Arc::new(metrics),
        status: Arc::new(move || of_status.status(POOL_NAME)),
        plugins: Arc::new(|| serde_json::Value::Null),
        decisions: Arc::clone(pipeline.decisions()),
    }
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
    Ok(())
}
