//! Times as Kubernetes writes them (RFC 3339), to seconds since 1970.

/// `2026-01-31T12:00:00Z`, with a fraction (dropped) or an offset (`+01:00`) if need be; nothing
/// where it is no time. A leap second counts as the second after it.
pub(super) fn seconds_since_1970(text: &str) -> Option<i64> {
    let (date, time) = text.split_once(['T', 't'])?;
    let days = days_since_1970(date)?;
    let (clock, offset_s) = if let Some(clock) = time.strip_suffix(['Z', 'z']) {
        (clock, 0)
    } else {
        let (clock, offset) = time.split_at(time.rfind(['+', '-'])?);
        let minutes = offset_minutes(offset.get(1..)?)?;
        let is_east = offset.starts_with('+');
        (clock, if is_east { minutes * 60 } else { -minutes * 60 })
    };
    let clock = match clock.split_once('.') {
        None => clock,
        Some((clock, fraction)) => {
            let is_fraction = !fraction.is_empty() && fraction.bytes().all(|b| b.is_ascii_digit());
            is_fraction.then_some(clock)?
        }
    };
    let mut parts = clock.split(':');
    let hours = digits(parts.next()?, 2, 0, 23)?;
    let minutes = digits(parts.next()?, 2, 0, 59)?;
    let seconds = digits(parts.next()?, 2, 0, 60)?;
    if parts.next().is_some() {
        return None;
    }
    Some(days * 86_400 + hours * 3_600 + minutes * 60 + seconds - offset_s)
}

fn offset_minutes(text: &str) -> Option<i64> {
    let (hours, minutes) = text.split_once(':')?;
    Some(digits(hours, 2, 0, 23)? * 60 + digits(minutes, 2, 0, 59)?)
}

/// Days of the proleptic Gregorian calendar, counted in years that begin in March, so that the leap
/// day is a year's last (Howard Hinnant's `days_from_civil`).
fn days_since_1970(text: &str) -> Option<i64> {
    let mut parts = text.split('-');
    let year = digits(parts.next()?, 4, 0, 9999)?;
    let month = digits(parts.next()?, 2, 1, 12)?;
    let is_leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let days_in_month = match month {
        4 | 6 | 9 | 11 => 30,
        2 if is_leap => 29,
        2 => 28,
        _ => 31,
    };
    let day = digits(parts.next()?, 2, 1, days_in_month)?;
    if parts.next().is_some() {
        return None;
    }
    let year = if month <= 2 { year - 1 } else { year };
    let (era, year_of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    Some(era * 146_097 + day_of_era - 719_468)
}

fn digits(text: &str, width: usize, least: i64, most: i64) -> Option<i64> {
    let is_number = text.len() == width && text.bytes().all(|byte| byte.is_ascii_digit());
    let number: i64 = is_number.then(|| text.parse().ok())??;
    (least..=most).contains(&number).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_times() {
        let cases = [
            ("1970-01-01T00:00:00Z", 0),
            ("2000-03-01T00:00:00Z", 951_868_800),
            ("2000-02-29T23:59:59Z", 951_868_799),
            ("2026-01-31T12:00:00Z", 1_769_860_800),
            ("2026-01-31T12:00:00.123456Z", 1_769_860_800),
            ("2026-01-31T13:00:00+01:00", 1_769_860_800),
            ("2026-01-31T11:30:00-00:30", 1_769_860_800),
            ("1969-12-31T23:59:59Z", -1),
        ];
        for (text, expected) in cases {
            assert_eq!(seconds_since_1970(text), Some(expected), "{text}");
        }
    }

    #[test]
    fn what_is_no_time_is_none() {
        for text in [
            "",
            "2026-01-31",
            "2026-01-31T12:00:00",
            "2026-02-29T12:00:00Z",
            "2026-13-01T12:00:00Z",
            "2026-1-01T12:00:00Z",
            "2026-01-31T24:00:00Z",
            "2026-01-31T12:00Z",
            "2026-01-31T12:00:00.Z",
            "2026-01-31T12:00:00+é",
            "2026-01-31T12:00:00+01",
            "+026-01-31T12:00:00Z",
        ] {
            assert_eq!(seconds_since_1970(text), None, "{text}");
        }
    }
}
