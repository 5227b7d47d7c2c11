//! The CPU time of a process, from Linux's `/proc`.

use std::time::Duration;

use anyhow::{Context, Result};

/// Linux shows times to programs in units of 10 ms on every architecture, whatever its own timer does. The kernel
/// measures finer than that and rounds what it shows, so an error does not add up over a run.
const TICK: Duration = Duration::from_millis(10);
/// The position of `utime`, which `stime` follows, behind the command's name, see proc_pid_stat(5).
const UTIME: usize = 11;

/// User and system time of all threads of process `pid`, those that have ended too.
pub(super) fn cpu_time(pid: i32) -> Result<Duration> {
    let path = format!("/proc/{pid}/stat");
    let text = std::fs::read_to_string(&path).with_context(|| path.clone())?;
    let ticks = ticks(&text).with_context(|| format!("{path}: {text:?}"))?;
    Ok(TICK * ticks)
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
}
