//! Series whose labels are only known when something is recorded: found by their label values,
//! made on first use, and bounded.
//!
//! A series is looked up by a 128-bit hash of its label values, so that recording builds no string.
//! Values that clients choose (model names, fairness ids) go through [`Names`] first, which admits
//! so many different ones for the life of the process and calls the rest `other`.

use std::sync::Arc;

use dashmap::DashMap;
use parking_lot::{Mutex, RwLock};
use rustc_hash::FxBuildHasher;
use smallvec::SmallVec;
use xxhash_rust::xxh3::xxh3_128;

use super::exposition::{Labels, Page, Sample};
use super::family::Family;

/// The label value past a bound.
pub const OTHER: &str = "other";

/// A label value longer than this is cut: a client may send any name.
pub const LABEL_BYTES_MAX: usize = 256;

/// The label values admitted so far.
#[derive(Debug)]
pub struct Names {
    admitted: DashMap<Box<str>, (), FxBuildHasher>,
    count: Mutex<usize>,
    max: usize,
}

impl Names {
    /// Admits `max` different values; those after it are `other`.
    pub fn new(max: usize) -> Self {
        Self {
            admitted: DashMap::default(),
            count: Mutex::new(0),
            max,
        }
    }

    /// The value itself, or `other`. The empty value is always admitted.
    pub fn admit<'a>(&self, value: &'a str) -> &'a str {
        let value = cut(value);
        if value.is_empty() || self.admitted.contains_key(value) {
            return value;
        }
        let mut count = self.count.lock();
        if self.admitted.contains_key(value) {
            return value;
        }
        if *count >= self.max {
            return OTHER;
        }
        *count += 1;
        self.admitted.insert(Box::from(value), ());
        value
    }
}

/// The first [`LABEL_BYTES_MAX`] bytes, to a whole letter.
fn cut(value: &str) -> &str {
    value
        .get(..value.floor_char_boundary(LABEL_BYTES_MAX))
        .unwrap_or(value)
}

/// One series and what it measures.
#[derive(Debug)]
pub struct Series<C> {
    pub labels: Labels,
    pub cell: C,
}

impl<C> std::ops::Deref for Series<C> {
    type Target = C;

    fn deref(&self) -> &C {
        &self.cell
    }
}

/// Makes the cell of a series from its place among all and its labels.
type Make<C> = Box<dyn Fn(usize, &Labels) -> C + Send + Sync>;

/// The series of one set of labels, in the order in which they appeared.
pub struct Group<C> {
    names: &'static [&'static str],
    make: Make<C>,
    max: usize,
    found: DashMap<u128, Arc<Series<C>>, FxBuildHasher>,
    listed: RwLock<Vec<Arc<Series<C>>>>,
}

impl<C> std::fmt::Debug for Group<C> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Group")
            .field("names", &self.names)
            .field("series", &self.found.len())
            .finish_non_exhaustive()
    }
}

impl<C> Group<C> {
    /// Keeps `max` series; label values that come after share one whose values are all `other`.
    pub fn new(
        names: &'static [&'static str],
        max: usize,
        make: impl Fn() -> C + Send + Sync + 'static,
    ) -> Self {
        Self::numbered(names, max, move |_, _| make())
    }

    /// The same, for cells that depend on the place of their series and on its labels.
    pub fn numbered(
        names: &'static [&'static str],
        max: usize,
        make: impl Fn(usize, &Labels) -> C + Send + Sync + 'static,
    ) -> Self {
        Self {
            names,
            make: Box::new(make),
            max,
            found: DashMap::default(),
            listed: RwLock::default(),
        }
    }

    /// The series of these values, if there is one.
    pub fn find(&self, values: &[&str]) -> Option<Arc<Series<C>>> {
        self.found
            .get(&key(values))
            .map(|series| Arc::clone(&series))
    }

    /// The series of these values, which is made if need be.
    pub fn with(&self, values: &[&str]) -> Arc<Series<C>> {
        if let Some(series) = self.find(values) {
            return series;
        }
        let others: SmallVec<[&str; 8]> = values.iter().map(|_| OTHER).collect();
        let is_full = |listed: &[_]| listed.len() >= self.max;
        if is_full(&self.listed.read())
            && let Some(series) = self.find(&others)
        {
            return series;
        }
        let mut listed = self.listed.write();
        let values = if is_full(&listed) {
            others.as_slice()
        } else {
            values
        };
        // Another thread may have made it while this one waited.
        if let Some(series) = self.find(values) {
            return series;
        }
        let labels = Labels::new(self.names, values);
        let cell = (self.make)(listed.len(), &labels);
        let series = Arc::new(Series { labels, cell });
        listed.push(Arc::clone(&series));
        self.found.insert(key(values), Arc::clone(&series));
        series
    }

    /// All series now.
    pub fn all(&self) -> Vec<Arc<Series<C>>> {
        self.listed.read().clone()
    }

    /// Writes a family whose values are read from each cell; `None` leaves a series out.
    pub fn write(
        &self,
        family: &Family,
        page: &mut Page,
        value: impl for<'a> Fn(&'a C) -> Option<Sample<'a>> + Copy,
    ) {
        let all = self.all();
        let series = all
            .iter()
            .filter_map(|series| Some((&series.labels, value(&series.cell)?)));
        page.write(family, series);
    }
}

/// Values are told apart also where their ends meet: each is followed by a byte that no text holds.
fn key(values: &[&str]) -> u128 {
    let mut bytes: SmallVec<[u8; 256]> = SmallVec::new();
    for value in values {
        bytes.extend_from_slice(value.as_bytes());
        bytes.push(0xff);
    }
    xxh3_128(&bytes)
}

#[cfg(test)]
mod tests {
    use super::super::cells::Counter;
    use super::*;

    #[test]
    fn past_the_bound_series_share_one() {
        let group = Group::new(&["a", "b"], 2, Counter::default);
        for values in [["x", "y"], ["xy", ""], ["p", "q"], ["r", "s"], ["x", "y"]] {
            group.with(&values).cell.increment(1);
        }
        let mut page = Page::new();
        let family = Family::counter("c", &["a", "b"], "C.");
        group.write(&family, &mut page, |counter| {
            Some(Sample::Count(counter.get()))
        });
        let lines: Vec<&str> = page.text().lines().skip(2).collect();
        assert_eq!(
            lines,
            [
                "c{a=\"x\",b=\"y\"} 2",
                "c{a=\"xy\",b=\"\"} 1",
                "c{a=\"other\",b=\"other\"} 2"
            ]
        );
    }

    #[test]
    fn names_past_the_bound_are_other_for_good() {
        let names = Names::new(2);
        assert_eq!(
            ["a", "b", "c", "a", ""].map(|name| names.admit(name)),
            ["a", "b", OTHER, "a", ""]
        );
    }

    #[test]
    fn long_names_are_cut_at_a_letter() {
        let long = "é".repeat(LABEL_BYTES_MAX);
        assert_eq!(cut(&long).len(), LABEL_BYTES_MAX);
        let odd = format!("x{long}");
        assert_eq!(cut(&odd).len(), LABEL_BYTES_MAX - 1);
    }
}
