//! The worker's binary: flags, log, parts, run.

use std::io::IsTerminal;

use anyhow::Context;
use clap::Parser;
use pointsman_engine::flags::{Flags, LogFormat};
use pointsman_engine::serve;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::warn;
use tracing_subscriber::EnvFilter;

/// What is logged unless RUST_LOG says otherwise. The ZMQ library tells of every client that leaves.
const LOG_FILTER: &str = "info,zeromq=warn";

/// Exit status after a signal that is not waited for: what a shell reports of a program ended by SIGINT.
const EXIT_AT_ONCE: i32 = 130;

fn main() -> anyhow::Result<()> {
    let flags = Flags::parse();
    start_log(flags.log_format);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    runtime.block_on(run(flags))
}

/// Signals are listened for before anything else, so that none can find the default action once the worker serves.
async fn run(flags: Flags) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    // Loading keeps its thread busy, so it gets one of its own.
    let starting = tokio::spawn(async move { serve::start(&flags).await });
    let server = tokio::select! {
        server = starting => server?.context("the worker cannot start")?,
        () = either(&mut terminate, &mut interrupt) => exit_at_once("signal while starting"),
    };
    let shutdown = async move {
        either(&mut terminate, &mut interrupt).await;
        tokio::spawn(async move {
            either(&mut terminate, &mut interrupt).await;
            exit_at_once("second signal")
        });
    };
    server.run(shutdown).await.context("the worker stopped")
}

async fn either(first: &mut Signal, second: &mut Signal) {
    tokio::select! {
        _ = first.recv() => {}
        _ = second.recv() => {}
    }
}

#[expect(clippy::exit, reason = "there is nothing to wait for")]
fn exit_at_once(reason: &str) -> ! {
    warn!(reason, "exiting at once");
    std::process::exit(EXIT_AT_ONCE);
}

fn start_log(format: LogFormat) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(LOG_FILTER));
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    match format {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().init(),
    }
}
