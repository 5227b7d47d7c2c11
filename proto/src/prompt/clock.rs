//! The date, for chat templates that ask for it: `strftime_now`.
//!
//! [`now_s`] is the only reader of the wall clock in this crate. Dates are in UTC, so that a picker
//! and a worker on two machines write the same one whatever their time zones are. A template that
//! asks for the time of day makes each prompt its own; nothing here can mend that.

use std::fmt::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

const DAYS: [&str; 7] = [
    "Sunday",
    "Monday",
    "Tuesday",
    "Wednesday",
    "Thursday",
    "Friday",
    "Saturday",
];

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

/// Seconds since the Unix epoch; 0 on a machine whose clock stands before it.
pub(super) fn now_s() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

/// Formats a time as Python's `strftime` does in the C locale. A directive that is not known stays
/// as it is written, as glibc leaves it. `%-d` and its like leave out the padding.
pub(super) fn strftime(format: &str, unix_s: u64) -> String {
    let time = CivilTime::new(unix_s);
    let mut out = String::with_capacity(format.len() + 16);
    let mut characters = format.chars();
    while let Some(character) = characters.next() {
        if character != '%' {
            out.push(character);
            continue;
        }
        let mut rest = characters.clone();
        let mut directive = rest.next();
        let unpadded = directive == Some('-');
        if unpadded {
            directive = rest.next();
        }
        match directive {
            Some(directive) if time.write(directive, unpadded, &mut out) => characters = rest,
            _ => out.push('%'),
        }
    }
    out
}

/// A UTC time, in the calendar's terms.
struct CivilTime {
    year: u64,
    month: u64,
    day: u64,
    /// From 0.
    day_of_year: u64,
    /// From 0, a Sunday.
    weekday: u64,
    second_of_day: u64,
}

impl CivilTime {
    /// The proleptic Gregorian calendar in 400-year eras of 146,097 days, with years that begin in
    /// March, so that the leap day is a year's last.
    fn new(unix_s: u64) -> Self {
        let days = unix_s / 86_400;
        let shifted = days + 719_468;
        let era = shifted / 146_097;
        let day_of_era = shifted % 146_097;
        let year_of_era =
            (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_from_march = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let month_from_march = (5 * day_from_march + 2) / 153;
        let month = (month_from_march + 2) % 12 + 1;
        let year = era * 400 + year_of_era + u64::from(month <= 2);
        let leap = year.is_multiple_of(4) && !year.is_multiple_of(100) || year.is_multiple_of(400);
        let day_of_year = if month <= 2 {
            day_from_march - 306
        } else {
            day_from_march + 59 + u64::from(leap)
        };
        Self {
            year,
            month,
            day: day_from_march - (153 * month_from_march + 2) / 5 + 1,
            day_of_year,
            weekday: (days + 4) % 7,
            second_of_day: unix_s % 86_400,
        }
    }

    /// Appends what `directive` stands for; false for one that is not known.
    fn write(&self, directive: char, unpadded: bool, out: &mut String) -> bool {
        let hour = self.second_of_day / 3_600;
        let hour12 = (hour + 11) % 12 + 1;
        let minute = self.second_of_day / 60 % 60;
        let second = self.second_of_day % 60;
        let day_name = DAYS[self.weekday as usize];
        let month_name = MONTHS[self.month as usize - 1];
        let (value, width) = match directive {
            'Y' => (self.year, 4),
            'y' => (self.year % 100, 2),
            'm' => (self.month, 2),
            'd' => (self.day, 2),
            'H' => (hour, 2),
            'I' => (hour12, 2),
            'M' => (minute, 2),
            'S' => (second, 2),
            'j' => (self.day_of_year + 1, 3),
            'w' => (self.weekday, 1),
            'e' => {
                let width = if unpadded { 0 } else { 2 };
                return write!(out, "{:width$}", self.day).is_ok();
            }
            'F' => return self.expand("%Y-%m-%d", out),
            'D' => return self.expand("%m/%d/%y", out),
            'T' => return self.expand("%H:%M:%S", out),
            'R' => return self.expand("%H:%M", out),
            text => {
                out.push_str(match text {
                    'A' => day_name,
                    'a' => &day_name[..3],
                    'B' => month_name,
                    'b' | 'h' => &month_name[..3],
                    'p' if hour < 12 => "AM",
                    'p' => "PM",
                    'Z' => "UTC",
                    'z' => "+0000",
                    '%' => "%",
                    _ => return false,
                });
                return true;
            }
        };
        let width = if unpadded { 0 } else { width };
        write!(out, "{value:0width$}").is_ok()
    }

    fn expand(&self, directives: &str, out: &mut String) -> bool {
        directives
            .split_inclusive(|character: char| character.is_alphabetic())
            .all(|piece| {
                let (literal, directive) = piece.split_once('%').unwrap_or((piece, ""));
                out.push_str(literal);
                directive
                    .chars()
                    .all(|directive| self.write(directive, false, out))
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_times_come_out_as_in_python() {
        let cases = [
            (0, "1970-01-01 Thursday 001 00:00:00 AM"),
            (951_782_399, "2000-02-28 Monday 059 23:59:59 PM"),
            (951_782_400, "2000-02-29 Tuesday 060 00:00:00 AM"),
            (951_868_800, "2000-03-01 Wednesday 061 00:00:00 AM"),
            (978_264_000, "2000-12-31 Sunday 366 12:00:00 PM"),
            (1_700_000_000, "2023-11-14 Tuesday 318 22:13:20 PM"),
            (4_107_542_399, "2100-02-28 Sunday 059 23:59:59 PM"),
            (4_107_542_400, "2100-03-01 Monday 060 00:00:00 AM"),
        ];
        for (unix_s, expected) in cases {
            assert_eq!(strftime("%Y-%m-%d %A %j %H:%M:%S %p", unix_s), expected);
        }
    }

    #[test]
    fn directives_of_known_templates() {
        let unix_s = 1_709_251_509; // 2024-03-01 00:05:09 UTC
        let cases = [
            ("%d %b %Y", "01 Mar 2024"),
            ("%B %-d, %Y", "March 1, 2024"),
            ("%e|%-m|%I:%M|%a", " 1|3|12:05|Fri"),
            ("%F %T", "2024-03-01 00:05:09"),
            ("%D %R", "03/01/24 00:05"),
            ("100%% %Q %", "100% %Q %"),
            ("", ""),
        ];
        for (format, expected) in cases {
            assert_eq!(strftime(format, unix_s), expected, "{format}");
        }
    }
}
