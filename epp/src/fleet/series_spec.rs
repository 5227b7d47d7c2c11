//! Which samples of a page carry a signal: `name` or `name{label="value",…}`, as PromQL writes it.
//!
//! Only equality can be asked for: a signal is one number of one kind of engine, not a query. Quotes
//! around values may be left out, as the field's own defaults do.

use std::fmt;
use std::str::FromStr;

use super::exposition::Sample;

/// Labels of one specification; more are refused.
const LABELS_MAX: usize = 16;

/// A series' name and the labels that its samples have to have.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SeriesSpec {
    name: Box<str>,
    labels: Vec<(Box<str>, Box<str>)>,
}

/// Why a specification was refused.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{spec:?} is no series: {reason}; write name or name{{label=\"value\"}}")]
pub struct SpecError {
    pub spec: String,
    pub reason: String,
}

impl SeriesSpec {
    /// A series of any labels.
    pub fn named(name: &str) -> Self {
        Self {
            name: name.into(),
            labels: Vec::new(),
        }
    }

    /// The same with one more label to match.
    #[must_use]
    pub fn with(mut self, label: &str, value: &str) -> Self {
        self.labels.push((label.into(), value.into()));
        self
    }

    /// Reads an optional specification; empty text is none.
    pub fn optional(text: &str) -> Result<Option<Self>, SpecError> {
        if text.trim().is_empty() {
            return Ok(None);
        }
        text.parse().map(Some)
    }

    /// Whether a sample is one of this series.
    pub fn matches(&self, sample: &Sample<'_>) -> bool {
        sample.name == self.name.as_bytes()
            && self
                .labels
                .iter()
                .all(|(label, value)| sample.label_is(label, value))
    }
}

impl fmt::Display for SeriesSpec {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.name)?;
        for (place, (label, value)) in self.labels.iter().enumerate() {
            let open = if place == 0 { '{' } else { ',' };
            write!(formatter, "{open}{label}={value:?}")?;
        }
        if self.labels.is_empty() {
            return Ok(());
        }
        formatter.write_str("}")
    }
}

impl FromStr for SeriesSpec {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        read(text.trim()).map_err(|reason| SpecError {
            spec: text.to_owned(),
            reason,
        })
    }
}

fn read(text: &str) -> Result<SeriesSpec, String> {
    let (name, selector) = match text.split_once('{') {
        Some((name, selector)) => (name.trim(), Some(selector)),
        None => (text, None),
    };
    if !is_name(name, true) {
        return Err(format!("{name:?} is no series name"));
    }
    let mut spec = SeriesSpec::named(name);
    let Some(selector) = selector else {
        return Ok(spec);
    };
    let mut rest = selector.trim_start();
    loop {
        if let Some(end) = rest.strip_prefix('}') {
            return match end.trim() {
                "" => Ok(spec),
                more => Err(format!("{more:?} stands behind the closing brace")),
            };
        }
        if spec.labels.len() == LABELS_MAX {
            return Err(format!("it has more than {LABELS_MAX} labels"));
        }
        let (label, value, after) = read_matcher(rest)?;
        spec.labels.push((label.into(), value.into_boxed_str()));
        rest = match after.strip_prefix(',') {
            Some(next) => next.trim_start(),
            None if after.starts_with('}') => after,
            None => return Err("a comma or the closing brace is missing".to_owned()),
        };
    }
}

/// Reads `label = value`, and gives back what follows it.
fn read_matcher(text: &str) -> Result<(&str, String, &str), String> {
    let equals = text
        .find('=')
        .ok_or_else(|| "a label has no value, or a brace is not closed".to_owned())?;
    let (label, rest) = text.split_at(equals);
    let label = label.trim();
    if label.ends_with('!') || rest.starts_with("=~") {
        return Err("labels can only be compared with =".to_owned());
    }
    if !is_name(label, false) {
        return Err(format!("{label:?} is no label name"));
    }
    let rest = rest.get(1..).unwrap_or_default().trim_start();
    if let Some(quoted) = rest.strip_prefix('"') {
        let (value, after) = read_quoted(quoted)?;
        return Ok((label, value, after.trim_start()));
    }
    let end = rest.find([',', '}']).unwrap_or(rest.len());
    let (value, after) = rest.split_at(end);
    let value = value.trim();
    if value.is_empty() || value.contains(['"', '\\']) {
        return Err(format!("the value of label {label} is not readable"));
    }
    Ok((label, value.to_owned(), after))
}

fn read_quoted(text: &str) -> Result<(String, &str), String> {
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return Ok((value, text.get(at + 1..).unwrap_or_default())),
            '\\' => match characters.next() {
                Some((_, 'n')) => value.push('\n'),
                Some((_, escaped)) => value.push(escaped),
                None => break,
            },
            other => value.push(other),
        }
    }
    Err("a quoted value does not end".to_owned())
}

fn is_name(name: &str, colons: bool) -> bool {
    let fits = |character: char| {
        character.is_ascii_alphanumeric() || character == '_' || (colons && character == ':')
    };
    name.chars().all(fits) && name.starts_with(|first: char| !first.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::exposition::samples;
    use super::*;

    fn read(text: &str) -> SeriesSpec {
        text.parse().unwrap()
    }

    #[test]
    fn names_and_labels_are_read_with_and_without_quotes() {
        assert_eq!(
            read(" vllm:num_requests_waiting "),
            SeriesSpec::named("vllm:num_requests_waiting")
        );
        let expected = SeriesSpec::named("nv_x")
            .with("type", "waiting")
            .with("a", "b c");
        for text in [
            r#"nv_x{type="waiting",a="b c"}"#,
            r#"nv_x { type = waiting , a = "b c" , }"#,
            "nv_x{type=waiting,a=b c}",
        ] {
            assert_eq!(read(text), expected, "{text}");
        }
        assert_eq!(read("x{}"), SeriesSpec::named("x"));
        let odd = read(r#"x{a="\"}\\,"}"#);
        assert_eq!(odd, SeriesSpec::named("x").with("a", "\"}\\,"));
        assert_eq!(read(&odd.to_string()), odd);
        assert_eq!(SeriesSpec::optional("  ").unwrap(), None);
    }

    #[test]
    fn what_is_no_series_is_refused_with_its_reason() {
        for (text, reason) in [
            ("", "no series name"),
            ("1x", "no series name"),
            ("sum(x)", "no series name"),
            ("x{a", "no value"),
            ("x{a=\"b\"", "comma"),
            ("x{a=\"b}", "does not end"),
            ("x{a!=\"b\"}", "only be compared"),
            ("x{a=~\"b\"}", "only be compared"),
            ("x{a=}", "not readable"),
            ("x{a=\"b\"} > 1", "behind the closing brace"),
            ("x{a-b=\"c\"}", "no label name"),
        ] {
            let message = text.parse::<SeriesSpec>().unwrap_err().to_string();
            assert!(message.contains(reason), "{text}: {message}");
        }
        let many = format!("x{{{}}}", "a=b,".repeat(LABELS_MAX + 1));
        assert!(many.parse::<SeriesSpec>().is_err());
    }

    #[test]
    fn samples_match_by_name_and_by_every_label() {
        let page = b"x{type=\"waiting\",model=\"m\"} 1\nx{type=\"other\"} 2\ny 3\n";
        let matching = |text: &str| {
            let spec = read(text);
            samples(page).filter(|sample| spec.matches(sample)).count()
        };
        assert_eq!(matching("x"), 2);
        assert_eq!(matching("x{type=waiting}"), 1);
        assert_eq!(matching("x{type=waiting,model=n}"), 0);
        assert_eq!(matching("y{type=waiting}"), 0);
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "[a-z{}=\"\\\\,!~ é]{0,24}") {
            if let Ok(spec) = text.parse::<SeriesSpec>() {
                prop_assert_eq!(spec.to_string().parse::<SeriesSpec>().unwrap(), spec);
            }
        }
    }
}
