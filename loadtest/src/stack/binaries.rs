//! Builds epp, engine and loadtest with cargo and says where they are.
//!
//! The stack runs what the sources say, never what an earlier build left behind. All three are named in one call: cargo then unites the features of their libraries as it does for the whole
//! workspace, so whoever has built or tested the workspace finds everything built.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use tokio::process::Command;
use tokio::sync::OnceCell;

/// Which cargo profile.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Profile {
    Dev,
    /// Optimised like a release, without its slow last step of optimising across crates.
    Demo,
    Release,
}

impl Profile {
    /// The profile that this program was built with, read off the folder that cargo put it in.
    pub fn own() -> Self {
        let own = std::env::current_exe().unwrap_or_default();
        let is_in = |folder: &str| own.ancestors().any(|path| path.ends_with(folder));
        if is_in("debug") {
            Profile::Dev
        } else if is_in("release") {
            Profile::Release
        } else {
            Profile::Demo
        }
    }

    fn name(self) -> &'static str {
        match self {
            Profile::Dev => "dev",
            Profile::Demo => "demo",
            Profile::Release => "release",
        }
    }
}

/// The programs of the stack.
#[derive(Clone, Debug)]
pub struct Binaries {
    pub epp: PathBuf,
    pub engine: PathBuf,
    pub loadtest: PathBuf,
}

impl Binaries {
    /// Builds once per process and profile; later calls return the first result. Cargo reports on standard error.
    pub async fn build(profile: Profile) -> Result<&'static Binaries> {
        static DEV: OnceCell<Binaries> = OnceCell::const_new();
        static DEMO: OnceCell<Binaries> = OnceCell::const_new();
        static RELEASE: OnceCell<Binaries> = OnceCell::const_new();
        let cell = match profile {
            Profile::Dev => &DEV,
            Profile::Demo => &DEMO,
            Profile::Release => &RELEASE,
        };
        cell.get_or_try_init(|| cargo_build(profile)).await
    }
}

/// The root of the workspace that this program was built from.
pub fn workspace_root() -> PathBuf {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    own.parent().unwrap_or(own).to_path_buf()
}

/// Cargo's target folder: where things that can be made again are kept.
pub(crate) fn target_folder() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        // Cargo takes a relative one from where it was called, which for the alias is where we are.
        Some(folder) => std::path::absolute(&folder).unwrap_or_else(|_| folder.into()),
        None => workspace_root().join("target"),
    }
}

async fn cargo_build(profile: Profile) -> Result<Binaries> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(&cargo);
    for (name, _) in std::env::vars_os().filter(|(name, _)| is_of_a_package(name)) {
        command.env_remove(name);
    }
    let output = command
        .args([
            "build",
            "--message-format",
            "json-render-diagnostics",
            "--bins",
        ])
        .args(["--profile", profile.name()])
        .args([
            "-p",
            "pointsman-epp",
            "-p",
            "pointsman-engine",
            "-p",
            "pointsman-loadtest",
        ])
        .current_dir(workspace_root())
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .kill_on_drop(true)
        .output()
        .await
        .with_context(|| format!("cannot run {}", cargo.display()))?;
    if !output.status.success() {
        bail!("cargo build failed: {}", output.status);
    }
    let messages = String::from_utf8(output.stdout).context("cargo's messages are not UTF-8")?;
    Ok(Binaries {
        epp: executable(&messages, "epp")?,
        engine: executable(&messages, "engine")?,
        loadtest: executable(&messages, "loadtest")?,
    })
}

/// Variables that cargo sets for the package whose test or program runs us. Build scripts of libraries watch variables of
/// these names, and a build that saw them would compile TLS, gRPC and all that stands on them anew each time.
fn is_of_a_package(name: &OsStr) -> bool {
    const PREFIXES: [&str; 4] = [
        "CARGO_MANIFEST_",
        "CARGO_PKG_",
        "CARGO_BIN_",
        "CARGO_CRATE_",
    ];
    let name = name.to_string_lossy();
    PREFIXES.iter().any(|prefix| name.starts_with(prefix)) || name == "CARGO_PRIMARY_PACKAGE"
}

#[derive(Deserialize)]
struct CargoMessage {
    reason: String,
    executable: Option<PathBuf>,
    target: Option<CargoTarget>,
}

#[derive(Deserialize)]
struct CargoTarget {
    name: String,
}

/// The path of binary `name` among cargo's messages, one JSON object a line.
fn executable(messages: &str, name: &str) -> Result<PathBuf> {
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<CargoMessage>(line).ok())
        .filter(|message| message.reason == "compiler-artifact")
        .filter(|message| {
            message
                .target
                .as_ref()
                .is_some_and(|target| target.name == name)
        })
        .find_map(|message| message.executable)
        .with_context(|| format!("cargo built no binary {name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_describes_a_package_is_kept_from_the_build() {
        for name in [
            "CARGO_MANIFEST_DIR",
            "CARGO_PKG_VERSION_MAJOR",
            "CARGO_PRIMARY_PACKAGE",
        ] {
            assert!(is_of_a_package(OsStr::new(name)), "{name}");
        }
        for name in [
            "CARGO",
            "CARGO_TARGET_DIR",
            "CARGO_BUILD_JOBS",
            "CARGO_HOME",
            "PATH",
        ] {
            assert!(!is_of_a_package(OsStr::new(name)), "{name}");
        }
    }

    #[test]
    fn finds_the_executable_among_the_messages() {
        let messages = concat!(
            r#"{"reason":"compiler-artifact","target":{"name":"epp","kind":["lib"]},"executable":null}"#,
            "\nsome text\n",
            r#"{"reason":"compiler-artifact","target":{"name":"epp","kind":["bin"]},"executable":"/t/debug/epp"}"#,
            "\n",
            r#"{"reason":"build-finished","success":true}"#,
        );
        assert_eq!(
            executable(messages, "epp").unwrap(),
            Path::new("/t/debug/epp")
        );
        assert!(executable(messages, "engine").is_err());
    }
}
