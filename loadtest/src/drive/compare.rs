//! Two reports held against each other. Pure.
//!
//! Runs are paired by their loads. What makes a comparison unfair (another workload, another seed, more errors) is told
//! beside the numbers and never left to be noticed.

use std::cmp::Ordering;

use serde::Serialize;

use super::Report;
use super::summary::RunReport;
use super::table::{MEASURES, Measure};
use crate::console::shown;

/// What changed from one report to the other.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Comparison {
    pub(super) before: String,
    pub(super) after: String,
    pub(super) runs: Vec<RunComparison>,
    pub(super) notes: Vec<String>,
    /// For plots.
    #[serde(skip)]
    pub(super) pairs: Vec<(RunReport, RunReport)>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct RunComparison {
    pub(super) load: String,
    pub(super) changes: Vec<Change>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Change {
    pub(super) measure: String,
    pub(super) before: Option<f64>,
    pub(super) after: Option<f64>,
    /// From before to after, of what it was before.
    pub(super) percent: Option<f64>,
    /// `None` where nothing changed, or more is neither better nor worse.
    pub(super) is_better: Option<bool>,
    #[serde(skip)]
    digits: usize,
}

impl Comparison {
    pub(super) fn of(before: &Report, after: &Report) -> Self {
        let mut notes = differences(before, after);
        let mut pairs = Vec::new();
        for run in &before.runs {
            match after.runs.iter().find(|other| other.load == run.load) {
                Some(other) => pairs.push((run.clone(), other.clone())),
                None => notes.push(format!("only the first report has a run with {}", run.load)),
            }
        }
        for run in &after.runs {
            if !before.runs.iter().any(|other| other.load == run.load) {
                notes.push(format!(
                    "only the second report has a run with {}",
                    run.load
                ));
            }
        }
        let runs = pairs
            .iter()
            .map(|(before, after)| RunComparison::of(before, after));
        Self {
            before: before.url.clone(),
            after: after.url.clone(),
            runs: runs.collect(),
            notes,
            pairs,
        }
    }
}

impl RunComparison {
    fn of(before: &RunReport, after: &RunReport) -> Self {
        let changes = MEASURES
            .iter()
            .map(|measure| Change::of(measure, before, after));
        Self {
            load: before.load.clone(),
            changes: changes.collect(),
        }
    }
}

impl Change {
    fn of(measure: &Measure, before: &RunReport, after: &RunReport) -> Self {
        let (before, after) = ((measure.of)(before), (measure.of)(after));
        let both = before.zip(after);
        let percent = both.filter(|(before, _)| *before != 0.0);
        let percent = percent.map(|(before, after)| (after / before - 1.0) * 100.0);
        let is_more = both.and_then(|(before, after)| match after.total_cmp(&before) {
            Ordering::Less => Some(false),
            Ordering::Equal => None,
            Ordering::Greater => Some(true),
        });
        let is_better = is_more.zip(measure.more_is_better);
        Self {
            measure: measure.name.to_owned(),
            before,
            after,
            percent,
            is_better: is_better.map(|(is_more, wanted)| is_more == wanted),
            digits: measure.digits,
        }
    }

    /// Before, after, change.
    pub(super) fn cells(&self) -> Vec<String> {
        let verdict = match self.is_better {
            Some(true) => " better",
            Some(false) => " worse",
            None => "",
        };
        let change = self.percent.map_or_else(
            || "–".to_owned(),
            |percent| format!("{percent:+.1}%{verdict}"),
        );
        vec![
            shown(self.before, self.digits),
            shown(self.after, self.digits),
            change,
        ]
    }
}

fn differences(before: &Report, after: &Report) -> Vec<String> {
    let pairs = [
        ("workload", before.workload.clone(), after.workload.clone()),
        ("seed", before.seed.to_string(), after.seed.to_string()),
        ("model", before.model.clone(), after.model.clone()),
        ("form", before.form.clone(), after.form.clone()),
        (
            "requests",
            before.totals.requests.to_string(),
            after.totals.requests.to_string(),
        ),
        (
            "objective",
            super::table::slo_text(before.slo),
            super::table::slo_text(after.slo),
        ),
    ];
    let differs = pairs
        .into_iter()
        .filter(|(_, before, after)| before != after);
    differs
        .map(|(name, before, after)| format!("another {name}: {before} before, {after} after"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::{REPORT_KIND, REPORT_VERSION, Slo};
    use super::*;
    use crate::drive::tally::Tally;
    use crate::workload::{Totals, Workload};

    fn report(seed: u64, loads: &[(&str, f64)]) -> Report {
        let runs = loads.iter().map(|(load, rate)| {
            let tally = Tally::new();
            let run = super::super::summary::summarise(
                (*load).to_owned(),
                Some(1.0),
                &Workload::default(),
                &tally,
                Slo::default(),
            );
            RunReport {
                requests_per_second: *rate,
                ..run
            }
        });
        Report {
            kind: REPORT_KIND.to_owned(),
            version: REPORT_VERSION,
            url: "http://x".to_owned(),
            model: "m".to_owned(),
            form: "tokens".to_owned(),
            workload: "unique".to_owned(),
            seed,
            totals: Totals::default(),
            slo: Slo::default(),
            runs: runs.collect(),
        }
    }

    #[test]
    fn runs_are_paired_by_their_loads() {
        let before = report(1, &[("1 requests/s", 2.0), ("9 requests/s", 5.0)]);
        let after = report(2, &[("1 requests/s", 3.0)]);
        let comparison = Comparison::of(&before, &after);
        assert_eq!(comparison.runs.len(), 1);
        let change = &comparison.runs[0].changes[0];
        assert_eq!((change.percent, change.is_better), (Some(50.0), Some(true)));
        assert_eq!(change.cells(), ["2.00", "3.00", "+50.0% better"]);
        assert_eq!(
            comparison.notes,
            [
                "another seed: 1 before, 2 after",
                "only the first report has a run with 9 requests/s"
            ]
        );
        let unknown = &comparison.runs[0].changes[3];
        assert_eq!(unknown.cells(), ["–", "–", "–"]);
    }
}
