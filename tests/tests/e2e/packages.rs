//! Other people's programs that the tests run, installed by name at a fixed version, once, into cargo's target folder.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use pointsman_loadtest::stack::workspace_root;
use tokio::process::Command;

const OPENAI: &str = "openai==3.52.0";
/// Of the whole package only the program is kept: the load driver and front end written in Rust.
const VLLM: &str = "vllm==0.33.0";
const VLLM_PROGRAM: &str = "vllm/vllm-rs";

/// The first run on a machine downloads packages; vLLM's is 336 MB.
const INSTALL_DEADLINE: Duration = Duration::from_mins(10);

/// Takes one file out of the only wheel of a folder: python3 -c THIS FOLDER NAME.
const EXTRACT: &str = "\
import glob, os, sys, zipfile
folder, name = sys.argv[1:]
wheel, = glob.glob(folder + '/*.whl')
with zipfile.ZipFile(wheel) as archive:
    archive.extract(name, folder)
os.chmod(os.path.join(folder, name), 0o755)
os.remove(wheel)
";

/// The folder to import `openai` from.
pub(crate) async fn openai() -> Result<PathBuf> {
    let install = async |folder: &Path| {
        let mut pip = pip(&["install", "--target"]);
        run(pip.arg(folder).arg(OPENAI), INSTALL_DEADLINE).await
    };
    installed(OPENAI, install).await
}

/// The program `vllm-rs`.
pub(crate) async fn vllm_rs() -> Result<PathBuf> {
    let install = async |folder: &Path| {
        let mut pip = pip(&["download", "--no-deps", "--dest"]);
        run(pip.arg(folder).arg(VLLM), INSTALL_DEADLINE).await?;
        let mut extract = Command::new("python3");
        extract.args(["-c", EXTRACT]).arg(folder).arg(VLLM_PROGRAM);
        run(&mut extract, INSTALL_DEADLINE).await
    };
    Ok(installed(VLLM, install).await?.join(VLLM_PROGRAM))
}

fn pip(arguments: &[&str]) -> Command {
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "--quiet", "--disable-pip-version-check"])
        .args(arguments);
    pip
}

/// The folder of this name; `install` fills it where there is none.
async fn installed(
    name: &str,
    install: impl AsyncFnOnce(&Path) -> Result<String>,
) -> Result<PathBuf> {
    let target = std::env::var_os("CARGO_TARGET_DIR");
    let target = target.map_or_else(|| workspace_root().join("target"), PathBuf::from);
    let python = target.join("python");
    let name = name.replace("==", "-");
    let folder = python.join(&name);
    std::fs::create_dir_all(&python)?;
    // The lock goes with the file, so a killed run leaves none behind; the rename makes a whole folder or none.
    let lock = File::create(python.join(format!("{name}.lock")))?;
    lock.lock()?;
    if !folder.is_dir() {
        let unfinished = tempfile::tempdir_in(&python)?;
        install(unfinished.path()).await?;
        std::fs::rename(unfinished.keep(), &folder)?;
    }
    Ok(folder)
}

/// Runs a program to its end and returns what it printed; an error shows all of it.
pub(crate) async fn run(command: &mut Command, deadline: Duration) -> Result<String> {
    let output = command.stdin(Stdio::null()).kill_on_drop(true).output();
    let output = tokio::time::timeout(deadline, output).await;
    let output = output.with_context(|| format!("not within {deadline:?}: {command:?}"))??;
    let stdout = String::from_utf8_lossy(&output.stdout);
    ensure!(
        output.status.success(),
        "{}\n{stdout}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(stdout.into_owned())
}
