//! A run: every workload, in rounds in which every subject takes its turn.
//!
//! The order of subjects turns by one from round to round, so that none of them is always the one
//! that finds the caches cold or the machine warm.

use anyhow::Result;

use crate::exact::{Script, Wrong};
use crate::flags::Flags;
use crate::measure::{
    self, LaneCost, Latencies, Memory, Timer, busy, hash_cost, load, load_with_two_lanes, quiet,
    unload,
};
use crate::report;
use crate::resident;
use crate::subject::{Subject, SubjectName};
use crate::with_subject;
use crate::workload::{Event, Letter, Stage, Workload, teardown};

/// Events that the writer applies beside the reader: at most so many, with so many blocks.
const BUSY_EVENTS_MAX: usize = 250_000;
const BUSY_BLOCKS_MAX: usize = 2_400_000;

/// Figures of one subject on one workload in one round.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sample {
    pub find_p50_ns: f64,
    pub find_p99_ns: f64,
    pub find_p999_ns: f64,
    pub finds_per_cpu_s: f64,
    pub two_readers_p50_ns: f64,
    pub two_readers_p99_ns: f64,
    pub two_readers_finds_per_cpu_s: f64,
    pub busy_p50_ns: f64,
    pub busy_p99_ns: f64,
    pub busy_p999_ns: f64,
    pub busy_events_per_s: f64,
    pub blocks_per_cpu_s: f64,
    pub events_per_cpu_s: f64,
    /// Not a number where it was not measured.
    pub two_lanes_blocks_per_cpu_s: f64,
    pub removed_per_cpu_s: f64,
}

/// All that is known of one subject on one workload.
#[derive(Debug)]
pub struct Column {
    pub subject: SubjectName,
    pub samples: Vec<Sample>,
    pub memory: Memory,
    pub wrong: Wrong,
}

/// One workload and its columns.
#[derive(Debug)]
pub struct Table {
    pub letter: Letter,
    pub entries: usize,
    pub distinct_blocks: usize,
    pub stored_blocks: usize,
    pub removed_blocks: usize,
    pub prompts: usize,
    pub columns: Vec<Column>,
}

/// Runs what the flags ask for and prints it.
pub fn run(flags: &Flags) -> Result<()> {
    let timer = Timer::calibrated();
    report::opening(flags, timer, &hash_costs(flags));
    let mut tables = Vec::new();
    for letter in &flags.workloads {
        let table = table(*letter, flags, timer)?;
        report::table(&table);
        tables.push(table);
    }
    if flags.workloads.contains(&Letter::M) {
        report::resident(&resident::of_all(flags)?);
    }
    report::ratios(&tables);
    Ok(())
}

fn hash_costs(flags: &Flags) -> Vec<(SubjectName, f64)> {
    let cost = |name: SubjectName| (0..5).map(move |_| with_subject!(name, hash_cost()));
    flags
        .subjects
        .iter()
        .map(|name| (*name, cost(*name).fold(f64::INFINITY, f64::min)))
        .collect()
}

fn table(letter: Letter, flags: &Flags, timer: Timer) -> Result<Table> {
    let mut workload = Workload::build(letter, flags)?;
    let removals = teardown(&mut workload);
    let mut columns = Vec::new();
    {
        let script = Script::new(&workload);
        for name in &flags.subjects {
            columns.push(Column {
                subject: *name,
                samples: Vec::new(),
                memory: with_subject!(*name, memory(&workload, &removals)),
                wrong: with_subject!(*name, check(&script)),
            });
        }
    }
    for round in 0..flags.rounds {
        let count = columns.len();
        for place in 0..count {
            let column = &mut columns[(place + round) % count];
            let sample = with_subject!(column.subject, sample(&workload, &removals, timer, round));
            column.samples.push(sample);
        }
    }
    Ok(Table {
        letter: workload.letter,
        // What the teardown removes is what was held.
        entries: removals.iter().map(Event::removed).sum(),
        distinct_blocks: workload.blocks.len(),
        stored_blocks: workload.stored_blocks(),
        removed_blocks: workload.removed_blocks(),
        prompts: workload
            .stages
            .iter()
            .map(|stage| stage.prompts.len())
            .sum(),
        columns,
    })
}

fn memory<S: Subject>(workload: &Workload, removals: &[Event]) -> Memory {
    measure::memory::<S>(workload, removals)
}

fn check<S: Subject>(script: &Script) -> Wrong {
    script.check::<S>()
}

/// One turn of one subject on one workload. Two lanes load it in the first round only: that takes
/// long and says little that one lane does not.
fn sample<S: Subject>(
    workload: &Workload,
    removals: &[Event],
    timer: Timer,
    round: usize,
) -> Sample {
    let mut sample = Sample {
        two_lanes_blocks_per_cpu_s: f64::NAN,
        ..Sample::default()
    };
    quiet_figures::<S>(&mut sample, workload, removals, timer);
    busy_figures::<S>(&mut sample, workload, timer);
    if round > 0 {
        return sample;
    }
    let all: Vec<Event> = workload
        .stages
        .iter()
        .flat_map(|stage| stage.events.iter().cloned())
        .collect();
    let cost = load_with_two_lanes::<S>(workload, &all);
    sample.two_lanes_blocks_per_cpu_s = per_second(cost.stored + cost.removed, cost);
    sample
}

fn quiet_figures<S: Subject>(
    sample: &mut Sample,
    workload: &Workload,
    removals: &[Event],
    timer: Timer,
) {
    let subject = S::new(workload.workers, 1);
    let mut lane = subject.lane();
    let mut cost = LaneCost::default();
    let (mut one, mut two) = (measure::Quiet::default(), measure::Quiet::default());
    for Stage { events, prompts } in &workload.stages {
        cost.append(load(&subject, &mut lane, workload, events));
        one.append(quiet(&subject, workload, prompts, timer, 1));
        two.append(quiet(&subject, workload, prompts, timer, 2));
    }
    sample.find_p50_ns = one.latencies.quantile(0.5);
    sample.find_p99_ns = one.latencies.quantile(0.99);
    sample.find_p999_ns = one.latencies.quantile(0.999);
    sample.finds_per_cpu_s = one.lookups as f64 / one.cpu.as_secs_f64();
    sample.two_readers_p50_ns = two.latencies.quantile(0.5);
    sample.two_readers_p99_ns = two.latencies.quantile(0.99);
    sample.two_readers_finds_per_cpu_s = two.lookups as f64 / two.cpu.as_secs_f64();
    sample.blocks_per_cpu_s = per_second(cost.stored + cost.removed, cost);
    sample.events_per_cpu_s = per_second(cost.events, cost);
    let cost = unload(&subject, &mut lane, workload, removals);
    sample.removed_per_cpu_s = per_second(cost.removed, cost);
}

fn busy_figures<S: Subject>(sample: &mut Sample, workload: &Workload, timer: Timer) {
    let subject = S::new(workload.workers, 1);
    let mut lane = subject.lane();
    let mut all = measure::Busy::default();
    for stage in &workload.stages {
        if workload.churn.is_empty() {
            let events = stage.events.iter();
            all.append(busy(
                &subject,
                &mut lane,
                workload,
                &stage.prompts,
                events,
                timer,
            ));
        } else {
            load(&subject, &mut lane, workload, &stage.events);
            let count = churn_count(workload);
            let events = workload.churn.iter().cycle().take(count);
            all.append(busy(
                &subject,
                &mut lane,
                workload,
                &stage.prompts,
                events,
                timer,
            ));
        }
    }
    let mut latencies: Latencies = all.latencies;
    sample.busy_p50_ns = latencies.quantile(0.5);
    sample.busy_p99_ns = latencies.quantile(0.99);
    sample.busy_p999_ns = latencies.quantile(0.999);
    sample.busy_events_per_s = all.events as f64 / all.elapsed.as_secs_f64();
}

fn churn_count(workload: &Workload) -> usize {
    let blocks: usize = workload
        .churn
        .iter()
        .map(|event| event.stored() + event.removed())
        .sum();
    let event_blocks = (blocks / workload.churn.len()).max(1);
    BUSY_EVENTS_MAX.min(BUSY_BLOCKS_MAX / event_blocks)
}

fn per_second(count: usize, cost: LaneCost) -> f64 {
    count as f64 / cost.cpu.as_secs_f64()
}
