//! What a report draws of a run: how times to first token are spread, how they went over time, and who had how much to do.

use std::time::Duration;

use super::outcome::{QueueTimes, Record, quantile};

/// Points of a cumulative curve, and bins of time.
const POINTS: usize = 64;

/// See the module. Times are seconds.
#[derive(Clone, Debug, Default)]
pub(super) struct Curves {
    /// Times to first token, and the share of the requests that had theirs by then.
    pub ttft_shares: Vec<(f64, f64)>,
    /// By arrival: the middle of a bin, and the median and the 90th percentile in it.
    pub ttft_over_time: Vec<(f64, f64, f64)>,
    /// By worker: requests there, as a mean over the run.
    pub queues: Vec<f64>,
}

/// Draws the curves of a run.
pub(super) fn curves(records: &[Record], queues: &QueueTimes) -> Curves {
    let last = |time: fn(&Record) -> Option<Duration>| records.iter().filter_map(time).max();
    let end_s = last(|record| record.ended.or(record.first_token))
        .unwrap_or_default()
        .as_secs_f64()
        .max(1e-9);
    let mean = |seconds: &f64| seconds / end_s;
    Curves {
        ttft_shares: shares(records),
        ttft_over_time: over_time(records),
        queues: queues.request_seconds.iter().map(mean).collect(),
    }
}

fn shares(records: &[Record]) -> Vec<(f64, f64)> {
    let sorted = sorted(records.iter());
    let point = |number: usize| {
        let share = number as f64 / POINTS as f64;
        quantile(&sorted, share).map(|ttft| (ttft, share))
    };
    (1..=POINTS).filter_map(point).collect()
}

fn over_time(records: &[Record]) -> Vec<(f64, f64, f64)> {
    let latest = records.iter().map(|record| record.arrived).max();
    let width = latest.unwrap_or_default().as_secs_f64() / POINTS as f64;
    if width <= 0.0 {
        return Vec::new();
    }
    let mut bins: Vec<Vec<&Record>> = vec![Vec::new(); POINTS];
    for record in records {
        let bin = (record.arrived.as_secs_f64() / width) as usize;
        if let Some(bin) = bins.get_mut(bin.min(POINTS - 1)) {
            bin.push(record);
        }
    }
    let point = |(number, bin): (usize, &Vec<&Record>)| {
        let sorted = sorted(bin.iter().copied());
        let middle = (number as f64 + 0.5) * width;
        Some((middle, quantile(&sorted, 0.5)?, quantile(&sorted, 0.9)?))
    };
    bins.iter().enumerate().filter_map(point).collect()
}

fn sorted<'a>(records: impl Iterator<Item = &'a Record>) -> Vec<f64> {
    let mut all: Vec<f64> = records.filter_map(Record::ttft_s).collect();
    all.sort_by(f64::total_cmp);
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn curves_are_those_of_the_records() {
        let ms = Duration::from_millis;
        let record = |number: u64| Record {
            arrived: ms(number * 10),
            first_token: Some(ms(number * 11)),
            ended: Some(ms(number * 11)),
            ..Record::default()
        };
        let mut records: Vec<_> = (1..=640).map(record).collect();
        let queues = QueueTimes {
            request_seconds: vec![7.04, 0.0],
        };
        let drawn = curves(&records, &queues);
        assert_eq!(drawn.ttft_shares.len(), POINTS);
        let middle = drawn.ttft_shares[POINTS / 2 - 1];
        assert!((middle.0 - 0.32).abs() < 1e-9 && (middle.1 - 0.5).abs() < 1e-9);
        assert!(
            drawn
                .ttft_over_time
                .is_sorted_by(|a, b| a.0 < b.0 && a.1 < b.2)
        );
        assert!((drawn.queues[0] - 1.0).abs() < 1e-9 && drawn.queues[1] == 0.0);
        records.clear();
        let nothing = curves(&records, &QueueTimes::default());
        assert!(nothing.ttft_shares.is_empty() && nothing.ttft_over_time.is_empty());
    }
}
