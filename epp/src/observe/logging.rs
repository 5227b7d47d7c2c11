//! How log lines are written: to standard error, as text or JSON, at the level of the flags unless
//! `RUST_LOG` says otherwise.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};

/// Starts logging for the process. Levels of libraries stay at warnings unless `RUST_LOG` asks for
/// them.
pub fn start(level: &str, as_json: bool) -> Result<(), TryInitError> {
    let filter = match std::env::var("RUST_LOG") {
        Ok(directives) if !directives.is_empty() => EnvFilter::new(directives),
        _ => EnvFilter::new(format!("warn,pointsman_epp={level},epp={level}")),
    };
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    if as_json {
        builder.json().flatten_event(true).finish().try_init()
    } else {
        let colours = std::io::stderr().is_terminal();
        builder
            .with_ansi(colours)
            .with_target(false)
            .finish()
            .try_init()
    }
}
