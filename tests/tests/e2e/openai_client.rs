//! The `openai` Python client against the whole stack: what most users of such an API really run.
//!
//! It is installed by name at a fixed version, once, into cargo's target folder. The script holds the assertions; this
//! runs it and shows what it printed when they fail.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use pointsman_loadtest::stack::{MODEL_NAME, Stack, StackOptions, workspace_root};
use pointsman_tests::witness::Witness;
use tokio::process::Command;

const PACKAGE: &str = "openai";
const VERSION: &str = "3.52.0";

/// The first run on a machine downloads some ten packages.
const INSTALL_DEADLINE: Duration = Duration::from_mins(5);
const SCRIPT_DEADLINE: Duration = Duration::from_mins(2);

#[tokio::test]
async fn the_openai_client_talks_through_the_whole_stack() -> Result<()> {
    let packages = installed().await?;
    let stack = Stack::start(StackOptions::new().workers(2)).await?;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/e2e/openai_client.py");
    let mut python = Command::new("python3");
    python
        .arg(script)
        .args([&format!("http://{}/v1", stack.listener()), MODEL_NAME])
        .env("PYTHONPATH", packages)
        .env("PYTHONDONTWRITEBYTECODE", "1");
    run(&mut python, SCRIPT_DEADLINE).await?;
    // The script cancelled a stream and ran others at once; nothing of that may linger.
    stack.nothing_in_flight().await;
    Ok(())
}

/// The folder that holds the package; installs it where there is none.
async fn installed() -> Result<PathBuf> {
    let target = std::env::var_os("CARGO_TARGET_DIR");
    let target = target.map_or_else(|| workspace_root().join("target"), PathBuf::from);
    let python = target.join("python");
    let folder = python.join(format!("{PACKAGE}-{VERSION}"));
    std::fs::create_dir_all(&python)?;
    // The lock goes with the file, so a killed run leaves none behind; the rename makes a whole folder or none.
    let lock = File::create(python.join("lock"))?;
    lock.lock()?;
    if !folder.is_dir() {
        let unfinished = tempfile::tempdir_in(&python)?;
        let mut pip = Command::new("python3");
        pip.args([
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "--target",
        ])
        .arg(unfinished.path())
        .arg(format!("{PACKAGE}=={VERSION}"));
        run(&mut pip, INSTALL_DEADLINE).await?;
        std::fs::rename(unfinished.keep(), &folder)?;
    }
    Ok(folder)
}

async fn run(command: &mut Command, deadline: Duration) -> Result<()> {
    let output = command.stdin(Stdio::null()).kill_on_drop(true).output();
    let output = tokio::time::timeout(deadline, output).await;
    let output = output.with_context(|| format!("not within {deadline:?}: {command:?}"))??;
    ensure!(
        output.status.success(),
        "{}\n{}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}
