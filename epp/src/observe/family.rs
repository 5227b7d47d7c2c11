//! What a family of series is: its name, kind, help, labels and buckets, and the names that earlier
//! releases of the field gave to the same measurement.
//!
//! A value is recorded once. Earlier names are written to the page from the same cells, with their
//! own label sets: a label that they lack is summed over, one that they call otherwise is renamed.

/// The kind of a family, as the text format names it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    Counter,
    Gauge,
    Histogram,
}

impl Kind {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// An earlier name of a family.
#[derive(Clone, Copy, Debug)]
pub struct Legacy {
    pub name: &'static str,
    /// Its labels, each with the present label that it is read from.
    pub labels: &'static [(&'static str, &'static str)],
    /// How values that fall together become one.
    pub merge: Merge,
}

/// How values that fall together under an earlier name become one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Merge {
    Sum,
    /// For measurements that make no sense added up.
    Largest,
}

/// A family of series.
#[derive(Clone, Copy, Debug)]
pub struct Family {
    pub name: &'static str,
    pub kind: Kind,
    pub help: &'static str,
    pub labels: &'static [&'static str],
    /// Upper bounds of a histogram's buckets; empty for other kinds.
    pub buckets: &'static [f64],
    pub legacy: &'static [Legacy],
}

impl Family {
    pub const fn counter(
        name: &'static str,
        labels: &'static [&'static str],
        help: &'static str,
    ) -> Self {
        Self {
            name,
            kind: Kind::Counter,
            help,
            labels,
            buckets: &[],
            legacy: &[],
        }
    }

    pub const fn gauge(
        name: &'static str,
        labels: &'static [&'static str],
        help: &'static str,
    ) -> Self {
        Self {
            kind: Kind::Gauge,
            ..Self::counter(name, labels, help)
        }
    }

    pub const fn histogram(
        name: &'static str,
        labels: &'static [&'static str],
        buckets: &'static [f64],
        help: &'static str,
    ) -> Self {
        Self {
            kind: Kind::Histogram,
            buckets,
            ..Self::counter(name, labels, help)
        }
    }

    /// The same family under earlier names, too.
    #[must_use]
    pub const fn also(self, legacy: &'static [Legacy]) -> Self {
        Self { legacy, ..self }
    }
}

/// An earlier name with these labels.
pub const fn was(name: &'static str, labels: &'static [(&'static str, &'static str)]) -> Legacy {
    Legacy {
        name,
        labels,
        merge: Merge::Sum,
    }
}
