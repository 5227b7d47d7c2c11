//! A zero-copy scanner of Prometheus text pages.
//!
//! A worker's page has some 200 series, mostly histogram buckets, and epp wants five of them twenty
//! times a second from every worker. So a line is cut at its name, and only lines of wanted names
//! are looked at any further; nothing is copied, nothing is allocated. The grammar of a sample is
//!
//! ```text
//! name [ "{" label "=" '"' escaped '"' [","] … "}" ] blank value [ blank timestamp ]
//! ```
//!
//! Lines that do not fit are skipped. Help, types and timestamps are ignored. Which series mean
//! what is for [`engines`](super::engines) and [`signals`](super::signals) to say.

use std::borrow::Cow;

/// One sample line, cut at its name. The rest is read when asked for.
#[derive(Clone, Copy, Debug)]
pub struct Sample<'a> {
    pub name: &'a [u8],
    rest: &'a [u8],
}

/// The samples of a page, in order.
pub fn samples(page: &[u8]) -> impl Iterator<Item = Sample<'_>> {
    page.split(|byte| *byte == b'\n').filter_map(|line| {
        let line = line.trim_ascii();
        if line.first().is_none_or(|first| *first == b'#') {
            return None;
        }
        let end = line
            .iter()
            .position(|byte| matches!(byte, b'{' | b' ' | b'\t'))?;
        let (name, rest) = line.split_at(end);
        Some(Sample { name, rest })
    })
}

impl<'a> Sample<'a> {
    /// The value; `None` where the line has none that reads as a number.
    pub fn value(&self) -> Option<f64> {
        let (_, after) = self.split_labels()?;
        let mut words = after
            .split(u8::is_ascii_whitespace)
            .filter(|word| !word.is_empty());
        let word = std::str::from_utf8(words.next()?).ok()?;
        word.parse().ok()
    }

    /// A label's value as it is written, escapes included; `None` where the line does not have the
    /// label.
    pub fn label(&self, name: &str) -> Option<&'a str> {
        let (mut labels, _) = self.split_labels()?;
        loop {
            let equals = labels.iter().position(|byte| *byte == b'=')?;
            let (found, rest) = labels.split_at(equals);
            let quoted = rest.get(1..)?.trim_ascii_start().strip_prefix(b"\"")?;
            let end = quoted_length(quoted)?;
            if found.trim_ascii() == name.as_bytes() {
                return std::str::from_utf8(&quoted[..end]).ok();
            }
            labels = quoted.get(end + 1..)?.trim_ascii_start();
            labels = labels.strip_prefix(b",").unwrap_or(labels);
        }
    }

    /// Whether the line has this label with this value, escapes resolved.
    pub fn label_is(&self, name: &str, value: &str) -> bool {
        self.label(name).is_some_and(|raw| unescaped(raw) == value)
    }

    /// What stands between the braces, as it is written; empty without labels.
    pub fn labels_text(&self) -> &'a [u8] {
        self.split_labels().map_or(&[], |(labels, _)| labels)
    }

    /// What stands between the braces, and what follows them.
    fn split_labels(&self) -> Option<(&'a [u8], &'a [u8])> {
        let Some(inner) = self.rest.trim_ascii_start().strip_prefix(b"{") else {
            return Some((&[], self.rest));
        };
        let mut at = 0;
        loop {
            match inner.get(at)? {
                b'}' => return Some((&inner[..at], &inner[at + 1..])),
                b'"' => at += 1 + quoted_length(&inner[at + 1..])? + 1,
                _ => at += 1,
            }
        }
    }
}

/// Bytes before the quote that ends a label value.
fn quoted_length(text: &[u8]) -> Option<usize> {
    let mut at = 0;
    loop {
        match text.get(at)? {
            b'"' => return Some(at),
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
}

/// A label value without its escapes: `\\`, `\"` and `\n`. A backslash before anything else stays.
pub fn unescaped(raw: &str) -> Cow<'_, str> {
    if !raw.contains('\\') {
        return Cow::Borrowed(raw);
    }
    let mut text = String::with_capacity(raw.len());
    let mut rest = raw.chars();
    while let Some(character) = rest.next() {
        if character != '\\' {
            text.push(character);
            continue;
        }
        match rest.next() {
            Some('n') => text.push('\n'),
            Some(escaped @ ('\\' | '"')) => text.push(escaped),
            Some(other) => text.extend(['\\', other]),
            None => text.push('\\'),
        }
    }
    Cow::Owned(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_may_hold_anything_that_is_quoted() {
        for page in [
            &br#"a_series { tricky = "},\"x=\\" , other="2",} 4.5 1700000000"#[..],
            br#"a_series{tricky="},\"x=\\",other="2",} 4.5 1700000000"#,
        ] {
            let sample = samples(page).next().unwrap();
            assert_eq!(sample.name, b"a_series");
            assert_eq!(sample.label("tricky"), Some(r#"},\"x=\\"#));
            assert!(sample.label_is("tricky", r#"},"x=\"#));
            assert_eq!(sample.label("other"), Some("2"));
            assert_eq!(sample.label("x"), None);
            assert_eq!(sample.value(), Some(4.5));
        }
    }

    #[test]
    fn escapes_are_resolved() {
        assert_eq!(unescaped("plain"), "plain");
        assert_eq!(unescaped(r#"a\\n\n\"\x\"#), "a\\n\n\"\\x\\");
    }

    #[test]
    fn values_of_every_form_are_read_and_garbage_is_skipped() {
        let value = |line: &str| {
            samples(line.as_bytes())
                .next()
                .and_then(|sample| sample.value())
        };
        assert_eq!(value("a 1"), Some(1.0));
        assert_eq!(value("a\t1e3 99"), Some(1_000.0));
        assert_eq!(value("a{} -2.5"), Some(-2.5));
        assert_eq!(value("a +Inf"), Some(f64::INFINITY));
        assert!(value("a NaN").unwrap().is_nan());
        for line in [
            "a",
            "a ",
            "a x",
            "a{b=\"c\" 1",
            "a{b=\"c} 1",
            "# a 1",
            "{} ",
            "",
        ] {
            assert_eq!(value(line), None, "{line:?}");
        }
    }
}
