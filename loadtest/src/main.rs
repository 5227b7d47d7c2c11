//! Flags → command → run; nothing else.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use pointsman_loadtest::{demo, drive, engine_bench, overhead, peers, simulate, validate};

/// A simulation makes and drops token lists by the million; this one does so in less time than the system's.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Starts the Pointsman stack on this machine and measures it.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// The whole stack on this machine: Envoy, three workers, epp. Compares epp with round robin.
    Demo(demo::DemoOptions),
    /// Load at any OpenAI endpoint: latencies, cached tokens, goodput. The last line is one JSON object.
    #[command(after_help = drive::EXAMPLES)]
    Drive(Box<drive::DriveOptions>),
    /// What epp costs: CPU a request, added latency, CPU when idle. The last line is one JSON object.
    Overhead(overhead::OverheadOptions),
    /// A fleet in virtual time under several policies, from epp's and the engine's own code. The last line is one JSON
    /// object.
    Simulate(Box<simulate::command::SimulateOptions>),
    /// Other routers and ours before the same simulated workers, under the same load. The last line is one JSON object.
    #[command(after_help = peers::EXAMPLES)]
    Peers(Box<peers::PeersOptions>),
    /// The same load over the real stack and in virtual time, and how far they differ. The last line is one JSON object.
    #[command(after_help = validate::EXAMPLES)]
    Validate(Box<validate::ValidateOptions>),
    /// The worker's speed beside llama.cpp and transformers. The last line is one JSON object.
    EngineBench(engine_bench::EngineBenchOptions),
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse_from(without_separator(std::env::args().collect()));
    match arguments.command {
        Command::Demo(options) => demo::run(options).await,
        Command::Drive(options) => drive::run(*options).await,
        Command::Overhead(options) => overhead::run(options).await,
        Command::Simulate(options) => simulate::command::run(*options).await,
        Command::Peers(options) => peers::run(*options).await,
        Command::Validate(options) => validate::run(*options).await,
        Command::EngineBench(options) => engine_bench::run(options).await,
    }
}

/// Drops the `--` of `cargo demo -- --check`.
///
/// The alias `demo` ends in `-- demo`, so what cargo passes on is `demo -- --check`. People write the second `--`
/// because every other cargo command wants one before the program's own flags; to clap it would mean that no flag
/// follows.
fn without_separator(mut arguments: Vec<String>) -> Vec<String> {
    if arguments.get(2).is_some_and(|argument| argument == "--") {
        arguments.remove(2);
    }
    arguments
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed_check(arguments: &[&str]) -> bool {
        let arguments = arguments.iter().map(ToString::to_string).collect();
        let parsed = Arguments::try_parse_from(without_separator(arguments)).unwrap();
        match parsed.command {
            Command::Demo(options) => options.check,
            _ => panic!("another command"),
        }
    }

    #[test]
    fn the_flag_is_read_with_and_without_the_separator() {
        assert!(parsed_check(&["loadtest", "demo", "--", "--check"]));
        assert!(parsed_check(&["loadtest", "demo", "--check"]));
        assert!(!parsed_check(&["loadtest", "demo"]));
        assert!(!parsed_check(&["loadtest", "demo", "--"]));
    }

    #[test]
    fn flags_are_consistent() {
        use clap::CommandFactory;
        Arguments::command().debug_assert();
    }
}
