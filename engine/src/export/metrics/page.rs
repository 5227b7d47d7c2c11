//! The page's text: families of series in the order in which they were registered.
//!
//! Everything of a line but its number is written once, at registration. A scrape then copies text and prints
//! numbers, which takes tens of microseconds, and takes no lock that the engine thread ever waits for.
//!
//! Bounds are written as Prometheus' Python client writes them (`1.0`, `1e+06`), because a query that adds buckets up
//! over workers of several kinds matches the text of `le`, not its value.

use std::fmt::Write;

use super::cells::{Counter, Gauge, Histogram, Summary};

/// All families. Series are only ever added.
#[derive(Debug, Default)]
pub(super) struct Page {
    families: Vec<Family>,
}

#[derive(Debug)]
struct Family {
    name: &'static str,
    /// The HELP and TYPE lines.
    head: String,
    series: Vec<Series>,
}

#[derive(Debug)]
struct Series {
    labels: String,
    /// Each line up to its number.
    lines: Vec<String>,
    cell: Cell,
}

#[derive(Debug)]
enum Cell {
    Counter(Counter),
    Gauge(Gauge),
    Histogram(Histogram),
    Summary(Summary),
}

/// The labels of a series as they are written, without braces.
#[derive(Clone, Debug, Default)]
pub(super) struct Labels(String);

impl Labels {
    /// These and one more.
    pub(super) fn and(&self, name: &str, value: impl std::fmt::Display) -> Self {
        let mut text = self.0.clone();
        if !text.is_empty() {
            text.push(',');
        }
        text.push_str(name);
        text.push_str("=\"");
        for c in value.to_string().chars() {
            match c {
                '\\' => text.push_str("\\\\"),
                '"' => text.push_str("\\\""),
                '\n' => text.push_str("\\n"),
                c => text.push(c),
            }
        }
        text.push('"');
        Self(text)
    }

    /// In braces; nothing where there are no labels.
    fn braced(&self) -> String {
        if self.0.is_empty() {
            String::new()
        } else {
            format!("{{{}}}", self.0)
        }
    }
}

impl Page {
    /// The counter of these labels; a new one where the page has none yet. So for the other kinds.
    pub(super) fn counter(&mut self, name: &'static str, help: &str, labels: &Labels) -> Counter {
        let family = self.family(name, "counter", help);
        if let Some(Cell::Counter(known)) = family.find(labels) {
            return known.clone();
        }
        let cell = Counter::default();
        family.add_line(labels, Cell::Counter(cell.clone()));
        cell
    }

    pub(super) fn gauge(&mut self, name: &'static str, help: &str, labels: &Labels) -> Gauge {
        let family = self.family(name, "gauge", help);
        if let Some(Cell::Gauge(known)) = family.find(labels) {
            return known.clone();
        }
        let cell = Gauge::default();
        family.add_line(labels, Cell::Gauge(cell.clone()));
        cell
    }

    pub(super) fn histogram(
        &mut self,
        name: &'static str,
        help: &str,
        labels: &Labels,
        bounds: &[f64],
    ) -> Histogram {
        let cell = Histogram::new(bounds);
        self.put_histogram(name, help, labels, bounds, &cell);
        cell
    }

    /// Shows a histogram under a further name.
    pub(super) fn put_histogram(
        &mut self,
        name: &'static str,
        help: &str,
        labels: &Labels,
        bounds: &[f64],
        cell: &Histogram,
    ) {
        let family = self.family(name, "histogram", help);
        let bounds = bounds.iter().map(|bound| python_float(*bound));
        let mut lines: Vec<String> = bounds
            .chain(["+Inf".to_owned()])
            .map(|le| format!("{name}_bucket{} ", labels.and("le", le).braced()))
            .collect();
        lines.push(format!("{name}_count{} ", labels.braced()));
        lines.push(format!("{name}_sum{} ", labels.braced()));
        family.add(labels, lines, Cell::Histogram(cell.clone()));
    }

    pub(super) fn summary(&mut self, name: &'static str, help: &str, labels: &Labels) -> Summary {
        let family = self.family(name, "summary", help);
        if let Some(Cell::Summary(known)) = family.find(labels) {
            return known.clone();
        }
        let cell = Summary::default();
        let lines = ["count", "sum"].map(|part| format!("{name}_{part}{} ", labels.braced()));
        family.add(labels, lines.to_vec(), Cell::Summary(cell.clone()));
        cell
    }

    /// Shows a gauge under a further name.
    pub(super) fn put_gauge(
        &mut self,
        name: &'static str,
        help: &str,
        labels: &Labels,
        cell: &Gauge,
    ) {
        let family = self.family(name, "gauge", help);
        family.add_line(labels, Cell::Gauge(cell.clone()));
    }

    /// Shows a counter under a further name.
    pub(super) fn put_counter(
        &mut self,
        name: &'static str,
        help: &str,
        labels: &Labels,
        cell: &Counter,
    ) {
        let family = self.family(name, "counter", help);
        family.add_line(labels, Cell::Counter(cell.clone()));
    }

    /// Appends the page to `out`.
    pub(super) fn render(&self, out: &mut String) {
        for family in &self.families {
            out.push_str(&family.head);
            for series in &family.series {
                series.render(out);
            }
        }
    }

    fn family(&mut self, name: &'static str, kind: &str, help: &str) -> &mut Family {
        let known = self.families.iter().position(|family| family.name == name);
        let index = known.unwrap_or_else(|| {
            self.families.push(Family {
                name,
                head: format!("# HELP {name} {help}\n# TYPE {name} {kind}\n"),
                series: Vec::new(),
            });
            self.families.len() - 1
        });
        &mut self.families[index]
    }
}

impl Family {
    fn find(&self, labels: &Labels) -> Option<&Cell> {
        let mut series = self.series.iter();
        let known = series.find(|series| series.labels == labels.0)?;
        Some(&known.cell)
    }

    fn add_line(&mut self, labels: &Labels, cell: Cell) {
        let line = format!("{}{} ", self.name, labels.braced());
        self.add(labels, vec![line], cell);
    }

    fn add(&mut self, labels: &Labels, lines: Vec<String>, cell: Cell) {
        self.series.push(Series {
            labels: labels.0.clone(),
            lines,
            cell,
        });
    }
}

impl Series {
    fn render(&self, out: &mut String) {
        let mut lines = self.lines.iter();
        // Writing to a string does not fail.
        let mut line = |number: Number| {
            out.push_str(lines.next().map_or("", String::as_str));
            let _ = match number {
                Number::Whole(value) => writeln!(out, "{value}"),
                Number::Real(value) => writeln!(out, "{value}"),
            };
        };
        match &self.cell {
            Cell::Counter(counter) => line(Number::Whole(counter.get())),
            Cell::Gauge(gauge) => line(Number::Real(gauge.get())),
            Cell::Histogram(histogram) => {
                let mut count = 0;
                for samples in histogram.cumulative() {
                    count = samples;
                    line(Number::Whole(samples));
                }
                line(Number::Whole(count));
                line(Number::Real(histogram.sum()));
            }
            Cell::Summary(summary) => {
                line(Number::Whole(summary.count()));
                line(Number::Real(summary.sum()));
            }
        }
    }
}

#[derive(Clone, Copy)]
enum Number {
    Whole(u64),
    Real(f64),
}

/// A bound as Prometheus' Python client writes it: never without a point, and from a million on with an exponent.
fn python_float(value: f64) -> String {
    let text = format!("{value:?}");
    let Some(point) = text.find('.').filter(|point| *point > 6) else {
        return text;
    };
    let digits = format!("{}{}", &text[1..point], &text[point + 1..]);
    let digits = digits.trim_end_matches('0');
    let point_of = if digits.is_empty() { "" } else { "." };
    format!("{}{point_of}{digits}e+{:02}", &text[..1], point - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_written_as_python_writes_them() {
        for (value, text) in [
            (0.001, "0.001"),
            (1.0, "1.0"),
            (2.5, "2.5"),
            (16384.0, "16384.0"),
            (200_000.0, "200000.0"),
            (1_000_000.0, "1e+06"),
            (2_500_000.0, "2.5e+06"),
        ] {
            assert_eq!(python_float(value), text);
        }
    }

    #[test]
    fn label_values_are_escaped() {
        let labels = Labels::default().and("a", "x\"y\\z\n").and("b", 1);
        assert_eq!(labels.braced(), "{a=\"x\\\"y\\\\z\\n\",b=\"1\"}");
        assert_eq!(Labels::default().braced(), "");
    }

    #[test]
    fn equal_labels_are_one_series() {
        let mut page = Page::default();
        let labels = Labels::default().and("a", 1);
        page.counter("c", "Help.", &labels).increment(1);
        page.counter("c", "Help.", &labels).increment(1);
        let mut text = String::new();
        page.render(&mut text);
        assert_eq!(text, "# HELP c Help.\n# TYPE c counter\nc{a=\"1\"} 2\n");
    }
}
