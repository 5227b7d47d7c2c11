//! What processes have used: CPU time and memory, from Linux's `/proc`.

use std::time::Duration;

use anyhow::{Context, Result};

/// Linux shows times to programs in units of 10 ms on every architecture, whatever its own timer does. The kernel
/// measures finer than that and rounds what it shows, so an error does not add up over a run.
const TICK: Duration = Duration::from_millis(10);
/// The position of `utime`, which `stime` follows, behind the command's name, see proc_pid_stat(5).
const UTIME: usize = 11;

/// User and system time of all threads of process `pid`, those that have ended too.
pub(crate) fn cpu_time(pid: i32) -> Result<Duration> {
    let path = format!("/proc/{pid}/stat");
    let text = std::fs::read_to_string(&path).with_context(|| path.clone())?;
    let ticks = ticks(&text).with_context(|| format!("{path}: {text:?}"))?;
    Ok(TICK * ticks)
}

/// What a process and its descendants have used so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    pub(crate) cpu: Duration,
    /// The most memory that each had at a time, added up.
    pub(crate) peak_bytes: u64,
}

impl Usage {
    /// Of all processes that `roots` have started, and of themselves. One that has ended meanwhile counts for nothing.
    pub(crate) fn of(roots: &[i32]) -> Usage {
        let mut usage = Usage::default();
        let mut left = roots.to_vec();
        while let Some(pid) = left.pop() {
            left.extend(children(pid));
            usage.cpu += cpu_time(pid).unwrap_or_default();
            usage.peak_bytes += peak_bytes(pid).unwrap_or_default();
        }
        usage
    }
}

/// Processes that any thread of `pid` has started.
fn children(pid: i32) -> Vec<i32> {
    let Ok(threads) = std::fs::read_dir(format!("/proc/{pid}/task")) else {
        return Vec::new();
    };
    let lists = threads.flatten().filter_map(|thread| {
        let list = std::fs::read_to_string(thread.path().join("children")).ok()?;
        Some(
            list.split_whitespace()
                .flat_map(str::parse)
                .collect::<Vec<i32>>(),
        )
    });
    lists.flatten().collect()
}

fn peak_bytes(pid: i32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kibibytes: u64 = line.trim().strip_suffix(" kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024)
}

/// The command's name may hold spaces and parentheses, so counting begins behind the last parenthesis.
fn ticks(stat: &str) -> Option<u32> {
    let (_, behind_name) = stat.rsplit_once(')')?;
    let mut fields = behind_name.split_whitespace().skip(UTIME);
    let mut next = || fields.next()?.parse::<u32>().ok();
    let user = next()?;
    let system = next()?;
    user.checked_add(system)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_and_system_time_are_added() {
        let stat = "77 (a (b) c) S 1 2 3 4 5 6 7 8 9 10 130 20 0 0 20 0 1 0 5 6 7";
        assert_eq!(ticks(stat), Some(150));
        assert_eq!(ticks("77 (a) S 1 2"), None);
    }

    #[test]
    fn the_own_process_has_used_some() {
        let own = i32::try_from(std::process::id()).unwrap();
        let before = cpu_time(own).unwrap();
        let mut sum = 0_u64;
        while cpu_time(own).unwrap() == before {
            sum = (0..1_000_000).fold(sum, |sum: u64, step| sum.wrapping_mul(31) ^ step);
        }
        assert!(sum != 1);
    }
    #[test]
    fn descendants_are_counted_as_well() {
        let own = i32::try_from(std::process::id()).unwrap();
        let mut child = std::process::Command::new("sh")
            .args(["-c", "read -r line"])
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let child_pid = i32::try_from(child.id()).unwrap();
        assert!(children(own).contains(&child_pid));
        let (both, alone) = (Usage::of(&[own]), peak_bytes(own).unwrap());
        assert!(both.peak_bytes >= alone && alone > 1 << 20);
        // It ends with its input.
        drop(child.stdin.take());
        child.wait().unwrap();
        assert!(!children(own).contains(&child_pid));
        assert_eq!(Usage::of(&[child_pid]), Usage::default());
    }
}
