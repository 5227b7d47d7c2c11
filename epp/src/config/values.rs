//! Single values on the command line and in configurations: durations in Go's notation, byte sizes,
//! Kubernetes quantities, and numbers with their bounds.

use std::time::Duration;

/// Reads a duration as Go writes it: numbers with the units `ns`, `us`, `ms`, `s`, `m`, `h`, one
/// after the other, such as `50ms`, `1.5s` or `1m30s`. `0` needs no unit.
pub fn duration(text: &str) -> Result<Duration, String> {
    let invalid = || format!("`{text}` is no duration: write 50ms, 2s or 1m30s");
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    if text.is_empty() {
        return Err(invalid());
    }
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .ok_or_else(invalid)?;
        let (number, after) = rest.split_at(digits);
        let unit_length = after
            .find(|c: char| c.is_ascii_digit())
            .unwrap_or(after.len());
        let (unit, after) = after.split_at(unit_length);
        let number: f64 = number.parse().map_err(|_| invalid())?;
        let seconds = number * seconds_per(unit).ok_or_else(invalid)?;
        let part = Duration::try_from_secs_f64(seconds).map_err(|_| invalid())?;
        total = total.checked_add(part).ok_or_else(invalid)?;
        rest = after;
    }
    Ok(total)
}

fn seconds_per(unit: &str) -> Option<f64> {
    match unit {
        "ns" => Some(1e-9),
        "us" | "µs" => Some(1e-6),
        "ms" => Some(1e-3),
        "s" => Some(1.0),
        "m" => Some(60.0),
        "h" => Some(3600.0),
        _ => None,
    }
}

/// Reads a size in bytes: a whole number, alone or with `KiB`, `MiB` or `GiB`.
pub fn bytes(text: &str) -> Result<usize, String> {
    let invalid = || format!("`{text}` is no size: write 1048576, 512KiB or 64MiB");
    let digits = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor: usize = match unit.trim_start() {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return Err(invalid()),
    };
    let number: usize = number.parse().map_err(|_| invalid())?;
    number.checked_mul(factor).ok_or_else(invalid)
}

/// Reads a Kubernetes quantity, such as `5000`, `1k`, `1.5Gi` or `2e3`, rounded up to a whole number.
pub fn quantity(text: &str) -> Result<u64, String> {
    let invalid = || format!("`{text}` is no quantity: write 5000, 1k, 500M or 1Gi");
    let digits = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, suffix) = text.split_at(digits);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.len() + fraction.len() == 0 || whole.len() > 20 || fraction.len() > 9 {
        return Err(invalid());
    }
    let mantissa: u128 = format!("{whole}{fraction}")
        .parse()
        .map_err(|_| invalid())?;
    let (factor, divisor) = quantity_scale(suffix).ok_or_else(invalid)?;
    let divisor = divisor * 10_u128.pow(fraction.len() as u32);
    let value = mantissa.checked_mul(factor).ok_or_else(invalid)?;
    u64::try_from(value.div_ceil(divisor)).map_err(|_| invalid())
}

/// Factor and divisor of a quantity's suffix.
fn quantity_scale(suffix: &str) -> Option<(u128, u128)> {
    let decimal = |exponent| Some((10_u128.pow(exponent), 1));
    let binary = |exponent: u32| Some((1_u128 << exponent, 1));
    match suffix {
        "" => Some((1, 1)),
        "m" => Some((1, 1000)),
        "k" => decimal(3),
        "M" => decimal(6),
        "G" => decimal(9),
        "T" => decimal(12),
        "P" => decimal(15),
        "E" => decimal(18),
        "Ki" => binary(10),
        "Mi" => binary(20),
        "Gi" => binary(30),
        "Ti" => binary(40),
        "Pi" => binary(50),
        "Ei" => binary(60),
        _ => {
            let exponent = suffix.strip_prefix(['e', 'E'])?;
            let exponent: u32 = exponent
                .strip_prefix('+')
                .unwrap_or(exponent)
                .parse()
                .ok()?;
            (exponent <= 19).then(|| (10_u128.pow(exponent), 1))
        }
    }
}

/// Writes a duration so that [`duration`] reads the same one.
pub fn duration_text(duration: Duration) -> String {
    let (seconds, nanos) = (duration.as_secs(), duration.subsec_nanos());
    match (seconds, nanos) {
        (_, 0) => format!("{seconds}s"),
        (0, _) if nanos % 1_000_000 == 0 => format!("{}ms", nanos / 1_000_000),
        (0, _) => format!("{nanos}ns"),
        _ if nanos % 1_000_000 == 0 => format!("{seconds}s{}ms", nanos / 1_000_000),
        _ => format!("{seconds}s{nanos}ns"),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn quantities_are_kubernetes() {
        let cases = [
            ("0", 0),
            ("5000", 5000),
            ("1k", 1000),
            ("1G", 1_000_000_000),
            ("1Gi", 1 << 30),
            ("1.5Ki", 1536),
            ("100m", 1),
            ("2e3", 2000),
            ("1E", 1_000_000_000_000_000_000),
            ("18446744073709551615", u64::MAX),
        ];
        for (text, expected) in cases {
            assert_eq!(quantity(text), Ok(expected), "{text}");
        }
        for text in [
            "", "-1", "1 G", "1GB", "Gi", "1.2.3", "99E", "1e99", "\u{665}", ".",
        ] {
            assert!(quantity(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn durations_survive_being_written(seconds in 0_u64..100_000_000, nanos in 0_u32..1_000_000_000) {
            let written = Duration::new(seconds, nanos);
            prop_assert_eq!(duration(&duration_text(written)), Ok(written));
        }
    }

    #[test]
    fn durations_are_gos() {
        let cases = [
            ("50ms", Duration::from_millis(50)),
            ("1.5s", Duration::from_millis(1500)),
            ("1m30s", Duration::from_secs(90)),
            ("2h", Duration::from_hours(2)),
            ("0", Duration::ZERO),
            ("0s", Duration::ZERO),
            ("250us", Duration::from_micros(250)),
        ];
        for (text, expected) in cases {
            assert_eq!(duration(text), Ok(expected), "{text}");
        }
        for text in [
            "",
            "5",
            "s",
            "-1s",
            "5 s",
            "1x",
            "1..5s",
            "99999999999999999999h",
        ] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_have_binary_units() {
        assert_eq!(bytes("1048576"), Ok(1 << 20));
        assert_eq!(bytes("64MiB"), Ok(64 << 20));
        assert_eq!(bytes("1 GiB"), Ok(1 << 30));
        for text in ["", "MiB", "64MB", "-1", "1.5MiB", "99999999999GiB"] {
            assert!(bytes(text).is_err(), "{text}");
        }
    }
}
