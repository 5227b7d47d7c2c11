//! Resident memory before the trace, at its peak, after it, and after everything was removed.
//!
//! Each subject is watched in a process of its own. A run of `nothing` shows what of it is the
//! harness: the buffers that events pass through on their way.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::allocator;
use crate::flags::Flags;
use crate::measure::load;
use crate::subject::{Subject, SubjectName};
use crate::with_subject;
use crate::workload::{Letter, Workload, teardown};

/// Stages after which a subject's background work is due: five minutes of the trace.
const STAGES_A_MAINTENANCE: usize = 32;

/// Resident bytes of the process above those before the subject existed.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Resident {
    /// The most that was seen.
    pub peak: usize,
    /// After the trace.
    pub after: usize,
    /// After everything was removed.
    pub emptied: usize,
    /// After that, with the allocator's free pages given back to the kernel.
    pub trimmed: usize,
}

/// Watches each subject of a run, and `nothing`.
pub fn of_all(flags: &Flags) -> Result<Vec<(SubjectName, Resident)>> {
    let mut names = flags.subjects.clone();
    if !names.contains(&SubjectName::Nothing) {
        names.push(SubjectName::Nothing);
    }
    names
        .into_iter()
        .map(|name| Ok((name, of_one(flags, name)?)))
        .collect()
}

fn of_one(flags: &Flags, name: SubjectName) -> Result<Resident> {
    let mut command = Command::new(std::env::current_exe()?);
    command
        .args(["--resident-of", name.word()])
        .args(["--scale", &flags.scale.to_string()]);
    if let Some(trace) = &flags.trace {
        command.arg("--trace").arg(trace);
    }
    let output = command.output().context("starting a process of its own")?;
    ensure!(
        output.status.success(),
        "{}: {}",
        name.word(),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// Watches one subject in this process and prints what was seen.
pub fn report_one(flags: &Flags, name: SubjectName) -> Result<()> {
    let mut workload = Workload::build(Letter::M, flags)?;
    let removals = teardown(&mut workload);
    allocator::trim();
    let before = resident_bytes()?;
    let mut resident = with_subject!(name, watch(&workload, &removals))?;
    for bytes in [
        &mut resident.peak,
        &mut resident.after,
        &mut resident.emptied,
        &mut resident.trimmed,
    ] {
        *bytes = bytes.saturating_sub(before);
    }
    println!("{}", serde_json::to_string(&resident)?);
    Ok(())
}

fn watch<S: Subject>(workload: &Workload, removals: &[crate::workload::Event]) -> Result<Resident> {
    let subject = S::new(workload.workers, 1);
    let mut lane = subject.lane();
    let mut peak = 0;
    for (index, stage) in workload.stages.iter().enumerate() {
        for events in stage.events.chunks(512) {
            load(&subject, &mut lane, workload, events);
        }
        peak = peak.max(resident_bytes()?);
        if (index + 1) % STAGES_A_MAINTENANCE == 0 {
            subject.maintain();
        }
    }
    let after = resident_bytes()?;
    for events in removals.chunks(512) {
        load(&subject, &mut lane, workload, events);
    }
    subject.maintain();
    let emptied = resident_bytes()?;
    allocator::trim();
    Ok(Resident {
        peak,
        after,
        emptied,
        trimmed: resident_bytes()?,
    })
}

/// Resident bytes of this process now.
fn resident_bytes() -> Result<usize> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kibibytes: usize = line
        .and_then(|rest| rest.split_whitespace().next())
        .context("no VmRSS in /proc/self/status")?
        .parse()?;
    Ok(kibibytes * 1_024)
}
