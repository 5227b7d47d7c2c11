//! The tables, and the one line of ratios that ends a run.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::flags::Flags;
use crate::measure::Timer;
use crate::resident::Resident;
use crate::round::{Column, Sample, Table};
use crate::subject::SubjectName;

/// Ratios ours / better peer on one workload. Below one is better for times and bytes, above one
/// for rates.
#[derive(Debug, Serialize)]
struct Ratios {
    find_p50: f64,
    /// While another thread applies events at full speed.
    find_p99: f64,
    store_per_cpu_s: f64,
    bytes_per_entry: f64,
}

/// Which way a figure is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Better {
    Less,
    More,
}

/// What was run, on what clock, and what hashing costs each subject.
pub fn opening(flags: &Flags, timer: Timer, hash_costs: &[(SubjectName, f64)]) {
    println!(
        "{} rounds, scale {}, seed {}; {} ns of clock subtracted from each timed call",
        flags.rounds,
        flags.scale,
        flags.seed,
        timer.overhead_ns()
    );
    println!("medians over rounds; ratio = pointsman / better peer");
    println!();
    println!("fixed cost beside every lookup: hashes of a 4,096-token prompt, ns of CPU");
    for (name, cost) in hash_costs {
        println!("  {:<10} {cost:>9.0}", name.word());
    }
}

/// One workload, a row a figure.
pub fn table(table: &Table) {
    println!();
    println!(
        "{:?}: {}; {} entries, {} distinct blocks, {} stored, {} removed, {} prompts",
        table.letter,
        table.letter.words(),
        table.entries,
        table.distinct_blocks,
        table.stored_blocks,
        table.removed_blocks,
        table.prompts
    );
    print!("  {:<38}", "");
    for column in &table.columns {
        print!("{:>13}", column.subject.word());
    }
    println!("{:>9}", "ratio");
    for (label, better, figure) in rows() {
        row(table, label, better, &figure);
    }
    row(table, "bytes an entry", Better::Less, &|column| {
        column.memory.loaded_bytes as f64 / table.entries as f64
    });
    row(table, "MiB left when emptied", Better::Less, &|column| {
        column.memory.emptied_bytes as f64 / 1_048_576.0
    });
    row(
        table,
        "wrong answers, whole chains",
        Better::Less,
        &|column| column.wrong.whole as f64,
    );
    row(
        table,
        "wrong answers, with holes",
        Better::Less,
        &|column| column.wrong.holes as f64,
    );
    row(
        table,
        "wrong answers, some holes healed",
        Better::Less,
        &|column| column.wrong.healed as f64,
    );
    if let Some(column) = table.columns.first() {
        println!(
            "  {:<38}{:>13}",
            "answers checked, each", column.wrong.asked
        );
    }
}

/// Resident memory over workload M.
pub fn resident(subjects: &[(SubjectName, Resident)]) {
    println!();
    println!("M: resident memory above the process before the subject, MiB");
    println!(
        "  {:<10}{:>10}{:>10}{:>10}{:>10}{:>10}",
        "", "before", "at peak", "after", "emptied", "trimmed"
    );
    let mebibytes = |bytes: usize| bytes as f64 / 1_048_576.0;
    for (name, seen) in subjects {
        println!(
            "  {:<10}{:>10.1}{:>10.1}{:>10.1}{:>10.1}{:>10.1}",
            name.word(),
            0.0,
            mebibytes(seen.peak),
            mebibytes(seen.after),
            mebibytes(seen.emptied),
            mebibytes(seen.trimmed)
        );
    }
}

/// The last line: one JSON object, ratios by workload. Empty where only one subject ran.
pub fn ratios(tables: &[Table]) {
    let mut all: BTreeMap<String, Ratios> = BTreeMap::new();
    for table in tables {
        let of = |better, figure: &dyn Fn(&Column) -> f64| ratio(table, better, figure);
        let median = |field: fn(&Sample) -> f64| move |column: &Column| median(column, field);
        let find_p50 = of(Better::Less, &median(|sample| sample.find_p50_ns));
        let find_p99 = of(Better::Less, &median(|sample| sample.busy_p99_ns));
        let store = of(Better::More, &median(|sample| sample.blocks_per_cpu_s));
        let bytes = of(Better::Less, &|column| column.memory.loaded_bytes as f64);
        if let (Some(find_p50), Some(find_p99), Some(store), Some(bytes)) =
            (find_p50, find_p99, store, bytes)
        {
            all.insert(
                format!("{:?}", table.letter),
                Ratios {
                    find_p50: rounded(find_p50),
                    find_p99: rounded(find_p99),
                    store_per_cpu_s: rounded(store),
                    bytes_per_entry: rounded(bytes),
                },
            );
        }
    }
    println!();
    println!("{}", serde_json::json!(all));
}

type Figure = Box<dyn Fn(&Column) -> f64>;

fn rows() -> Vec<(&'static str, Better, Figure)> {
    fn of(field: fn(&Sample) -> f64) -> Figure {
        Box::new(move |column| median(column, field))
    }
    use Better::{Less, More};
    vec![
        ("find p50, ns", Less, of(|s| s.find_p50_ns)),
        ("find p99, ns", Less, of(|s| s.find_p99_ns)),
        ("find p99.9, ns", Less, of(|s| s.find_p999_ns)),
        (
            "finds per CPU-second, k",
            More,
            of(|s| s.finds_per_cpu_s / 1e3),
        ),
        ("two readers: p50, ns", Less, of(|s| s.two_readers_p50_ns)),
        ("two readers: p99, ns", Less, of(|s| s.two_readers_p99_ns)),
        (
            "two readers: finds per CPU-second, k",
            More,
            of(|s| s.two_readers_finds_per_cpu_s / 1e3),
        ),
        ("beside a writer: p50, ns", Less, of(|s| s.busy_p50_ns)),
        ("beside a writer: p99, ns", Less, of(|s| s.busy_p99_ns)),
        ("beside a writer: p99.9, ns", Less, of(|s| s.busy_p999_ns)),
        (
            "beside a writer: its k events/s",
            More,
            of(|s| s.busy_events_per_s / 1e3),
        ),
        (
            "blocks applied per CPU-second, M",
            More,
            of(|s| s.blocks_per_cpu_s / 1e6),
        ),
        (
            "events applied per CPU-second, k",
            More,
            of(|s| s.events_per_cpu_s / 1e3),
        ),
        (
            "two lanes: blocks per CPU-second, M",
            More,
            of(|s| s.two_lanes_blocks_per_cpu_s / 1e6),
        ),
        (
            "blocks removed per CPU-second, M",
            More,
            of(|s| s.removed_per_cpu_s / 1e6),
        ),
    ]
}

fn row(table: &Table, label: &str, better: Better, figure: &dyn Fn(&Column) -> f64) {
    print!("  {label:<38}");
    for column in &table.columns {
        let value = figure(column);
        let digits = if value >= 100.0 || value == 0.0 { 0 } else { 2 };
        print!("{value:>13.digits$}");
    }
    match ratio(table, better, figure) {
        Some(ratio) => println!("{ratio:>9.2}"),
        None => println!("{:>9}", "-"),
    }
}

/// Ours over the better of the peers.
fn ratio(table: &Table, better: Better, figure: &dyn Fn(&Column) -> f64) -> Option<f64> {
    let of = |name: SubjectName| {
        let column = table.columns.iter().find(|column| column.subject == name);
        column.map(figure)
    };
    let ours = of(SubjectName::Pointsman)?;
    let peers = [SubjectName::Crtc, SubjectName::Chain]
        .into_iter()
        .filter_map(of);
    let best = match better {
        Better::Less => peers.reduce(f64::min),
        Better::More => peers.reduce(f64::max),
    };
    best.filter(|best| *best > 0.0).map(|best| ours / best)
}

fn median(column: &Column, field: fn(&Sample) -> f64) -> f64 {
    let values = column.samples.iter().map(field);
    let mut values: Vec<f64> = values.filter(|value| !value.is_nan()).collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

fn rounded(value: f64) -> f64 {
    (value * 1_000.0).round() / 1_000.0
}
