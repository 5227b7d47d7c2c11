//! The `epp` program: flags → parts → run.

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use clap::error::ErrorKind;
use clap::{CommandFactory, Parser};
use pointsman_epp::clock::{self, Clock};
use pointsman_epp::config::epc::Catalogue;
use pointsman_epp::config::{
    EndpointSource, Flags, LogFormat, LogLevel, PoolSettings, Settings, TlsMode, commands,
};
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
use pointsman_epp::observe::{Metrics, logging, page, pool as pool_metrics};
use pointsman_epp::pipeline::page as rooms;
use pointsman_epp::pipeline::{EventIndexes, Options, Parts, Pipeline};
use pointsman_epp::schedule::{self, Profile};
use pointsman_epp::tokens::{TokenLimits, Tokens};
use pointsman_proto::prompt::PromptEncoder;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

fn main() -> ExitCode {
    let flags = Flags::parse();
    if let Some(command) = &flags.command {
        let catalogue = Catalogue::new(schedule::registry::plugin_types());
        return match commands::run(command, &catalogue, &mut std::io::stdout().lock()) {
            Ok(status) => ExitCode::from(status),
            Err(_) => ExitCode::FAILURE,
        };
    }
    let (settings, endpoints) = match checked(flags) {
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
    let EndpointSource::Static(texts) = &pool(&settings)?.endpoints else {
        return Ok((settings, Vec::new()));
    };
    let endpoints: Vec<EndpointSpec> = texts
        .iter()
        .map(|text| parse_endpoint(text).with_context(|| format!("--endpoint {text}")))
        .collect::<Result<_, _>>()?;
    check_unique(&endpoints).context("--endpoint")?;
    Ok((settings, endpoints))
}

/// The pool that is served.
fn pool(settings: &Settings) -> anyhow::Result<&PoolSettings> {
    settings.pools.first().context("there is no pool")
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
    let pool = pool(&settings)?;
    let tokens = load_tokenizers(pool)?;
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
    let appendix = appendix(pool.name.clone(), &pipeline, &scraper, &kv_events);
    tasks.spawn(scraper.run());
    tasks.spawn(kv_events.run());
    tasks.spawn(approximate.follow(Arc::clone(&fleet)));
    tasks.spawn(Arc::clone(&index).keep_reclaiming());
    discover(&pool.endpoints, endpoints, &fleet, &mut tasks)?;
    health.set_ready(true).await;
    // It holds the futures of all ports.
    Box::pin(serve_ports(&settings, pipeline, appendix, &health)).await
}

/// Opens the ports and serves until a signal; then drains.
async fn serve_ports(
    settings: &Settings,
    pipeline: Pipeline,
    appendix: page::Appendix,
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
    let (certificate, reload) = secured(settings)?
        .map(|tls| (tls.config, tls.reload))
        .unzip();
    let mut followers = JoinSet::new();
    if let Some(reload) = reload.flatten() {
        followers.spawn(reload.run());
    }
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
                page::serve(metrics_listener, metrics, appendix, stopped)
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

/// TLS of the ext_proc port, where it is wanted.
fn secured(settings: &Settings) -> anyhow::Result<Option<tls::Tls>> {
    let folder = match &settings.tls {
        TlsMode::ClearText => return Ok(None),
        TlsMode::SelfSigned => None,
        TlsMode::Certificate(folder) => Some(folder.as_path()),
    };
    Ok(Some(tls::server_tls(folder, &settings.tls_options)?))
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

fn load_tokenizers(pool: &PoolSettings) -> anyhow::Result<Tokens> {
    let mut encoders = Vec::new();
    for tokenizer in &pool.tokenizers {
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

/// What the metrics page reads off the rooms at the moment of a scrape.
fn appendix(
    pool_name: String,
    pipeline: &Pipeline,
    scraper: &Scraper,
    kv_events: &KvEvents,
) -> page::Appendix {
    let pipeline = pipeline.clone();
    let scrapes = scraper.counters();
    let events = kv_events.counters();
    Arc::new(move |text| {
        let parts = pipeline.parts();
        let mut snapshot = Snapshot::default();
        parts.fleet.snapshot_into(&mut snapshot);
        pool_metrics::render(&pool_name, &snapshot, text);
        rooms::render_index(&parts.index.stats(), text);
        let approximate = &parts.approximate;
        rooms::render_approximate(&approximate.stats(), approximate.counters(), text);
        rooms::render_kv_events(&events, text);
        rooms::render_scrapes(&scrapes, text);
        rooms::render_tokens(&parts.tokens.stats(), text);
    })
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
        warn!(flag, instead, "flag deprecated");
    }
    Ok(())
}
