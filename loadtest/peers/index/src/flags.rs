//! What a run measures, from the command line.

use std::path::PathBuf;

use clap::Parser;

use crate::subject::SubjectName;
use crate::workload::Letter;

/// Runs our prefix index beside dynamo-kv-router's and kv-index's, and prints how they compare.
#[derive(Debug, Clone, Parser)]
#[command(version)]
pub struct Flags {
    /// Workloads to run, of A to F and M.
    #[arg(long, value_delimiter = ',', default_value = "A,B,C,D,E,F,M")]
    pub workloads: Vec<Letter>,

    /// Rounds in which every subject runs every workload once. Medians over them are reported.
    #[arg(long, default_value_t = 3)]
    pub rounds: usize,

    /// Size of the workloads: 1 is about a million (worker, block) entries each.
    #[arg(long, default_value_t = 1.0)]
    pub scale: f64,

    /// Subjects to run.
    #[arg(long, value_delimiter = ',', default_value = "pointsman,crtc,chain")]
    pub subjects: Vec<SubjectName>,

    /// The Mooncake conversation trace, as JSON lines, compressed by zstd if its name ends in
    /// `.zst`. Without it the copy in `loadtest/traces` is read.
    #[arg(long, env = "POINTSMAN_TRACE")]
    pub trace: Option<PathBuf>,

    /// Seed of the generated workloads.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,

    /// Prints one subject's resident memory over workload M and nothing else. A run starts itself
    /// with this, because only a process of its own shows what one subject keeps resident.
    #[arg(long, hide = true)]
    pub resident_of: Option<SubjectName>,
}
