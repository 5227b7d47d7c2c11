//! Values as HTML text: escaped names, durations, bytes, shares.

use std::fmt;

/// Text that cannot leave its place, in an element or in a quoted attribute.
pub(super) struct Escaped<'a>(pub(super) &'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = self.0;
        while let Some(at) = rest.find(['&', '<', '>', '"', '\'']) {
            let (before, from) = rest.split_at(at);
            formatter.write_str(before)?;
            formatter.write_str(match from.as_bytes().first() {
                Some(b'&') => "&amp;",
                Some(b'<') => "&lt;",
                Some(b'>') => "&gt;",
                Some(b'"') => "&quot;",
                _ => "&#39;",
            })?;
            rest = from.get(1..).unwrap_or_default();
        }
        formatter.write_str(rest)
    }
}

/// `340 ms`, `12 s`, `5 min`, `3 h`, `8 d`: as exact as is of use.
pub(super) fn duration(ms: u64) -> String {
    match ms {
        0..1_000 => format!("{ms} ms"),
        1_000..120_000 => format!("{} s", ms / 1_000),
        120_000..7_200_000 => format!("{} min", ms / 60_000),
        7_200_000..172_800_000 => format!("{} h", ms / 3_600_000),
        _ => format!("{} d", ms / 86_400_000),
    }
}

/// The age of a page, coarse enough that an idle fleet shows the same text every second.
pub(super) fn age(ms: Option<u64>) -> String {
    match ms {
        None => "never".to_owned(),
        Some(0..2_000) => "&lt; 2 s".to_owned(),
        Some(ms) => duration(ms),
    }
}

pub(super) fn bytes(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if value < 1024.0 {
            let digits = usize::from(unit != "B" && value < 100.0);
            return format!("{value:.digits$} {unit}");
        }
        value /= 1024.0;
    }
    format!("{value:.1} TiB")
}

/// A share from 0 to 1 in percent, or a dash.
pub(super) fn share(share: Option<f64>) -> String {
    share.map_or_else(|| "–".to_owned(), |share| format!("{:.0}%", share * 100.0))
}

/// A share with a bar beside it.
pub(super) fn meter(share: f64) -> String {
    let shown = share.clamp(0.0, 1.0);
    format!(
        "<meter min=\"0\" max=\"1\" high=\"0.9\" optimum=\"0\" value=\"{shown:.2}\"></meter> {:.0}%",
        share * 100.0
    )
}

/// `hh:mm:ss` of a moment, in UTC.
pub(super) fn time_of_day(unix_ms: u64) -> String {
    let seconds = unix_ms / 1_000 % 86_400;
    format!(
        "{:02}:{:02}:{:02} UTC",
        seconds / 3_600,
        seconds / 60 % 60,
        seconds % 60
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_means_markup_comes_through() {
        let hostile = "<img src=x onerror='alert(1)'>&\"é";
        assert_eq!(
            Escaped(hostile).to_string(),
            "&lt;img src=x onerror=&#39;alert(1)&#39;&gt;&amp;&quot;é"
        );
    }

    #[test]
    fn values_read_as_people_write_them() {
        assert_eq!(duration(340), "340 ms");
        assert_eq!(duration(119_999), "119 s");
        assert_eq!(duration(3_600_000), "60 min");
        assert_eq!(duration(400_000_000), "4 d");
        assert_eq!(age(None), "never");
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(bytes(300 << 20), "300 MiB");
        assert_eq!(share(Some(0.5)), "50%");
        assert_eq!(share(None), "–");
        assert_eq!(time_of_day(86_399_999), "23:59:59 UTC");
    }
}
