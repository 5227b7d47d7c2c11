//! Reads a page of Prometheus text: enough to ask for one series by name and labels, strict enough to fail on a page
//! that is none.
//!
//! It is written apart from epp's scanner on purpose: a test that read the worker's page with the product's own parser
//! would share its mistakes.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use anyhow::{Context, Result, bail, ensure};

use crate::client::Client;

/// One line of the page that holds a value.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    pub name: String,
    pub labels: BTreeMap<String, String>,
    pub value: f64,
}

/// A page, in its order.
#[derive(Clone, Debug, Default)]
pub struct Exposition {
    pub samples: Vec<Sample>,
    /// The `# TYPE` of each family.
    pub types: BTreeMap<String, String>,
}

impl Exposition {
    /// Fetches `/metrics`.
    pub async fn scrape(address: SocketAddr) -> Result<Self> {
        let response = Client::http1(address).get("/metrics").send().await?;
        ensure!(
            response.status == 200,
            "/metrics answered {}",
            response.status
        );
        Self::parse(&response.text().await?)
    }

    /// # Errors
    /// Names the first line that is neither comment, sample nor empty.
    pub fn parse(page: &str) -> Result<Self> {
        let mut exposition = Self::default();
        for line in page.lines().filter(|line| !line.trim().is_empty()) {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').context("TYPE without a type")?;
                exposition.types.insert(name.to_owned(), kind.to_owned());
            } else if !line.starts_with('#') {
                let sample = parse_sample(line).with_context(|| format!("line {line:?}"))?;
                exposition.samples.push(sample);
            }
        }
        Ok(exposition)
    }

    /// The sum over all series of this name that carry these labels; `None` when there is none.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let wanted = |sample: &&Sample| {
            let has = |(key, value): &(&str, &str)| {
                sample.labels.get(*key).is_some_and(|found| found == value)
            };
            sample.name == name && labels.iter().all(has)
        };
        let mut found = self
            .samples
            .iter()
            .filter(wanted)
            .map(|sample| sample.value)
            .peekable();
        found.peek()?;
        Some(found.sum())
    }

    /// The same of what only takes whole values, such as a counter of requests.
    pub fn count(&self, name: &str, labels: &[(&str, &str)]) -> Option<u64> {
        self.sum(name, labels).map(|sum| sum.round() as u64)
    }
}

fn parse_sample(line: &str) -> Result<Sample> {
    let name_end = line.find(['{', ' ']).context("no value")?;
    let (name, mut rest) = line.split_at(name_end);
    let mut labels = BTreeMap::new();
    if let Some(after) = rest.strip_prefix('{') {
        rest = after;
        while !rest.starts_with('}') {
            let (key, after) = rest.split_once("=\"").context("label without a value")?;
            let (value, after) = take_quoted(after)?;
            labels.insert(key.to_owned(), value);
            rest = after.strip_prefix(',').unwrap_or(after);
        }
        rest = &rest[1..];
    }
    let value = rest.split_whitespace().next().context("no value")?;
    Ok(Sample {
        name: name.to_owned(),
        labels,
        value: value.parse()?,
    })
}

/// Reads to the closing quote, undoing the three escapes of the format.
fn take_quoted(text: &str) -> Result<(String, &str)> {
    let mut value = String::new();
    let mut letters = text.char_indices();
    while let Some((position, letter)) = letters.next() {
        match letter {
            '"' => return Ok((value, &text[position + 1..])),
            '\\' => match letters.next() {
                Some((_, 'n')) => value.push('\n'),
                Some((_, escaped @ ('\\' | '"'))) => value.push(escaped),
                other => bail!("escape {other:?}"),
            },
            letter => value.push(letter),
        }
    }
    bail!("label value without an end")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_read_whole() {
        let page = "# HELP a text\n# TYPE a gauge\na{x=\"1\",y=\"q\\\"\\n\"} 2.5\na{x=\"2\"} 1e3\n\nb 7 1700\n";
        let exposition = Exposition::parse(page).unwrap();
        assert_eq!(exposition.types["a"], "gauge");
        assert_eq!(exposition.samples[0].labels["y"], "q\"\n");
        assert_eq!(exposition.sum("a", &[]), Some(1002.5));
        assert_eq!(exposition.sum("a", &[("x", "2")]), Some(1000.0));
        assert_eq!(exposition.sum("a", &[("x", "3")]), None);
        assert_eq!(exposition.sum("b", &[]), Some(7.0));
    }

    #[test]
    fn what_is_no_sample_is_refused() {
        for page in ["a", "a{x=\"1} 2", "a{x} 2", "a b"] {
            assert!(Exposition::parse(page).is_err(), "{page}");
        }
    }
}
