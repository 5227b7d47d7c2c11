//! The format of Azure's LLM inference traces: `TIMESTAMP,ContextTokens,GeneratedTokens`.
//!
//! A time is `2023-11-16 18:17:03.9799600`, and times count from the first line's. Nothing says what the prompts have
//! in common, so each is one segment of its own and each request a session of its own.

use std::path::Path;
use std::time::Duration;

use super::lines::Lines;
use super::{Taker, TraceError, TraceOptions};
use crate::workload::tokens::mix;
use crate::workload::{PlannedRequest, Segment, Workload};

const HEADER: &str = "TIMESTAMP,ContextTokens,GeneratedTokens";
/// Keep the ids of prompts and answers apart.
const PROMPTS: u64 = 0x7072_6f6d_7074_0000;
const ANSWERS: u64 = 0x616e_7377_6572_0001;

/// Reads `path`, whose first line must be the format's header.
pub fn read(path: &Path, options: TraceOptions) -> Result<Workload, TraceError> {
    let mut lines = Lines::open(path)?;
    let mut taker = Taker::new(path, options);
    if let Some((number, header)) = lines.next_line()?
        && header != HEADER
    {
        return Err(taker.bad(number, format!("the header is not {HEADER}")));
    }
    let mut first = None;
    while let Some((number, text)) = lines.next_line()? {
        let (time, mut request) =
            parsed(number, text).map_err(|problem| taker.bad(number, problem))?;
        let start = *first.get_or_insert(time);
        let since = time.checked_sub(start);
        request.at =
            since.ok_or_else(|| taker.bad(number, "its time is before the first one's"))?;
        if !taker.offer(number, request)? {
            break;
        }
    }
    taker.finish()
}

/// The time since 1970 and the request.
fn parsed(number: usize, line: &str) -> Result<(Duration, PlannedRequest), String> {
    let mut fields = line.split(',');
    let mut field = |name: &str| {
        let field = fields.next().map(str::trim);
        field.ok_or_else(|| format!("{name} is missing"))
    };
    let time = field("TIMESTAMP")?;
    let time = timestamp(time).ok_or_else(|| format!("TIMESTAMP `{time}` is no time"))?;
    let mut tokens = |name: &str| {
        let text = field(name)?;
        let tokens = text.parse().ok().filter(|tokens| *tokens > 0);
        tokens.ok_or_else(|| format!("{name} `{text}` is no number of tokens"))
    };
    let (prompt, answer) = (tokens("ContextTokens")?, tokens("GeneratedTokens")?);
    if let Some(more) = fields.next() {
        return Err(format!("`{more}` is one field too many"));
    }
    let segment = |kind: u64, tokens: u32| Segment {
        id: mix(kind ^ number as u64),
        tokens,
    };
    let request = PlannedRequest {
        at: Duration::ZERO,
        prompt: vec![segment(PROMPTS, prompt)],
        answer: segment(ANSWERS, answer),
        session: number as u64,
        tenant: 0,
        after: None,
    };
    Ok((time, request))
}

/// `YYYY-MM-DD hh:mm:ss[.fraction]`, as time since 1970.
fn timestamp(text: &str) -> Option<Duration> {
    let (date, time) = text.split_once(' ')?;
    let mut date = date.splitn(3, '-');
    let year = date
        .next()?
        .parse()
        .ok()
        .filter(|year| (1970..=9999).contains(year))?;
    let month = date
        .next()?
        .parse()
        .ok()
        .filter(|month| (1..=12).contains(month))?;
    let day = date
        .next()?
        .parse()
        .ok()
        .filter(|day| (1..=31).contains(day))?;
    let mut time = time.splitn(3, ':');
    let hours: u64 = time.next()?.parse().ok().filter(|hours| *hours < 24)?;
    let minutes: u64 = time.next()?.parse().ok().filter(|minutes| *minutes < 60)?;
    let seconds: f64 = time
        .next()?
        .parse()
        .ok()
        .filter(|seconds| (0.0..61.0).contains(seconds))?;
    let whole = days_since_1970(year, month, day) * 86_400 + hours * 3_600 + minutes * 60;
    Some(Duration::from_secs(whole) + Duration::from_secs_f64(seconds))
}

/// Days from 1970-01-01 in the Gregorian calendar. Years begin in March here, so that a leap day is a year's last.
fn days_since_1970(year: u64, month: u64, day: u64) -> u64 {
    let (year, month) = if month > 2 {
        (year, month - 3)
    } else {
        (year - 1, month + 9)
    };
    let leap_days = year / 4 - year / 100 + year / 400;
    let days_before_month = (153 * month + 2) / 5;
    // 719,468 days lie between 0000-03-01 and 1970-01-01.
    (year * 365 + leap_days + days_before_month + day - 1).saturating_sub(719_468)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timestamps_count_from_1970() {
        let seconds = |text| timestamp(text).map(|time| time.as_secs());
        assert_eq!(seconds("1970-01-01 00:00:00"), Some(0));
        assert_eq!(seconds("2000-02-29 00:00:01.5"), Some(951_782_401));
        assert_eq!(seconds("2023-11-16 18:17:03.9799600"), Some(1_700_158_623));
        for bad in [
            "",
            "2023-11-16",
            "2023-13-16 00:00:00",
            "2023-11-16 24:00:00",
            "2023-11-16 00:00:nan",
        ] {
            assert_eq!(timestamp(bad), None, "{bad}");
        }
    }
}
