//! Ends the children when this process dies without a chance to do it: SIGKILL, abort, power to nobody.
//!
//! Linux could do it per child (PR_SET_PDEATHSIG), but only through `pre_exec`, which is unsafe, and it fires when
//! the spawning *thread* ends, which in an async program is any time. So one shell waits instead: it reads the ids of
//! living children from a pipe that only this process holds, and when the pipe ends, for whatever reason, it kills
//! those that are left. It lives in a process group of its own, so that what is sent to ours (Ctrl-C, or the SIGKILL
//! of a test runner) does not reach it.

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Mutex, OnceLock, PoisonError};

use anyhow::{Context, Result};
use rustix::process::Pid;

/// Reads `+ID` and `-ID` lines; at the end of its input kills the ids that are left.
const SCRIPT: &str = r#"
trap '' HUP INT TERM
left=
while read -r line; do
    id=${line#?}
    case $line in
    +*) left="$left $id" ;;
    -*)
        kept=
        for other in $left; do [ "$other" = "$id" ] || kept="$kept $other"; done
        left=$kept
        ;;
    esac
done
[ -z "$left" ] || kill -KILL $left
"#;

/// A shell that outlives us by one action.
#[derive(Debug)]
pub(crate) struct Watchdog {
    pipe: Mutex<ChildStdin>,
    /// Never waited for: it ends after this process.
    _shell: Child,
}

impl Watchdog {
    /// The one of this process, started on first use.
    pub(crate) fn global() -> Result<&'static Watchdog> {
        static WATCHDOG: OnceLock<Watchdog> = OnceLock::new();
        if WATCHDOG.get().is_none() {
            // Two threads may both start one; the second is dropped at once, and ends by itself.
            let started = Watchdog::start()?;
            let _kept_or_dropped = WATCHDOG.set(started);
        }
        WATCHDOG.get().context("the watchdog was set above")
    }

    pub(crate) fn start() -> Result<Watchdog> {
        let mut shell = Command::new("sh")
            .args(["-c", SCRIPT])
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("cannot start `sh` as a watchdog")?;
        let pipe = shell
            .stdin
            .take()
            .context("the watchdog's input is a pipe")?;
        Ok(Watchdog {
            pipe: Mutex::new(pipe),
            _shell: shell,
        })
    }

    /// From now on `pid` dies with this process.
    pub(crate) fn guard(&self, pid: Pid) -> Result<()> {
        self.tell('+', pid)
    }

    /// `pid` has ended; its number may soon belong to a stranger.
    pub(crate) fn forget(&self, pid: Pid) -> Result<()> {
        self.tell('-', pid)
    }

    fn tell(&self, sign: char, pid: Pid) -> Result<()> {
        let line = format!("{sign}{}\n", pid.as_raw_nonzero());
        let mut pipe = self.pipe.lock().unwrap_or_else(PoisonError::into_inner);
        pipe.write_all(line.as_bytes())
            .context("the watchdog is gone")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;

    fn sleeper() -> (Child, Pid) {
        let child = Command::new("sleep").arg("600").spawn().unwrap();
        let pid = Pid::from_child(&child);
        (child, pid)
    }

    #[test]
    fn kills_what_is_left_and_spares_what_was_forgotten() {
        let watchdog = Watchdog::start().unwrap();
        let (mut left, left_pid) = sleeper();
        let (mut forgotten, forgotten_pid) = sleeper();
        watchdog.guard(left_pid).unwrap();
        watchdog.guard(forgotten_pid).unwrap();
        watchdog.forget(forgotten_pid).unwrap();

        let Watchdog {
            pipe,
            _shell: mut shell,
        } = watchdog;
        drop(pipe);
        assert_eq!(left.wait().unwrap().signal(), Some(9));
        shell.wait().unwrap();
        assert!(
            forgotten.try_wait().unwrap().is_none(),
            "killed a process that was forgotten"
        );
        forgotten.kill().unwrap();
        forgotten.wait().unwrap();
    }
}
