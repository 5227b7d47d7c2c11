//! Packages of PyPI, each set of them in a virtual environment of its own below cargo's target folder.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use tokio::process::Command;

/// Marks a set of packages that is whole, so that an interrupted one is installed again.
const COMPLETE: &str = "complete";

/// The Python of an environment with what `requirements` say in pip's words, made in `folder` unless it is there.
pub(crate) async fn environment(
    folder: &Path,
    requirements: impl IntoIterator<Item = impl AsRef<OsStr>>,
) -> Result<PathBuf> {
    let python = folder.join("bin").join("python");
    if folder.join(COMPLETE).is_file() {
        return Ok(python);
    }
    std::fs::create_dir_all(folder)
        .with_context(|| format!("cannot create {}", folder.display()))?;
    let lock = lock(beside(folder, ".lock")).await?;
    // Another process may have installed it while we waited for the lock.
    if !folder.join(COMPLETE).is_file() {
        let mut make = Command::new("python3");
        make.args(["-m", "venv", "--clear"]).arg(folder);
        succeed(&mut make, "python3 -m venv").await?;
        let mut install = Command::new(&python);
        install
            .args(["-m", "pip", "install", "--quiet"])
            .arg("--disable-pip-version-check")
            .args(requirements);
        succeed(&mut install, "pip install").await?;
        std::fs::write(folder.join(COMPLETE), "")?;
    }
    drop(lock);
    Ok(python)
}

fn beside(folder: &Path, ending: &str) -> PathBuf {
    let mut name = folder.as_os_str().to_owned();
    name.push(ending);
    name.into()
}

/// Waits for the lock on `path`; it is freed when the file is dropped or its process dies.
pub(crate) async fn lock(path: PathBuf) -> Result<std::fs::File> {
    let waiting = tokio::task::spawn_blocking(move || {
        let file = std::fs::File::create(&path)?;
        file.lock()?;
        Ok::<_, std::io::Error>(file)
    });
    waiting
        .await
        .context("the locking task failed")?
        .context("cannot lock the folder of an installation")
}

/// Runs the command to its end. An error holds the last line that it printed, which is the one that says why.
pub(crate) async fn succeed(command: &mut Command, what: &str) -> Result<Vec<u8>> {
    let output = command
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .with_context(|| format!("{what}: cannot run it"))?;
    let message = String::from_utf8_lossy(&output.stderr);
    let told = message.lines().rfind(|line| line.contains("ERROR"));
    let told = told.or_else(|| message.lines().next_back());
    ensure!(
        output.status.success(),
        "{what} failed: {}",
        told.unwrap_or("no message")
    );
    Ok(output.stdout)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_failed_says_why() {
        let mut command = Command::new("sh");
        command.args([
            "-c",
            "echo ERROR: no such package >&2; echo hint >&2; exit 1",
        ]);
        let error = succeed(&mut command, "pip install").await.unwrap_err();
        assert_eq!(
            error.to_string(),
            "pip install failed: ERROR: no such package"
        );
    }

    /// No package at all needs no network.
    #[tokio::test]
    async fn an_environment_is_made_once() {
        let home = tempfile::tempdir().unwrap();
        let folder = home.path().join("none");
        let nothing = ["--no-index", "--requirement", "/dev/null"];
        let python = environment(&folder, nothing).await.unwrap();
        assert!(python.is_file());
        std::fs::write(folder.join("mark"), "").unwrap();
        environment(&folder, nothing).await.unwrap();
        assert!(folder.join("mark").is_file());
        // Without its mark it counts as interrupted.
        std::fs::remove_file(folder.join(COMPLETE)).unwrap();
        environment(&folder, nothing).await.unwrap();
        assert!(!folder.join("mark").is_file());
    }
}
