//! The prefix index beside the two published ones: `workload → subject → measure → report`.
//!
//! One process runs all three on the same events and the same lookups, in alternating rounds, so
//! that a busy or throttled machine slows each of them alike. The figures that matter are the
//! ratios; the last line of output is one JSON object that holds them.

mod allocator;
mod exact;
mod flags;
mod measure;
mod reference;
mod report;
mod resident;
mod round;
mod subject;
mod workload;

use anyhow::Result;
use clap::Parser;

use flags::Flags;

#[global_allocator]
static ALLOCATOR: allocator::Counting = allocator::Counting;

fn main() -> Result<()> {
    let flags = Flags::parse();
    match flags.resident_of {
        Some(name) => resident::report_one(&flags, name),
        None => round::run(&flags),
    }
}
