//! Writes a page of Prometheus' text format.
//!
//! A family is written whole under one heading, which stands there also while the family has no
//! series yet: who looks for a name finds it with its help. Label text is made once, when a series
//! is, so that a page is mostly copying.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::cells::Histogram;
use super::family::{Family, Kind, Legacy, Merge};

/// The label values of one series, in the order of its family's labels.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Labels {
    values: Box<[Box<str>]>,
    /// As on the page, without braces.
    text: Box<str>,
}

impl Labels {
    /// `values` in the order of `names`.
    pub fn new(names: &[&str], values: &[&str]) -> Self {
        let mut text = String::new();
        for (name, value) in names.iter().zip(values) {
            push_label(&mut text, name, value);
        }
        Self {
            values: values.iter().map(|value| Box::from(*value)).collect(),
            text: text.into(),
        }
    }

    /// These labels and one more behind them.
    #[must_use]
    pub fn with(&self, name: &str, value: &str) -> Self {
        let mut text = self.text.to_string();
        push_label(&mut text, name, value);
        let more = std::iter::once(Box::from(value));
        Self {
            values: self.values.iter().cloned().chain(more).collect(),
            text: text.into(),
        }
    }

    /// The first value; empty where there are none.
    pub fn first(&self) -> &str {
        self.value(0)
    }

    fn value(&self, position: usize) -> &str {
        self.values.get(position).map_or("", |value| value)
    }

    /// The values for an earlier name of the family, as text.
    fn projected(&self, family: &Family, legacy: &Legacy) -> String {
        let mut text = String::new();
        for (theirs, ours) in legacy.labels {
            let position = family.labels.iter().position(|label| label == ours);
            push_label(&mut text, theirs, position.map_or("", |at| self.value(at)));
        }
        text
    }
}

/// A value to be written.
#[derive(Clone, Copy, Debug)]
pub enum Sample<'a> {
    Count(u64),
    Number(f64),
    Histogram(&'a Histogram),
}

/// A page that is being written.
#[derive(Debug, Default)]
pub struct Page {
    text: String,
}

impl Page {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn text(&self) -> &str {
        &self.text
    }

    pub fn into_text(self) -> String {
        self.text
    }

    /// Writes a family and its earlier names. A family may be written once a page.
    #[expect(
        clippy::needless_pass_by_value,
        reason = "callers build the iterator in place"
    )]
    pub fn write<'a>(
        &mut self,
        family: &Family,
        series: impl Iterator<Item = (&'a Labels, Sample<'a>)> + Clone,
    ) {
        self.heading(family.kind, family.name, family.help);
        let bounds = bound_texts(family);
        for (labels, sample) in series.clone() {
            self.sample(family.name, &labels.text, sample, &bounds);
        }
        for legacy in family.legacy {
            self.write_legacy(family, legacy, series.clone(), &bounds);
        }
    }

    /// Writes a family of one value, whose name and help are only known where it is read.
    pub fn value(&mut self, kind: Kind, name: &str, help: &str, value: u64) {
        self.heading(kind, name, help);
        self.line(name, "", value);
    }

    /// Writes a family without labels.
    pub fn single(&mut self, family: &Family, sample: Sample<'_>) {
        let none = Labels::default();
        self.write(family, std::iter::once((&none, sample)));
    }

    /// Sums over the labels that the earlier name lacks.
    fn write_legacy<'a>(
        &mut self,
        family: &Family,
        legacy: &Legacy,
        series: impl Iterator<Item = (&'a Labels, Sample<'a>)>,
        bounds: &[String],
    ) {
        self.heading(family.kind, legacy.name, family.help);
        let mut same = legacy.labels.iter().zip(family.labels);
        let is_same = legacy.labels.len() == family.labels.len()
            && same.all(|((theirs, ours), label)| theirs == label && ours == label);
        if is_same {
            for (labels, sample) in series {
                self.sample(legacy.name, &labels.text, sample, bounds);
            }
            return;
        }
        let mut totals: BTreeMap<String, Total> = BTreeMap::new();
        for (labels, sample) in series {
            let projected = labels.projected(family, legacy);
            let total = totals.entry(projected).or_default();
            match (legacy.merge, sample) {
                (Merge::Largest, Sample::Number(number)) => total.sum = total.sum.max(number),
                _ => total.add(sample),
            }
        }
        for (labels, total) in &totals {
            if family.kind == Kind::Histogram {
                self.buckets(legacy.name, labels, &total.counts, total.sum, bounds);
            } else {
                self.line(legacy.name, labels, total.sum);
            }
        }
    }

    fn sample(&mut self, name: &str, labels: &str, sample: Sample<'_>, bounds: &[String]) {
        match sample {
            Sample::Count(count) => self.line(name, labels, count),
            Sample::Number(number) => self.line(name, labels, number),
            Sample::Histogram(histogram) => {
                let mut total = Total::default();
                total.add(sample);
                debug_assert_eq!(histogram.bounds().len() + 1, bounds.len());
                self.buckets(name, labels, &total.counts, total.sum, bounds);
            }
        }
    }

    fn buckets(&mut self, name: &str, labels: &str, counts: &[u64], sum: f64, bounds: &[String]) {
        let comma = if labels.is_empty() { "" } else { "," };
        let mut below = 0;
        for (count, bound) in counts.iter().zip(bounds) {
            below += count;
            for part in [name, "_bucket{", labels, comma, bound] {
                self.text.push_str(part);
            }
            push_count(&mut self.text, below);
            self.text.push('\n');
        }
        for (suffix, value) in [("_sum", sum), ("_count", below as f64)] {
            self.text.push_str(name);
            self.line(suffix, labels, value);
        }
    }

    fn line(&mut self, name: &str, labels: &str, value: impl std::fmt::Display) {
        let (open, close) = if labels.is_empty() {
            ("", "")
        } else {
            ("{", "}")
        };
        // Writing to a string cannot fail.
        let _ = writeln!(self.text, "{name}{open}{labels}{close} {value}");
    }

    fn heading(&mut self, kind: Kind, name: &str, help: &str) {
        let kind = kind.name();
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }
}

/// A sum over series.
#[derive(Default)]
struct Total {
    /// Of a histogram's buckets.
    counts: Vec<u64>,
    sum: f64,
}

impl Total {
    fn add(&mut self, sample: Sample<'_>) {
        match sample {
            Sample::Count(count) => self.sum += count as f64,
            Sample::Number(number) => self.sum += number,
            Sample::Histogram(histogram) => histogram.add_to(&mut self.counts, &mut self.sum),
        }
    }
}

/// The end of each bucket's labels, the last for all values.
fn bound_texts(family: &Family) -> Vec<String> {
    if family.kind != Kind::Histogram {
        return Vec::new();
    }
    let bounds = family
        .buckets
        .iter()
        .map(|bound| format!("le=\"{bound}\"}} "));
    bounds.chain(["le=\"+Inf\"} ".to_owned()]).collect()
}

fn push_label(text: &mut String, name: &str, value: &str) {
    if !text.is_empty() {
        text.push(',');
    }
    text.push_str(name);
    text.push_str("=\"");
    for letter in value.chars() {
        match letter {
            '\\' => text.push_str("\\\\"),
            '"' => text.push_str("\\\""),
            '\n' => text.push_str("\\n"),
            letter => text.push(letter),
        }
    }
    text.push('"');
}

/// Counts are most of a page; this is several times faster than a format.
fn push_count(text: &mut String, count: u64) {
    let mut digits = [0_u8; 20];
    let mut rest = count;
    let mut from = digits.len();
    for (position, digit) in digits.iter_mut().enumerate().rev() {
        *digit = b'0' + (rest % 10) as u8;
        rest /= 10;
        from = position;
        if rest == 0 {
            break;
        }
    }
    let written = digits.get(from..).unwrap_or_default();
    text.extend(written.iter().map(|digit| char::from(*digit)));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::family::was;
    use super::*;

    const SECONDS: Family = Family::histogram("s", &["a", "b"], &[0.5, 1.0], "Time.").also(&[
        was("old_s", &[("alpha", "a")]),
        was("same_s", &[("a", "a"), ("b", "b")]),
    ]);

    #[test]
    fn an_earlier_name_sums_over_the_labels_that_it_lacks() {
        let (one, two) = (Histogram::new(&[0.5, 1.0]), Histogram::new(&[0.5, 1.0]));
        one.record(0.25);
        two.record(0.75);
        two.record(2.0);
        let labels = [
            Labels::new(SECONDS.labels, &["x", "1"]),
            Labels::new(SECONDS.labels, &["x", "2"]),
        ];
        let samples = [Sample::Histogram(&one), Sample::Histogram(&two)];
        let mut page = Page::new();
        page.write(&SECONDS, labels.iter().zip(samples));
        let text = page.text();
        let old = text.split("# HELP ").nth(2).unwrap();
        assert_eq!(
            old,
            "old_s Time.\n# TYPE old_s histogram\n\
             old_s_bucket{alpha=\"x\",le=\"0.5\"} 1\n\
             old_s_bucket{alpha=\"x\",le=\"1\"} 2\n\
             old_s_bucket{alpha=\"x\",le=\"+Inf\"} 3\n\
             old_s_sum{alpha=\"x\"} 3\nold_s_count{alpha=\"x\"} 3\n"
        );
        assert!(text.contains("same_s_bucket{a=\"x\",b=\"2\",le=\"+Inf\"} 2\n"));
    }

    #[test]
    fn label_values_cannot_leave_their_quotes() {
        let labels = Labels::new(&["a"], &["\"} 1\nx{\\"]);
        let mut page = Page::new();
        let family = Family::gauge("g", &["a"], "G.");
        page.write(&family, std::iter::once((&labels, Sample::Number(1.5))));
        assert!(page.text().ends_with("g{a=\"\\\"} 1\\nx{\\\\\"} 1.5\n"));
    }

    proptest! {
        #[test]
        fn counts_read_as_numbers_do(count: u64) {
            let mut text = String::new();
            push_count(&mut text, count);
            prop_assert_eq!(text, count.to_string());
        }
    }
}
