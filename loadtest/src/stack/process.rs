//! One child process: started with its output in a file, watched, stopped politely or killed.
//!
//! Each child runs in a process group of its own, so that Ctrl-C in the terminal reaches only this program, which
//! then ends the parts in their order. Dropping a [`Process`] kills it at once: a drop must not wait for a drain. For
//! the case that no drop ever runs there is the [watchdog](super::watchdog).
//!
//! A thread per child waits for its end. It learns of the end without reaping (`WNOWAIT`), and reaps under the same
//! lock under which signals are sent, so that a signal never reaches a stranger who was given the same id.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};
use tokio::sync::watch;
use tokio::time::Instant;

use super::watchdog::Watchdog;

/// How often a probe is asked.
const POLL_INTERVAL: Duration = Duration::from_millis(20);
/// How much of a log's end is shown when its process fails.
const TAIL_BYTES: u64 = 4096;

/// What to start.
#[derive(Clone, Debug)]
pub struct ProcessSpec {
    /// Names the process in messages, and its log `NAME.log`.
    pub name: String,
    pub program: PathBuf,
    pub arguments: Vec<String>,
    pub environment: Vec<(String, String)>,
}

/// A running (or ended) child.
#[derive(Debug)]
pub struct Process {
    name: String,
    pid: Pid,
    log: PathBuf,
    /// `None` once the child is reaped and its id is free for others.
    child: Arc<Mutex<Option<Child>>>,
    ended: watch::Receiver<Option<ExitStatus>>,
}

impl Process {
    /// Starts `spec`; its output is appended to `NAME.log` in `log_folder`.
    pub fn spawn(spec: &ProcessSpec, log_folder: &Path) -> Result<Process> {
        let log = log_folder.join(format!("{}.log", spec.name));
        let output = OpenOptions::new().create(true).append(true).open(&log);
        let output = output.with_context(|| format!("cannot write {}", log.display()))?;
        let watchdog = Watchdog::global()?;
        let child = Command::new(&spec.program)
            .args(&spec.arguments)
            .envs(spec.environment.iter().map(|(name, value)| (name, value)))
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .with_context(|| format!("cannot start {}", spec.program.display()))?;
        let pid = Pid::from_child(&child);
        let child = Arc::new(Mutex::new(Some(child)));
        let (sender, ended) = watch::channel(None);
        let process = Process {
            name: spec.name.clone(),
            pid,
            log,
            child: child.clone(),
            ended,
        };
        // From here on an early return drops `process`, which kills the child.
        watchdog.guard(pid)?;
        std::thread::Builder::new()
            .name(format!("reaper of {}", spec.name))
            .spawn(move || reap(pid, &child, watchdog, &sender))
            .context("cannot start a thread")?;
        Ok(process)
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn id(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }

    /// The file with all that the process has printed.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// The exit status, once the process has ended.
    pub fn exit_status(&self) -> Option<ExitStatus> {
        *self.ended.borrow()
    }

    /// Sends `signal`, unless the process has ended.
    pub fn signal(&self, signal: Signal) {
        let child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        if child.is_some() {
            // The child is not reaped while we hold the lock, so the id is its own and the call cannot fail.
            let _delivered = kill_process(self.pid, signal);
        }
    }

    /// Waits for the end.
    pub async fn wait(&self) -> Result<ExitStatus> {
        let mut ended = self.ended.clone();
        let status = *ended
            .wait_for(Option::is_some)
            .await
            .context("the reaper is gone")?;
        status.context("waited for a status")
    }

    /// Asks the process to end (SIGTERM), and kills it when it has not done so within `grace`.
    pub async fn stop(&self, grace: Duration) -> Result<ExitStatus> {
        self.signal(Signal::TERM);
        match tokio::time::timeout(grace, self.wait()).await {
            Ok(status) => status,
            Err(_elapsed) => self.kill().await,
        }
    }

    /// Kills the process (SIGKILL) and waits until it is gone.
    pub async fn kill(&self) -> Result<ExitStatus> {
        self.signal(Signal::KILL);
        self.wait().await
    }

    /// Asks `probe` until it says yes. Fails when `deadline` has passed, and at once when the process ends; the error
    /// carries the end of the log.
    pub async fn until(&self, deadline: Duration, probe: impl AsyncFn() -> bool) -> Result<()> {
        let give_up = Instant::now() + deadline;
        loop {
            if probe().await {
                return Ok(());
            }
            if let Some(status) = self.exit_status() {
                bail!("{} has ended: {status}\n{}", self.name, self.log_tail());
            }
            if Instant::now() > give_up {
                bail!(
                    "{} is not there after {deadline:?}\n{}",
                    self.name,
                    self.log_tail()
                );
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    /// The end of the log, for messages.
    pub fn log_tail(&self) -> String {
        let tail = read_tail(&self.log).unwrap_or_else(|error| format!("(unreadable: {error})"));
        format!("--- end of {} ---\n{}", self.log.display(), tail.trim_end())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
    }
}

/// Waits for the child's end, frees its id and tells everyone.
fn reap(
    pid: Pid,
    child: &Mutex<Option<Child>>,
    watchdog: &Watchdog,
    ended: &watch::Sender<Option<ExitStatus>>,
) {
    // Interrupted waits are begun anew; any other error means that there is nobody to wait for.
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
    while matches!(waitid(WaitId::Pid(pid), options), Err(Errno::INTR)) {}
    let mut child = child.lock().unwrap_or_else(PoisonError::into_inner);
    // A watchdog that is gone can kill nobody, so there is nothing left to tell it.
    let _told = watchdog.forget(pid);
    if let Some(mut child) = child.take() {
        // Returns at once: the child has ended.
        let status = child.wait().ok();
        ended.send_replace(status);
    }
}

fn read_tail(path: &Path) -> std::io::Result<String> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))?;
    let mut tail = Vec::new();
    file.read_to_end(&mut tail)?;
    Ok(String::from_utf8_lossy(&tail).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;

    const SOON: Duration = Duration::from_secs(20);

    fn shell(script: &str, folder: &Path) -> Process {
        let spec = ProcessSpec {
            name: "shell".to_owned(),
            program: "sh".into(),
            arguments: vec!["-c".to_owned(), script.to_owned()],
            environment: vec![("GREETING".to_owned(), "hello".to_owned())],
        };
        Process::spawn(&spec, folder).unwrap()
    }

    #[tokio::test]
    async fn captures_output_and_exit_status() {
        let folder = tempfile::tempdir().unwrap();
        let process = shell("echo $GREETING; echo failed >&2; exit 3", folder.path());
        assert_eq!(process.wait().await.unwrap().code(), Some(3));
        assert!(
            process.log_tail().ends_with("hello\nfailed"),
            "{}",
            process.log_tail()
        );
    }

    #[tokio::test]
    async fn an_early_end_is_reported_with_the_log() {
        let folder = tempfile::tempdir().unwrap();
        let process = shell("echo no such model >&2; exit 1", folder.path());
        let error = process.until(SOON, async || false).await.unwrap_err();
        assert!(error.to_string().contains("no such model"), "{error}");
    }

    #[tokio::test]
    async fn stops_politely() {
        let folder = tempfile::tempdir().unwrap();
        let process = shell(
            "trap 'exit 0' TERM; echo ready; while :; do sleep 0.01; done",
            folder.path(),
        );
        process
            .until(SOON, async || {
                process.log_tail().contains("ready\n") || process.log_tail().ends_with("ready")
            })
            .await
            .unwrap();
        assert_eq!(process.stop(SOON).await.unwrap().code(), Some(0));
    }

    #[tokio::test]
    async fn kills_what_does_not_stop() {
        let folder = tempfile::tempdir().unwrap();
        let process = shell(
            "trap '' TERM; echo ready; while :; do sleep 0.01; done",
            folder.path(),
        );
        process
            .until(SOON, async || process.log_tail().ends_with("ready"))
            .await
            .unwrap();
        let status = process.stop(Duration::from_millis(50)).await.unwrap();
        assert_eq!(status.signal(), Some(9));
        process.signal(Signal::KILL); // After the end a signal goes nowhere.
    }

    #[tokio::test]
    async fn a_drop_kills() {
        let folder = tempfile::tempdir().unwrap();
        let process = shell("exec sleep 600", folder.path());
        let mut ended = process.ended.clone();
        drop(process);
        let status = tokio::time::timeout(SOON, ended.wait_for(Option::is_some))
            .await
            .unwrap();
        assert_eq!(status.unwrap().unwrap().signal(), Some(9));
    }
}
