//! The other engines: installed by name from PyPI, each a process that measures itself on command.
//!
//! What they say and are told is in `loadtest/peers/engine/peer.py`. A peer that cannot be had is an error: a table with
//! a row missing looks like a table in which nobody asked.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::time::timeout;

use super::model::BenchModel;
use crate::pypi::{self, succeed};
use crate::stack::workspace_root;

/// Loading a model, or one turn.
const ANSWER_DEADLINE: Duration = Duration::from_mins(10);

/// A running peer.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) name: String,
    pub(super) version: String,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
    /// Killed on drop.
    _child: Child,
}

#[derive(Debug, Deserialize)]
struct Answer {
    ready: Option<String>,
    version: Option<String>,
    seconds: Option<f64>,
    error: Option<String>,
}

impl Peer {
    /// llama.cpp and transformers over `model`, with `threads` threads each.
    pub(super) async fn start_all(
        python: &Path,
        model: &BenchModel,
        home: &Path,
        threads: u32,
    ) -> Result<Vec<Self>> {
        let gguf = home.join("model-135m.gguf");
        if !gguf.is_file() {
            let unfinished = home.join("model-135m.gguf.unfinished");
            let script = script("to_gguf.py");
            let mut command = Command::new(python);
            command.arg(&script).arg(&model.folder).arg(&unfinished);
            succeed(&mut command, "writing the GGUF file").await?;
            std::fs::rename(&unfinished, &gguf)?;
        }
        Ok(vec![
            Self::start(python, "llama_cpp_peer.py", &gguf, threads).await?,
            Self::start(python, "transformers_peer.py", &model.folder, threads).await?,
        ])
    }

    async fn start(python: &Path, name: &str, model: &Path, threads: u32) -> Result<Self> {
        let mut child = Command::new(python)
            .arg(script(name))
            .arg(model)
            .arg(threads.to_string())
            // Nothing is said of how threads wait: a peer runs as its users run it, and its threads sleep soon after a turn.
            .env("OMP_NUM_THREADS", threads.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot run {}", python.display()))?;
        let (input, output) = (child.stdin.take(), child.stdout.take());
        let mut peer = Self {
            name: name.to_owned(),
            version: String::new(),
            input: input.context("the peer has no input")?,
            output: BufReader::new(output.context("the peer has no output")?).lines(),
            _child: child,
        };
        let ready = peer.read().await?;
        peer.name = ready.ready.context("the peer did not say who it is")?;
        peer.version = ready.version.unwrap_or_default();
        Ok(peer)
    }

    /// Seconds for the prompt of one sequence.
    pub(super) async fn prefill(&mut self, tokens: usize) -> Result<f64> {
        self.ask(&json!({ "op": "prefill", "tokens": tokens }))
            .await
    }

    /// Seconds for `tokens` tokens in each of `batch` sequences that have `context` tokens already.
    pub(super) async fn decode(
        &mut self,
        batch: usize,
        context: usize,
        tokens: usize,
    ) -> Result<f64> {
        let command =
            json!({ "op": "decode", "batch": batch, "context": context, "tokens": tokens });
        self.ask(&command).await
    }

    async fn ask(&mut self, command: &Value) -> Result<f64> {
        let line = format!("{command}\n");
        self.input.write_all(line.as_bytes()).await?;
        self.input.flush().await?;
        let answer = self.read().await?;
        answer
            .seconds
            .with_context(|| format!("{} gave no time for {command}", self.name))
    }

    async fn read(&mut self) -> Result<Answer> {
        let line = timeout(ANSWER_DEADLINE, self.output.next_line())
            .await
            .with_context(|| format!("{} is silent", self.name))??
            .with_context(|| format!("{} has ended", self.name))?;
        let answer: Answer =
            serde_json::from_str(&line).with_context(|| format!("{} said {line:?}", self.name))?;
        if let Some(error) = answer.error {
            bail!("{}: {error}", self.name);
        }
        Ok(answer)
    }
}

/// A Python with the peers: the one that was named, or one made under `home`.
pub(super) async fn python(named: Option<&Path>, home: &Path) -> Result<PathBuf> {
    if let Some(named) = named {
        ensure!(
            named.is_file(),
            "--python: {} is not there",
            named.display()
        );
        return Ok(named.to_owned());
    }
    let requirements = script("requirements.txt");
    let wanted = ["--requirement".as_ref(), requirements.as_os_str()];
    let installed = pypi::environment(&home.join("python"), wanted).await;
    installed.context("the peers")
}

fn script(name: &str) -> PathBuf {
    workspace_root().join("loadtest/peers/engine").join(name)
}
